"""SIGTERM and Ctrl-C as a request: work in hand is saved, then the run stops, in all of its processes."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

ASKED = "selfreward: asked to stop: it will once the work in hand is saved; a second signal ends it at once.\n"


class Interrupted(BaseException):
    """The run was asked to stop, and everything done so far is on disk, where its text doesn't say otherwise.

    As Python's own `KeyboardInterrupt`, it is no `Exception`, which many a library catches and goes on.
    """


class Interrupt:
    """Set by a signal, looked at by long work between two of its steps."""

    def __init__(self):
        self.requested = False
        self.requested_at = 0.0  # seconds of the monotonic clock

    def request(self) -> None:
        self.requested, self.requested_at = True, time.monotonic()

    def agreed(self) -> bool:
        """Whether a stop was asked for in any process; all of them ask at the same point of their work."""
        from selfreward_jax.core import hosts  # and with it JAX, which a mistyped word need not wait for

        return hosts.any_of(self.requested) or hosts.preempted()

    def check(self) -> None:
        """Raises `Interrupted` if a stop was asked for, in all processes at the same point."""
        if self.agreed():
            raise Interrupted

    def told(self) -> str:
        """For people: how long ago a signal came here, "" if none did; to be compared with a grace period."""
        return f", {time.monotonic() - self.requested_at:.1f} s after the signal" if self.requested else ""


class _Answering:
    """Whose request a signal is, and how many pieces of the work under way may be left off at once."""

    interrupt: Interrupt | None = None
    pieces = 0


@contextmanager
def at_once() -> Iterator[None]:
    """For work with which nothing is lost, reading for instance: a signal ends it in its midst.

    Raises:
      Interrupted: a stop is asked for, or was before.
    """
    if threading.current_thread() is not threading.main_thread():  # signals never come elsewhere
        yield
        return
    _Answering.pieces += 1
    try:
        if _Answering.interrupt and _Answering.interrupt.requested:
            raise Interrupted
        yield
    finally:
        _Answering.pieces -= 1


def each_at_once(rows: Iterable[T]) -> Iterator[T]:
    """The same rows; a signal ends what makes the next one, but not what is done with it."""
    rows, end = iter(rows), object()
    while True:
        with at_once():
            row = next(rows, end)
        if row is end:
            return
        yield row  # type: ignore[misc]


@contextmanager
def on_signals(interrupt: Interrupt, alone: bool = True) -> Iterator[None]:
    """Turns the first SIGTERM or Ctrl-C into a request; the second one ends the process at once.

    To be entered after the processes have joined: joining puts a handler of JAX's own in the place of any other.

    Args:
      alone: whether this process stops for itself; several stop together, where all have come to the same point.
    """

    def handle(number, frame):
        if interrupt.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        interrupt.request()
        # Not by print, in whose midst the signal may have come.
        os.write(2, f"{os.linesep if sys.stderr.isatty() else ''}{ASKED}".encode())
        if alone and _Answering.pieces:
            raise Interrupted

    _Answering.interrupt = interrupt if alone else None
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        _Answering.interrupt = None
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """Gives signals back what they usually do, where there is no work to be saved."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
