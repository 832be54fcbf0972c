"""Which prompts of an iteration are shown with all that became of them.

Half are drawn by the seed, so that they are what one would typically see; the others are extremes, and say so.
"""

import dataclasses
import functools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfreward_jax.core.rows import Judgement, Prompt, Response, last_request
from selfreward_jax.methods.judging import mean_score
from selfreward_jax.report.text import visible


@dataclasses.dataclass(frozen=True, slots=True)
class PairFacts:
    """What the report needs to know of a pair; scores in points, lengths in tokens."""

    prompt_id: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    tokens_chosen: int
    tokens_rejected: int

    @property
    def margin(self) -> float:
        return self.score_chosen - self.score_rejected


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """A prompt with its answers, their judgements, and what became of it.

    Attributes:
      pair: None where there is none.
      reason: why there is none, "" where there is one or none was to be made.
      drops: why single answers were left out, by the answer's id.
    """

    prompt: Prompt
    answers: Sequence[Response]
    judgements: Mapping[str, Sequence[Judgement]]
    pair: PairFacts | None
    reason: str
    drops: Mapping[str, str]

    @property
    def disagreement(self) -> float:
        """The largest standard deviation of the scores of one answer, in points."""
        scores = ([j.score for j in own if j.score is not None] for own in self.judgements.values())
        return max((_spread(tuple(own)) for own in scores if len(own) > 1), default=0.0)


@functools.lru_cache(1 << 16)
def _spread(scores: tuple[float, ...]) -> float:
    """Their standard deviation, exact to the last digit, which takes long; most answers have the scores of others."""
    return statistics.pstdev(scores)


# What makes a prompt an extreme, and the measure by which the most extreme come first; None: it has no part.
EXTREMES: Mapping[str, Callable[[Judged], float | None]] = {
    "largest margin": lambda x: x.pair.margin if x.pair else None,
    "smallest margin": lambda x: -x.pair.margin if x.pair else None,
    "judgements differ most": lambda x: x.disagreement or None,
    "no pair": lambda x: float(len(x.drops)) if x.reason else None,
}


def choose(judged: Sequence[Judged], n: int, rng: random.Random) -> list[tuple[Judged, str]]:
    """`n` prompts at most, each with why it is shown: half at random, the others by turns from the extremes.

    Where there are no more than `n`, all are shown and none needs a reason.
    """
    if len(judged) <= n:
        return [(x, "") for x in judged]
    drawn = rng.sample(range(len(judged)), (n + 1) // 2)
    why = dict.fromkeys(drawn, "drawn at random")
    ranked = {name: iter(_most_first([measure(x) for x in judged])) for name, measure in EXTREMES.items()}
    while len(why) < n and ranked:
        for name in list(ranked):
            place = next((i for i in ranked[name] if i not in why), None)
            if place is None:
                del ranked[name]
            elif len(why) < n:
                why[place] = name
    for place in rng.sample(range(len(judged)), len(judged)):  # where there are too few extremes
        if len(why) >= n:
            break
        why.setdefault(place, "drawn at random")
    return [(judged[i], name) for i, name in why.items()]


def _most_first(values: Sequence[float | None]) -> list[int]:
    """Places of the values there are."""
    return [i for _, i in sorted((-value, i) for i, value in enumerate(values) if value is not None)]


def as_json(judged: Judged, why: str, where: str, min_parsed: int) -> dict[str, Any]:
    """A prompt as the page's browser takes it; every text is made visible."""
    pair = judged.pair
    answers = [_answer(x, judged, min_parsed) for x in judged.answers]
    return {
        "where": where,
        "why": why,
        "prompt": visible(last_request(judged.prompt.messages)),
        "outcome": "pair" if pair else judged.reason.replace("_", " "),
        "margin": round(pair.margin, 4) if pair else None,
        "disagreement": round(judged.disagreement, 4),
        "answers": answers,
    }


def _answer(response: Response, judged: Judged, min_parsed: int) -> dict[str, Any]:
    own = sorted(judged.judgements.get(response.id, []), key=lambda j: j.index)
    pair, score = judged.pair, mean_score((j.score for j in own), min_parsed)
    role = {pair.chosen: "chosen", pair.rejected: "rejected"}.get(response.id, "") if pair else ""
    return {
        "text": visible(response.text),
        "tokens": len(response.token_ids),
        "cut": response.stop_reason == "length",
        "score": None if score is None else round(score, 4),
        "role": role,
        "dropped": judged.drops.get(response.id, "").replace("_", " "),
        "judgements": [{"score": j.score, "text": visible(j.text)} for j in own],
    }
