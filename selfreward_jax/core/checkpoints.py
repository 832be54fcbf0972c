"""Orbax checkpoints: trees of arrays saved whole or not at all, restored onto our own shardings.

Saving copies the arrays and returns; the writing goes on beside the training. A checkpoint may be restored on other
devices, in other numbers and in other processes, than it was saved on.
"""

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from selfreward_jax.core import hosts
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.store import disk_error, free_bytes

METADATA_BYTES = 1 << 20  # more than what Orbax writes beside the arrays
UNFINISHED = "orbax-checkpoint-tmp"  # in the names of what Orbax has not yet renamed

T = TypeVar("T")


def _is_told_otherwise(record: logging.LogRecord) -> bool:
    """Whether a log record is one of Orbax's tracebacks of an error that it raises as well."""
    return bool(record.exc_info) and "orbax" in record.pathname


logging.getLogger("absl").addFilter(lambda record: not _is_told_otherwise(record))


class Damaged(UserError):
    """A checkpoint whose files are not what was written."""

    def __init__(self, where: epath.Path, reason: str):
        super().__init__(f"{where}: damaged ({reason}); bring its files back, or remove the folder to do without it.")
        self.reason = reason


@dataclasses.dataclass
class _Keep:
    """Orbax's question which checkpoints stay: the newest few, and those that are named."""

    newest: int
    named: Collection[int] = ()

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        newest = {checkpoint.step for checkpoint in checkpoints[-self.newest :]}
        return [checkpoint.step in newest or checkpoint.step in self.named for checkpoint in checkpoints]


class Checkpoints:
    """Numbered checkpoints of named trees in one folder. As a context manager, it waits at the end for its writes."""

    def __init__(self, folder: epath.Path, keep: int = 1):
        self.folder = folder
        self._keep = _Keep(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=self._keep, enable_async_checkpointing=True)
        with self._told():
            self._manager = ocp.CheckpointManager(local_path(folder), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def latest(self) -> int | None:
        """The newest, which may still be in the writing."""
        return self._manager.latest_step()

    def save(self, step: int, trees: Mapping[str, Any], also_keep: Collection[int] = (), dropping: str = "") -> None:
        """Begins to write a checkpoint. When this returns, the arrays may be changed or given away.

        Args:
          also_keep: steps whose checkpoints stay, beside the newest.
          dropping: the tree without which they stay.

        Raises:
          UserError: the disk is full, now or at the save before; earlier checkpoints stay as they are.
        """
        self.wait()
        # Half a checkpoint costs as much time as a whole one, so look first.
        needed = sum(x.nbytes for x in jax.tree.leaves(dict(trees))) + METADATA_BYTES
        free = free_bytes(self.folder)
        if hosts.any_of(free is not None and free < needed):
            raise UserError(
                f"{self.folder}: the disk is full: a checkpoint needs {needed / 1e9:.3f} GB,"
                f" {(free or 0) / 1e9:.3f} are left; free some space and run the same command again to go on."
            )
        if dropping and hosts.is_writer():
            for old in sorted(self._manager.all_steps())[: -self._keep.newest]:
                if (self.folder / str(old) / dropping).exists():
                    (self.folder / str(old) / dropping).rmtree()
        self._keep.named = set(also_keep)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._told():
            # Else Orbax would ask for JAX's notice of preemption, under numbers that aren't those of `hosts.preempted`.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk, whole.

        Raises:
          UserError: it could not be written.
        """
        with self._told():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what goes wrong with the disk into one line."""
        try:
            yield
        except OSError as error:
            raise disk_error(self.folder, error) from error
        except ValueError as error:
            # TensorStore reports a failed write in words only.
            if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise disk_error(self.folder, OSError(errno.ENOSPC, "")) from error
            if not is_local(self.folder):  # also what the service says of rights and names
                raise UserError(f"{self.folder}: can't write ({str(error).splitlines()[0][:300]}).") from error
            raise

    def newest_whole(self, restore: Callable[[int], T], holding: str = "") -> tuple[int, T] | None:
        """What `restore` makes of the newest checkpoint that is whole, with its step; None if there is no checkpoint.

        What a killed process left half-written is removed, and a damaged checkpoint too if there is one before it.

        Args:
          holding: the tree that `restore` needs; checkpoints without it (see `save`) are left alone.

        Raises:
          UserError: no checkpoint is whole, or `restore` finds it of no use.
        """
        lost = self._remove_unfinished()
        steps = sorted(self._manager.all_steps(), reverse=True)
        able = [step for step in steps if (self.folder / str(step) / holding).exists()]
        if steps and not able:
            raise Damaged(self.folder / str(steps[0]), f"{holding} is missing")
        for step in able:
            if lost:
                say(f"{self.folder}: step {max(lost)} was not written whole; going on from step {step}")
                lost = []
            try:
                return step, restore(step)
            except Damaged as error:
                if step == able[-1]:
                    raise
                say(f"{self.folder / str(step)}: damaged ({error.reason}); going on from the one before")
                self._manager.delete(step)
        if lost:
            say(f"{self.folder}: step {max(lost)} was not written whole and there is none before it; beginning anew")
        return None

    def _remove_unfinished(self) -> list[int]:
        """Steps that were being written when their process was killed. Of object stores, Orbax takes care itself."""
        if not is_local(self.folder):
            return []
        unfinished = [path for path in self.folder.iterdir() if UNFINISHED in path.name]
        hosts.wait(f"{self.folder} is looked through")
        if hosts.is_writer():
            for path in unfinished:
                path.rmtree()
        hosts.wait(f"{self.folder} is tidied up")
        return [int(step) for step in (path.name.split(".")[0] for path in unfinished) if step.isdigit()]

    def restore(self, step: int, targets: Mapping[str, Any]) -> dict[str, Any]:
        """Trees of the shapes, dtypes and shardings of `targets` (arrays or `jax.ShapeDtypeStruct`s).

        Raises:
          Damaged: the files are not whole.
          UserError: there are none, or they hold another model.
        """
        where = self.folder / str(step)
        if not where.exists():
            raise UserError(f"{where}: no such checkpoint; bring its files back.")
        items = {name: ocp.args.StandardRestore(abstract(tree)) for name, tree in targets.items()}
        try:
            for name, tree in targets.items():
                _check_shapes(where, name, tree)
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise Damaged(where, reason) from error
        return {name: restored[name] for name in targets}

    def close(self) -> None:
        with self._told():
            self._manager.close()


def _check_shapes(where: epath.Path, name: str, target: Any) -> None:
    """Raises `UserError` if a stored tree isn't of the same names and shapes as the target."""
    if not (where / name).exists():
        raise FileNotFoundError(f"{name} is missing")
    stored = _shapes(ocp.StandardCheckpointHandler().metadata(local_path(where) / name).tree)
    wanted = _shapes(target)
    for path in sorted(stored.keys() | wanted.keys()):
        if stored.get(path) != wanted.get(path):
            there, here = (list(x[path]) if path in x else "missing" for x in (stored, wanted))
            raise UserError(
                f"{where}: of another model or other settings: {name}/{path} is {there} there and {here} here; use a"
                " new folder."
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a tree's arrays by path, the same for tuples and for the numbered dicts that Orbax makes of them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in leaves}


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(
        lambda x: (
            x if isinstance(x, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        ),
        tree,
    )
