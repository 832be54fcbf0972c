"""How well a judge's scores agree with people's ranks: pure functions from ranks, scores and lengths to intervals.

The metrics are those of the paper's table on held-out rankings. Where the paper does not say how ties and missing
scores count, this is what was decided:

- Two answers of the same score are half right, as if a coin had decided. Counted as wrong, they would make a judge
  that knows little but says so worse than chance; that number stands beside (`ties`), for papers that count so.
- An answer without a score is neither good nor bad. Pairs with it are left out, and `coverage` says how many are left.
- Pairs that people rank the same are no pairs at all.
- Correlations are means over prompts; a prompt whose answers all have the same score has a correlation of 0.
- All intervals draw prompts, with all rows and answers that belong to them, so that pairs of one prompt don't count as
  independent.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from selfreward_jax.evals.statistics import Interval, bootstrap

Shares = dict[str, tuple[float, float]]  # of a row, by metric: what it adds to the numerator and to the denominator

METRICS = ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall_tau")
OF_LENGTH = tuple(name for name in METRICS if name != "five_best")  # a length has no full score


@dataclasses.dataclass(frozen=True)
class Judged:
    """The answers to one prompt, as people and as a judge see them.

    Attributes:
      prompt_id: rows with the same one are drawn together.
      ranks: people's, lower is better.
      scores: the judge's, higher is better; None where it gave none.
      lengths: in characters.
      full: whether an answer got the full score of 5 (`is_full`).
      subset: a part of the data, or "".
    """

    prompt_id: str
    ranks: tuple[float, ...]
    scores: tuple[float | None, ...]
    lengths: tuple[int, ...]
    full: tuple[bool, ...]
    subset: str = ""


def is_full(scores: Sequence[float | None], read: bool = False) -> bool:
    """Whether an answer got a full 5: all its judgements with a score say 5.

    Args:
      read: whether scores are means of distributions; these are never quite 5, so the nearest whole number counts.
    """
    parsed = [score for score in scores if score is not None]
    return bool(parsed) and min(parsed) >= (4.5 if read else 5)


def agreement(ranks: Sequence[float], scores: Sequence[float | None]) -> Shares:
    """What one prompt adds to the metrics of order.

    `exact_match` asks whether every pair that people put in order is in the same order by score; prompts with an
    answer without a score don't take part. `kendall_tau` is tau-b.
    """
    r = np.asarray(ranks, np.float64)
    s = np.array([math.nan if x is None else round(x, 9) for x in scores])  # nine digits: a mean's own rounding
    first, second = np.triu_indices(len(r), 1)
    people = np.sign(r[second] - r[first])  # 1: the first is the better one
    judge = np.sign(s[first] - s[second])
    ordered, scored = people != 0, np.isfinite(judge)
    counts = ordered & scored
    n, right, tied = counts.sum(), (counts & (judge == people)).sum(), (counts & (judge == 0)).sum()
    known = np.isfinite(s)
    compared = len(set(r[known])) > 1
    complete = known.all() and ordered.any()
    return {
        "pairwise_accuracy": (right + tied / 2, n),
        "pairwise_accuracy_ties_wrong": (right, n),
        "tie_rate": (tied, n),
        "exact_match": (float(complete and right == n), float(complete)),
        "spearman": (_correlation(stats.spearmanr, -r[known], s[known]), 1.0) if compared else (0.0, 0.0),
        "kendall_tau": (_correlation(stats.kendalltau, -r[known], s[known]), 1.0) if compared else (0.0, 0.0),
        "pair_coverage": (n, ordered.sum()),
        "answer_coverage": (known.sum(), len(s)),
        "prompt_coverage": (float(complete), 1.0),
    }


def _correlation(measure: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> float:
    """0 where one of the two is the same for all answers: it tells no order."""
    return 0.0 if len(set(x)) < 2 or len(set(y)) < 2 else float(measure(x, y).statistic)


def _of_scores(row: Judged) -> Shares:
    best = min(row.ranks)
    full = [rank == best for rank, is_full in zip(row.ranks, row.full, strict=True) if is_full]
    return agreement(row.ranks, row.scores) | {"five_best": (sum(full), len(full))}


def _of_lengths(row: Judged) -> Shares:
    """The judge that prefers the longer answer, on the pairs that the scores speak of."""
    lengths = [None if s is None else n for s, n in zip(row.scores, row.lengths, strict=True)]
    return agreement(row.ranks, lengths)


def _of_length_bias(row: Judged) -> Shares:
    """How scores go with length, on pairs of different lengths that people put in order."""
    found = {"judge": 0.0, "people": 0.0, "longer": 0.0, "shorter": 0.0}
    counts = dict.fromkeys(found, 0)
    for i, j in zip(*np.triu_indices(len(row.ranks), 1), strict=True):
        a, b = row.scores[i], row.scores[j]
        longer = np.sign(row.lengths[i] - row.lengths[j])
        people = np.sign(row.ranks[j] - row.ranks[i])
        if a is None or b is None or not longer or not people:
            continue
        judge = np.sign(round(a - b, 9))
        part = "longer" if people == longer else "shorter"
        found["judge"] += (1 + judge * longer) / 2
        found["people"] += people == longer
        found[part] += (1 + judge * people) / 2
        for name in ("judge", "people", part):
            counts[name] += 1
    known = [n for n, s in enumerate(row.scores) if s is not None]
    r, s, n = (np.array([x[k] for k in known], np.float64) for x in (row.ranks, row.scores, row.lengths))
    one = float(len(set(n)) > 1)
    return {
        "judge_prefers_longer": (found["judge"], counts["judge"]),
        "people_prefer_longer": (found["people"], counts["people"]),
        "accuracy_where_longer_is_better": (found["longer"], counts["longer"]),
        "accuracy_where_shorter_is_better": (found["shorter"], counts["shorter"]),
        "spearman_score_length": (_correlation(stats.spearmanr, s, n), one),
        "spearman_people_length": (_correlation(stats.spearmanr, -r, n), one),
    }


def _deviations(row: Judged) -> np.ndarray:
    """Products of deviations within a prompt of the ranks of people's order, score and length, [3, 3]."""
    known = [n for n, s in enumerate(row.scores) if s is not None]
    if len(known) < 2:
        return np.zeros((3, 3))
    columns = [[-row.ranks[n] for n in known], [row.scores[n] for n in known], [row.lengths[n] for n in known]]
    x = np.stack([stats.rankdata(column) for column in columns])
    x -= x.mean(1, keepdims=True)
    return x @ x.T


