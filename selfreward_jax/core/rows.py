"""The rows that flow between stages, and JSONL in and out.

Ids are content hashes, so that the same inputs give the same ids in every run. Files carry TRL's column names where
TRL has one. A wrong row is reported with its file, line and reason.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from etils import epath

from selfreward_jax.core.errors import UserError

Row = dict[str, Any]
T = TypeVar("T")


def content_id(*parts: Any) -> str:
    """Sixteen hex digits that depend on the parts alone."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request. `messages` is a conversation that ends with the user's turn; `source` says where it came from."""

    id: str
    messages: tuple[dict[str, str], ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Response:
    """A sampled answer: its ids as sampled, its text for people, and its summed log-probability in nats."""

    id: str
    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    stop_reason: str
    logp: float


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, better first, in TRL's conversational preference columns.

    The token ids are those that were sampled; training uses them and never the text. `margin` is the difference of
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


def to_line(row: Any) -> str:
    """One JSON line of a dataclass or dict."""
    return json.dumps(dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row, ensure_ascii=False) + "\n"  # type: ignore[arg-type]


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def from_dict(kind: type[T], row: Row) -> T:
    """A row type from its JSON object; keys it doesn't know are an error (`KeyError`, `TypeError`)."""
    return kind(**{key: _freeze(value) for key, value in row.items()})


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
    rows = list(_parse_lines(path, parse))
    if not rows:
        raise UserError(f"{path}: the file is empty; it should hold {what}, one JSON object a line.")
    return rows


def _parse_lines(path: epath.Path, parse: Callable[[Row], T]) -> Iterator[T]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield parse_row(line, lambda line: parse(_from_json(line)), f"{path}:{number}")


def _from_json(line: str) -> Any:
    row = json.loads(line)
    if "\\ud" in line.lower():
        check_characters(row)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def check_characters(row: Any) -> None:
    """Raises `ValueError` for text that neither a tokenizer nor a file takes, while its place is still known."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair (\\ud...) stands alone, which is no character") from None


def parse_row(row: Any, parse: Callable[[Any], T], where: str) -> T:
    """`parse(row)`, with what is wrong about the row reported as an error of the place where it stands.

    Args:
      parse: raises `ValueError`, `KeyError` or `TypeError` for a bad row.
      where: file and line, or whatever finds the row.

    Raises:
      UserError: a bad row.
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


def load_rows(path: epath.PathLike, kind: type[T]) -> list[T]:
    """Rows of one of the types above."""
    return read_jsonl(path, lambda row: from_dict(kind, row), f"{kind.__name__.lower()} rows")


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


def as_messages(prompt: Any) -> tuple[dict[str, str], ...]:
    """A prompt given as text or as a list of messages, as messages that end with the user's turn.

    Raises:
      ValueError: neither of the two, an unknown role, or no user turn at the end.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, (list, tuple)) or not prompt:
        raise ValueError("a prompt must be text or a list of messages")
    messages = []
    for message in prompt:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError("a message must be an object with the fields role and content, both text")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"role {message.get('role')!r} is unknown; system, user and assistant are known")
        messages.append({"role": message["role"], "content": message["content"]})
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError("a prompt must end with a user message that is not empty")
    return tuple(messages)


def last_request(messages: Iterable[dict[str, str]]) -> str:
    """What a judge reads as the request: the user's text, with earlier turns named where there are any."""
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in turns)
