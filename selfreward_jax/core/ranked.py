"""Prompts with answers that people have ranked: rows of such prompts, or Open Assistant's messages.

Of Open Assistant only first turns are used, as in the paper (2401.10020, §3.1): what a person asked first, and the
direct answers to it. What is left out is counted by its reason.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from selfreward_jax.core import forms
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.readers import read_table
from selfreward_jax.core.rows import Messages, Row, as_messages, content_id, group_by, last_request

HELD_OUT = frozenset({"test", "validation", "valid", "val", "dev", "eval"})  # splits that are not to be trained on


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and its place among the answers to its prompt: 0 is the best. Places may be skipped or shared."""

    text: str
    rank: float


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A prompt and the answers that people ranked, best first.

    Attributes:
      key: the same for prompts that differ in case and white space alone.
      held_out: whether it belongs to a split for testing.
    """

    key: str
    prompt: tuple[dict[str, str], ...]
    answers: tuple[Answer, ...]
    held_out: bool

    @property
    def best(self) -> Answer | None:
        """The answer of rank 0, if there is one and only one."""
        first = [a for a in self.answers if a.rank == 0]
        return first[0] if len(first) == 1 else None

    @property
    def comparable(self) -> bool:
        """Whether people put one answer above another."""
        return len({a.rank for a in self.answers}) > 1


@dataclasses.dataclass(frozen=True)
class Step:
    """What a filter took away.

    Attributes:
      what: what was left out, and why.
      unit: what is counted.
      left_out, left: how many, and how many went on.
    """

    what: str
    unit: str
    left_out: int
    left: int


@dataclasses.dataclass(frozen=True)
class _Message:
    """One of Open Assistant's messages; `fault` is why it is not used."""

    id: str
    parent: str | None
    role: str
    text: str
    lang: str
    rank: float | None
    fault: str
    held_out: bool


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of a file of ranked prompts; `lang` is None where it is not told, ranks where there are none.

    Attributes:
      answers: texts with their ranks.
      partial: it holds one answer of several, whose rank so far is its score with the sign turned.
    """

    prompt: Messages
    answers: tuple[tuple[str, float | None], ...]
    lang: str | None
    held_out: bool
    partial: bool = False


def prompt_key(prompt: Sequence[dict[str, str]]) -> str:
    """A prompt's hash, the same however it is cased and spaced."""
    return content_id(" ".join(last_request(prompt).casefold().split()))


def load_ranked(specs: Sequence[str], lang: str) -> tuple[list[Ranked], list[Step]]:
    """Prompts with ranked answers from one or more data sets, and what was left out.

    Rows are of the forms of `core.forms.ranked`; or they are Open Assistant's messages with `message_id`, `parent_id`,
    `role`, `text`, `lang` and `rank`, of which those marked as deleted, rejected by reviewers, never reviewed or
    synthetic are left out. Messages of one conversation may lie in several data sets.

    Args:
      lang: of prompts and answers, where the data tell it.

    Raises:
      UserError: data that can't be read, a wrong row with its place, or nothing that was ranked.
    """
    where = ", ".join(specs)
    rows = [row for spec in specs for row in read_table(spec, _parse, "ranked answers or Open Assistant's messages")]
    messages = [row for row in rows if isinstance(row, _Message)]
    given = _joined([row for row in rows if isinstance(row, _Row)])
    steps: list[Step] = []
    given += _first_turns(messages, where, steps) if messages else []
    steps.append(Step("read", "prompts", 0, len(given)))
    kept = [row for row in given if row.lang in (None, lang)]
    if not kept:
        found = collections.Counter(row.lang for row in given if row.lang)
        shown = ", ".join(f"{name} ({count})" for name, count in found.most_common(12))
        raise UserError(f"--lang={lang}: {where} has no prompt in it; there are {shown}.")
    _left_out(steps, "in other languages", "prompts", given, kept)
    made = list(_merge(kept))
    _left_out(steps, "the same as another", "prompts", kept, made)
    answered = [row for row in made if row.answers]
    _left_out(steps, "without an answer", "prompts", made, answered)
    if not answered:
        raise UserError(f"{where}: none of {len(made)} prompts has an answer.")
    answers = sum(len(row.answers) for row in answered)
    unranked = sum(rank is None for row in answered for _, rank in row.answers)
    if unranked:
        steps.append(Step("without a rank", "answers", unranked, answers - unranked))
    if unranked == answers:
        raise UserError(f"{where}: none of {answers} answers has a rank or a score.")
    ranked = [r for row in answered if (r := _ranked(row)).answers]
    _left_out(steps, "without a ranked answer", "prompts", answered, ranked)
    return ranked, steps


def _left_out(steps: list[Step], what: str, unit: str, before: Sequence[Any], after: Sequence[Any]) -> None:
    if len(after) < len(before):
        steps.append(Step(what, unit, len(before) - len(after), len(after)))


def _joined(rows: Sequence[_Row]) -> list[_Row]:
    """Rows of one answer each as one row a prompt, where the first of them stood."""
    made = []
    for same in group_by(rows, lambda row: prompt_key(row.prompt) if row.partial else str(id(row))).values():
        if not same[0].partial:
            made.append(same[0])
            continue
        answers = [answer for row in same for answer in row.answers]
        order = sorted({rank for _, rank in answers if rank is not None})
        place: dict[float | None, float | None] = {None: None, **{rank: float(n) for n, rank in enumerate(order)}}
        placed = tuple((text, place[rank]) for text, rank in answers)
        made.append(dataclasses.replace(same[0], answers=placed, held_out=any(row.held_out for row in same)))
    return made


