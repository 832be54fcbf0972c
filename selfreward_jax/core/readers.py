"""Rows that people bring, however they keep them: one reader for every verb.

A data set is named by

- a file: `.jsonl` (or `.ndjson`), `.json` (an array of objects, or an object a line), `.parquet`, `.csv`, `.tsv`; all
  but Parquet also packed, with `.gz` or `.zst` behind. Any other name is read as JSONL;
- a folder of such files, or one that `datasets` wrote with `save_to_disk`;
- `hf:NAME[@REVISION][/CONFIG][:SPLIT]`, a data set of the Hugging Face hub or a folder laid out as one (`hub_rows`);
- `tfds:NAME/SPLIT`, of TensorFlow Datasets (`tfds_rows`).

A column that is null is absent, at any depth, since `datasets` fills with nulls whatever other rows have. In tables NaN
is null too, as pandas writes it. Of several splits `train` is read, unless one is named.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from selfreward_jax.core import hub_rows, texts
from selfreward_jax.core.errors import UserError, first_line
from selfreward_jax.core.json_rows import ArrayReader, checked, row_of
from selfreward_jax.core.paths import local_path, matching, reading
from selfreward_jax.core.rows import Row, parse_row, present
from selfreward_jax.core.store import sha256_file
from selfreward_jax.core.texts import (
    ARRAY,
    CSV,
    FORMS,
    LINES,
    PARQUET,
    TSV,
    Form,
    form_of,
    looks_like,
    opened,
    read_lines,
)
from selfreward_jax.core.tfds_rows import TFDS, tfds_rows

T = TypeVar("T")
Rows = Iterator[tuple[str, Row]]  # each with its place, for errors

SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


def read_rows(spec: epath.PathLike, parse: Callable[[Row], T], what: str) -> list[T]:
    """All rows of a data set, parsed.

    Args:
      spec: what the module's description names.
      parse: from a row to what is wanted; raises `ValueError`, `KeyError` or `TypeError` for a bad one.
      what: what the rows are, for errors.

    Raises:
      UserError: data that can't be read or hold no row, or a wrong row, with file and line (or row).
    """
    return list(iter_rows(spec, parse, what))


def iter_rows(spec: epath.PathLike, parse: Callable[[Row], T], what: str) -> Iterator[T]:
    """As `read_rows`, one after another: who takes few has read few."""
    found = False
    for where, _, row in _records(str(spec), what, every=False):
        found = True
        yield parse_row(row, parse, where)
    if not found:
        raise UserError(f"{spec}: there is no row; it should hold {what}.")


def read_table(spec: epath.PathLike, parse: Callable[[Row, str], T], what: str) -> list[T]:
    """As `read_rows`, of all splits.

    Args:
      parse: from a row and its split. The split is the row's own `split`, else the one that the data set says, else a
        word of the file's name (`train-00000-of-00001`, `my_test`).
    """
    rows = []
    for where, split, row in _records(str(spec), what, every=True):
        own = str(row.get("split") or split)
        rows.append(parse_row(row, lambda row, own=own: parse(row, own), where))
    if not rows:
        raise UserError(f"{spec}: there is no row; it should hold {what}.")
    return rows


def is_data(spec: str) -> bool:
    """Whether a name means rows, and not a model."""
    return spec.startswith((hub_rows.HF, TFDS)) or form_of(spec) != ""


def fingerprint(spec: epath.PathLike) -> str:
    """SHA-256 of a file's bytes; of the rows and their splits, where a data set is no single file."""
    if not str(spec).startswith((hub_rows.HF, TFDS)) and not (path := local_path(spec)).is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file.")
        with reading(path):
            return sha256_file(path)
    digest = hashlib.sha256()
    for _, split, row in _records(str(spec), "rows", every=True):
        digest.update(json.dumps([split, row], sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def stem(spec: epath.PathLike) -> str:
    """A data set's name for files and titles, without folder and endings."""
    spec = str(spec)
    if spec.startswith((hub_rows.HF, TFDS)):
        return re.sub(r"[^\w.-]+", "-", spec.partition(":")[2].partition("?")[0]).strip("-.")
    name = local_path(spec).name
    return name[: len(name) - len(form_of(name))] or name if form_of(name) else epath.Path(name).stem


def _records(spec: str, what: str, every: bool) -> Iterator[tuple[str, str, Row]]:
    """Place, split and row.

    Args:
      every: the rows of all splits; else those of one.
    """
    if not spec:
        raise UserError(f"no data set is named; it should hold {what}.")
    if spec.startswith(TFDS):
        return tfds_rows(spec)
    if spec.startswith(hub_rows.HF):
        return hub_rows.rows(spec, every, _of_file)
    path = local_path(spec)
    return _of_folder(path, what, every) if path.is_dir() else _of_one(path, what)


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


def _of_one(path: epath.Path, what: str) -> Iterator[tuple[str, str, Row]]:
    if not path.exists():
        raise UserError(f"{path}: no such file; it should hold {what}.")
    found = False
    split = _split_of(path)
    for where, row in _of_file(path):
        found = True
        yield where, split, row
    if not found:
        raise UserError(f"{path}: the file is empty; it should hold {what}.")


def _of_folder(folder: epath.Path, what: str, every: bool) -> Iterator[tuple[str, str, Row]]:
    if hub_rows.is_saved(folder):
        yield from hub_rows.saved_rows(folder, str(folder), every)
        return
    inside = (p for depth in ("*", "*/*", "*/*/*") for p in matching(folder, depth))
    files = sorted(p for p in inside if form_of(p.name) and p.name[0] != "." and p.name not in hub_rows.ABOUT)
    if not files:
        raise UserError(f"{folder}: no {', '.join(FORMS)} file in this folder; it should hold {what}.")
    hub_rows.check_whole(files)
    by_split: dict[str, list[epath.Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, folder), []).append(file)
    if not every and len(known := [split for split in by_split if split in SPLITS]) > 1:
        files = by_split[hub_rows.choose_split(str(folder), known)]
    for file in files:
        split = _split_of(file, folder)
        for where, row in _of_file(file):
            yield where, split, row


def _split_of(path: epath.Path, folder: epath.Path | None = None) -> str:
    """By a file's name, or by the folders it lies in within a data set's folder: the hub's layouts have either."""
    words = re.split(r"[-_. \d]+", path.name[: len(path.name) - len(form_of(path.name))].lower())
    inside = path.relative_to(folder).parts[:-1] if folder else ()
    return next((word for word in (*words, *reversed(inside)) if word in SPLITS), words[0])


def _of_file(path: epath.Path) -> Rows:
    """The rows of a file, by what its name says it is."""
    form = form_of(path.name)
    base = form.removesuffix(".gz").removesuffix(".zst")
    if base == ".parquet":
        if base != form:
            raise UserError(f"{path}: Parquet packs itself; unpack the file.")
        return _parquet(path)
    if base in (".csv", ".tsv"):
        return _table(path, *((",", CSV) if base == ".csv" else ("\t", TSV)))
    return _json(path) if base == ".json" else _jsonl(path)


def _expect(path: epath.Path, head: bytes, *expected: Form) -> Form | None:
    """What the file looks like. Raises `UserError` if that is something else than expected."""
    form = looks_like(head)
    if form and form not in expected:
        raise UserError(f"{path}:1: expected {expected[0].name}, but it looks like {form.name}; {form.mend}.")
    return form


def _jsonl(path: epath.Path) -> Rows:
    with opened(path) as file:
        _expect(path, file.peek(512)[:512], LINES)
        for number, line in read_lines(path, file):
            if line.strip():
                where = f"{path}:{number}"
                yield where, parse_row(line, row_of, where)


def _json(path: epath.Path) -> Rows:
    with opened(path) as file:
        form = _expect(path, file.peek(512)[:512], ARRAY, LINES)
        if form == ARRAY:
            reader = ArrayReader(path, file)
            for value, text in reader:
                where = f"{path}:{reader.line}: item {reader.item}"
                yield where, parse_row(value, lambda value, text=text: checked(value, text), where)
            return
    rows = _jsonl(path)
    try:
        first = next(rows, None)
    except UserError as error:
        raise UserError(f"{error} A .json file holds an array of objects, or an object a line.") from None
    if first:
        yield first
        yield from rows


def _parquet(path: epath.Path) -> Rows:
    import pyarrow  # a fifth of a second that only those who use it should wait
    import pyarrow.parquet

    with reading(path), path.open("rb") as file:
        head = file.read(512)
        form = looks_like(head)
        if form != PARQUET:
            seen = f"it looks like {form.name}; {form.mend}" if form else "it does not begin as one"
            raise UserError(f"{path}: not a Parquet file that can be read ({seen}).")
        try:
            number, table = 0, pyarrow.parquet.ParquetFile(file)
            _check_names(table.schema_arrow.names, f"{path}")
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", present(row)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path}: not a Parquet file that can be read ({first_line(error)}).") from None


# ---------------------------------------------------------------------------------------------------------------------
# CSV and TSV

# Cells are text. A column of which every cell is a number, or true or false, holds those, as `datasets` and pandas
# decide it; but not one of these, whose answers may well be nothing but numbers.
_MAYBE_DIGITS = "prompt response chosen rejected completion instruction input output system question answer query text"
TEXT_COLUMNS = frozenset(f"{_MAYBE_DIGITS} content judgement response_a response_b id".split())
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][+-]?\d{1,2})?")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def _table(path: epath.Path, delimiter: str, form: Form) -> Rows:
    kinds: dict[str, Callable[[str], Any]] = {}
    for _, row in _cells(path, delimiter, form):
        for name, cell in row.items():
            if cell and kinds.get(name) is not str:
                kind = str if name in TEXT_COLUMNS else _kind(cell)
                kinds[name] = kind if kinds.get(name, kind) is kind else str
    for where, row in _cells(path, delimiter, form):
        yield where, {name: kinds[name](cell) for name, cell in row.items() if cell}


