"""How a model answered and judged, in numbers."""

import collections
from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.rows import Judgement, Response, group_by
from selfreward_jax.methods.judging import mean_score


def answer_metrics(
    responses: Sequence[Response], judgements: Sequence[Judgement], *, min_parsed: int
) -> dict[str, Any]:
    """How a model answered and judged: lengths in tokens, scores, share of readable judgements, share of ties.

    `judge/tie_rate` is the share of prompts, of those with two ranked answers, whose best and worst mean scores are
    equal.
    """
    by_response = group_by(judgements, lambda j: j.response_id)
    scores = {r.id: mean_score((j.score for j in by_response.get(r.id, [])), min_parsed) for r in responses}
    ranked = [s for s in scores.values() if s is not None]
    parsed = [j.score for j in judgements if j.score is not None]
    ties = compared = 0
    for group in group_by(responses, lambda r: r.prompt_id).values():
        own = [s for r in group if (s := scores[r.id]) is not None]
        if len(own) > 1:
            compared += 1
            ties += min(own) == max(own)
    histogram = collections.Counter(min(int(s + 0.5), 5) for s in parsed)
    return {
        "gen/responses": len(responses),
        "gen/len_mean": _mean([len(r.token_ids) for r in responses]),
        "gen/truncated_frac": _mean([r.stop_reason == "length" for r in responses]),
        "gen/stopped_frac": _mean([r.stop_reason == "stop" for r in responses]),
        "judge/judgements": len(judgements),
        "judge/truncated_frac": _mean([j.stop_reason == "length" for j in judgements]),
        "judge/parse_rate": _mean([j.score is not None for j in judgements]),
        "judge/score_mean": _mean(ranked),
        "judge/score_hist": [histogram[s] for s in range(6)],
        "judge/tie_rate": ties / compared if compared else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
