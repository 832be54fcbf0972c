"""What a row of other people's data means: a demonstration, a preference, an answer with a label, ranked answers.

Each function takes a row in any of the forms in which its kind is found, and gives one plain shape. TRL's forms are
read as TRL prepares them (its `data_utils.extract_prompt` for prompts that are not told apart). A null column counts
as absent, and a column that no form knows is ignored. What is wrong is a `ValueError` or `KeyError` that names the
column; `core.rows.parse_row` adds file and line.

Text is taken as it is, but for two ways of writing a conversation into one: HH-RLHF's "\\n\\nHuman: ...
\\n\\nAssistant: ..." and HelpSteer's "<extra_id_1>Assistant".
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward_jax.core.rows import Messages, Row, as_messages, as_turns, present

SIDES = ("chosen", "rejected")
# Columns that can hold a prompt, the first counts; and those that say what stands before it.
PROMPTS = ("prompt", "conversations", "messages", "instruction", "question")
SYSTEMS = ("system", "system_prompt")
# Scores of known data, the first that is there counts, and the scale that each is on.
SCALES = {"overall_score": (1.0, 10.0), "fine-grained_score": (1.0, 5.0), "helpfulness": (0.0, 4.0)}
PREFERRED = {"a": 0, "a>b": 0, "b": 1, "b>a": 1, "tie": None, "a=b": None}


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with the user's turn, and the answer that a person would want."""

    messages: Messages
    response: str


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two continuations of one conversation, the better one first.

    Attributes:
      prompt: ends with the user's turn, or a tool's.
      chosen, rejected: all that follows, from the assistant's turn to its last; one turn in most data.
      scores: of chosen and rejected, None where the row has none.
      weight: how many pairs this one counts for.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    scores: tuple[float, float] | None = None
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Unpaired:
    """A continuation of a conversation, as in `Preference`, that is good (`label`) or bad by itself."""

    prompt: Messages
    completion: Messages
    label: bool
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An answer among others to its prompt: `rank` 0 is the best, a higher `score` is better; None if not told."""

    text: str
    rank: float | None
    score: float | None


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A prompt with answers that someone has put in order, best first or not.

    Attributes:
      partial: the row holds one answer, and other rows the others, as in HelpSteer.
    """

    prompt: Messages
    answers: tuple[Candidate, ...]
    partial: bool = False


