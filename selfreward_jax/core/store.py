"""A run's folder: artefacts that exist whole or not at all, and the manifest that says what made each.

While a stage works, its rows go to numbered part files beside the artefact, each written under a temporary name and
renamed (on object stores: one upload), so that a killed stage goes on where it was. When all parts are there, they
are joined into the artefact. Nothing here depends on the clock, so a resumed run ends with the same bytes.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import fsspec.config
from etils import epath

from selfreward_jax.core.errors import UserError, shown
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.rows import Row, parse_lines, to_line
from selfreward_jax.core.tokens import sha256_json

# Other processes write too, and so does TensorStore beside gcsfs: a listing that is kept is a wrong one.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
# Else gcsfs looks up the bucket's kind before every operation, and warns each time where it isn't told.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def write_atomic(path: epath.PathLike, data: bytes | str) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it; of several processes, one does.

    Raises:
      UserError: the disk is full or the folder can't be written.
    """
    if not is_writer():
        return
    path = local_path(path)
    data = data.encode() if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not is_local(path):
            path.write_bytes(data)
            return
        # Always the same name, so that what a killed process left is written over when the work is done again.
        temporary = path.parent / f".{path.name}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: epath.PathLike, error: OSError) -> UserError:
    """The one-line form of a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space and run the same command again to go on.")
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


def exists(path: epath.PathLike) -> bool:
    return epath.Path(path).exists()


def sha256_file(path: epath.PathLike) -> str:
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


class Journal:
    """Rows of an artefact in the making, kept as parts `NAME.partial/000000.jsonl`, in the order of their numbers.

    Parts of other inputs are thrown away: `inputs` names everything that the rows depend on.
    """

    def __init__(self, path: epath.Path, inputs: Mapping[str, Any]):
        self.path = path
        self.folder = path.parent / f"{path.name}.partial"
        self._key = sha256_json(dict(inputs))
        marker = self.folder / "inputs.sha256"
        if is_writer() and (not marker.exists() or marker.read_text() != self._key):
            if self.folder.exists():
                self.folder.rmtree()
            write_atomic(marker, self._key)

    def _part(self, number: int) -> epath.Path:
        return self.folder / f"{number:06d}.jsonl"

    def has(self, number: int) -> bool:
        return self._part(number).exists()

    def write(self, number: int, rows: Iterable[Any]) -> None:
        """Stores one part; it is on disk when this returns."""
        write_atomic(self._part(number), "".join(to_line(row) for row in rows))

    def rows(self, number: int) -> list[Row]:
        return [json.loads(line) for line in self._part(number).read_text().split("\n") if line]

    def numbers(self) -> list[int]:
        if not self.folder.exists():
            return []
        return sorted(int(p.stem) for p in self.folder.iterdir() if p.name.endswith(".jsonl") and p.name[0] != ".")

    def append(self, rows: Iterable[Any]) -> None:
        """Stores rows as the next part."""
        numbers = self.numbers() if is_writer() else []
        self.write(numbers[-1] + 1 if numbers else 0, rows)

    def finish(self, order: Callable[[Row], Any] | None = None) -> None:
        """Joins all parts into the artefact, sorted by `order` if given. The parts stay until `discard`."""
        if not is_writer():
            return
        lines = (line for number in self.numbers() for line in self._part(number).read_text().split("\n") if line)
        if order is not None:
            # Rows as text take a tenth of the memory of rows as objects.
            placed = sorted(((order(json.loads(line)), line) for line in lines), key=lambda row: row[0])
            lines = (line for _, line in placed)
        write_atomic(self.path, "".join(f"{line}\n" for line in lines))

    def discard(self) -> None:
        if is_writer() and self.folder.exists():
            self.folder.rmtree()


def _line(row: Row) -> Row:
    """A line of a manifest. Raises `ValueError` for any other row."""
    kinds = dict.fromkeys(("artefact", "hash", "sha256"), str) | dict.fromkeys(("inputs", "metrics", "data"), dict)
    kinds |= {"versions": dict}
    for name, kind in kinds.items():
        if not isinstance(row.get(name, None if name in ("artefact", "inputs") else kind()), kind):
            raise ValueError(f"not a line of a manifest, whose {name} is {shown(row.get(name))}; restore it")
    return row


class Manifest:
    """`manifest.jsonl`: one line an artefact, with its hash and everything that made it."""

    def __init__(self, root: epath.Path):
        self.root = root
        self.path = root / "manifest.jsonl"
        lines = parse_lines(self.path, _line) if self.path.exists() else ()
        self._entries: dict[str, Row] = {row["artefact"]: row for row in lines}

    def entry(self, artefact: str) -> Row | None:
        return self._entries.get(artefact)

    def artefacts(self) -> list[Row]:
        """All lines, in the order in which they were made."""
        return list(self._entries.values())

    def is_made(self, artefact: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the artefact exists and was made from exactly these inputs."""
        entry = self._entries.get(artefact)
        made = entry is not None and entry["inputs"] == json.loads(json.dumps(inputs))
        return made and (self.root / artefact).exists()

    def record(self, artefact: str, inputs: Mapping[str, Any], **facts: Any) -> None:
        """Adds or replaces an artefact's line; a replaced artefact moves to the end."""
        row = json.loads(json.dumps({"artefact": artefact, **facts, "inputs": inputs}))  # as it will be read back
        if self._entries.get(artefact) == row:
            return
        self._entries.pop(artefact, None)
        self._entries[artefact] = row
        write_atomic(self.path, "".join(to_line(row) for row in self._entries.values()))


def free_bytes(path: epath.PathLike) -> int | None:
    """Free space on the disk that holds `path`, None where that is not told (object stores, some file systems)."""
    path = epath.Path(path)
    if not is_local(path):
        return None
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else None
