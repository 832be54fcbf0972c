"""Evaluation following rows: a model judges ranked answers; what agrees with people's order is kept (paper §2.1)."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.ranked import Answer, Ranked, Step
from selfreward_jax.core.rows import Judgement, Prompt, Response, Row, content_id, group_by
from selfreward_jax.methods.eft import agreeing_scores, balance, chance_agreement, score_bin
from selfreward_jax.methods.score_forms import FIVE, Scale, find_score
from selfreward_jax.methods.score_slot import LABEL
from selfreward_jax.stages.judge import judge
from selfreward_jax.stages.work import ModelRef, Work


@dataclasses.dataclass(frozen=True)
class EftRules:
    """What is kept.

    Attributes:
      min_gap: points by which the scores of differently ranked answers must differ at least.
      min_words: different ones, of the reasons before a score.
      max_share: of any one score among the rows.
    """

    min_gap: float
    min_words: int
    max_share: float


@dataclasses.dataclass(frozen=True)
class Opinion:
    """A judgement that could be learnt from: its reasons, and its score from 0 to 5 and on the judge's own scale."""

    reasons: str
    score: float
    number: float

    @property
    def text(self) -> str:
        return f"{self.reasons}\n{LABEL} {self.number:g}"


@dataclasses.dataclass(frozen=True)
class EftSet:
    """Rows, what was left out and why, and in numbers how that came about."""

    rows: list[Row]
    dropped: list[Row]
    steps: list[Step]
    facts: dict[str, Any]


def ranked_rows(ranked: Sequence[Ranked]) -> tuple[list[Prompt], list[Response]]:
    """Prompts and their given answers as the stages know them."""
    prompts = [Prompt(r.key, r.prompt, "ranked") for r in ranked]
    responses = [
        Response(content_id(r.key, a.text), r.key, n, (), a.text, "given", 0.0)
        for r in ranked
        for n, a in enumerate(r.answers)
    ]
    return prompts, responses


def judge_ranked(work: Work, folder: str, ref: ModelRef, ranked: Sequence[Ranked]) -> list[Judgement]:
    """Judges every answer, to `FOLDER/judgements.jsonl`.

    Raises:
      UserError: no judgement has a score.
    """
    return judge(work, folder, ref, *ranked_rows(ranked))


def build_eft(
    ranked: Sequence[Ranked],
    judgements: Sequence[Judgement],
    rules: EftRules,
    most: int,
    seed: int,
    scale: Scale = FIVE,
) -> EftSet:
    """Chooses among the judgements of ranked answers.

    An answer of which no judgement has a score and reasons is left out; a prompt of which then no two ranks are left,
    or whose scores can't be put in the order of the ranks, gives no row at all.

    Args:
      scale: what the judge was asked for; rows are written on it.
    """
    by_response = group_by(judgements, lambda j: j.response_id)
    learnable = {id: _opinions(own, rules, scale) for id, own in by_response.items()}
    steps: list[Step] = []
    dropped: list[Row] = []
    answers = sum(len(r.answers) for r in ranked)
    steps.append(Step("to be judged", "answers", 0, answers))
    _count_judgements(steps, judgements, answers - len(by_response), answers, sum(map(len, learnable.values())))
    useful = unclear = disagreeing = useful_answers = 0
    chances: list[float] = []
    rows: list[Row] = []
    for r in ranked:
        own = [(a, learnable.get(content_id(r.key, a.text))) for a in r.answers]
        told = [(a, opinions) for a, opinions in own if opinions]
        useful_answers += len(told)
        scores = [[o.score for o in opinions] for _, opinions in told]
        ranks = [a.rank for a, _ in told]
        if len(set(ranks)) < 2:
            unclear += 1
            dropped.append(_dropped(r, "too_few_judged", ranks, scores))
            continue
        useful += 1
        chances.append(chance_agreement(ranks, scores, rules.min_gap, (seed, r.key)))
        chosen = agreeing_scores(ranks, scores, rules.min_gap)
        if chosen is None:
            disagreeing += 1
            dropped.append(_dropped(r, "order_disagrees", ranks, scores))
            continue
        rows += [_row(r, a, opinions[n]) for (a, opinions), n in zip(told, chosen, strict=True)]
    if useful_answers < answers:
        steps.append(Step("without a judgement to learn from", "answers", answers - useful_answers, useful_answers))
    steps.append(Step("with fewer than two ranks judged", "prompts", unclear, useful))
    steps.append(Step("scores not in the people's order", "prompts", disagreeing, useful - disagreeing))

    order = sorted(range(len(rows)), key=lambda i: content_id(seed, rows[i]["id"]))
    balanced = balance([rows[i]["score"] for i in order], rules.max_share, len(rows))
    kept = balance([rows[i]["score"] for i in order], rules.max_share, most)
    steps.append(Step("of scores too frequent", "rows", len(rows) - len(balanced), len(balanced)))
    steps.append(Step("more than wanted", "rows", len(balanced) - len(kept), len(kept)))
    chosen_rows = [rows[order[i]] for i in kept]
    left_out = [rows[i] for i in sorted(set(range(len(rows))) - {order[i] for i in kept})]
    dropped += [{"prompt_id": row["prompt_id"], "reason": "score_too_frequent", **row} for row in left_out]
    facts = {
        "with_score": sum(j.score is not None for j in judgements) / max(len(judgements), 1),
        "comparable": useful,
        "agreeing": useful - disagreeing,
        "agreement": (useful - disagreeing) / useful if useful else None,
        "agreement_by_chance": math.fsum(chances) / len(chances) if chances else None,
        "score_hist_judged": _histogram([j.score for j in judgements if j.score is not None]),
        "score_hist_agreeing": _histogram([row["score"] for row in rows]),
        "score_hist": _histogram([row["score"] for row in chosen_rows]),
    }
    return EftSet(chosen_rows, dropped, steps, facts)


