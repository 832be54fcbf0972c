"""The rows that flow between stages, and JSONL in and out.

Ids are content hashes, so that the same inputs give the same ids in every run. Files carry TRL's column names where
TRL has one. A wrong row is reported with its file, line and reason.
"""

import array
import dataclasses
import functools
import hashlib
import json
import math
import random
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from selfreward_jax.core.errors import UserError, shown
from selfreward_jax.core.interrupt import each_at_once
from selfreward_jax.core.paths import reading

Row = dict[str, Any]
Messages = tuple[dict[str, str], ...]
T = TypeVar("T")


def content_id(*parts: Any) -> str:
    """Sixteen hex digits that depend on the parts alone."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A request. `messages` is a conversation that ends with the user's turn; `source` says where it came from."""

    id: str
    messages: tuple[dict[str, str], ...]
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """A sampled answer: its ids as sampled, their text, how it ended, and its summed log-probability in nats."""

    id: str
    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    stop_reason: str
    logp: float


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """One judgement of a response; `score` is None where no score could be read from it.

    `score_probs` is the model's distribution over the scores 0 to 5, where the score was read from that.
    """

    id: str
    response_id: str
    index: int
    text: str
    score: float | None
    stop_reason: str
    score_probs: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, better first, in TRL's conversational preference columns.

    The token ids are those that were sampled, with an end of turn where a stop string ended the answer; training uses
    them and never the text. `margin` is the difference of
    the scores. `provenance` names the model, judgements and reference that made the pair. `weight` is how many pairs
    this one counts for.
    """

    id: str
    prompt_id: str
    prompt: tuple[dict[str, str], ...]
    chosen: tuple[dict[str, str], ...]
    rejected: tuple[dict[str, str], ...]
    score_chosen: float
    score_rejected: float
    margin: float
    prompt_token_ids: tuple[int, ...]
    chosen_token_ids: tuple[int, ...]
    rejected_token_ids: tuple[int, ...]
    provenance: dict[str, Any]
    weight: float = 1.0


def _columns(row: Any) -> Row:
    if not dataclasses.is_dataclass(row):
        raise TypeError(f"{type(row).__name__} is no row")
    return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_columns)


def to_line(row: Any) -> str:
    """One JSON line of a dataclass or dict."""
    return _ENCODER.encode(row) + "\n"


def to_lines(rows: Iterable[Any]) -> Iterator[bytes]:
    """JSON lines as they stand in a file."""
    return (to_line(row).encode() for row in rows)


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def from_dict(kind: type[T], row: Row) -> T:
    """A row type from its JSON object.

    Raises:
      TypeError, ValueError: fields that it doesn't know or lacks, or a value of another type than the field's.
    """
    values = {key: _freeze(value) for key, value in row.items()}
    made, checks = kind(**values), _checks(kind)
    for name, value in values.items():
        if not checks[name](value):
            raise ValueError(f"{name} must be {_said(_hints(kind)[name])}, not {shown(value)}")
    return made


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _checks(kind: type) -> dict[str, Callable[[Any], bool]]:
    return {name: _check(hint) for name, hint in _hints(kind).items()}


def _check(hint: Any) -> Callable[[Any], bool]:
    """Whether a value that JSON can hold is of a field's type; numbers must be finite, and fit in 64 bits."""
    inner = typing.get_args(hint)
    if hint is int:
        return lambda value: type(value) is int and -(2**63) <= value < 2**63
    if hint is float:
        return lambda value: type(value) is float and -math.inf < value < math.inf or _check(int)(value)
    if inner == (int, ...):
        return _are_ids
    if typing.get_origin(hint) is typing.Literal:
        return lambda value: value in inner
    if isinstance(hint, types.UnionType) or inner[1:] == (...,):
        checks = [_check(each) for each in inner if each is not ...]
        if isinstance(hint, types.UnionType):
            return lambda value: any(check(value) for check in checks)
        return lambda value: type(value) is tuple and all(map(checks[0], value))
    if inner[1:] in ((str,), (Any,)):
        return lambda value: type(value) is dict and (inner[1] is Any or set(map(type, value.values())) <= {str})
    return lambda value: type(value) is hint


