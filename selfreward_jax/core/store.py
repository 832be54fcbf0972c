"""A run's folder: artefacts that exist whole or not at all, and the manifest that says what made each.

While a stage works, its rows go to numbered part files beside the artefact, each written under a temporary name and
renamed (on object stores: one upload), so that a killed stage goes on where it was. When all parts are there, they
are joined into the artefact. Nothing here depends on the clock, so a resumed run ends with the same bytes. Whatever is
read again, parts and manifest too, tells whether it is still what was written.
"""

import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import fsspec.config
from etils import epath

from selfreward_jax.core.config import filled_up
from selfreward_jax.core.errors import ReadOnly, UserError
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Row, to_line
from selfreward_jax.core.stored import loads
from selfreward_jax.core.tokens import sha256_json

# Other processes write too, and so does TensorStore beside gcsfs: a listing that is kept is a wrong one.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
# Else gcsfs looks up the bucket's kind before every operation, and warns each time where it isn't told.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def write_atomic(
    path: epath.PathLike, data: bytes | str | Iterable[bytes], check: Callable[[str], None] = lambda sha256: None
) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it; of several processes, one does.

    Args:
      data: the file, or pieces of it, which are in memory one at a time.
      check: is told the file's SHA-256 before it takes the place of an earlier one; may raise.

    Raises:
      UserError: the disk is full or the folder can't be written.
    """
    if not is_writer():
        return
    path = local_path(path)
    data = data.encode() if isinstance(data, str) else data
    pieces, digest = [data] if isinstance(data, bytes) else data, hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not is_local(path):
            data = b"".join(pieces)
            check(hashlib.sha256(data).hexdigest())
            path.write_bytes(data)
            return
        # Always the same name, so that what a killed process left is written over when the work is done again.
        temporary = path.parent / f".{path.name}.tmp"
        try:
            with open(temporary, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                os.fsync(file.fileno())
            check(digest.hexdigest())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error


def write_changed(path: epath.Path, text: str) -> None:
    """The same, but what is there already is left alone, also where nothing may be written."""
    if not (path.exists() and path.read_bytes() == text.encode()):
        write_atomic(path, text)


def disk_error(path: epath.PathLike, error: OSError) -> UserError:
    """The one-line form of a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space and run the same command again to go on.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnly(f"{path}: can't write ({error.strerror}).")
    return UserError(f"{path}: can't write ({error.strerror or error}).")


def remote_error(error: BaseException) -> str:
    """What went wrong with an object store, as one line; empty if `error` is none of its libraries'."""
    if isinstance(error, ImportError) and "gcsfs" in str(error):
        return "gs:// paths need gcsfs; pip install gcsfs (selfreward_jax[tpu] brings it)."
    if isinstance(error, ImportError) and "s3fs" in str(error):
        return "s3:// paths need s3fs; pip install s3fs."
    if type(error).__module__.split(".")[0] in ("gcsfs", "google", "aiohttp"):
        return f"gs://: {' '.join(str(error).split())}; mend that, and run the same command again."
    return ""


