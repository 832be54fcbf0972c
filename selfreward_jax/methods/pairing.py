"""Pair building: from the scored answers of one prompt to a preference pair, or to the reason why there is none."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfreward_jax.core.rows import Judgement, Response
from selfreward_jax.methods.judging import MAX_SCORE, mean_score


@dataclasses.dataclass(frozen=True)
class Scored:
    """An answer with its judgements; `score` is their mean, None where too few could be read."""

    response: Response
    judgements: tuple[Judgement, ...]
    score: float | None


@dataclasses.dataclass(frozen=True)
class Drop:
    """A prompt (`response_id` None) or an answer that was left out, and why."""

    prompt_id: str
    response_id: str | None
    reason: str


def rank(
    responses: Sequence[Response], judgements: dict[str, list[Judgement]], *, min_parsed: int, keep_truncated: bool
) -> tuple[list[Scored], list[Drop]]:
    """The answers of one prompt that can be ranked, and those that can't."""
    ranked, drops = [], []
    for response in responses:
        own = tuple(sorted(judgements.get(response.id, []), key=lambda j: j.index))
        score = mean_score((j.score for j in own), min_parsed)
        if response.stop_reason == "length" and not keep_truncated:
            drops.append(Drop(response.prompt_id, response.id, "truncated"))
        elif not own:
            drops.append(Drop(response.prompt_id, response.id, "not_judged"))
        elif score is None:
            drops.append(Drop(response.prompt_id, response.id, "too_few_scores"))
        else:
            ranked.append(Scored(response, own, score))
    return ranked, drops


def best_worst(ranked: Sequence[Scored], min_margin: float) -> tuple[Scored, Scored] | str:
    """Highest against lowest score (paper §2.3), or the reason why there is no pair.

    Where these two are the same text, the two different texts whose scores are furthest apart. Among equals
    the answers sampled first are taken, the chosen one before the rejected one.
    """
    if len(ranked) < 2:
        return "fewer_than_two_ranked"
    if len({s.score for s in ranked}) == 1:
        return "tie"
    # The best partner of any answer is the first of the order or, if that is the same text, the first of another.
    tops = _of_two_texts(sorted(ranked, key=lambda s: -s.score))  # type: ignore[operator]
    bottoms = _of_two_texts(sorted(ranked, key=lambda s: s.score))  # type: ignore[arg-type, return-value]
    pairs = [(a, b) for a in tops for b in bottoms if a.score > b.score and a.response.text != b.response.text]  # type: ignore[operator]
    if not pairs:
        return "identical_answers"
    chosen, rejected = max(pairs, key=lambda p: (p[0].score - p[1].score, p[0].score, -p[1].score))  # type: ignore[operator]
    return (chosen, rejected) if chosen.score - rejected.score > min_margin else "margin_too_small"  # type: ignore[operator]


def _of_two_texts(ordered: Sequence[Scored]) -> list[Scored]:
    """The first answer, and the first of another text."""
    first = ordered[0]
    return [first, *itertools.islice((s for s in ordered if s.response.text != first.response.text), 1)]


# A rule takes the ranked answers of a prompt and the least margin; `config.pairs.rule` names it.
PAIR_RULES: Mapping[str, Callable[[Sequence[Scored], float], tuple[Scored, Scored] | str]] = {"best_worst": best_worst}


def positives(ranked: Sequence[Scored]) -> list[Scored]:
    """Answers with the full score, for the paper's comparison with SFT on them (appendix A.4)."""
    return [s for s in ranked if s.score == MAX_SCORE]


def judgement_facts(scored: Scored) -> dict[str, Any]:
    """What made an answer's score, for a pair's provenance."""
    return {
        "response": scored.response.id,
        "judgements": [j.id for j in scored.judgements],
        "scores": [j.score for j in scored.judgements],
    }
