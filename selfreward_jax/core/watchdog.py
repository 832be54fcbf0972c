"""Of several processes, none goes on alone: each tells the others that it lives, and ends when one of them does not.

A collective whose partner is gone may wait for ever, so a thread looks. The processes speak through the key-value store
of JAX's coordination service. JAX has heartbeats of its own, which end a process after 100 seconds, with a stack trace;
and at once, if what died is process 0, where the service runs.
"""

import atexit
import contextlib
import os
import re
import sys
import threading
import time
from typing import Any, NoReturn

from selfreward_jax.core.errors import first_line
from selfreward_jax.core.terminal import tell

SECONDS_BETWEEN_BEATS = 1.0
PATIENCE, SUSPICION = 30, 8  # beats missed until a process counts as lost; the latter once a collective has failed
GRACE = 5  # beats that a process has to end by itself, if another has said that it gave up
LOST = 75  # exit status: try again

_KEY = "selfreward/alive/"
_GAVE_UP, _DONE = "gave up: ", "done"
_COMMUNICATION = re.compile(r"gloo|nccl|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|barrier|heartbeat|coordination", re.I)


class _Watch:
    """What one process knows of the others."""

    def __init__(self, client: Any, index: int, count: int):
        self.client, self.index, self.count = client, index, count
        self.patience = PATIENCE
        self.done, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True, name="watchdog")

    def end(self) -> None:
        """Stops the thread: one that speaks while Python ends would take the process down."""
        self.ended.set()
        self.thread.join(timeout=10)

    def tell(self, word: str) -> None:
        self.client.key_value_set(f"{_KEY}{self.index}", word, allow_overwrite=True)

    def leave(self) -> None:
        """Returns when all others are done as well; until then the thread looks whether one is lost."""
        self.done.set()
        with contextlib.suppress(Exception):  # the thread meets it too, and ends this process
            self.tell(_DONE)
        while not self.ended.is_set():
            with contextlib.suppress(Exception):
                said = self.hear()
                if len(said) == self.count - 1 and all(word == _DONE for word in said.values()):
                    break
            time.sleep(0.2)
        self.end()
        self.tell(_DONE)  # again: the thread's last beat may have come after it

    def hear(self) -> dict[int, str]:
        """The last words of the others."""
        said = {int(key.rsplit("/", 1)[1]): word for key, word in self.client.key_value_dir_get(_KEY)}
        return {index: word for index, word in said.items() if index != self.index}

    def watch(self) -> None:
        last: dict[int, str] = {}
        silent = dict.fromkeys(range(self.count), 0)  # how many beats long each has said nothing new
        beat = 0
        while not self.ended.wait(SECONDS_BETWEEN_BEATS):
            beat += 1
            try:
                self.tell(_DONE if self.done.is_set() else str(beat))
                heard = self.hear()
            except Exception as error:
                if not self.ended.is_set():
                    _end(f"process 0 is gone, and with it what joins the processes ({first_line(error)[:120]})")
                return
            for index in range(self.count):
                word = heard.get(index, "")
                silent[index] = 0 if word != last.get(index, "") else silent[index] + 1
                if index == self.index or word == _DONE:
                    continue
                if word.startswith(_GAVE_UP) and silent[index] >= GRACE:
                    _end(f"process {index} gave up ({word.removeprefix(_GAVE_UP)})")
                if silent[index] >= self.patience:
                    _end(f"process {index} is lost: it has not answered for {silent[index]} seconds")
            last = heard


_watch: _Watch | None = None


def start() -> None:
    """Begins to watch, once the processes have joined."""
    global _watch
    from jax._src import distributed  # JAX shows the service's client nowhere else

    state = distributed.global_state
    if state.num_processes > 1:
        _watch = _Watch(state.client, state.process_id, state.num_processes)
        _watch.thread.start()
        atexit.register(_leave_at_exit)  # comes before JAX's own, which joins the processes for the last time


def leave(status: int, why: str = "") -> int:
    """Ends this process's part in the run, and tells the others. Returns `status` once all have come to their end.

    Args:
      why: one line, of a failure. The others end as well; this process doesn't wait for them.
    """
    if _watch is None:
        return status
    if not why:
        _watch.leave()
        return status
    _watch.end()
    _watch.tell(_GAVE_UP + why)
    if _watch.index == 0:  # with the service gone, the others could not end in order
        until = time.monotonic() + 2 * GRACE * SECONDS_BETWEEN_BEATS
        while time.monotonic() < until:
            heard = _watch.hear()
            if len(heard) == _watch.count - 1 and all(word.startswith(_GAVE_UP) for word in heard.values()):
                break
            time.sleep(0.1)
        time.sleep(0.5)
    _exit(status)


def _leave_at_exit() -> None:
    """For programs that don't call `leave`."""
    if _watch is None or _watch.ended.is_set():
        return
    error = getattr(sys, "last_value", None)  # what nothing caught
    leave(0) if error is None else leave(1, f"{type(error).__name__}: {first_line(error)[:120]}")


def explain(error: BaseException) -> None:
    """If a failure may come of another process's end, waits for the watch to say so and end this one."""
    if _watch is None or not _COMMUNICATION.search(f"{type(error).__name__} {error}"):
        return
    _watch.patience = SUSPICION
    time.sleep(2 * SUSPICION * SECONDS_BETWEEN_BEATS)


def _end(why: str) -> NoReturn:
    tell(f"selfreward: {why}; start all processes again to go on from the last checkpoint.", sys.stderr)
    if _watch:
        with contextlib.suppress(Exception):  # there may be nobody left to tell
            _watch.tell(_GAVE_UP + why)
    _exit(LOST)


def _exit(status: int) -> NoReturn:
    """Ends the process as it stands: what is orderly would wait for those that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