def columns(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for errors."""
    return ", ".join(map(str, row)) or "nothing"


# ---------------------------------------------------------------------------------------------------------------------
# Demonstrations


def demonstration(row: Mapping[str, Any], *, empty: bool = False) -> Demonstration:
    """A conversation and its answer: `messages`, `conversations`, a prompt with `response` or `completion`, or
    `instruction`, `input` (may be missing or blank) and `output`.

    Args:
      empty: whether an answer may have no text.

    Raises:
      KeyError, ValueError: none of these, or a wrong one.
    """
    row = present(row)
    if name := next((name for name in ("messages", "conversations") if name in row), ""):
        _refuse_tools(row)
        made = _conversation(row[name], name, empty)
        return dataclasses.replace(made, messages=with_system(row, made.messages))
    if not any(name in row for name in PROMPTS):
        needed = "prompt and response, messages, conversations, or instruction and output"
        raise ValueError(f"needs {needed}; found {columns(row)}")
    usual = "output" if "instruction" in row and "prompt" not in row else "response"
    name = next((name for name in ("response", "completion", "output") if name in row), usual)
    prompt = prompt_of(row)
    answer, *more = _completion(row[name], name)
    if more:
        raise ValueError(f"{name} has several turns; give the conversation as messages, whose last is learnt from")
    if not empty and not answer["content"].strip():
        raise ValueError(f"{name} must be text that is not empty")
    return Demonstration(prompt, answer["content"])


def _conversation(value: Any, name: str, empty: bool) -> Demonstration:
    turns = as_turns(value, name) if value and not isinstance(value, str) else ()
    if not turns or turns[-1]["role"] != "assistant":
        raise ValueError(f"{name} must be a list that ends with an assistant's message")
    if len(turns) == 1:
        raise ValueError(f"{name} must have a user's message before the assistant's")
    if not empty and not turns[-1]["content"].strip():
        raise ValueError(f"{name}: the last content must be text that is not empty")
    return Demonstration(as_messages(turns[:-1], f"{name} before the answer"), turns[-1]["content"])


def prompt_of(row: Mapping[str, Any]) -> Messages:
    """A row's prompt: `prompt` or `question`, text or a conversation that ends with the user's turn, or `instruction`
    with its `input`; behind `system`, where the row has one.

    Raises:
      KeyError, ValueError: it has none, or a wrong one.
    """
    row = present(row)
    _refuse_tools(row)
    name = next((name for name in PROMPTS if name in row), "prompt")
    value = row[name]
    if name == "instruction":
        # An absent or blank input is the usual way of this form to say that there is none.
        given = _text(row, "input") if str(row.get("input", "")).strip() else ""
        value = _text(row, name) + (f"\n\n{given}" if given else "")
    turns = as_messages(_written_turns(value, prompt=True) if isinstance(value, str) else value, name)
    return with_system(row, turns)


def with_system(row: Row, turns: Messages) -> Messages:
    """A conversation behind what the row's column `system` (or `system_prompt`) says, where that holds something.

    Raises:
      ValueError: it is not text, or the conversation begins with another system's turn.
    """
    for name in SYSTEMS:
        said = row.get(name, "")
        if not isinstance(said, str):
            raise ValueError(f"{name} must be text, not {type(said).__name__}")
        if said.strip() and turns[0]["role"] != "system":
            turns = ({"role": "system", "content": said}, *turns)
        elif said.strip() and turns[0]["content"].strip() != said.strip():
            raise ValueError(f"{name} says something else than the system's turn that is there; leave one of them out")
    return turns


def _refuse_tools(row: Row) -> None:
    """Columns with which TRL (LLaMA-Factory: `history`) renders another prompt than without."""
    kinds = ("tools", "chat_template_kwargs", "images", "image", "history")
    if lost := [name for name in kinds if name in row and row[name] not in ([], {}, "", "[]", "{}")]:
        raise ValueError(f"{lost[0]} can't be shown to the model here; write what it needs into the prompt")


def _written_turns(text: str, *, prompt: bool) -> str | Messages:
    """The turns of a conversation that is written as one text; the text itself if it isn't.

    Args:
      prompt: whether it stops where the assistant's answer begins.
    """
    if prompt and re.search(r"<extra_id_1>(User|Assistant)\n", text):
        words = ["User", *re.split(r"\n?<extra_id_1>(User|Assistant)\n", text)]
        pairs = zip(words[::2], words[1::2], strict=True)
        turns = [_turn(role == "Assistant", said.rstrip("\n")) for role, said in pairs]
        return tuple(turn for turn in turns if turn["content"].strip())  # before the first marker or after the last
    ends = text.rstrip().endswith("\n\nAssistant:")
    if re.match(r"\s*Human:", text) and "\n\nAssistant:" in text and ends >= prompt:
        words = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.lstrip())
        pairs = zip(words[1::2], words[2::2], strict=True)
        turns = [_turn(role == "Assistant", said.removeprefix(" ")) for role, said in pairs]
        return tuple(turns[:-1] if prompt else turns)
    return text


def _turn(assistant: bool, content: str) -> dict[str, str]:
    return {"role": "assistant" if assistant else "user", "content": content}


# ---------------------------------------------------------------------------------------------------------------------
# Preferences


def preference(row: Mapping[str, Any]) -> Preference:
    """Two answers to one prompt, `chosen` and `rejected`: text, messages, or HH-RLHF's transcripts.

    The prompt stands in a column (see `prompt_of`), or at the beginning of both: the turns that they have in common
    but for the last of the shorter one, of plain text the characters, as TRL's `extract_prompt` has it, unless there is
    a column that looks like a prompt. Of whole
    conversations in both columns, the prompt is what they have in common, whatever text a column `prompt` says, as
    in TRL's `maybe_extract_prompt`. `score_chosen` and `score_rejected`, and `weight`, are taken where they are there.

    Raises:
      KeyError, ValueError: a column is missing or wrong; the two have no prompt in common.
    """
    row = present(row)
    _refuse_tools(row)
    chosen, rejected = (_side(row[side], side) for side in SIDES)
    if any(not isinstance(turns, str) and turns[0]["role"] != "assistant" for turns in (chosen, rejected)):
        prompt, chosen, rejected = _common_turns(row, chosen, rejected)
    elif any(name in row for name in PROMPTS):
        prompt = prompt_of(row)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        if unread := [name for name in (*SYSTEMS, "input", "query", "context") if str(row.get(name, "")).strip()]:
            raise ValueError(f"{unread[0]} would not be read; call the column prompt if it holds the prompt")
        prompt, chosen, rejected = _common_text(chosen, rejected)
    else:
        raise KeyError("prompt")
    chosen, rejected = _completion(chosen, "chosen"), _completion(rejected, "rejected")
    scores = [number(row.get(f"score_{side}"), f"score_{side}", -math.inf) for side in SIDES]
    if scores.count(None) == 1:
        raise ValueError("score_chosen and score_rejected must both be there, or neither")
    made = None if scores[0] is None or scores[1] is None else (scores[0], scores[1])
    return Preference(prompt, chosen, rejected, made, _weight(row))


def _side(value: Any, side: str) -> str | Messages:
    return _written_turns(value, prompt=False) if isinstance(value, str) else as_turns(value, side)


def _common_turns(row: Row, chosen: str | Messages, rejected: str | Messages) -> tuple[Messages, Messages, Messages]:
    if isinstance(chosen, str) or isinstance(rejected, str) or chosen[0] != rejected[0]:
        raise ValueError("chosen and rejected must begin with the same turns, their prompt; or hold answers alone")
    size = _common_length(chosen, rejected)
    if not size:
        raise ValueError("chosen and rejected hold whole conversations, and one of them has no answer")
    prompt = row.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        given = as_messages(prompt)
        if chosen[: len(given)] != given or rejected[: len(given)] != given:
            raise ValueError("chosen and rejected hold whole conversations that don't begin with prompt; leave one out")
    if chosen[size - 1]["role"] == "assistant":
        raise ValueError("chosen and rejected first differ in a turn that is not the assistant's")
    shared = as_messages(chosen[:size], "what chosen and rejected have in common")
    return with_system(row, shared), chosen[size:], rejected[size:]


def _common_text(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    size = _common_length(chosen, rejected)
    if chosen[size : size + 1] != rejected[size : size + 1] and chosen[:size].endswith(" "):
        size -= 1  # the space before the answers is theirs
    if not chosen[:size].strip():
        raise ValueError("chosen and rejected begin differently, so there is no prompt in them; give a column prompt")
    return as_messages(chosen[:size]), chosen[size:], rejected[size:]


def _common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many places agree from the start on, at most one less than the shorter has."""
    most = max(min(len(a), len(b)) - 1, 0)
    return next((n for n, (x, y) in enumerate(zip(a[:most], b[:most], strict=True)) if x != y), most)


def _completion(value: Any, name: str) -> Messages:
    """All that follows a prompt, from the assistant's turn to its last."""
    turns = ({"role": "assistant", "content": value},) if isinstance(value, str) else ()
    turns = turns or (as_turns(value, name) if isinstance(value, list | tuple | Mapping) else ())
    if not turns or not turns[0]["role"] == turns[-1]["role"] == "assistant":
        raise ValueError(f"{name} must be text or messages that begin and end with the assistant's")
    return turns


def is_preference(row: Mapping[str, Any]) -> bool:
    """Whether a row means to be one; else it may be `unpaired`."""
    return any(row.get(side) is not None for side in SIDES)


def unpaired(row: Mapping[str, Any]) -> Unpaired:
    """A single answer with a `label`: true for a good one, false for a bad one.

    The answer is in `completion` or `response`, or at the end of `messages` or `conversations`.

    Raises:
      KeyError, ValueError: a column is missing or wrong.
    """
    row = present(row)
    name = next((name for name in ("completion", "response") if name in row), "")
    label = row.get("label")
    if label is None or not (name or "messages" in row or "conversations" in row):
        needed = "prompt, chosen and rejected, or prompt, completion and label"
        raise ValueError(f"needs {needed}; found {columns(row)}")
    if label not in (True, False) or not isinstance(label, bool | int):
        raise ValueError(f"label must be true for a good answer or false for a bad one, not {label!r}")
    if name:
        return Unpaired(prompt_of(row), _completion(row[name], name), bool(label), _weight(row))
    made = demonstration(row, empty=True)
    return Unpaired(made.messages, (_turn(True, made.response),), bool(label), _weight(row))


def _weight(row: Row) -> float:
    weight = number(row.get("weight", 1), "weight", 0)
    return 1.0 if weight is None else weight


# ---------------------------------------------------------------------------------------------------------------------
# Ranked answers


def ranked(row: Mapping[str, Any]) -> Ranked:
    """A prompt with answers that were put in order, in any of these forms:

    - `responses`: objects with `text` and `rank` (0 the best) or `score` (more is better);
    - `completions`, as UltraFeedback has them: objects with `response` and `overall_score` or `fine-grained_score`;
    - `response` and `helpfulness`, as HelpSteer has them: one answer a row (`partial`);
    - `chosen` and `rejected`: as `preference` reads them, or lists of texts, as RewardBench 2 has them;
    - `response_a`, `response_b` and `label`, which says which one is better: `a`, `b` or `tie`.

    Scores must lie on their scale: `scale`, `[lowest, highest]`, if the row has one, else 1 to 10 for
    `overall_score`, 1 to 5 for `fine-grained_score`, 0 to 4 for `helpfulness`, and any for `score`.

    Raises:
      KeyError, ValueError: none of these, or a wrong one.
    """
    row = present(row)
    scale = _scale(row.get("scale"))
    for name, text in (("responses", "text"), ("completions", "response")):
        if name in row:
            prompt = prompt_of(row)
            return Ranked(prompt, _candidates(row[name], name, text, scale))
    if is_preference(row):
        return _of_preference(row)
    prompt = prompt_of(row)
    if "response_a" in row or "response_b" in row:
        return Ranked(prompt, _of_two(row))
    if "response" in row and "helpfulness" in row:
        score = _on_scale(number(row["helpfulness"], "helpfulness", -math.inf), "helpfulness", scale)
        return Ranked(prompt, (Candidate(_answer_text(row["response"], "response"), None, score),), partial=True)
    raise ValueError(
        "a prompt without answers; give responses, completions, chosen and rejected, response_a, response_b and label,"
        f" or response and helpfulness; found {columns(row)}"
    )


def order(answers: Sequence[Candidate]) -> tuple[float | None, ...]:
    """The place of each answer, lower is better and equal where none is preferred; None where it isn't told.

    Ranks count where all answers have one; else scores, with their sign turned, where all have one; else what is there.
    """
    ranks = tuple(answer.rank for answer in answers)
    scores = tuple(None if answer.score is None else -answer.score for answer in answers)
    whole = [values for values in (ranks, scores) if None not in values]
    return next(iter(whole), ranks if any(rank is not None for rank in ranks) else scores)


def _candidates(value: Any, name: str, text: str, scale: tuple[float, float] | None) -> tuple[Candidate, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(answer, Mapping) for answer in value):
        raise ValueError(f"{name} must be a list of objects with the fields {text} and rank or score")
    answers = [present(answer) for answer in value]
    known = [field for field in SCALES if any(field in answer for answer in answers)]
    # A score that only some have can't be compared with another that only others have.
    score = next((f for f in known if all(f in answer for answer in answers)), known[0] if known else "score")
    made = []
    for n, answer in enumerate(answers, 1):
        found = _on_scale(number(answer.get(score), f"the {score} of answer {n}", -math.inf), score, scale)
        rank = number(answer.get("rank"), f"the rank of answer {n}", 0)
        made.append(Candidate(_answer_text(answer[text], f"the {text} of answer {n}"), rank, found))
    return tuple(made)


def _of_preference(row: Row) -> Ranked:
    """RewardBench has lists of texts; all else is a preference of one answer to another."""
    sides = [row[side] for side in SIDES]
    if any(isinstance(side, list | tuple) and side and all(isinstance(x, str) for x in side) for side in sides):
        texts = [[side] if isinstance(side, str) else side for side in sides]
        if not all(isinstance(text, str) for side in texts for text in side):
            raise ValueError("chosen and rejected must be text or lists of texts")
        answers = [Candidate(text, float(n), None) for n, side in enumerate(texts) for text in side]
        return Ranked(prompt_of(row), tuple(answers))
    made = preference(row)
    texts = [_one(turns, side) for turns, side in ((made.chosen, "chosen"), (made.rejected, "rejected"))]
    return Ranked(made.prompt, tuple(Candidate(text, float(n), None) for n, text in enumerate(texts)))


def _of_two(row: Row) -> tuple[Candidate, ...]:
    texts = [_answer_text(row[name], name) for name in ("response_a", "response_b")]
    label = row["label"]
    key = label.strip().lower().replace(" ", "") if isinstance(label, str) else label
    if not isinstance(key, str) or key not in PREFERRED:
        raise ValueError(f"label {label!r} is not one of a, b, tie")
    best = PREFERRED[key]
    return tuple(Candidate(text, float(best not in (None, n)), None) for n, text in enumerate(texts))


def _answer_text(value: Any, name: str) -> str:
    return value if isinstance(value, str) else _one(_completion(value, name), name)


def _one(turns: Messages, name: str) -> str:
    answer, *more = turns
    if more:
        raise ValueError(f"{name} has several turns, and a judge reads one answer")
    return answer["content"]


def _scale(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    ends = [number(x, "scale", -math.inf) for x in value] if isinstance(value, list | tuple) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None or ends[0] >= ends[1]:
        raise ValueError(f"scale must be [lowest, highest], not {value!r}")
    return ends[0], ends[1]


def _on_scale(score: float | None, name: str, scale: tuple[float, float] | None) -> float | None:
    low, high = scale or SCALES.get(name, (-math.inf, math.inf))
    if score is not None and not low <= score <= high:
        raise ValueError(
            f"{name} {score:g} is outside of its scale, {low:g} to {high:g}; name another in a column scale:"
            " [lowest, highest]"
        )
    return score


# ---------------------------------------------------------------------------------------------------------------------


def number(value: Any, name: str, low: float = 0.0) -> float | None:
    """A finite number from `low` on; NaN, which a table may hold where nothing was, is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        least = "" if low == -math.inf else f" from {low:g} on"
        raise ValueError(f"{name} must be a finite number{least}, not {value!r}")
    return float(value)


def _text(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be text that is not empty")
    return value