def _count_judgements(
    steps: list[Step], judgements: Sequence[Judgement], too_long: int, answers: int, reasoned: int
) -> None:
    if too_long:
        steps.append(Step("too long for the judge", "answers", too_long, answers - too_long))
    steps.append(Step("made", "judgements", 0, len(judgements)))
    scored = [j for j in judgements if j.score is not None]
    steps.append(Step("without a score", "judgements", len(judgements) - len(scored), len(scored)))
    whole = [j for j in scored if not _cut_short(j)]
    if len(whole) < len(scored):
        steps.append(Step("cut by the limit before the score", "judgements", len(scored) - len(whole), len(whole)))
    steps.append(Step("with too few reasons", "judgements", len(whole) - reasoned, reasoned))


def _cut_short(j: Judgement) -> bool:
    """Whether the reasons end in the midst. A score that was sampled has all its reasons before it."""
    return j.score_probs is not None and j.stop_reason == "length"


def _opinions(judgements: Sequence[Judgement], rules: EftRules, scale: Scale) -> list[Opinion]:
    whole = [(j, find_score(j.text, scale)) for j in judgements if not _cut_short(j)]
    made = [Opinion(j.text[: f.reasons_end], j.score, f.number) for j, f in whole if j.score is not None and f]
    # Different ones: a judge that can't judge says the same word until it is cut.
    return [o for o in made if len(set(o.reasons.casefold().split())) >= rules.min_words]


def plain_prompt(prompt: Sequence[dict[str, str]]) -> str | list[dict[str, str]]:
    """A single request as its text, a conversation as its messages."""
    return prompt[0]["content"] if len(prompt) == 1 else list(prompt)


def _row(r: Ranked, answer: Answer, opinion: Opinion) -> Row:
    return {
        "id": content_id(r.key, answer.text, opinion.text),
        "prompt_id": r.key,
        "prompt": plain_prompt(r.prompt),
        "response": answer.text,
        "judgement": opinion.text,
        "score": opinion.score,
        "rank": answer.rank,
    }


def _dropped(r: Ranked, reason: str, ranks: Sequence[float], scores: Sequence[Sequence[float]]) -> Row:
    return {
        "prompt_id": r.key,
        "reason": reason,
        "prompt": plain_prompt(r.prompt),
        "judged": [{"rank": rank, "scores": own} for rank, own in zip(ranks, scores, strict=True)],
    }


def _histogram(scores: Sequence[float]) -> list[int]:
    counts = collections.Counter(map(score_bin, scores))
    return [counts[n] for n in range(6)]
