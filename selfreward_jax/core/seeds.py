"""The seed data that people wrote: answers to requests (IFT) and judgements of answers (EFT).

Both become demonstrations: a conversation, and the turn that the model should learn to add to it. Everything that
could be wrong with a row is found here, where its place is known.
"""

import dataclasses
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Row, as_messages

Messages = tuple[dict[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with the user's turn, and the answer that a person would want."""

    messages: Messages
    response: str


def load_ift(spec: str) -> list[Demonstration]:
    """Instruction following demonstrations.

    Rows have `prompt` (text or messages) and `response`, or `messages` that end with the assistant's answer, or
    `instruction`, `input` (may be missing) and `output`. Further fields are ignored.

    Args:
      spec: "builtin", or whatever `core.readers` reads.

    Raises:
      UserError: data that can't be read, or a wrong row, with its place.
    """
    return _load(spec, "ift.jsonl", _ift_row)


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
    if spec == "builtin":
        with resources.as_file(resources.files("selfreward_jax") / "seeds" / builtin) as path:
            return read_rows(path, parse, "demonstrations")
    if not spec:
        raise UserError("seeds: no data is named; give builtin, a file of rows, hf:NAME or tfds:NAME/SPLIT.")
    return read_rows(spec, parse, "demonstrations")


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _ift_row(row: Row) -> Demonstration:
    if "messages" in row:
        return _conversation(row["messages"])
    if "prompt" in row:
        return Demonstration(as_messages(_as_list(row["prompt"])), _text(row, "response"))
    if "instruction" in row:
        # An absent, null or blank input is the usual way of this form to say that there is none.
        given = _text(row, "input") if str(row.get("input") or "").strip() else ""
        request = _text(row, "instruction") + ("\n\n" + given if given else "")
        return Demonstration(as_messages(request), _text(row, "output"))
    raise ValueError(f"needs prompt and response, messages, or instruction and output; found {_names(row)}")


def _eft_row(
    row: Row,
    judge_prompt: Callable[[Messages, str], Messages],
    parse_score: Callable[[str], float | None],
) -> Demonstration:
    if "messages" in row:
        demonstration = _conversation(row["messages"])
    elif "prompt" in row:
        messages = as_messages(_as_list(row["prompt"]))
        demonstration = Demonstration(judge_prompt(messages, _text(row, "response")), _text(row, "judgement"))
    else:
        raise ValueError(f"needs prompt, response and judgement, or messages; found {_names(row)}")
    if parse_score(demonstration.response) is None:
        raise ValueError("the judgement has no score that can be read; let it end with a line such as `Score: 3`")
    return demonstration


def _conversation(value: Any) -> Demonstration:
    messages = _as_list(value)
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise ValueError("messages must be a list that ends with an assistant's message")
    if len(messages) == 1:
        raise ValueError("messages must have a user's message before the assistant's")
    return Demonstration(as_messages(messages[:-1]), _text(last, "content"))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be text that is not empty")
    return value


def _as_list(value: Any) -> Any:
    """A list of messages; TFDS keeps a sequence of them as one list of roles and one of contents."""
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "nothing"