def _are_ids(value: Any) -> bool:
    """Whether it is a tuple of token ids. There are hundreds a row, so they are looked at all at once."""
    try:
        array.array("I", value if type(value) is tuple else "")
    except (OverflowError, TypeError):
        return False
    return set(map(type, value)) <= {int}  # an array takes true for 1


def _said(hint: Any) -> str:
    words = {int: "a whole number", float: "a finite number", str: "text", types.NoneType: "null"}
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_said, typing.get_args(hint)))
    if typing.get_args(hint) == (int, ...):
        return "a list of token ids"
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    return words.get(hint, "an object" if typing.get_origin(hint) is dict else "a list of the right things")


def read_jsonl(path: epath.PathLike, parse: Callable[[Row], T] = lambda row: row, what: str = "rows") -> list[T]:
    """Parses every non-empty line of a JSONL file that a run wrote; `core.readers` reads what people bring.

    Args:
      parse: from a JSON object to a row; raises `ValueError`, `KeyError` or `TypeError` for a bad one.
      what: what the rows are, for the error of an empty file.

    Raises:
      UserError: a missing, empty or malformed file, naming file, line and reason.
    """
    path = epath.Path(path)
    if not path.exists() or path.is_dir():
        raise UserError(f"{path}: no such file; it should hold {what}.")
    rows = list(parse_lines(path, parse))
    if not rows:
        raise UserError(f"{path}: the file is empty; it should hold {what}, one JSON object a line.")
    return rows


def parse_lines(path: epath.Path, parse: Callable[[Row], T], *, growing: bool = False) -> Iterator[T]:
    """As `read_jsonl`, of a file that may have no line.

    Args:
      growing: it is being written, so that what stands behind its last line end is no line yet.
    """
    at, name = 0, str(path)
    read = lambda text: parse(_from_json(text))  # noqa: E731
    for number, line in enumerate(each_at_once(lines_of(path, growing)), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # some editors begin with a byte order mark
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {at + error.start}; save it as UTF-8.") from None
        if text.strip():
            yield parse_row(text, read, f"{name}:{number}")
        at += len(line) + 1


def lines_of(path: epath.Path, growing: bool = False) -> Iterator[bytes]:
    """Lines without their ends, with one piece of the file in memory at a time; what follows the last end too.

    Args:
      growing: without that, which may be half a line.
    """
    rest = b""
    with reading(path), path.open("rb") as file:
        while piece := file.read(1 << 20):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
    if not growing:
        yield rest


def _from_json(line: str) -> Any:
    row = json.loads(line)
    if "\\ud" in line or "\\uD" in line:
        check_characters(row)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def measures(row: Row) -> Row:
    """A row of a log as it is: numbers by name, lists of them, or null; `step`, if it is there, a whole one.

    Raises:
      ValueError: there is something else in it.
    """
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        if not all(x is None or type(x) is float or type(x) is int and abs(x) < 2**63 for x in values):
            raise ValueError(f"{name} must be a number, not {shown(value)}")
    if "step" in row and type(row["step"]) is not int:
        raise ValueError(f"step must be a whole number, not {shown(row['step'])}")
    return row


def check_characters(row: Any) -> None:
    """Raises `ValueError` for text that neither a tokenizer nor a file takes, while its place is still known."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair (\\ud...) stands alone, which is no character") from None


def present(row: Any) -> Row:
    """A row without its nulls and NaNs, which stand for what is absent, at any depth; in lists they keep their place.

    Raises:
      ValueError: it is no row.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a row has columns, and this is {type(row).__name__}")
    return _present(row)


def _present(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's, as pandas hands them out
    if isinstance(value, Mapping):
        return {name: _present(x) for name, x in value.items() if x is not None and not _is_nan(x)}
    return [_present(x) for x in value] if isinstance(value, list | tuple) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def parse_row(row: Any, parse: Callable[[Any], T], where: str) -> T:
    """`parse(row)`, with what is wrong about the row reported as an error of the place where it stands.

    Args:
      parse: raises `ValueError`, `KeyError` or `TypeError` for a bad row.
      where: file and line, or whatever finds the row.

    Raises:
      UserError: a bad row, or one for which `parse` raises it.
    """
    try:
        return parse(row)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from None
    except KeyError as error:
        raise UserError(f"{where}: the field {error} is missing.") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}.") from None
    except UserError as error:  # such as a chat template's, which knows no place
        raise UserError(f"{where}: {error}") from None


def load_rows(path: epath.PathLike, kind: type[T], *, texts: bool = True) -> list[T]:
    """Rows of one of the types above.

    Args:
      texts: False for rows with empty texts, and with zeros for token ids, as many as there are: of a large run they
        would fill the memory, where nobody looks at them.

    Raises:
      UserError: see `read_jsonl`.
    """
    share = _sharing([field.name for field in dataclasses.fields(kind)], texts)  # type: ignore[arg-type]
    return read_jsonl(path, lambda row: from_dict(kind, share(row)), f"{kind.__name__.lower()} rows")


def _sharing(fields: Sequence[str], texts: bool) -> Callable[[Row], Row]:
    """Gives rows the same objects for the same ids: a million rows' own take many times the memory."""
    lists = [name for name in fields if name.endswith("token_ids")]
    words = [name for name in fields if name in ("prompt_id", "response_id", "stop_reason")]
    numbers = list(range(1 << 18)) if texts else [0] * (1 << 18)
    known: dict[Any, Any] = {}

    def share(row: Row) -> Row:
        for name in lists:
            try:
                if type(row[name]) is list and _are_ids(tuple(row[name])):
                    ids = tuple(map(numbers.__getitem__, row[name]))
                    row[name] = ids if texts else known.setdefault(ids, ids)
            except (KeyError, IndexError):
                pass  # is left for whoever checks it
        for name in words:
            if type(word := row.get(name)) is str:
                row[name] = known.setdefault(word, word)
        if not texts and type(row.get("text")) is str:
            row["text"] = ""
        return row

    return share


def draw(rows: Sequence[T], most: int, seed: int) -> list[T]:
    """At most `most` of them (0: all), drawn by the seed, in their order."""
    if not most or len(rows) <= most:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), most))]


