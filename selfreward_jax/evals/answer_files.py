"""Prompts to compare answers on, and answers that lie in files, in any form that `core.readers` reads."""

import dataclasses
from collections.abc import Mapping, Sequence

from selfreward_jax.core.errors import UserError, shorten
from selfreward_jax.core.forms import PROMPTS, demonstration, prompt_of
from selfreward_jax.core.progress import say
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Messages, Prompt, Row, content_id, last_request, present


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt with its category ("" for none) and its `id` in its file ("" for none)."""

    prompt: Prompt
    category: str = ""
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer of a file; its prompt stands beside it (`messages`), or elsewhere and is named by its `id` (`key`)."""

    messages: Messages | None
    key: str
    category: str
    text: str


def load_questions(path: str) -> list[Question]:
    """Rows with `prompt`, or `instruction` and perhaps `input`; `category` and `id` are optional. None comes twice.

    Raises:
      UserError: a missing file or a wrong row.
    """
    rows = read_rows(path, lambda row: _question(prompt_of(row), row), "rows with a prompt")
    first: dict[str, Question] = {}
    for question in rows:
        first.setdefault(question.prompt.id, question)
    questions = list(first.values())
    if len(questions) < len(rows):
        say(f"{path}: {len(rows) - len(questions)} of {len(rows)} rows repeat a prompt and are left out")
    return questions


def load_answers(path: str) -> list[Answer]:
    """Rows with `prompt` and `response`, or `instruction` and `output`, or `id` and `response`.

    Raises:
      UserError: a missing file, a wrong row, or two answers to one prompt.
    """
    answers = read_rows(path, _answer, "answers, rows with prompt and response")
    seen: dict[str, int] = {}
    for number, answer in enumerate(answers, 1):
        key = content_id(answer.messages) if answer.messages else f"id {answer.key}"
        if key in seen:
            what = shorten(last_request(answer.messages)) if answer.messages else f"id {answer.key}"
            raise UserError(
                f"{path}: rows {seen[key]} and {number} answer the same prompt ({what}); keep one answer to each,"
                " of one model."
            )
        seen[key] = number
    return answers


def questions_of(path: str, answers: Sequence[Answer]) -> list[Question]:
    """The prompts that a file's answers bring along.

    Raises:
      UserError: they name them by `id` alone.
    """
    if any(a.messages is None for a in answers):
        raise UserError(f"{path}: names its prompts by id alone; give them with --prompts=FILE.")
    return [_question(a.messages, {"category": a.category, "id": a.key}) for a in answers if a.messages]


def match(path: str, answers: Sequence[Answer], questions: Sequence[Question]) -> list[str]:
    """The file's answer to each question.

    Raises:
      UserError: some have none, with how many and the first of them.
    """
    by_prompt = {content_id(a.messages): a.text for a in answers if a.messages}
    by_key = {a.key: a.text for a in answers if not a.messages}
    found = [by_prompt.get(q.prompt.id, by_key.get(q.key) if q.key else None) for q in questions]
    missing = [q for q, text in zip(questions, found, strict=True) if text is None]
    if missing:
        raise UserError(
            f"{path}: no answer to {len(missing)} of {len(questions)} prompts; the first: {_shown(missing[0])}."
            f" The file answers {len(answers)}; its first: {_shown_answer(answers[0])}."
        )
    return [text for text in found if text is not None]


def check_same(paths: tuple[str, str], sides: tuple[Sequence[Question], Sequence[Question]]) -> None:
    """Raises `UserError` if two files answer different prompts, with counts and the first that only one has."""
    ids = [{q.prompt.id for q in side} for side in sides]
    if ids[0] == ids[1]:
        return
    told = []
    for own, other in ((0, 1), (1, 0)):
        only = [(n, q) for n, q in enumerate(sides[own], 1) if q.prompt.id not in ids[other]]
        if only:
            told.append(f"{len(only)} only in {paths[own]}, the first in row {only[0][0]}: {_shown(only[0][1])}")
    raise UserError(
        f"{paths[0]} and {paths[1]} answer different prompts: {len(ids[0])} and {len(ids[1])},"
        f" {len(ids[0] & ids[1])} in both; {'; '.join(told)}. Give those to compare on with --prompts=FILE."
    )


def _shown(question: Question) -> str:
    return shorten(last_request(question.prompt.messages))


def _shown_answer(answer: Answer) -> str:
    return shorten(last_request(answer.messages)) if answer.messages else f"id {answer.key}"


def _question(messages: Messages, row: Row) -> Question:
    return Question(Prompt(content_id(messages), messages, "file"), _category(row), _id(row))


def _answer(row: Row) -> Answer:
    row = present(row)
    if "id" not in row or any(name in row for name in PROMPTS):
        given = demonstration(row, empty=True)
        return Answer(given.messages, _id(row), _category(row), given.response)
    return Answer(None, _id(row), _category(row), _text(row, "response" if "response" in row else "output"))


def _id(row: Row) -> str:
    return "" if row.get("id") is None else str(row["id"])


def _category(row: Row) -> str:
    category = row.get("category") or row.get("dataset") or ""  # `dataset`: AlpacaEval
    if not isinstance(category, str):
        raise ValueError(f"category must be text, not {category!r}")
    return category


def _text(row: Mapping, name: str) -> str:
    if not isinstance(row[name], str):
        raise ValueError(f"{name} must be text, not {row[name]!r}")
    return row[name]