def sha256_file(path: epath.PathLike) -> str:
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def known_sha256(path: epath.PathLike) -> str:
    """The same, read once in a process: a second look is at what the file system says of the file, if it does."""
    path = epath.Path(path)
    if is_local(path):
        stat = os.stat(path)
        return _known_sha256(os.fspath(path), (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    stat = path.stat()
    if not stat.mtime:  # of s3:// and az://, where the length alone tells too little
        return sha256_file(path)
    return _known_sha256(os.fspath(path), (stat.length, stat.mtime))


@functools.lru_cache(maxsize=1 << 16)
def _known_sha256(path: str, seen: tuple[int, ...]) -> str:
    return sha256_file(path)


def differ(expected: str, found: str) -> str:
    """For messages: two hashes, as short as tells them apart."""
    return f"SHA-256 {expected[:8]}.. expected, {found[:8]}.. found"


def claim(path: epath.Path, inputs: Mapping[str, Any]) -> None:
    """Says in a file what the work beside it is made from."""
    inputs = json.loads(json.dumps(inputs))
    write_atomic(path, json.dumps({"sha256": sha256_json(inputs), "inputs": inputs}) + "\n")


def is_claimed(path: epath.Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the work beside a file of `claim` is made from these inputs.

    Raises:
      UserError: the file is damaged, so that nobody knows; the work is not thrown away for that.
    """
    inputs = json.loads(json.dumps(inputs))
    if not path.exists():
        older = path.parent / f"{path.name.removesuffix('.json')}.sha256"  # of version 0.1: the hash alone
        return older.exists() and older.read_bytes() == sha256_json(inputs).encode()
    try:
        stored = loads(path.read_bytes().decode())
        if sha256_json(stored["inputs"]) != stored["sha256"]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: not what was written; restore it, or delete it to begin anew what lies beside it."
        ) from None
    return filled_up(stored["inputs"], inputs) == inputs


_PART = re.compile(r"(\d{6,})(?:\.([0-9a-f]{16}))?\.jsonl")


class Journal:
    """Rows of an artefact in the making, kept as parts `NAME.partial/000000.CHECKSUM.jsonl`, in their numbers' order.

    Parts of other inputs are thrown away: `inputs` names everything that the rows depend on. So is a part that is not
    what was written, whose rows are then to be made again.
    """

    def __init__(self, path: epath.Path, inputs: Mapping[str, Any]):
        self.path = path
        self.folder = path.parent / f"{path.name}.partial"
        self._parts: dict[int, epath.Path] = {}
        if not is_writer():
            return
        marker = self.folder / "inputs.json"
        if not is_claimed(marker, inputs):
            if self.folder.exists():
                self.folder.rmtree()
            claim(marker, inputs)
        for part in [part for part in self._list().values() if not _is_whole(part)]:
            say(f"{self.folder.name}/{part.name}: not what was written; its rows are made again")
            part.unlink()

    def _list(self) -> dict[int, epath.Path]:
        there = self.folder.iterdir() if self.folder.exists() else ()
        found = {int(match[1]): path for path in there if (match := _PART.fullmatch(path.name))}
        self._parts = dict(sorted(found.items()))
        return self._parts

    def has(self, number: int) -> bool:
        return number in self._parts or number in self._list()

    def write(self, number: int, rows: Iterable[Any]) -> None:
        """Stores one part; it is on disk when this returns."""
        if not is_writer():
            return
        data = "".join(to_line(row) for row in rows).encode()
        path = self.folder / f"{number:06d}.{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
        write_atomic(path, data)
        if (earlier := self._parts.get(number, path)) != path:
            earlier.unlink()
        self._parts[number] = path

    def rows(self, number: int) -> list[Row]:
        path = self._parts.get(number) or self._list()[number]
        return [json.loads(line) for line in path.read_text().split("\n") if line]

    def numbers(self) -> list[int]:
        return list(self._list())

    def append(self, rows: Iterable[Any]) -> None:
        """Stores rows as the next part."""
        self.write(max(self._parts, default=-1) + 1, rows)

    def finish(
        self, order: Callable[[Row], Any] | None = None, check: Callable[[str], None] = lambda sha256: None
    ) -> None:
        """Joins all parts into the artefact, sorted by `order` if given. The parts stay until `discard`.

        Args:
          check: see `write_atomic`.
        """
        if not is_writer():
            return
        # Rows as bytes take a tenth of the memory of rows as objects; each is let go when it has its place.
        lines = (line for part in self._list().values() for line in part.read_bytes().split(b"\n") if line)
        if order is not None:
            placed = sorted(((order(json.loads(line)), line) for line in lines), key=lambda row: row[0])
            placed.reverse()
            lines = (placed.pop()[1] for _ in range(len(placed)))
        write_atomic(self.path, (line + b"\n" for line in lines), check)

    def discard(self) -> None:
        if is_writer() and self.folder.exists():
            self.folder.rmtree()


def _is_whole(part: epath.Path) -> bool:
    """Whether a part is what was written; version 0.1 wrote no checksum, but always whole lines."""
    match = _PART.fullmatch(part.name)
    if match and match[2]:
        return known_sha256(part).startswith(match[2])
    try:
        *lines, end = part.read_bytes().split(b"\n")
        return not end and all(isinstance(loads(line.decode()), dict) for line in lines)
    except ValueError:
        return False


def _chained(link: "hashlib._Hash", row: Row) -> str:
    """A line of the manifest, with a checksum of itself and of all before it, which `link` holds."""
    link.update(to_line(row).encode())
    return to_line({**row, "chain": link.hexdigest()[:16]})


def _entry(line: bytes) -> Row:
    """A line of a manifest, which was not written by this version perhaps. Raises `ValueError` for any other."""
    row = loads(line.decode())
    kinds = dict.fromkeys(("artefact", "hash", "sha256"), str) | dict.fromkeys(("inputs", "metrics", "data"), dict)
    kinds |= {"versions": dict, "files": dict}
    needed = ("artefact", "inputs")
    if not isinstance(row, dict) or any(
        not isinstance(row.get(name, None if name in needed else kind()), kind) for name, kind in kinds.items()
    ):
        raise ValueError
    return row


class Manifest:
    """`manifest.jsonl`: one line an artefact, with its hash and everything that made it.

    A changed character is noticed, and a lost line; of a lost end, what it told of counts as not yet made.
    """

    def __init__(self, root: epath.Path):
        self.root = root
        self.path = root / "manifest.jsonl"
        self._entries: dict[str, Row] = {}
        if self.path.exists():
            self._read(self.path.read_bytes())

    def _read(self, data: bytes) -> None:
        """Raises `UserError` for a line that is not what was written."""
        link, chained = hashlib.sha256(), b'"chain": ' in data  # which version 0.1 didn't write
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            try:
                row = _entry(line)
                row.pop("chain", None)
                whole = line == _chained(link, row).encode() if chained else line.endswith(b"\n")
                self._entries[row["artefact"]] = row
            except ValueError:
                whole = False
            if not whole:
                mend = f"delete line {number} and all after it, to have what they tell of made again"
                raise UserError(
                    f"{self.path}:{number}: not a line that was written; restore it from a copy, or {mend}."
                )

    def entry(self, artefact: str) -> Row | None:
        return self._entries.get(artefact)

    def artefacts(self) -> list[Row]:
        """All lines, in the order in which they were made."""
        return list(self._entries.values())

    def after(self, artefact: str) -> list[str]:
        """What was made after an artefact, and so perhaps from it."""
        names = list(self._entries)
        return [name for name in names[names.index(artefact) + 1 :] if self._entries[name]["inputs"]]

    def is_made(self, artefact: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the artefact was made from exactly these inputs; what lies there now is told by `changed`."""
        entry = self._entries.get(artefact)
        inputs = json.loads(json.dumps(inputs))
        return entry is not None and filled_up(entry["inputs"], inputs) == inputs

    def forget(self, artefact: str) -> None:
        """What is no longer there, and will be made in another way."""
        if self._entries.pop(artefact, None):
            self._write()

    def intact(self, artefact: str, mend: str = "delete it and make it again") -> epath.Path:
        """The path of an artefact that is still what was recorded, if it is on record at all, to be read.

        Args:
          mend: what to do about it if it is not.

        Raises:
          UserError: it is not.
        """
        if changed := self.changed(artefact):
            raise UserError(f"{self.root}/{changed}; restore it from a copy, or {mend}.")
        return self.root / artefact

    def changed(self, artefact: str) -> str:
        """What of an artefact, or of the files that belong to it, is not as it was recorded; for people.

        Empty if all is, or if it isn't known how it was.
        """
        entry = self._entries.get(artefact)
        if entry is None:
            return ""
        folder = artefact.rpartition("/")[0]
        files = {f"{folder}/{name}" if folder else name: sha256 for name, sha256 in entry.get("files", {}).items()}
        for name, expected in {artefact: entry.get("sha256"), **files}.items():
            path = self.root / name
            if not path.exists():
                return f"{name}: not there any more"
            if expected and (found := known_sha256(path)) != expected:
                return f"{name}: not what was written ({differ(expected, found)})"
        return ""

    def record(self, artefact: str, inputs: Mapping[str, Any], **facts: Any) -> None:
        """Adds or replaces an artefact's line; one that was made from other inputs moves to the end."""
        row = json.loads(json.dumps({"artefact": artefact, **facts, "inputs": inputs}))  # as it will be read back
        inputs = row["inputs"]
        before = self._entries.get(artefact)
        same = before is not None and filled_up(before["inputs"], inputs) == inputs
        if before and same and {**row, "made_by": 0} == {**before, "made_by": 0, "inputs": inputs}:
            return  # by whichever version
        if not same and inputs:  # else what was made from it stays behind it
            self._entries.pop(artefact, None)
        self._entries[artefact] = row
        self._write()

    def _write(self) -> None:
        link = hashlib.sha256()
        write_atomic(self.path, "".join(_chained(link, row) for row in self._entries.values()))


def free_bytes(path: epath.PathLike) -> int | None:
    """Free space on the disk that holds `path`, None where that is not told (object stores, some file systems)."""
    path = epath.Path(path)
    if not is_local(path):
        return None
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else None