def group_by(rows: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Rows by key, in the order of their first appearance."""
    groups: dict[str, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


# ShareGPT's names of roles beside the usual ones; TRL renames its fields and leaves these to the reader.
ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
# What a message may say outside of its content, and no prompt of this program would show.
UNSEEN = frozenset({"tool_calls", "function_call", "thinking", "reasoning_content", "reasoning"})


def as_turns(value: Any, name: str) -> Messages:
    """A conversation, or one message of it, as messages with `role` and `content` alone.

    A message has `role` and `content`, or `from` and `value` as in ShareGPT; its content is text or a list of text
    parts, which are joined. A field that is null counts as absent. TFDS and `datasets` may keep a list of messages as
    one list of roles and one of contents.

    Args:
      name: of the column, for errors.

    Raises:
      ValueError: no conversation, an unknown role, or something in it that is not text.
    """
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} must be text or a list of messages that is not empty")
    turns = []
    for n, message in enumerate(value, 1):
        try:
            turns.append(_as_message(message))
        except ValueError as error:
            raise ValueError(f"{name}: message {n} {error}") from None
    return tuple(turns)


def _as_message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ValueError("must be an object with the fields role and content")
    if lost := [field for field in UNSEEN & message.keys() if message[field]]:
        raise ValueError(f"has {lost[0]}, which is not rendered here; write it into the content")
    role = message.get("from") if message.get("role") is None else message["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"has the role {role!r}; known are system, user, assistant and tool")
    content = message.get("value") if message.get("content") is None else message["content"]
    if isinstance(content, list | tuple):
        parts = [part if isinstance(part, Mapping) else {} for part in content]
        if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            raise ValueError("has a list as content, which must hold parts of type text alone")
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise ValueError("must have the fields role and content, both text")
    return {"role": ROLES[role], "content": content}


def as_messages(prompt: Any, name: str = "prompt") -> Messages:
    """A prompt given as text or as a list of messages, as messages that the assistant answers next.

    Raises:
      ValueError: neither of the two, see `as_turns`; or neither a user's turn nor a tool's at the end.
    """
    turns = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else as_turns(prompt, name)
    if turns[-1]["role"] not in ("user", "tool") or not turns[-1]["content"].strip():
        raise ValueError(f"{name} must end with a user message that is not empty")
    return turns


def last_request(messages: Iterable[dict[str, str]]) -> str:
    """What a judge reads as the request: the user's text, with earlier turns named where there are any."""
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in turns)