def _merge(rows: Iterable[_Row]) -> Iterable[_Row]:
    """The first row of each prompt; it is held out if any of them is."""
    for same in group_by(rows, lambda row: prompt_key(row.prompt)).values():
        yield dataclasses.replace(same[0], held_out=any(row.held_out for row in same))


def _ranked(row: _Row) -> Ranked:
    unique: dict[str, float] = {}
    for text, rank in row.answers:
        if rank is not None:
            unique[text] = min(rank, unique.get(text, rank))
    answers = tuple(sorted((Answer(*item) for item in unique.items()), key=lambda a: a.rank))
    return Ranked(prompt_key(row.prompt), row.prompt, answers, row.held_out)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _parse(row: Row, split: str) -> "_Message | _Row":
    held_out = split.lower() in HELD_OUT
    if "message_id" in row:
        return _parse_message(row, held_out)
    if "message_tree_id" in row:
        raise ValueError("a whole tree; give Open Assistant's messages, one a row (`..._messages`, not `..._trees`)")
    if not any(name in row for name in (*forms.PROMPTS, *forms.SIDES)):
        needed = "prompt and responses, or message_id, parent_id, role, text, lang and rank"
        raise ValueError(f"needs {needed}; found {forms.columns(row)}")
    return _parse_row(row, held_out)


def _parse_message(row: Row, held_out: bool) -> _Message:
    role, text, parent, lang = row["role"], row["text"], row.get("parent_id"), row["lang"]
    if role not in ("prompter", "assistant"):
        raise ValueError(f"role {role!r} is unknown; prompter and assistant are known")
    if not isinstance(text, str) or not isinstance(lang, str):
        raise ValueError("text and lang must be text")
    rank = forms.number(row.get("rank") if role == "assistant" else None, "rank")
    fault = "" if text.strip() else "empty"
    if row.get("deleted"):
        fault = "deleted"
    elif row.get("synthetic"):
        fault = "synthetic"
    elif not row.get("review_result") and ("review_result" in row or "review_count" in row):
        # Without a result (null, so absent) but with reviews, the reviewers were of two minds; it stayed in the data.
        rejected = "review_result" in row
        fault = "rejected" if rejected else fault if row.get("review_count") else "unreviewed"
    parent = None if parent is None or parent == "" else str(parent)
    return _Message(str(row["message_id"]), parent, role, text, lang, rank, fault, held_out)


def _parse_row(row: Row, held_out: bool) -> _Row:
    made = forms.ranked(row)
    answers = [answer for answer in made.answers if answer.text.strip()]
    ranks = forms.order(answers)
    if not made.partial and ranks != tuple(answer.rank for answer in answers):  # scores as ranks from 0 on
        place = {score: float(n) for n, score in enumerate(sorted({rank for rank in ranks if rank is not None}))}
        ranks = tuple(None if rank is None else place[rank] for rank in ranks)
    lang = row.get("lang")
    if not isinstance(lang, str | None):
        raise ValueError(f"lang must be text, not {lang!r}")
    texts = (answer.text for answer in answers)
    return _Row(made.prompt, tuple(zip(texts, ranks, strict=True)), lang, held_out, made.partial)


# ---------------------------------------------------------------------------------------------------------------------
# Open Assistant


def _first_turns(messages: Sequence[_Message], where: str, steps: list[Step]) -> list[_Row]:
    """First messages with their direct answers, as rows."""
    steps.append(Step("read", "messages", 0, len(messages)))
    roots = [m for m in messages if m.role == "prompter" and m.parent is None]
    if not roots:
        raise UserError(
            f"{where}: none of {len(messages)} messages begins a conversation (a prompter's, no parent_id)."
        )
    asked = [m for m in roots if not m.fault]
    first = {m.id for m in roots}
    replies = [m for m in messages if m.role == "assistant" and m.parent in first]
    if not replies:
        raise UserError(
            f"{where}: no assistant's parent_id is the message_id of any of the {len(roots)} first turns; give the"
            " file with their answers too: --data FILE FILE."
        )
    steps.append(Step("later turns", "first turns", len(messages) - len(roots) - len(replies), len(roots)))
    left = len(roots)
    for fault in ("empty", "deleted", "synthetic", "rejected", "unreviewed"):
        count = sum(m.fault == fault for m in roots)
        left -= count
        if count:
            steps.append(Step(fault, "first turns", count, left))
    lang_of = {m.id: m.lang for m in asked}
    answers = [m for m in replies if m.parent in lang_of]
    usable = [m for m in answers if not m.fault and m.lang == lang_of[m.parent or ""]]
    _left_out(steps, "deleted, rejected, synthetic or in another language", "answers", answers, usable)
    by_parent = group_by(usable, lambda m: m.parent or "")
    return [
        _Row(
            as_messages(m.text),
            tuple((reply.text, reply.rank) for reply in by_parent.get(m.id, ())),
            m.lang,
            m.held_out,
        )
        for m in asked
    ]
