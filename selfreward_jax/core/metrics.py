"""Training metrics as JSONL, one line a step, to TensorBoard, and to a tracker if one is asked for."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Row, content_id, parse_row, to_line, to_lines
from selfreward_jax.core.store import disk_error, is_local, write_atomic

METRICS_FILE, SPEED_FILE = "metrics.jsonl", "throughput.jsonl"


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


class Tracker:
    """The run at Weights & Biases: one there for one here, however often it was interrupted."""

    def __init__(self, root: epath.Path, config: Mapping[str, Any]):
        """Begins it, or goes on with it.

        Raises:
          UserError: the package is missing, or it can't begin: nobody has logged in, for instance.
        """
        try:
            import wandb
        except ImportError:
            raise UserError('config.tracker: wandb is not installed; pip install "selfreward_jax[wandb]".') from None
        # A file, so that a run that is moved, or goes on with another configuration, keeps it.
        path = root / "wandb_id"
        if not path.exists():
            write_atomic(path, content_id(str(root), config))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "selfreward_jax",
                id=path.read_text(),
                name=root.name,
                resume="allow",
                dir=os.fspath(root) if is_local(root) else None,
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True, reinit="finish_previous"),
            )
        except (wandb.Error, OSError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(f"config.tracker: no wandb ({why}); wandb login, or WANDB_MODE=offline.") from None
        where = f"wandb sync {self._run.settings.sync_dir}" if self._run.offline else self._run.url
        say(f"Weights & Biases: {where}")
        self._parts: set[str] = set()

    def write(self, part: str, step: int, values: Mapping[str, Any]) -> None:
        """As `Board.write`; each part, such as m2, has steps of its own."""
        import wandb

        if part not in self._parts:
            self._run.define_metric(f"{part}/*", step_metric=f"{part}/step")
            self._parts.add(part)
        row: Row = {f"{part}/step": step}
        for name, value in values.items():
            if isinstance(value, list):
                edges = np.arange(len(value) + 1) - 0.5
                row[f"{part}/{name}"] = wandb.Histogram(np_histogram=(np.array(value), edges))
            elif value is not None:
                row[f"{part}/{name}"] = value
        self._run.log(row)

    def close(self) -> None:
        """All is sent or on disk when this returns; a process that ends in order does this by itself."""
        self._run.finish()


def _step(line: bytes) -> Row:
    row = json.loads(line)
    return {**row, "step": int(row["step"])}


class StepLines:
    """A JSONL file with a line a step.

    Lines up to a checkpoint's step are kept on resume, later ones are written again as training repeats them.
    """

    def __init__(self, path: epath.Path | None, *, start_step: int, expected: str = ""):
        """Keeps the rows in memory alone if `path` is None.

        `seen` is the last step that an earlier session wrote.

        Args:
          expected: the `content_id` of the rows up to `start_step`; "" if it isn't known.

        Raises:
          UserError: they are others, or none, or no rows of metrics.
        """
        self.rows: list[Row] = []
        self.seen = 0
        self.path = path
        if not path:
            return
        if path.exists():
            # A line that was being written when the process died has no newline yet.
            lines = path.read_bytes().split(b"\n")[:-1]
            before = [parse_row(line, _step, f"{path}:{n}") for n, line in enumerate(lines, 1)]
            self.seen = max((row["step"] for row in before), default=0)
            self.rows = [row for row in before if row["step"] <= start_step]
        if expected and content_id(self.rows) != expected:
            raise UserError(
                f"{path}: up to step {start_step} not what was written ({expected} expected, {content_id(self.rows)}"
                f" found); restore it from a copy, or remove {path.parent / 'checkpoints'} to train from the beginning."
            )
        write_atomic(path, to_lines(self.rows))

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
            write_atomic(self.path, to_lines(self.rows))


class MetricsLog:
    """What training tells: its metrics in `metrics.jsonl`, its speed in `throughput.jsonl`, both as curves.

    Nothing in `metrics.jsonl` depends on the clock, so it is the same however often the run was interrupted.
    """

    def __init__(
        self,
        folder: epath.Path | None,
        *,
        start_step: int,
        tensorboard: bool,
        tracker: Tracker | None = None,
        expected: str = "",
    ):
        """Keeps the rows in memory alone if `folder` is None. `expected`: see `StepLines`, of the metrics."""
        self._tracker, self._part = tracker, folder.name if folder else ""
        self._metrics = StepLines(folder and folder / METRICS_FILE, start_step=start_step, expected=expected)
        self._speed = StepLines(folder and folder / SPEED_FILE, start_step=start_step)
        self._board: Board | None = None
        if folder and tensorboard and is_local(folder) and is_writer():
            self._board = Board(folder / "tb", purge_step=start_step + 1)

    @property
    def rows(self) -> list[Row]:
        return self._metrics.rows

    @property
    def id(self) -> str:
        """Of all rows so far."""
        return content_id(self.rows)

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
        step, values = row["step"], {f"{prefix}{name}": x for name, x in row.items() if name != "step"}
        if self._board:
            self._board.write(step, values)
        if self._tracker and step > self._metrics.seen:  # what is repeated after a stop was sent before it
            self._tracker.write(self._part, step, values)

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
