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
from selfreward_jax.core.interrupt import at_once, each_at_once
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

MOST_COLUMNS = 10_000
MOST_PACKED = 1000  # times, that a column of Parquet may be packed; text packs some 10 times

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
        with reading(path), at_once():
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
    """Place, split and row; a signal ends the reading of the next one.

    Args:
      every: the rows of all splits; else those of one.
    """
    with at_once():
        found = _found(spec, what, every)
    return each_at_once(found)


def _found(spec: str, what: str, every: bool) -> Iterator[tuple[str, str, Row]]:
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
            _check_packing(table.metadata, path)
            for batch in table.iter_batches(batch_size=1024):
                large = batch.nbytes > texts.MOST_BYTES
                for n, row in enumerate(_one_by_one(batch, path, number) if large else batch.to_pylist(), number + 1):
                    yield f"{path}: row {n}", present(row)
                number += batch.num_rows
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path}: not a Parquet file that can be read ({first_line(error)}).") from None


def _check_packing(metadata: Any, path: epath.Path) -> None:
    """Refuses a file that would unpack to rows larger than any, before it does."""
    number = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size, packed = column.total_uncompressed_size, column.total_compressed_size
            # However many rows there are: one of them may hold it all, if it is packed as no text is.
            rows = 1 if size > MOST_PACKED * packed else group.num_rows
            if size > texts.MOST_BYTES * rows:
                where = f"{path}: row {number + 1} to {number + group.num_rows}"
                raise UserError(f"{where}: {column.path_in_schema} unpacks to {size >> 20} MiB, which is no row.")
        number += group.num_rows


def _one_by_one(batch: Any, path: epath.Path, before: int) -> Iterator[Row]:
    """The rows of a batch. Raises `UserError` for one that is larger than any."""
    for n in range(batch.num_rows):
        row = batch.slice(n, 1)
        if row.nbytes > texts.MOST_BYTES:
            where = f"{path}: row {before + n + 1}"
            raise UserError(f"{where}: longer than {texts.MOST_BYTES >> 20} MiB, which is no row.")
        yield row.to_pylist()[0]


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
        size = 0  # of the row that is being read, which may have many lines

        def lines() -> Iterator[str]:
            nonlocal size
            for number, line in read_lines(path, file):
                size += len(line)
                if size > texts.MOST_BYTES:
                    raise UserError(f"{path}:{number}: longer than {texts.MOST_BYTES >> 20} MiB, which is no row.")
                yield line

        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        names: list[str] = []
        while True:
            size = 0
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
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{where}: {len(names):,} columns; up to {MOST_COLUMNS:,} are read.")
    seen: set[str] = set()
    if twice := next((name for name in names if name and (name in seen or seen.add(name))), ""):
        raise UserError(f"{where}: the column {twice} comes twice.")
