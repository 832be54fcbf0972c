"""SIGTERM and Ctrl-C as a request: work in hand is saved, then the run stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """The run was asked to stop, and everything done so far is on disk."""


class Interrupt:
    """Set by a signal, looked at by long work between two of its steps."""

    def __init__(self):
        self.requested = False

    def agreed(self) -> bool:
        """Whether a stop was asked for in any process; all of them ask at the same point of their work."""
        from selfreward_jax.core import hosts  # and with it JAX, which a mistyped word need not wait for

        return hosts.any_of(self.requested)

    def check(self) -> None:
        """Raises `Interrupted` if a stop was asked for, in all processes at the same point."""
        if self.agreed():
            raise Interrupted


@contextmanager
def on_signals() -> Iterator[Interrupt]:
    """Turns the first SIGTERM or Ctrl-C into a request; the second one ends the process at once."""
    interrupt = Interrupt()

    def handle(number, frame):
        if interrupt.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        interrupt.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
