"""How sure a number is: intervals for what evaluations measure."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """A measured value with its confidence interval; NaN where there is nothing to measure."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """As it stands in result files; None for NaN, which JSON does not have."""
        return {name: None if math.isnan(x) else round(x, 6) for name, x in dataclasses.asdict(self).items()}


def bootstrap(
    n: int,
    statistic: Callable[[np.ndarray], float],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron 1979) over `n` independent units, such as prompts with all that belongs to them.

    Args:
      statistic: from the units' numbers, an int array of shape [n], to the measured value, NaN where it is undefined.
        Units are drawn whole, so what is measured within one may be dependent.
      resamples: draws; those in which the statistic is undefined count for nothing.
      seed: of the draws; the same seed gives the same interval.
    """
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(n)))
    drawn = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)], np.float64)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, math.nan, math.nan)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a few independent measurements with Student's t interval; no interval for fewer than two."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return Interval(float(x.mean()) if len(x) else math.nan, math.nan, math.nan)
    half = stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value that wins and losses are equally likely; ties are left out. 1 where there are neither."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
