"""Training metrics as JSONL, one line a step, and to TensorBoard."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.rows import Row, to_line
from selfreward_jax.core.store import disk_error, is_local, write_atomic

SPEED_FILE = "throughput.jsonl"


class Board:
    """TensorBoard's file, written by the thread that calls.

    tensorboardX's own writer has a thread and a queue: with the disk full the thread dies, and once the queue is full
    as well, training would wait for ever.
    """

    def __init__(self, folder: epath.Path, *, purge_step: int | None = None):
        """TensorBoard hides what an interrupted session wrote from `purge_step` on.

        Raises:
          UserError: here and below, if the disk is full.
        """
        from tensorboardX.event_file_writer import EventsWriter

        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(os.path.join(folder, "events"))
        except OSError as error:
            raise disk_error(folder, error) from error
        if purge_step is not None:
            self._add(purge_step, session_log={"status": "START"})

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        try:
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))
        except OSError as error:
            raise disk_error(self.folder, error) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers as curves, lists of counts as histograms of 0, 1, 2, ...; None is left out."""
        from tensorboardX import summary

        for name, value in values.items():
            if isinstance(value, list):
                if sum(value):
                    drawn = np.repeat(range(len(value)), value)
                    self._add(step, summary=summary.histogram(name, drawn, np.arange(len(value) + 1) - 0.5))
            elif value is not None:
                self._add(step, summary=summary.scalar(name, value))

    def flush(self) -> None:
        try:
            self._events.flush()
        except OSError as error:
            raise disk_error(self.folder, error) from error

    def close(self) -> None:
        self.flush()
        self._events.close()


class StepLines:
    """A JSONL file with a line a step.

    Lines up to a checkpoint's step are kept on resume, later ones are written again as training repeats them.
    """

    def __init__(self, path: epath.Path | None, *, start_step: int):
        """Keeps the rows in memory alone if `path` is None."""
        self.rows: list[Row] = []
        self.path = path
        if not path:
            return
        if path.exists():
            # A line that was being written when the process died has no newline yet.
            lines = path.read_text().split("\n")[:-1]
            self.rows = [row for row in map(json.loads, lines) if row["step"] <= start_step]
        write_atomic(path, "".join(map(to_line, self.rows)))

    def write(self, row: Row) -> None:
        self.rows.append(row)
        if self.path and is_local(self.path):
            self._append(to_line(row))

    def _append(self, text: str, *, sync: bool = False) -> None:
        assert self.path
        if not is_writer():
            return
        try:
            with open(self.path, "a") as file:
                file.write(text)
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error

    def flush(self) -> None:
        """Everything so far is on disk when this returns."""
        if not self.path:
            return
        if is_local(self.path):
            self._append("", sync=True)
        else:
            write_atomic(self.path, "".join(map(to_line, self.rows)))


class MetricsLog:
    """What training tells: its metrics in `metrics.jsonl`, its speed in `throughput.jsonl`, both in TensorBoard.

    Nothing in `metrics.jsonl` depends on the clock, so it is the same however often the run was interrupted.
    """

    def __init__(self, folder: epath.Path | None, *, start_step: int, tensorboard: bool):
        """Keeps the rows in memory alone if `folder` is None."""
        self._metrics = StepLines(folder and folder / "metrics.jsonl", start_step=start_step)
        self._speed = StepLines(folder and folder / SPEED_FILE, start_step=start_step)
        self._board: Board | None = None
        if folder and tensorboard and is_local(folder) and is_writer():
            self._board = Board(folder / "tb", purge_step=start_step + 1)

    @property
    def rows(self) -> list[Row]:
        return self._metrics.rows

    @property
    def speeds(self) -> list[Row]:
        return self._speed.rows

    def write(self, row: Row, speed: Row | None = None) -> None:
        """A step's metrics and how fast it was, each with its `step`."""
        self._metrics.write(row)
        self._draw(row)
        if speed:
            self._speed.write(speed)
            self._draw(speed, "throughput/")

    def _draw(self, row: Row, prefix: str = "") -> None:
        if self._board:
            self._board.write(row["step"], {f"{prefix}{name}": x for name, x in row.items() if name != "step"})

    def flush(self) -> None:
        """Everything so far is on disk when this returns."""
        self._metrics.flush()
        self._speed.flush()
        if self._board:
            self._board.flush()

    def close(self) -> None:
        self.flush()
        if self._board:
            self._board.close()
