"""A folder of artefacts: what was made there, from what, and what is still in the making.

A run is such a folder, and so is an evaluation. An artefact exists whole or not at all; a stage whose artefact exists
for the same inputs returns it.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from selfreward_jax import __version__
from selfreward_jax.core import hosts
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.progress import Meter, meter, say
from selfreward_jax.core.rows import Row
from selfreward_jax.core.store import Journal, Manifest, differ, known_sha256, write_atomic

# How often rows in the making go to disk, and to an object store, where each part is an upload.
ROWS_PER_PART, SECONDS_PER_PART, SECONDS_PER_UPLOAD = 256, 2.0, 30.0


class Growing:
    """Rows of an artefact in the making.

    Attributes:
      before: rows that an earlier session made.
    """

    def __init__(self, journal: Journal, before: list[Row], progress: Meter, interrupt: Interrupt):
        self.before = before
        self._journal, self._progress, self._interrupt = journal, progress, interrupt
        self._rows: list[Any] = []
        self._flushed = time.monotonic()
        self._seconds = SECONDS_PER_PART if is_local(journal.path) else SECONDS_PER_UPLOAD

    def add(self, row: Any, tokens: int, note: str = "") -> None:
        """Takes a row, which is on disk within a few seconds (half a minute on an object store).

        Args:
          tokens: what it cost.

        Raises:
          Interrupted: a stop was asked for; every row so far is kept.
        """
        self._rows.append(row)
        self._progress.advance(1, tokens, note)
        if len(self._rows) >= ROWS_PER_PART or time.monotonic() - self._flushed > self._seconds:
            self.flush()
        self._interrupt.check()

    def flush(self) -> None:
        if self._rows:
            self._journal.append(self._rows)
        self._rows, self._flushed = [], time.monotonic()


class Folder:
    """The bookkeeping that all stages share.

    Attributes:
      root: where everything lies.
      interrupt: checked between rows, so that a stop loses nothing.
      manifest: what was made, by what, from what.
      forced: whether what is made again may be other than what is on record.
    """

    forced = False

    def __init__(self, root: epath.PathLike, interrupt: Interrupt | None = None):
        self.root = local_path(root)
        self.interrupt = interrupt or Interrupt()
        self.manifest = Manifest(self.root)

    def intact(self, artefact: str) -> epath.Path:
        """`Manifest.intact`."""
        return self.manifest.intact(artefact)

    def hash_of(self, artefact: str) -> str:
        """SHA-256 of an artefact's bytes, which must be those that were recorded, if any were."""
        return known_sha256(self.intact(artefact))

    def record(self, artefact: str, inputs: dict[str, Any], *, files: Sequence[str] = (), **facts: Any) -> None:
        """Puts an artefact on record that lies in its place.

        Args:
          files: names of others, in its folder, that belong to it: it counts as made only while all are as they are.
          facts: what else is to stand in its line.

        Raises:
          UserError: a model (`hash`) was to be the same again and isn't; see `check_again`.
        """
        path = self.root / artefact
        hosts.wait(f"{artefact} is written")
        if "hash" in facts:
            self.check_again(artefact, inputs, hash=facts["hash"])
        if files:
            facts["files"] = {name: known_sha256(path.parent / name) for name in files}
        self.manifest.record(
            artefact, inputs, sha256=known_sha256(path), made_by=f"selfreward_jax {__version__}", **facts
        )

    def is_made(self, artefact: str, inputs: dict[str, Any], *beside: str) -> bool:
        """Whether an artefact is there already, made from exactly these inputs, and still what was written.

        Args:
          beside: other artefacts that are made with it, from the same inputs.
        """
        names = (*beside, artefact)
        if not all(self.manifest.is_made(name, inputs) for name in names):
            return False
        changed = next(filter(None, map(self.manifest.changed, names)), "")
        if not hosts.any_of(bool(changed)):  # what one process makes again, another must not find as if never changed
            return True
        say(f"{changed}; made again")
        return False

    def check_again(self, artefact: str, inputs: dict[str, Any], **found: str) -> None:
        """Refuses what is made again, in the place of what was changed or lost, if it isn't the same.

        Other things were made from what was recorded, and would be made anew; that is not done unasked. Bytes may
        differ after the work of another machine, or another version.

        Args:
          found: of what is to take the artefact's place: its `sha256`, or a model's `hash`.

        Raises:
          UserError: it is not what is on record, and what was made from that is there.
        """
        entry = self.manifest.entry(artefact)
        if self.forced or entry is None or not inputs or not self.manifest.is_made(artefact, inputs):
            return
        (name, value), *_ = found.items()
        later = [name for name in self.manifest.after(artefact) if (self.root / name).exists()]
        if not later or entry.get(name, value) == value:
            return
        if name == "sha256" and not self.manifest.changed(
            artefact
        ):  # nothing was lost: it follows from more than inputs
            return
        folders = sorted({name.partition("/")[0] for name in (artefact, *later)})
        raise UserError(
            f"{self.root / artefact}: made again, it is not what was written ({differ(entry[name], value)}), and what"
            f" was made from that is there ({later[0]}); restore it from a copy, or move {', '.join(folders)} away to"
            " have them made anew."
        )

    def todo(
        self, artefact: str, inputs: dict[str, Any], title: str, sizes: Sequence[int]
    ) -> Iterator[tuple[int, Callable[[list[Any], int], None]]]:
        """The parts of an artefact that are still to be made, with a progress bar over all of them.

        Args:
          sizes: rows of each part.

        Yields:
          The part's number, and a function that takes its rows and how many tokens they cost, and stores them.
        """
        journal = self.journal(artefact, inputs)
        there = set(journal.numbers())
        left = [n for n in range(len(sizes)) if n not in there]
        hosts.wait(f"{artefact} is read")
        with meter(title, sum(sizes), done=sum(sizes) - sum(sizes[n] for n in left)) as progress:
            for n in left:
                size = sizes[n]

                def done(rows: list[Any], tokens: int, n: int = n, size: int = size) -> None:
                    journal.write(n, rows)
                    progress.advance(size, tokens)

                yield n, done
                self.interrupt.check()

    @contextlib.contextmanager
    def growing(self, artefact: str, inputs: dict[str, Any], title: str, total: int) -> Iterator["Growing"]:
        """An artefact whose rows come one by one, with a progress bar; what has come is kept whatever happens."""
        journal = self.journal(artefact, inputs)
        before = [row for number in journal.numbers() for row in journal.rows(number)]
        hosts.wait(f"{artefact} is read")
        with meter(title, total, done=len(before)) as progress:
            growing = Growing(journal, before, progress, self.interrupt)
            try:
                yield growing
            finally:
                growing.flush()

    def journal(self, artefact: str, inputs: dict[str, Any]) -> Journal:
        journal = Journal(self.root / artefact, inputs)
        hosts.wait(f"{artefact} is claimed")
        return journal

    def finish(
        self, artefact: str, inputs: dict[str, Any], order: Callable[[Row], Any] | None = None, **facts: Any
    ) -> None:
        """Joins an artefact's parts in the given order and records it."""
        journal = self.journal(artefact, inputs)

        journal.finish(order, lambda sha256: self.check_again(artefact, inputs, sha256=sha256))
        self.record(artefact, inputs, **facts)
        journal.discard()

    def write(self, artefact: str, inputs: dict[str, Any], text: str | Iterable[bytes], **facts: Any) -> None:
        """Writes an artefact that is made in one go, of a text or of lines."""
        write_atomic(self.root / artefact, text, lambda sha256: self.check_again(artefact, inputs, sha256=sha256))
        self.record(artefact, inputs, **facts)

    def skip(self, title: str) -> None:
        say(f"{title}: done already")
