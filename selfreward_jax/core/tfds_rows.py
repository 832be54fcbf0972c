"""Rows of TensorFlow Datasets, `tfds:NAME/SPLIT`, read without TensorFlow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from selfreward_jax.core.errors import UserError, first_line
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.rows import Row, parse_row, present

TFDS = "tfds:"


def tfds_rows(spec: str) -> Iterator[tuple[str, str, Row]]:
    """Place, split and row of `tfds:NAME`, `tfds:NAME/SPLIT` or `tfds:NAME/SPLIT?data_dir=PATH`.

    The split is what follows the last slash, "train" where there is none.

    Raises:
      UserError: data that can't be read, with its place.
    """
    split = parse_tfds(spec)[1].partition("[")[0]
    for n, row in enumerate(_open_tfds(spec), 1):
        where = f"{spec}: row {n}"
        yield where, split, parse_row(row, lambda row: present(_plain(row)), where)


def _open_tfds(spec: str) -> Sequence[Row]:
    """Random access to a split of a data set that is already prepared on disk; nothing is downloaded."""
    name, split, data_dir = parse_tfds(spec)
    try:
        import tensorflow_datasets as tfds  # half a second that only those who use it should wait
        from tensorflow_datasets.core.constants import DATA_DIR
    except ImportError as error:
        raise UserError(f"{spec}: {error.name or error} is missing; pip install tensorflow-datasets.") from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        where = data_dir or DATA_DIR
        mend = "check the name, or give the folder that holds it with ?data_dir=PATH"
        raise UserError(f"{spec}: TFDS has no data set {name}, and {where} holds none either; {mend}.") from None
    except Exception as error:  # TFDS has no error of its own
        raise UserError(f"{spec}: TFDS can't open it ({first_line(error)}).") from None
    place = f", data_dir='{data_dir}'" if data_dir else ""
    call = f"tfds.builder('{name}'{place}, file_format='array_record').download_and_prepare()"
    prepare = f'prepare it: python -c "import tensorflow_datasets as tfds; {call}"'
    if not builder.is_prepared():
        raise UserError(f"{spec}: the data set is not in {builder.data_path} yet; {prepare}")
    try:
        if not builder.info.splits[split].num_examples:
            return ()  # no file of it could be opened
        return builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]  hidden by TFDS's decorator
    except NotImplementedError:
        kind = builder.info.file_format
        stored = kind.value if kind else "an unknown format"
        raise UserError(f"{spec}: stored as {stored}, which only TensorFlow reads; delete it and {prepare}") from None
    except ImportError as error:
        raise UserError(f"{spec}: {error.name or error} is missing; pip install array_record.") from None
    except Exception as error:  # as before
        raise UserError(f"{spec}: TFDS can't read it ({first_line(error)}).") from None


def parse_tfds(spec: str) -> tuple[str, str, str | None]:
    """Name, split and folder. A name may hold a configuration and a version: NAME/CONFIG:1.0.0."""
    path, _, option = spec.removeprefix(TFDS).partition("?")
    key, _, value = option.partition("=")
    if option and (key != "data_dir" or not value):
        raise UserError(f"{spec}: {option} is not understood; only data_dir=PATH may follow the question mark.")
    name, slash, split = path.rpartition("/")
    name, split = (name, split) if slash else (path, "train")
    if not name or not split:
        raise UserError(f"{spec}: not understood; write tfds:NAME/SPLIT.")
    return name, split, str(local_path(value)) if value else None


def _plain(value: Any) -> Any:
    """Text, numbers, lists and dicts in place of bytes, NumPy values and nested TFDS data sets."""
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:
        return _plain(value.item())
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
