"""MT-bench: two turns a question, the field's answer and judgement files, and marks from 1 to 10.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (arXiv 2306.05685); files and temperatures
as in FastChat. The grading template says the same in words of its own, so marks of this judge compare with each other
and not with a leaderboard.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import Prompt, Row, content_id
from selfreward_jax.evals.statistics import Interval, bootstrap
from selfreward_jax.methods.quotes import in_quotation
from selfreward_jax.methods.template_files import begins, broken, packaged, tags_of

TURNS = (1, 2)
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # FastChat's; others are greedy
NO_MARK = -1  # as the format writes a judgement without a mark; it is no part of any mean
TAGS = tags_of("<question><reference><answer>")

_NUMBER = r"([0-9]{1,9}+\.?[0-9]{0,9}+)"
_MARKS = (re.compile(rf"\[\[{_NUMBER}\]\]"), re.compile(rf"\[{_NUMBER}\]"))
_MOST_MARKS = 100  # that are looked at


@dataclasses.dataclass(frozen=True)
class Question:
    """Two turns of a user, and reference answers where its category has them (else ())."""

    id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, ...] = ()

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.category, 0.0)

    def prompt(self, *answers: str) -> Prompt:
        """What the model is asked in the turn after these answers."""
        messages = []
        for turn, answer in zip(self.turns, answers, strict=False):
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": self.turns[len(answers)]})
        return Prompt(content_id(self.id, messages), tuple(messages), f"mt_bench {self.id}")


def parse_question(row: Row) -> Question:
    """From a row of `question.jsonl`.

    Raises:
      KeyError, ValueError: something else.
    """
    turns, references = row["turns"], row.get("reference") or ()
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError("turns must be two texts that are not empty")
    if references and (len(references) != 2 or not all(isinstance(r, str) for r in references)):
        raise ValueError("reference must be two texts, or null")
    if not isinstance(row["question_id"], int):
        raise ValueError("question_id must be a whole number")
    return Question(row["question_id"], str(row["category"]), (turns[0], turns[1]), tuple(references))


def answer_row(question: Question, answers: Sequence[str], model: str, time: float) -> Row:
    """As in FastChat's `model_answer/MODEL.jsonl`."""
    return {
        "question_id": question.id,
        "answer_id": content_id(question.id, model, list(answers)),
        "model_id": model,
        "choices": [{"index": 0, "turns": list(answers)}],
        "tstamp": time,
    }


def check_model_name(name: str) -> None:
    """Raises `UserError` for a name that can't be a file's, since FastChat knows models by the names of their files."""
    if not name.strip() or name != name.strip() or name.startswith(".") or any(c in name for c in "/\\\0\n"):
        raise UserError(f"--name={name!r}: must be the name of a file, without a slash, as FastChat needs it.")


def check_answers(rows: Sequence[Row], questions: Sequence[Question]) -> None:
    """Raises `UserError` for what FastChat would take without a word and grade wrongly, or not take."""
    file = "model_answer"
    if [row["question_id"] for row in rows] != [q.id for q in questions]:
        raise UserError(f"{file}: its question_ids are not those that were asked, in their order.")
    if len(names := {row["model_id"] for row in rows}) != 1:
        raise UserError(f"{file}: one model must be named, not {sorted(names)}.")
    for row in rows:
        turns = [choice["turns"] for choice in row["choices"]]
        if len(turns) != 1 or len(turns[0]) != len(TURNS) or not all(isinstance(text, str) for text in turns[0]):
            raise UserError(f"{file}: question {row['question_id']} must have one choice with two texts.")


def empty_answers(rows: Sequence[Row]) -> int:
    """How many of the answers have nothing in them; a judge grades these as well."""
    return sum(not text.strip() for row in rows for text in row["choices"][0]["turns"])


# ---------------------------------------------------------------------------------------------------------------------
# Grading


def grading_name(question: Question, turn: int) -> str:
    """What the file says of how a judge was asked."""
    return "selfreward-single" + ("-reference" if question.references else "") + ("-turn-2" if turn == 2 else "")


