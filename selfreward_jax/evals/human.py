"""Answers that people have put in order, in any of three forms, as one: what a judge is measured against.

A row has a `prompt` (text or messages) and

- `responses`, a list of objects with `text` and `rank` (0 the best) or `score` (higher is better); ranks count where
  all answers have one, else scores; or
- `chosen` and `rejected`, as preference data and RewardBench have them: text, a message, or a list of texts; or
- `response_a`, `response_b` and `label`, which says which one people prefer: `a`, `b` or `tie`.

`subset` (or `category`) names a part of the data that is also measured by itself. Further fields are ignored.
"""

import dataclasses
import math
import random
from typing import Any

from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Prompt, Response, Row, as_messages, content_id

PREFERRED = {"a": 0, "a>b": 0, "b": 1, "b>a": 1, "tie": None, "a=b": None}


@dataclasses.dataclass(frozen=True)
class RankedPrompt:
    """A prompt with its answers and their order by people.

    Attributes:
      answers: texts.
      ranks: of each answer, lower is better; equal where people prefer neither.
      subset: a part of the data, "" if the row names none.
      split: "" if the row names none.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    ranks: tuple[float, ...]
    subset: str = ""
    split: str = ""

    @property
    def ordered(self) -> bool:
        """Whether people prefer any of the answers to another."""
        return len(set(self.ranks)) > 1

    @property
    def responses(self) -> tuple[Response, ...]:
        """The answers as rows that `judge` takes; the same text to the same prompt has the same id in every row."""
        return tuple(
            Response(content_id(self.prompt.id, text), self.prompt.id, n, (), text, "given", 0.0)
            for n, text in enumerate(self.answers)
        )


@dataclasses.dataclass(frozen=True)
class HumanData:
    """What is measured, and what is not.

    Attributes:
      rows: prompts whose answers people have put in order.
      equal_ranks: prompts left out since all their answers have the same rank.
      single_answer: prompts left out since they have one answer.
    """

    rows: tuple[RankedPrompt, ...]
    equal_ranks: int
    single_answer: int

    @property
    def prompts(self) -> list[Prompt]:
        return list({row.prompt.id: row.prompt for row in self.rows}.values())

    @property
    def responses(self) -> list[Response]:
        """Each answer once, however many rows it stands in."""
        return list({r.id: r for row in self.rows for r in row.responses}.values())


def load_human(path: epath.PathLike, *, split: str = "", max_prompts: int = 0, seed: int = 0) -> HumanData:
    """Reads ranked answers.

    Args:
      split: only rows with this `split`.
      max_prompts: at most so many rows that can be measured, drawn by the seed; 0 for all.

    Raises:
      UserError: a wrong row, with its line; no row of the split; no row that can be measured.
    """
    rows = read_rows(path, parse_ranked, "ranked answers")
    if split:
        splits = sorted({row.split for row in rows if row.split})
        rows = [row for row in rows if row.split == split]
        if not rows:
            known = f"there are {', '.join(splits)}" if splits else "no row has the field split"
            raise UserError(f"--split={split}: {path} has no such row; {known}.")
    measured = [row for row in rows if row.ordered]
    single = sum(len(row.answers) == 1 for row in rows)
    if not measured:
        raise UserError(
            f"{path}: nothing to measure; no prompt has two answers of different ranks"
            f" ({len(rows) - single} with equal ranks, {single} with a single answer)."
        )
    if 0 < max_prompts < len(measured):
        chosen = sorted(random.Random(seed).sample(range(len(measured)), max_prompts))
        measured = [measured[n] for n in chosen]
    return HumanData(tuple(measured), sum(not row.ordered for row in rows) - single, single)


def parse_ranked(row: Row) -> RankedPrompt:
    """One row in any of the forms above. Raises `KeyError` or `ValueError` for a wrong one."""
    messages = as_messages(row["prompt"])
    if "responses" in row:
        texts, ranks = _ranked(row["responses"])
    elif "chosen" in row or "rejected" in row:
        texts, ranks = _chosen(row["chosen"], row["rejected"])
    elif "response_a" in row or "response_b" in row:
        texts, ranks = _labelled(row)
    else:
        raise ValueError(
            "a prompt without answers; give responses, or chosen and rejected, or response_a, response_b and label"
        )
    named = {name: row.get(name) or "" for name in ("subset", "category", "split")}
    for name, value in named.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text")
    prompt = Prompt(content_id(messages), messages, "given")
    return RankedPrompt(prompt, texts, ranks, named["subset"] or named["category"], named["split"])


def _ranked(responses: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
    if not isinstance(responses, list) or not responses:
        raise ValueError("a prompt without answers; responses must be a list that is not empty")
    if not all(isinstance(r, dict) for r in responses):
        raise ValueError("responses must hold objects with the fields text and rank")
    texts = tuple(_text(r.get("text"), f"the text of answer {n}") for n, r in enumerate(responses, 1))
    ranks, scores = ([r.get(name) for r in responses] for name in ("rank", "score"))
    values = scores if None in ranks and None not in scores else ranks
    missing = next((n for n, value in enumerate(values, 1) if value is None), None)
    if missing:
        every = "every answer needs a rank, or every one a score"
        raise ValueError(f"answer {missing} of {len(values)} has no rank; {every}")
    numbers = [_number(value, n) for n, value in enumerate(values, 1)]
    return texts, tuple(numbers if values is ranks else (-x for x in numbers))


def _chosen(chosen: Any, rejected: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
    better, worse = _texts(chosen, "chosen"), _texts(rejected, "rejected")
    return better + worse, (0.0,) * len(better) + (1.0,) * len(worse)


def _labelled(row: Row) -> tuple[tuple[str, ...], tuple[float, ...]]:
    texts = tuple(_text(row[name], name) for name in ("response_a", "response_b"))
    label = row["label"]
    key = label.strip().lower().replace(" ", "") if isinstance(label, str) else label
    if not isinstance(key, str) or key not in PREFERRED:
        raise ValueError(f"label {label!r} is not one of a, b, tie")
    best = PREFERRED[key]
    return texts, tuple(0.0 if best in (None, n) else 1.0 for n in range(2))


def _texts(value: Any, name: str) -> tuple[str, ...]:
    """One text, a conversation's single answer as TRL writes it, or several texts as RewardBench 2 has them."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return (_text(value[0].get("content"), name),)
    if isinstance(value, list) and value and all(isinstance(x, str) for x in value):
        return tuple(value)
    raise ValueError(f"{name} must be text, a list with one message, or a list of texts")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text")
    return value


def _number(value: Any, n: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"the rank or score of answer {n} must be a finite number, not {value!r}")
    return float(value)
