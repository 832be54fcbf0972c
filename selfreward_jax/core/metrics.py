"""Training metrics as JSONL, one line a step, and to TensorBoard."""

import json
import os

from etils import epath

from selfreward_jax.core.rows import Row, to_line
from selfreward_jax.core.store import is_local, write_atomic


class MetricsLog:
    """Lines up to a checkpoint's step are kept on resume, later ones are written again as training repeats them.

    Nothing in the file depends on the clock, so it is the same however often the run was interrupted.
    """

    def __init__(self, folder: epath.Path | None, *, start_step: int, tensorboard: bool):
        """Keeps the rows in memory alone if `folder` is None."""
        self.rows: list[Row] = []
        self._board = None
        self.path = folder / "metrics.jsonl" if folder else None
        if not folder or not self.path:
            return
        if self.path.exists():
            # A line that was being written when the process died has no newline yet.
            lines = self.path.read_text().split("\n")[:-1]
            self.rows = [row for row in map(json.loads, lines) if row["step"] <= start_step]
        write_atomic(self.path, "".join(map(to_line, self.rows)))
        if tensorboard and is_local(folder):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tb"), purge_step=start_step + 1)

    def write(self, row: Row) -> None:
        self.rows.append(row)
        if self.path and is_local(self.path):
            with open(self.path, "a") as file:
                file.write(to_line(row))
        if self._board:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Everything so far is on disk when this returns."""
        if not self.path:
            return
        if is_local(self.path):
            with open(self.path, "a") as file:
                os.fsync(file.fileno())
        else:
            write_atomic(self.path, "".join(map(to_line, self.rows)))
        if self._board:
            self._board.flush()

    def close(self) -> None:
        self.flush()
        if self._board:
            self._board.close()
