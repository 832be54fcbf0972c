"""Text that people bring: whatever packs it, read in pieces, checked to be UTF-8, its places known.

A byte order mark is no content. What a file holds in place of what its name promises is told from its first bytes.
"""

import codecs
import contextlib
import dataclasses
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import IO, cast

from etils import epath

from selfreward_jax.core.errors import UserError, about
from selfreward_jax.core.paths import local_path, reading

FORMS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
PACKED = (".gz", ".zst")
MOST_BYTES = 16 << 20  # of a line or a template; what is longer is broken or hostile, and would take the memory
BOM = "\ufeff"
NEWLINE = b"\n"


@dataclasses.dataclass(frozen=True)
class Form:
    """What bytes look like, and what to do where they were not expected."""

    name: str
    mend: str


PARQUET = Form("Parquet", "name it .parquet")
GZIP = Form("gzip", "name it .gz")
ZSTD = Form("zstd", "name it .zst")
ARRAY = Form("a JSON array", "name it .json")
LINES = Form("JSON", "name it .jsonl if it has an object a line, .json if it is an array")
CSV = Form("CSV", "name it .csv")
TSV = Form("TSV", "name it .tsv")
_UTF16 = Form("UTF-16", "save it as UTF-8")
_STARTS = {
    b"PAR1": PARQUET,
    b"\x1f\x8b": GZIP,
    b"\x28\xb5\x2f\xfd": ZSTD,
    b"PK\x03\x04": Form("a zip archive", "unpack it"),
    b"BZh": Form("bzip2", "unpack it"),
    b"\xfd7zXZ": Form("xz", "unpack it"),
    b"ARROW1": Form("Arrow", "give the folder that save_to_disk wrote, or save it as Parquet"),
    b"\xff\xff\xff\xff": Form("Arrow", "give the folder that save_to_disk wrote, or save it as Parquet"),
    b"version https://git-lfs": Form("a pointer of git-lfs", "fetch the file itself with git lfs pull"),
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    **{
        b"\x80" + bytes([n]): Form("a Python pickle", "it could run code, so it is not opened; save it as JSONL")
        for n in range(2, 6)
    },
}


def form_of(name: str) -> str:
    """The ending of a file's name that says how rows are kept, with what packs them; "" if it says nothing."""
    endings, packed = ("|".join(map(re.escape, words)) for words in (FORMS, PACKED))
    found = re.search(f"({endings})({packed})?$", name.lower())
    return found[0] if found else ""


def looks_like(head: bytes) -> Form | None:
    """What a file with these first bytes seems to be, None if that can't be told."""
    for start, form in _STARTS.items():
        if head.startswith(start):
            return form
    if head[257:262] == b"ustar":
        return Form("a tar archive", "unpack it")
    if max(head[::2].count(0), head[1::2].count(0)) > len(head) // 4:
        return _UTF16
    text = head.decode(errors="ignore").removeprefix(BOM).lstrip()
    if text.lower().startswith(("<!doctype", "<html", "<?xml")):
        return Form("a web page", "fetch the file itself")
    first = text.splitlines()[0] if text else ""
    if first.startswith(("[", "{")):
        return ARRAY if first.startswith("[") else LINES
    return TSV if "\t" in first else CSV if "," in first else None


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked as its name says (`.gz`, `.zst`), without ever holding all of them.

    Raises:
      UserError: it is not packed as its name says, or cut off.
    """
    packing = path.suffix.lower()
    with reading(path), path.open("rb") as file:
        if packing not in PACKED:
            yield file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
            return
        head = file.read(512)
        file.seek(0)
        kind = "gzip" if packing == ".gz" else "zstd"
        try:
            yield io.BufferedReader(_unpacked(file, kind), 1 << 16)
        except UserError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            form = looks_like(head)
            seen = f"it looks like {form.name}" if form and form.name != kind else str(error)
            raise UserError(f"{path}: not a whole {kind} file ({seen}).") from None


def _unpacked(file: IO[bytes], kind: str):
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    import pyarrow  # here, since the command line starts without it

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


def read_lines(path: epath.Path, file: io.BufferedReader) -> Iterator[tuple[int, str]]:
    """Number and text of every line of an open file, with its line end.

    Raises:
      UserError: a line that is not UTF-8, or longer than any row; file, line and byte are named.
    """
    before = 0
    number = 0
    while line := file.readline(MOST_BYTES + 1):
        number += 1
        if len(line) > MOST_BYTES:
            raise UserError(f"{path}:{number}: a line of more than {MOST_BYTES >> 20} MiB, which is no row.")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            where = f"not UTF-8 at byte {before + error.start} of the file, byte {error.start} of the line"
            raise UserError(f"{path}:{number}: {where}; save it as UTF-8.") from None
        before += len(line)
        yield number, text.removeprefix(BOM) if number == 1 else text


def read_pieces(path: epath.Path, file: io.BufferedReader) -> Iterator[str]:
    """The text of an open file in pieces of some 64 KiB, for what has no lines.

    Raises:
      UserError: it is not UTF-8; file, line and byte are named.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, line = 0, 1
    while True:
        data = file.read(1 << 16)
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            whole = pending + data
            place = f"{path}:{line + whole.count(NEWLINE, 0, error.start)}"
            byte = before - len(pending) + error.start
            raise UserError(f"{place}: not UTF-8 at byte {byte} of the file; save it as UTF-8.") from None
        if not data:
            return
        yield text if before else text.removeprefix(BOM)
        before += len(data)
        line += text.count("\n")


def read_text(path: epath.PathLike, field: str) -> str:
    """A user's whole file, such as a template, without its byte order mark.

    Raises:
      UserError: no such file, nothing in it, or no UTF-8; `field` is named.
    """
    path = local_path(path)
    where = f"{field}={path}" if field.startswith("--") else f"{field}: {path}"
    if not path.exists() or path.is_dir():
        raise UserError(f"{where}: no such file.")
    with about(field), reading(path), path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{where}: more than {MOST_BYTES >> 20} MiB, which is no text to read whole.")
    if looks_like(data[:512]) == _UTF16:
        raise UserError(f"{where}: it looks like {_UTF16.name}; {_UTF16.mend}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(NEWLINE, 0, error.start) + 1
        raise UserError(f"{where}:{line}: not UTF-8 at byte {error.start}; save it as UTF-8.") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise UserError(f"{where}: the file is empty.")
    return text