def grading_prompt(question: Question, answers: Sequence[str], turn: int) -> str:
    """What a judge is asked about an answer; texts in it can't end their part early, nor hold a mark to be quoted."""

    def neutral(texts: Sequence[str]) -> list[str]:
        return [broken(text, [*begins(TAGS, text), *begins(_MARKS[1], text)]) for text in texts[:turn]]

    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(packaged("mt_bench.jinja"))
    return template.render(
        turn=turn,
        questions=neutral(question.turns),
        answers=neutral(answers),
        references=neutral(question.references),
    ).strip()


def parse_mark(judgement: str) -> float | None:
    """The first `[[n]]`, else the first `[n]`, as FastChat reads them; None if there is neither.

    What it reads outside its scale of 1 to 10, FastChat counts in its means; here it is no mark. Nor is one in a
    quotation.
    """
    for pattern in _MARKS:
        for match in itertools.islice(pattern.finditer(judgement), _MOST_MARKS):
            if not in_quotation(judgement, match.start()):
                mark = int(match[1]) if match[1].isdigit() else float(match[1])
                return mark if 1 <= mark <= 10 else None
    return None


def judgement_row(question: Question, answers: Sequence[str], model: str, judge: str, turn: int, text: str,
                  time: float) -> Row:  # fmt: skip
    """As in FastChat's `model_judgment/JUDGE_single.jsonl`; -1 is no mark."""
    mark = parse_mark(text)
    return {
        "question_id": question.id,
        "model": model,
        "judge": [judge, grading_name(question, turn)],
        "user_prompt": grading_prompt(question, answers, turn),
        "judgment": text,
        "score": NO_MARK if mark is None else mark,
        "turn": turn,
        "tstamp": time,
    }


def check_judgements(rows: Sequence[Row], questions: Sequence[Question]) -> None:
    """Raises `UserError` unless each turn of each question has one judgement, whose mark is in range or `NO_MARK`."""
    asked = collections.Counter((q.id, turn) for q in questions for turn in TURNS)
    judged = collections.Counter((row["question_id"], row["turn"]) for row in rows)
    if wrong := (asked - judged) + (judged - asked):
        id, turn = min(wrong)
        found = judged[id, turn]
        raise UserError(f"model_judgment: question {id} needs one judgement of turn {turn}, and has {found}.")
    for row in rows:
        if row["score"] != NO_MARK and not 1 <= row["score"] <= 10:
            raise UserError(f"model_judgment: question {row['question_id']} has the mark {row['score']}, not 1 to 10.")


def _mean(marks: Sequence[float]) -> float | None:
    known = [mark for mark in marks if mark != NO_MARK]
    return round(math.fsum(known) / len(known), 6) if known else None


def averages(judgements: Sequence[Row], categories: Mapping[int, str]) -> dict[str, Any]:
    """Mean marks over all, by turn, and by category and turn; judgements without a mark are counted and left out.

    Args:
      categories: of each question.
    """
    marks: dict[int, list[float]] = collections.defaultdict(list)
    cells: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in judgements:
        category, turn = categories[row["question_id"]], f"turn_{row['turn']}"
        for place in (category, "all"):
            cells[place][turn].append(row["score"])
            cells[place]["both"].append(row["score"])
        if row["score"] != NO_MARK:
            marks[row["question_id"]].append(row["score"])
    names = (*(f"turn_{turn}" for turn in TURNS), "both")
    means = {place: {name: _mean(by_turn[name]) for name in names} for place, by_turn in cells.items()}
    unparsed = sum(row["score"] == NO_MARK for row in judgements)
    return {
        "score": overall(list(marks.values())).to_json(),
        "unparsed": unparsed,
        "parse_rate": round(1 - unparsed / len(judgements), 6),
        "by_turn": means.pop("all"),
        "by_category": dict(sorted(means.items())),
    }


def overall(marks: Sequence[Sequence[float]]) -> Interval:
    """Mean of all marks, with a bootstrap over questions, whose two marks depend on each other."""
    sums, counts = np.array([sum(x) for x in marks]), np.array([len(x) for x in marks])
    return bootstrap(len(marks), lambda n: sums[n].sum() / counts[n].sum())
