"""Two sides answer the same prompts, and a judge says whose answers are better.

A side is a model, which answers here, or a file of answers. What is slow lies in artefacts: each model's answers are
made once, whomever they are compared with, and each comparison's verdicts in a folder of its own.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.rows import Response, Row, content_id, group_by, last_request, to_lines
from selfreward_jax.evals.answer_files import Question
from selfreward_jax.evals.desk import Desk
from selfreward_jax.evals.winrate import Comparison, measure
from selfreward_jax.methods.judging import mean_score
from selfreward_jax.methods.pairwise import PairwiseTemplate
from selfreward_jax.stages.judge import judge as judge_answers
from selfreward_jax.stages.judge import scores_needed
from selfreward_jax.stages.respond import respond
from selfreward_jax.stages.verdicts import AnswerPair, PairVerdict, decide, judge_pairs, too_long
from selfreward_jax.stages.work import ModelRef

RESULT, ROWS = "result.json", "comparisons.jsonl"


@dataclasses.dataclass(frozen=True)
class Side:
    """Answers to the prompts, in their order.

    Attributes:
      name: for people.
      path: where it came from.
      hash: of the model's weights, or of the answers.
      folder: for what belongs to these answers alone, whomever they are compared with.
    """

    name: str
    path: str
    hash: str
    folder: str
    answers: tuple[Response, ...]


@dataclasses.dataclass(frozen=True)
class Referee:
    """The judge and how it is asked.

    Attributes:
      score: "pairwise": which of two answers it prefers; "absolute": each answer's mean score by itself.
      samples: verdicts in each order, or scores an answer.
    """

    name: str
    ref: ModelRef
    score: str
    samples: int
    template: PairwiseTemplate


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the sides are compared on: a file's path and hash, and the prompts taken from it."""

    data: str
    data_sha256: str
    questions: tuple[Question, ...]


def answered(desk: Desk, name: str, path: str, ref: ModelRef, questions: Sequence[Question], folder: str = "") -> Side:
    """A model's side: one answer to each prompt, sampled with the settings of `respond`.

    Args:
      folder: "" for one named after model and weights.

    Raises:
      UserError: a prompt is too long for the model's context.
    """
    folder = folder or f"{safe_name(path)}-{ref.hash[:8]}"
    made = {r.prompt_id: r for r in respond(desk, folder, ref, [q.prompt for q in questions])}
    return Side(name, path, ref.hash, folder, tuple(made[q.prompt.id] for q in questions))


def given(name: str, path: str, questions: Sequence[Question], texts: Sequence[str]) -> Side:
    """A file's side."""
    answers = tuple(
        Response(content_id("given", q.prompt.id, text), q.prompt.id, 0, (), text, "given", 0.0)
        for q, text in zip(questions, texts, strict=True)
    )
    hash = content_id([[r.prompt_id, r.text] for r in answers])
    return Side(name, path, hash, f"{safe_name(path)}-{hash[:8]}", answers)


def safe_name(path: str) -> str:
    """The last part of a path or name as that of a folder."""
    last = path.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "model"


