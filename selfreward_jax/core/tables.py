"""Rows of a data set, however it is kept: JSONL (also gzipped), Parquet, a folder of such files, or TFDS."""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import pyarrow
import pyarrow.parquet
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import Row, parse_row, read_jsonl
from selfreward_jax.core.seeds import TFDS, parse_tfds, read_tfds

T = TypeVar("T")

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")


def read_table(spec: str, parse: Callable[[Row, str], T], what: str) -> list[T]:
    """All rows of a data set, parsed.

    Args:
      spec: a file, a folder such as a data set of the Hugging Face hub has, or `tfds:NAME/SPLIT`.
      parse: from a row and its split to what is wanted; raises `ValueError`, `KeyError` or `TypeError` for a bad row.
        The split is the row's own `split`, else the word with which the file's name begins (`train-00000-of-00001`).
      what: what the rows are, for errors.

    Raises:
      UserError: data that can't be read, or a wrong row, with its place.
    """
    if spec.startswith(TFDS):
        split = re.sub(r"\[.*", "", parse_tfds(spec)[1])
        return read_tfds(spec, lambda row: parse(row, str(row.get("split") or split)), what)
    path = epath.Path(spec)
    if not path.is_dir():
        return _read_file(path, parse, what)
    inside = (p for depth in ("*", "*/*", "*/*/*") for p in path.glob(depth))
    files = sorted(p for p in inside if p.name.endswith(ENDINGS) and not p.name.startswith("."))
    if not files:
        raise UserError(f"{path}: no {', '.join(ENDINGS)} file in this folder; it should hold {what}.")
    return [row for file in files for row in _read_file(file, parse, what)]


def _read_file(path: epath.Path, parse: Callable[[Row, str], T], what: str) -> list[T]:
    split = re.split(r"[-_.]", path.name)[0]

    def with_split(row: Row) -> T:
        return parse(row, str(row.get("split") or split))

    if path.suffix != ".parquet":
        return read_jsonl(path, with_split, what)
    if not path.exists():
        raise UserError(f"{path}: no such file; it should hold {what}.")
    rows = [parse_row(row, with_split, f"{path}: row {n}") for n, row in enumerate(_parquet(path), 1)]
    if not rows:
        raise UserError(f"{path}: the file is empty; it should hold {what}.")
    return rows


def _parquet(path: epath.Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]}).") from None
