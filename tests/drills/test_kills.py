"""Ten kills at random moments, of the drill that `make drill` does hundreds of."""

import subprocess
import sys

import pytest

from tests import tiny

pytestmark = pytest.mark.slow


def test_a_run_killed_ten_times_ends_like_one_that_never_was(tmp_path):
    words = ["-m", "tests.drills.kills", "--kills=10", f"--seed={tiny.SEED}", f"--folder={tmp_path / 'drill'}"]
    ended = subprocess.run([sys.executable, *words], cwd=tiny.ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "10 kills in" in ended.stdout
