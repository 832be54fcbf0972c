"""Who wins, from what a judge said of two answers in both orders, and how sure that is.

A win is one only where both orders agree (paper §3.1.2): a judge that takes whatever stands first says nothing
about the answers, so where the orders disagree it is a tie. A prompt of which an order has no readable verdict is
missing: it is neither a tie nor a win, and is counted.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from scipy import stats

from selfreward_jax.core.rows import group_by
from selfreward_jax.evals.length_control import length_controlled
from selfreward_jax.evals.statistics import Interval, bootstrap, sign_test
from selfreward_jax.methods.pairwise import Outcome, side

POINTS: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "lose": 0.0}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, compared.

    Attributes:
      category: of the prompt, "" for none.
      length_a, length_b: of the answers, in characters.
      outcome: None where it is missing.
      orders: which answer the judge preferred with A's shown first and with B's shown first, as 1 for A's, 0 for B's,
        0.5 for neither, or a probability between; None for an order without a readable verdict. Empty where no one
        was asked: equal answers, or scores of each answer by itself.
      missing: why there is no outcome, or "".
    """

    prompt_id: str
    category: str
    length_a: int
    length_b: int
    outcome: Outcome | None
    orders: tuple[float | None, ...] = ()
    missing: str = ""


def measure(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The numbers of a head-to-head, JSON-compatible; intervals are of 95 %, shares from 0 to 1.

    `win`, `tie`, `lose` are shares of the `n` prompts with an outcome, with Wilson's interval; `win_rate` counts a tie
    as half a win. Of the prompts judged in both orders, `preference` is the mean of all verdicts or probabilities, in
    which a judge's liking for a place cancels, and `agreement` the share with the same winner (or tie) in both;
    `position` is how many of the orders with a winner went to the answer shown first.
    """
    decided = [c for c in comparisons if c.outcome is not None]
    outcomes: list[Outcome] = [c.outcome for c in decided if c.outcome is not None]
    counts = _count(outcomes)
    points = np.array([POINTS[o] for o in outcomes])
    both = [[side(p) for p in c.orders if p is not None] for c in decided if len(c.orders) == 2]
    # Seen from the answer that was shown first: in the second order that is B's.
    first = [side(p if n == 0 else 1 - p) for c in comparisons for n, p in enumerate(c.orders) if p is not None]
    wins_first, clear = first.count("win"), len(first) - first.count("tie")
    win_rate = _win_rate(counts, points)
    if max(counts.values()) == len(decided):  # lengths explain nothing
        controlled = win_rate
    else:
        lengths = [c.length_a for c in decided], [c.length_b for c in decided]
        controlled = length_controlled(points.tolist(), *lengths)
    liked = np.array([math.fsum(p for p in c.orders if p is not None) / 2 for c in decided if len(c.orders) == 2])
    return {
        "prompts": len(comparisons),
        "n": len(decided),
        "missing": dict(sorted(collections.Counter(c.missing for c in comparisons if c.missing).items())),
        **{name: _share(counts[name], len(decided)).to_json() for name in get_args(Outcome)},
        "win_rate": win_rate.to_json(),
        "lc_win_rate": controlled.to_json(),
        "preference": bootstrap(len(liked), lambda draw: float(liked[draw].mean())).to_json(),
        "sign_test_p": sign_test(counts["win"], counts["lose"]),
        "agreement": sum(len(set(pair)) == 1 for pair in both) / len(both) if both else None,
        "position": {"first": wins_first / clear if clear else None, "n": clear},
        "by_category": _by_category(decided),
        "length_a": _mean([c.length_a for c in decided]),
        "length_b": _mean([c.length_b for c in decided]),
    }


def _count(outcomes: Sequence[Outcome]) -> dict[Outcome, int]:
    return {name: outcomes.count(name) for name in get_args(Outcome)}


def _by_category(decided: Sequence[Comparison]) -> dict[str, dict[str, int]]:
    """Outcomes of each category; nothing where no prompt has one."""
    if not any(c.category for c in decided):
        return {}
    made = {}
    for name, group in sorted(group_by(decided, lambda c: c.category or "(none)").items()):
        outcomes: list[Outcome] = [c.outcome for c in group if c.outcome is not None]
        made[name] = {"n": len(group), **_count(outcomes)}
    return made


def _share(count: int, n: int) -> Interval:
    """Wilson's score interval, which holds at 0 and 1 and for few prompts, where a bootstrap has no width."""
    if not n:
        return Interval(math.nan, math.nan, math.nan)
    ci = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    return Interval(count / n, float(ci.low), float(ci.high))


def _win_rate(counts: dict[Outcome, int], points: np.ndarray) -> Interval:
    if not counts["tie"]:
        return _share(counts["win"], len(points))
    if counts["tie"] == len(points):  # no draw of a bootstrap differs; what is no tie may yet all go to one side
        half = _share(counts["tie"], len(points)).low / 2
        return Interval(0.5, half, 1 - half)
    return bootstrap(len(points), lambda draw: float(points[draw].mean()))


def _mean(values: Sequence[int]) -> float | None:
    return round(sum(values) / len(values), 2) if values else None