def partial_correlation(products: np.ndarray) -> float:
    """Of the first two of three variables, given the third; NaN where it is undefined.

    Args:
      products: sums of products of their deviations, [3, 3].
    """
    spread = np.sqrt(np.diag(products))
    if not spread.all():
        return math.nan
    r = products / np.outer(spread, spread)
    rest = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
    return float((r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt(rest)) if rest > 1e-12 else math.nan


def judge_metrics(judged: Sequence[Judged], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """All that is measured, with intervals that draw prompts.

    Args:
      judged: rows whose answers people have put in order.
      resamples, seed: of the bootstrap.

    Returns:
      `pairs` and `coverage`: how much could be measured; `metrics`; `ties`; `baselines`: the same for "the longer one
      wins"; `over_longer`: pairwise accuracy less that baseline's, drawn together; `length_bias`; `full_scores`: how
      many answers `five_best` speaks of; `calibration`. Shares are from 0 to 1.
    """
    owner = {name: n for n, name in enumerate(dict.fromkeys(row.prompt_id for row in judged))}
    owners = np.array([owner[row.prompt_id] for row in judged])
    interval = functools.partial(bootstrap, len(owner), resamples=resamples, seed=seed)

    def sums(of: Callable[[Judged], Shares]) -> dict[str, np.ndarray]:
        """Numerators and denominators by prompt, each [prompts, 2]."""
        rows = [of(row) for row in judged]
        return {name: _by_owner([row[name] for row in rows], owners, len(owner)) for name in rows[0]}

    def share(counts: np.ndarray) -> Interval:
        return interval(lambda draw: _ratio(counts[draw].sum(0)))

    scores, longer, bias = sums(_of_scores), sums(_of_lengths), sums(_of_length_bias)
    products = _by_owner([_deviations(row) for row in judged], owners, len(owner))
    both = np.concatenate([scores["pairwise_accuracy"], longer["pairwise_accuracy"]], 1)
    names = ("answer", "pair", "prompt")
    return {
        "pairs": int(scores["pairwise_accuracy"][:, 1].sum()),
        "coverage": {f"{name}s": _ratio(scores[f"{name}_coverage"].sum(0)) for name in names},
        "metrics": {name: share(scores[name]) for name in METRICS},
        "ties": {name: share(scores[name]) for name in ("tie_rate", "pairwise_accuracy_ties_wrong")},
        "baselines": {"longer": {name: share(longer[name]) for name in OF_LENGTH}},
        "over_longer": interval(lambda draw: _difference(both[draw].sum(0))),
        "length_bias": {name: share(counts) for name, counts in bias.items()}
        | {"partial_correlation": interval(lambda draw: partial_correlation(products[draw].sum(0)))},
        "full_scores": int(scores["five_best"][:, 1].sum()),
        "calibration": calibration(judged),
    }


def _by_owner(values: Sequence[Any], owners: np.ndarray, n: int) -> np.ndarray:
    x = np.asarray(values, np.float64)
    total = np.zeros((n, *x.shape[1:]))
    np.add.at(total, owners, x)
    return total


def _ratio(pair: np.ndarray) -> float:
    return float(pair[0] / pair[1]) if pair[1] else math.nan


def _difference(pairs: np.ndarray) -> float:
    return _ratio(pairs[:2]) - _ratio(pairs[2:])


def calibration(judged: Sequence[Judged]) -> list[dict[str, float]]:
    """For each whole score from 0 to 5: how many answers got it as a rounded mean, and what people thought of them.

    `mean_human` is the mean of an answer's place among the answers to its prompt, 1 for the best and 0 for the worst.
    """
    found: dict[int, list[float]] = {}
    for row in judged:
        places = (len(row.ranks) - stats.rankdata(row.ranks)) / (len(row.ranks) - 1)
        for place, score in zip(places, row.scores, strict=True):
            if score is not None:
                found.setdefault(min(int(score + 0.5), 5), []).append(float(place))
    return [{"score": s, "n": len(x), "mean_human": round(math.fsum(x) / len(x), 6)} for s, x in sorted(found.items())]


def to_json(value: Any) -> Any:
    """Intervals as objects and NaN as None, at any depth."""
    if isinstance(value, Interval):
        return value.to_json()
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
