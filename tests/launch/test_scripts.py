"""What holds for every script: shellcheck finds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

SCRIPTS = sorted(p for kind in ("*.sh", "*.sbatch") for p in (tiny.ROOT / "launch").rglob(kind))


@pytest.mark.parametrize("path", [*SCRIPTS, tiny.ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    found = subprocess.run(
        [str(shellcheck), "-x", str(path)], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout
