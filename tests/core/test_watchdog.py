"""How the processes of a program that says nothing of its end come to it."""

import sys

import pytest

from selfreward_jax.core.watchdog import LOST
from tests.processes import together


@pytest.mark.slow
@pytest.mark.parametrize("fails", [None, 0, 1])
def test_two_processes_end_together_though_neither_says_that_it_does(fails):
    status = 0 if fails is None else [1 if n == fails else LOST for n in range(2)]
    ended = together([sys.executable, "-m", "tests.core.on_leaving", str(fails)], status=status)
    said = [process.stderr for process in ended]
    if fails is None:
        assert not any("selfreward:" in words for words in said)
    else:
        assert "RuntimeError: on purpose" in said[fails]
        assert f"process {fails} gave up (RuntimeError: on purpose); start all" in said[1 - fails]
