"""Orbax checkpoints: trees of arrays saved whole or not at all, restored onto our own shardings.

Saving copies the arrays and returns; the writing goes on beside the training. A checkpoint may be restored on other
devices, in other numbers and in other processes, than it was saved on.

A checkpoint says of each tree by a hash what was saved (`bits.tree_hash`), and what is restored must be that: of the
checksums of the libraries below, none covers every byte. Reading writes nothing.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from selfreward_jax.core import hosts
from selfreward_jax.core.bits import fact, hash_facts, tree_hash
from selfreward_jax.core.errors import UserError, first_line
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import content_id
from selfreward_jax.core.store import disk_error, free_bytes

METADATA_BYTES = 1 << 20  # more than what Orbax writes beside the arrays
# How TensorStore says that it can't read something now.
UNREAD = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")
UNFINISHED = "orbax-checkpoint-tmp"  # in the names of what Orbax has not yet renamed
FACTS = (
    "_CHECKPOINT_METADATA"  # Orbax's file in each checkpoint, where what we say of it stands under `custom_metadata`
)

T = TypeVar("T")


def _is_told_otherwise(record: logging.LogRecord) -> bool:
    """Whether a log record is one of Orbax's tracebacks of an error that it raises as well."""
    return bool(record.exc_info) and "orbax" in record.pathname


logging.getLogger("absl").addFilter(lambda record: not _is_told_otherwise(record))


def _unraisable(report: Any, show: Callable[[Any], Any] = sys.unraisablehook) -> None:
    """Shows what nobody could catch, but for what arrays leave behind whose reading another's error has cut short."""
    code = getattr(report.object, "cr_code", None)
    closed = isinstance(report.exc_value, RuntimeError) and str(report.exc_value) == "Event loop is closed"
    if not closed and "orbax" not in getattr(code, "co_filename", ""):
        show(report)


sys.unraisablehook = _unraisable


class Damaged(UserError):
    """A checkpoint whose files are not what was written."""

    def __init__(self, where: epath.Path, reason: str):
        mend = f"bring its files back, or remove {where.parent} to train from the beginning"
        super().__init__(f"{where}: damaged ({reason}); {mend}.")
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

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        also_keep: Collection[int] = (),
        dropping: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Begins to write a checkpoint. When this returns, the arrays may be changed or given away.

        Args:
          also_keep: steps whose checkpoints stay, beside the newest.
          dropping: the tree without which they stay.
          facts: what `facts_of` is to give back.

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
        told = {"hashes": {name: tree_hash(tree) for name, tree in trees.items()}}
        told |= {"layouts": {name: _layout_hash(tree) for name, tree in trees.items()}, **(facts or {})}
        with self._told():
            # Else Orbax would ask for JAX's notice of preemption, under numbers that aren't those of `hosts.preempted`.
            self._manager.save(step, args=ocp.args.Composite(**items), custom_metadata=told, force=True)

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

    def newest_whole(
        self, restore: Callable[[int], T], holding: str = "", last: int | None = None
    ) -> tuple[int, T] | None:
        """What `restore` makes of the newest checkpoint that is whole, with its step; None if there is no checkpoint.

        What a killed process left half-written is removed, and a damaged checkpoint too if there is one before it.

        Args:
          holding: the tree that `restore` needs; checkpoints without it (see `save`) are left alone.
          last: the step that can do without that tree.

        Raises:
          UserError: no checkpoint is whole, or `restore` finds it of no use.
        """
        lost = self._remove_unfinished()
        steps = sorted(self._manager.all_steps(), reverse=True)
        able = [step for step in steps if step == last or (self.folder / str(step) / holding).exists()]
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
        """As the function `restore`, of this folder."""
        return restore(self.folder, step, targets)

    def facts(self, step: int) -> dict[str, Any]:
        """As `facts_of`, of this folder."""
        return facts_of(self.folder, step)

    def close(self) -> None:
        with self._told():
            self._manager.close()


