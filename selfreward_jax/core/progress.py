"""Progress of long work: a bar with rate and time left on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from selfreward_jax.core.console import Terminal
from selfreward_jax.core.hosts import is_writer

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """A line for the person who watches the run; of several processes, one speaks."""
    if not is_writer():
        return
    Terminal(file=sys.stderr, highlight=False, markup=False, soft_wrap=True).print(text)


class Meter:
    """Counts finished items and tokens of one stage, and shows them."""

    def __init__(self, title: str, total: int, done: int, unit: str, show):
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.tokens = 0
        self.note = ""
        self._start, self._first = time.monotonic(), done
        self._show = show

    def advance(self, items: int, tokens: int = 0, note: str = "") -> None:
        """`note` is a word on how it goes, such as the slots in use."""
        self.note = note
        self.done += items
        self.tokens += tokens
        self._show(self)

    @property
    def rate(self) -> float:
        """Tokens per second since the stage began."""
        return self.tokens / max(time.monotonic() - self._start, 1e-9)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def seconds_left(self) -> float | None:
        finished = self.done - self._first
        return None if finished <= 0 else self.seconds / finished * max(self.total - self.done, 0)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@contextmanager
def meter(title: str, total: int, *, done: int = 0, unit: str = "rows") -> Iterator[Meter]:
    """Shows the progress of `total` items, `done` of which an earlier session finished."""
    console = Terminal(file=sys.stderr)
    if console.is_terminal and is_writer():
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>7.0f} tok/s {task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, expand=True) as bar:
            task = bar.add_task(title, total=total, completed=done, rate=0.0, note="")

            def update(m: Meter) -> None:
                bar.update(task, completed=m.done, rate=m.rate, note=m.note)

            yield Meter(title, total, done, unit, update)
        return

    last = time.monotonic()

    def line(m: Meter) -> None:
        times = f"{_clock(m.seconds)} gone, {_clock(m.seconds_left)} left"
        note = f", {m.note}" if m.note else ""
        say(f"{m.title}: {m.done}/{m.total} {m.unit}, {m.rate:.0f} tok/s{note}, {times}")

    def show(m: Meter) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES or m.done >= m.total:
            last = time.monotonic()
            line(m)

    say(f"{title}: {done}/{total} {unit}" + (", going on" if done else ""))
    yield Meter(title, total, done, unit, show)
