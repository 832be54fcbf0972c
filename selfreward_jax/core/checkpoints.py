"""Orbax checkpoints: trees of arrays saved whole or not at all, restored onto our own shardings."""

import errno
import logging
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.store import disk_error, free_bytes

METADATA_BYTES = 1 << 20  # more than what Orbax writes beside the arrays


def _is_told_otherwise(record: logging.LogRecord) -> bool:
    """Whether a log record is one of Orbax's tracebacks of an error that it raises as well."""
    return bool(record.exc_info) and "orbax" in record.pathname


logging.getLogger("absl").addFilter(lambda record: not _is_told_otherwise(record))


class Checkpoints:
    """Numbered checkpoints of named trees in one folder. Saving returns when everything is on disk."""

    def __init__(self, folder: epath.Path, keep: int = 1):
        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        try:
            self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        except OSError as error:
            raise disk_error(folder, error) from error

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, trees: Mapping[str, Any]) -> None:
        """Raises `UserError` if the disk is full; earlier checkpoints stay as they are."""
        # Half a checkpoint costs as much time as a whole one, so look first.
        needed = sum(x.nbytes for x in jax.tree.leaves(dict(trees))) + METADATA_BYTES
        free = free_bytes(self.folder)
        if free is not None and free < needed:
            raise UserError(
                f"{self.folder}: the disk is full: a checkpoint needs {needed / 1e9:.3f} GB, {free / 1e9:.3f} are left;"
                " free some space and run the same command again to go on."
            )
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except OSError as error:
            raise disk_error(self.folder, error) from error
        except ValueError as error:
            # TensorStore reports a failed write in words only.
            if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise disk_error(self.folder, OSError(errno.ENOSPC, "")) from error
            raise

    def restore(self, step: int, targets: Mapping[str, Any]) -> dict[str, Any]:
        """Trees of the shapes, dtypes and shardings of `targets` (arrays or `jax.ShapeDtypeStruct`s)."""
        items = {name: ocp.args.StandardRestore(abstract(tree)) for name, tree in targets.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{self.folder / str(step)}: can't be restored ({str(error).splitlines()[0]}).") from error
        return {name: restored[name] for name in targets}

    def close(self) -> None:
        self._manager.close()


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(
        lambda x: (
            x if isinstance(x, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        ),
        tree,
    )