def restore(
    folder: epath.Path, step: int, targets: Mapping[str, Any], hashes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Trees of a checkpoint, of the shapes, dtypes and shardings of `targets` (arrays or `jax.ShapeDtypeStruct`s).

    Args:
      hashes: of trees, as known from elsewhere; what the checkpoint itself says is looked at in any case.

    Raises:
      Damaged: the files are not whole, or not what was saved.
      UserError: there are none, or they hold another model.
    """
    where = folder / str(step)
    if not where.exists():
        raise UserError(f"{where}: no such checkpoint; bring its files back.")
    own, found = facts_of(folder, step), {}
    for name, target in targets.items():
        try:
            found[name], made = _restore(local_path(where) / name, target, own.get("layouts", {}).get(name))
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # of whatever kind: a damaged file reaches readers of four libraries
            _raise_unread(where, error)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise Damaged(where, reason) from error
        for expected in filter(None, (own.get("hashes", {}).get(name), (hashes or {}).get(name))):
            if made != expected:
                raise Damaged(where, f"{name} is not what was saved: hash {expected} expected, {made} found")
    return found


def _raise_unread(where: epath.Path, error: Exception) -> None:
    """Raises `UserError` if an error says of the disk or the network that it can't be read now, not of the files."""
    absent = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    if (isinstance(error, OSError) and not absent) or any(status in str(error) for status in UNREAD):
        why = f"can't be read ({first_line(error)[:200]})"
        raise UserError(f"{where}: {why}; mend that, and run the same command again to go on.") from error


def facts_of(folder: epath.Path, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself: `hashes` and `layouts` of its trees, and the facts of `save`.

    Those of older versions say nothing.

    Raises:
      Damaged: it can't be read.
    """
    try:
        return dict(json.loads((folder / str(step) / FACTS).read_text())["custom_metadata"] or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        _raise_unread(folder / str(step), error)
        raise Damaged(folder / str(step), f"{FACTS}: {first_line(error)}") from error


def _restore(where: epath.Path, target: Any, layout: str | None) -> tuple[Any, str]:
    """One tree, and the hash of what is stored.

    Args:
      layout: hash of the names and shapes that were saved, if that is known.
    """
    if not where.exists():
        raise FileNotFoundError(f"{where.name} is missing")
    stored = ocp.StandardCheckpointHandler().metadata(where).tree
    if layout is not None and _layout_hash(stored) != layout:
        raise ValueError(f"{where.name} is described otherwise than it was saved")
    _check_shapes(where, stored, target)
    wanted = abstract(target)
    dtypes, others = ({_name(path): jnp.dtype(x.dtype) for path, x in _leaves(tree)} for tree in (stored, wanted))
    if dtypes != others:
        return _restore_as(where, dtypes, wanted)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        found = reader.restore(where, args=ocp.args.StandardRestore(wanted))
    return found, tree_hash(found)


def _restore_as(where: epath.Path, dtypes: Mapping[str, Any], wanted: Any) -> tuple[Any, str]:
    """The same into other dtypes than the stored ones: array by array, so that at most one is in memory as stored."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(wanted)
    found, facts = [], []
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        for path, x in leaves:
            like: Any = jax.ShapeDtypeStruct(x.shape, dtypes[_name(path)], sharding=x.sharding)
            for key in reversed(_name(path).split("/")):
                like = {key: like}
            how = ocp.checkpoint_utils.construct_restore_args(like)
            args = ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=True)
            (as_stored,) = jax.tree.leaves(reader.restore(where, args=args))
            facts.append(fact(path, as_stored))
            found.append(as_stored.astype(x.dtype))
    return tree.unflatten(found), hash_facts(facts)


def _check_shapes(where: epath.Path, metadata: Any, target: Any) -> None:
    """Raises `UserError` if a stored tree isn't of the same names and shapes as the target."""
    stored, wanted = _shapes(metadata), _shapes(target)
    for path in sorted(stored.keys() | wanted.keys()):
        if stored.get(path) != wanted.get(path):
            there, here = (list(x[path]) if path in x else "missing" for x in (stored, wanted))
            raise UserError(
                f"{where.parent}: of another model or other settings: {where.name}/{path} is {there} there and {here}"
                " here; use a new folder."
            )


_leaves = jax.tree_util.tree_leaves_with_path


def _name(path: Any) -> str:
    """Of an array in a tree, the same for tuples and for the numbered dicts that Orbax makes of them."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {_name(path): tuple(x.shape) for path, x in _leaves(tree)}


def _layout_hash(tree: Any) -> str:
    return content_id(sorted(_shapes(tree).items()))


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(
        lambda x: (
            x if isinstance(x, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        ),
        tree,
    )