def _kind(cell: str) -> Callable[[str], Any]:
    return _truth if cell in _WORDS else _number if _NUMBER.fullmatch(cell) else str


def _truth(cell: str) -> bool:
    return _WORDS[cell]


def _number(cell: str) -> int | float:
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)


def _cells(path: epath.Path, delimiter: str, form: Form) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Place and cells by column of each row. Raises `UserError` for a row that has not as many as the header."""
    csv.field_size_limit(texts.MOST_BYTES)
    with opened(path) as file:
        _expect(path, file.peek(512)[:512], form)
        reader = csv.reader((line for _, line in read_lines(path, file)), delimiter=delimiter, strict=True)
        names: list[str] = []
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{where}: not valid {form.name} ({error}).") from None
            if cells is None:
                return
            if not cells:
                continue
            if not names:
                names = _header(cells, where, form)
            elif len(cells) != len(names):
                raise UserError(f"{where}: {len(cells)} cells where the header has {len(names)} columns.")
            else:
                yield where, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _header(cells: list[str], where: str, form: Form) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and ";" in names[0]:
        raise UserError(f"{where}: separated by semicolons; save it as {form.name}, with commas.")
    _check_names(names, where)
    return names  # one without a name is the index that pandas writes


def _check_names(names: Sequence[str], where: str) -> None:
    if twice := next((name for n, name in enumerate(names) if name and name in names[:n]), ""):
        raise UserError(f"{where}: the column {twice} comes twice.")