def head_to_head(
    desk: Desk, folder: str, asked: Asked, a: Side, b: Side, referee: Referee, settings: dict[str, Any]
) -> Row:
    """Compares A with B. Writes `comparisons.jsonl`, a prompt a line, and `result.json` into the folder.

    Args:
      folder: in the desk's, "" for the desk's own.
      settings: see `Desk.claim`.

    Raises:
      UserError: no verdict or no score can be read.
    """
    where = f"{folder}/" if folder else ""
    title = f"{a.name} against {b.name}"
    sides = zip(asked.questions, a.answers, b.answers, strict=True)
    pairs = [AnswerPair(q.prompt, x.text, y.text) for q, x, y in sides]
    verdicts: list[PairVerdict] = []
    scores: list[tuple[float | None, float | None]] = []
    if referee.score == "pairwise":
        artefact = f"{where}verdicts.jsonl"
        verdicts = judge_pairs(
            desk, artefact, referee.ref, referee.name, title, pairs, referee.samples, referee.template
        )
        decisions = decide(pairs, verdicts, too_long(pairs, verdicts, title))
        rows = [
            Comparison(q.prompt.id, q.category, len(pair.a), len(pair.b), d.outcome, d.orders, d.missing)
            for q, pair, d in zip(asked.questions, pairs, decisions, strict=True)
        ]
        source = {"verdicts": desk.hash_of(artefact)}
    else:
        scores = list(zip(_scores(desk, a, asked, referee), _scores(desk, b, asked, referee), strict=True))
        rows = _by_scores(asked.questions, pairs, scores)
        source = {side.name: desk.hash_of(f"{side.folder}/judgements.jsonl") for side in (a, b)}
    made = {
        "stage": "winrate",
        "settings": settings,
        "a": a.hash,
        "b": b.hash,
        "judge": referee.ref.hash,
        "answers": content_id([[r.text for r in side.answers] for side in (a, b)]),
        **source,
    }
    told = _told(asked.questions, pairs, rows, verdicts, scores)
    desk.write(f"{where}{ROWS}", made, to_lines(told))
    result = {
        "kind": "winrate",
        "a": {"name": a.name, "path": a.path, "hash": a.hash},
        "b": {"name": b.name, "path": b.path, "hash": b.hash},
        "judge": referee.name,
        "judge_hash": referee.ref.hash,
        "score": referee.score,
        "method": desk.config.judge.method,
        "samples": referee.samples,
        "data": asked.data,
        "data_sha256": asked.data_sha256,
        **measure(rows),
        "parse_rate": _parse_rate(verdicts),
        "distinct_a": _distinct(a),
        "distinct_b": _distinct(b),
        "truncated_a": _truncated(a),
        "truncated_b": _truncated(b),
    }
    desk.write(f"{where}{RESULT}", made, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _scores(desk: Desk, side: Side, asked: Asked, referee: Referee) -> list[float | None]:
    """Mean score of each answer of a side, each judged by itself as in the loop."""
    prompts = [q.prompt for q in asked.questions]
    judgements = judge_answers(desk, side.folder, referee.ref, prompts, side.answers, texts=False)
    by_answer = group_by(judgements, lambda j: j.response_id)
    needed = scores_needed(desk.config.judge)
    return [mean_score((j.score for j in by_answer.get(r.id, [])), needed) for r in side.answers]


def _by_scores(
    questions: Sequence[Question], pairs: Sequence[AnswerPair], scores: Sequence[tuple[float | None, float | None]]
) -> list[Comparison]:
    """The higher mean score wins; answers are seen one at a time, so there is no order."""
    made = []
    for question, pair, (x, y) in zip(questions, pairs, scores, strict=True):
        about = pair.prompt.id, question.category, len(pair.a), len(pair.b)
        if pair.a == pair.b:
            made.append(Comparison(*about, "tie"))
        elif x is None or y is None:
            made.append(Comparison(*about, None, missing="not_scored"))
        else:
            made.append(Comparison(*about, "tie" if x == y else ("win" if x > y else "lose")))
    return made


def _told(
    questions: Sequence[Question],
    pairs: Sequence[AnswerPair],
    rows: Sequence[Comparison],
    verdicts: Sequence[PairVerdict],
    scores: Sequence[tuple[float | None, float | None]],
) -> list[Row]:
    """A line a prompt for people: what was asked, both answers, what the judge said, and what came of it."""
    said = group_by(verdicts, lambda v: v.prompt_id)
    told = []
    for n, (question, pair, row) in enumerate(zip(questions, pairs, rows, strict=True)):
        line: Row = {
            "prompt_id": row.prompt_id,
            "category": row.category,
            "outcome": row.outcome,
            "missing": row.missing,
            "prompt": last_request(question.prompt.messages),
            "a": pair.a,
            "b": pair.b,
        }
        if scores:
            line["scores"] = dict(zip(("a", "b"), scores[n], strict=True))
        else:
            line["verdicts"] = [
                {"first": v.first, "prefers_a": _rounded(v.prefers_a), "text": v.text}
                for v in said.get(row.prompt_id, [])
            ]
        told.append(line)
    return told


def _parse_rate(verdicts: Sequence[PairVerdict]) -> float | None:
    return sum(v.verdict is not None for v in verdicts) / len(verdicts) if verdicts else None


def _distinct(side: Side) -> float:
    """Share of different texts among a side's answers: one text for all prompts can win a judge over (null models)."""
    return len({r.text for r in side.answers}) / len(side.answers)


def _truncated(side: Side) -> float:
    """Share of a side's answers that the limit cut, which are judged as they are; those of a file don't say."""
    return sum(r.stop_reason == "length" for r in side.answers) / len(side.answers)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
