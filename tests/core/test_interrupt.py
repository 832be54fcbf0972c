"""The first signal is a request, and is answered; the second ends the process."""

import signal
import subprocess
import sys

import pytest

from selfreward_jax.core.interrupt import ASKED, Interrupt
from tests import tiny

PROGRAM = """
import signal, sys
from selfreward_jax.core.interrupt import Interrupt, on_signals
interrupt = Interrupt()
with on_signals(interrupt):
    for word in sys.argv[1:]:
        signal.raise_signal(int(word))
        print("asked" if interrupt.requested else "", flush=True)
"""
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("signals", "status"), [((TERM,), 0), ((INT,), 0), ((TERM, TERM), -TERM), ((INT, INT), -INT), ((INT, TERM), -TERM)]
)
def test_one_signal_asks_and_a_second_ends(signals, status):
    words = [sys.executable, "-c", PROGRAM, *(str(int(s)) for s in signals)]
    ended = subprocess.run(words, cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "asked\n", ASKED)


def test_how_long_a_stop_took_is_told_where_the_signal_came():
    interrupt = Interrupt()
    assert interrupt.told() == ""
    interrupt.request()
    assert interrupt.told() == ", 0.0 s after the signal"
