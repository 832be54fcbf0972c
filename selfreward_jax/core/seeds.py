"""The seed data that people wrote: answers to requests (IFT) and judgements of answers (EFT), from a file or TFDS.

Both become demonstrations: a conversation, and the turn that the model should learn to add to it. Everything that
could be wrong with a row is found here, where its place is known.
"""

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.forms import Demonstration, columns, demonstration, present
from selfreward_jax.core.rows import Messages, Row, parse_row, read_jsonl

TFDS = "tfds:"

T = TypeVar("T")


def load_ift(spec: str, check: Callable[[Messages], None] = lambda messages: None) -> list[Demonstration]:
    """Instruction following demonstrations.

    Rows are of the forms of `core.forms.demonstration`. Further fields are ignored.

    Args:
      check: raises `UserError` for a conversation that can't be rendered.
      spec: "builtin", a JSONL file, or `tfds:NAME`, `tfds:NAME/SPLIT` and `tfds:NAME/SPLIT?data_dir=PATH`. The split
        is what follows the last slash, "train" where there is none.

    Raises:
      UserError: data that can't be read, or a wrong row, with its place.
    """

    def parse(row: Row) -> Demonstration:
        made = demonstration(row)
        check(made.messages)
        return made

    return _load(spec, "ift.jsonl", parse)


def load_eft(
    spec: str,
    judge_prompt: Callable[[Messages, str], Messages],
    parse_score: Callable[[str], float | None],
) -> list[Demonstration]:
    """Evaluation following demonstrations: how a person would judge an answer.

    Rows have `prompt` (text or messages), `response` and `judgement`, or `messages` that end with the judgement and
    are taken as they are. Further fields are ignored.

    Args:
      spec: as for `load_ift`; "" for no demonstrations.
      judge_prompt: from a conversation and an answer to what the judge is asked.
      parse_score: reads the score of a judgement, None if it has none.

    Raises:
      UserError: data that can't be read, or a wrong row, with its place; a judgement without a score is one.
    """
    if not spec:
        return []
    return _load(spec, "eft.jsonl", lambda row: _eft_row(row, judge_prompt, parse_score))


def _load(spec: str, builtin: str, parse: Callable[[Row], Demonstration]) -> list[Demonstration]:
    if spec.startswith(TFDS):
        return read_tfds(spec, parse, "demonstrations")
    if spec == "builtin":
        with resources.as_file(resources.files("selfreward_jax") / "seeds" / builtin) as path:
            return read_jsonl(path, parse, "demonstrations")
    if not spec:
        raise UserError("seeds: no data is named; give builtin, a JSONL file or tfds:NAME/SPLIT.")
    return read_jsonl(spec, parse, "demonstrations")


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _eft_row(
    row: Row,
    judge_prompt: Callable[[Messages, str], Messages],
    parse_score: Callable[[str], float | None],
) -> Demonstration:
    row = present(row)
    made = demonstration(row) if "messages" in row or "prompt" in row else None
    if made is None:
        raise ValueError(f"needs prompt, response and judgement, or messages; found {columns(row)}")
    if "messages" not in row:
        judgement = row["judgement"]
        if not isinstance(judgement, str):
            raise ValueError("judgement must be text")
        made = Demonstration(judge_prompt(made.messages, made.response), judgement)
    if parse_score(made.response) is None:
        raise ValueError("the judgement has no score that can be read; let it end with a line such as `Score: 3`")
    return made


# ---------------------------------------------------------------------------------------------------------------------
# TensorFlow Datasets, read without TensorFlow


def read_tfds(spec: str, parse: Callable[[Row], T], what: str) -> list[T]:
    """Rows of `tfds:NAME/SPLIT`, parsed as `read_jsonl` parses those of a file.

    Raises:
      UserError: data that can't be read, or a wrong row, with its place.
    """
    source = _open_tfds(spec)
    rows = [parse_row(row, lambda row: parse(_plain(row)), f"{spec}: row {n}") for n, row in enumerate(source, 1)]
    if not rows:
        raise UserError(f"{spec}: the split is empty; it should hold {what}.")
    return rows


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
        raise UserError(f"{spec}: TFDS can't open it ({_first_line(error)}).") from None
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
        raise UserError(f"{spec}: TFDS can't read it ({_first_line(error)}).") from None


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
    return name, split, str(epath.Path(value).expanduser()) if value else None


def _plain(value: Any) -> Any:
    """Text, numbers, lists and dicts in place of bytes, NumPy values and nested TFDS data sets."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".: ")
