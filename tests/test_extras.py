"""A claim that needs PyTorch is checked where SELFREWARD_TEST_TORCH is set, or the run fails."""

import os
import re
import subprocess
import sys

import pytest

from tests import tiny

MARKED = """
import pytest

@pytest.mark.torch("no_such_package")
def test_missing():
    import no_such_package

@pytest.mark.torch("json")
def test_given_up():
    pytest.skip("another version is wanted")

@pytest.mark.torch("json")
def test_there():
    import json

def test_of_no_package():
    pytest.skip("no such disk")
"""
MISSING = 'import pytest\npytestmark = pytest.mark.torch("no_such_package")\npytest.importorskip("no_such_package")\n'
UNMARKED = "def test_of_no_package():\n    pass\n"


def outcomes(folder, text: str, *words: str, required: str) -> tuple[int, dict[str, int]]:
    """pytest's exit status, and how many of each outcome it counted."""
    (folder / "test_made.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.extras", "-c", os.devnull, f"--rootdir={folder}", *words]
    env = os.environ | {"SELFREWARD_TEST_TORCH": required, "PYTHONPATH": str(tiny.ROOT)}
    ended = subprocess.run([*command, str(folder)], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    last = ended.stdout.splitlines()[-1]
    return ended.returncode, {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}


@pytest.mark.parametrize(
    ("text", "words", "without", "required"),
    [
        (MARKED, (), (0, {"passed": 1, "skipped": 3}), (1, {"failed": 2, "passed": 1, "skipped": 1})),
        (MARKED, ("-m", "torch"), (0, {"passed": 1, "skipped": 2}), (1, {"failed": 2, "passed": 1})),
        (MISSING, ("-m", "torch"), (5, {"skipped": 1}), (2, {"error": 1})),
        (UNMARKED, ("-m", "torch"), (5, {}), (5, {})),
    ],
    ids=["marked", "only marked", "missing at import", "nothing marked"],
)
def test_what_is_marked_may_be_skipped_only_where_pytorch_was_not_asked_for(text, words, without, required, tmp_path):
    assert outcomes(tmp_path, text, *words, required="") == without
    assert outcomes(tmp_path, text, *words, required="1") == required


def test_packages_that_may_be_missing_are_named_by_the_marker():
    """A test that skips itself where an import fails is in no branch's list."""
    found = [p for p in tiny.ROOT.glob("tests/**/*.py") if p.name != "test_extras.py"]
    skipping = [p for p in found if "importorskip" in p.read_text()]
    assert all("pytestmark = pytest.mark.torch(" in p.read_text() for p in skipping), skipping
