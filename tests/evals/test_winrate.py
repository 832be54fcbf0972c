"""Who wins, by hand-worked tables; length control where the truth is known."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit

from selfreward_jax.evals.length_control import fit, length_controlled, length_term, negative_log_likelihood
from selfreward_jax.evals.statistics import sign_test
from selfreward_jax.evals.winrate import Comparison, measure
from selfreward_jax.methods.pairwise import combine, order_preference

# Preference for A's answer, shown first and shown second, and what the paper makes of it.
COMBINED = [
    (1.0, 1.0, "win"),
    (0.0, 0.0, "lose"),
    (1.0, 0.0, "tie"),  # whatever stands first
    (0.0, 1.0, "tie"),  # whatever stands second
    (0.5, 0.5, "tie"),
    (1.0, 0.5, "tie"),  # a win needs both orders
    (0.5, 0.0, "tie"),
    (0.51, 0.9, "win"),  # probabilities
    (0.9, 0.49, "tie"),
    (None, 1.0, None),
    (1.0, None, None),
    (None, None, None),
]


@pytest.mark.parametrize(("a_first", "b_first", "outcome"), COMBINED)
def test_a_win_needs_both_orders(a_first, b_first, outcome):
    assert combine(a_first, b_first) == outcome


def test_an_order_counts_the_verdicts_that_could_be_read():
    assert order_preference([1.0, None, 0.0, 1.0]) == pytest.approx(2 / 3)
    assert order_preference([None, None]) is None


def judged(number: int, category: str, lengths: tuple[int, int], *orders: float | None) -> Comparison:
    outcome = combine(*orders)
    return Comparison(str(number), category, *lengths, outcome, orders, "" if outcome else "unreadable")


TABLE = [
    judged(1, "maths", (10, 20), 1.0, 1.0),
    judged(2, "maths", (30, 20), 1.0, 1.0),
    judged(3, "maths", (30, 20), 0.0, 0.0),
    judged(4, "prose", (50, 20), 1.0, 0.0),
    judged(5, "prose", (60, 20), 1.0, 1.0),
    judged(6, "prose", (60, 20), None, 1.0),
    Comparison("7", "prose", 5, 5, "tie"),  # equal answers
]


def test_the_numbers_of_a_table_worked_by_hand():
    made = measure(TABLE)
    assert (made["prompts"], made["n"], made["missing"]) == (7, 6, {"unreadable": 1})
    assert [made[k]["value"] for k in ("win", "tie", "lose")] == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=1e-6)
    assert made["win_rate"]["value"] == pytest.approx(4 / 6, abs=1e-6)
    assert made["sign_test_p"] == sign_test(3, 1) == pytest.approx(2 * (1 + 4) / 2**4)
    assert made["agreement"] == 4 / 5  # prompt 4 alone had two winners; 6 and 7 were not judged twice
    assert made["preference"]["value"] == pytest.approx((1 + 1 + 0 + 0.5 + 1) / 5)
    # First won: 1, 2, 4, 5 in the first order, 3 and 4 in the second, of eleven readable orders.
    assert made["position"] == {"first": 6 / 11, "n": 11}
    assert made["by_category"] == {
        "maths": {"n": 3, "win": 2, "tie": 0, "lose": 1},
        "prose": {"n": 3, "win": 1, "tie": 2, "lose": 0},
    }
    assert (made["length_a"], made["length_b"]) == (pytest.approx(185 / 6, abs=0.01), pytest.approx(105 / 6, abs=0.01))
    wilson = stats.binomtest(3, 6).proportion_ci(method="wilson")
    assert (made["win"]["low"], made["win"]["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-6)


def swapped(c: Comparison) -> Comparison:
    orders = tuple(None if p is None else 1 - p for p in reversed(c.orders))
    outcome = {"win": "lose", "lose": "win"}.get(c.outcome or "", c.outcome)
    return dataclasses.replace(c, length_a=c.length_b, length_b=c.length_a, orders=orders, outcome=outcome)


def test_swapping_the_sides_flips_everything():
    rng = np.random.default_rng(3)
    rows = [
        judged(n, "x", (int(rng.integers(1, 400)), int(rng.integers(1, 400))), *rng.choice([0.0, 0.5, 1.0], 2))
        for n in range(60)
    ]
    one, other = measure(rows), measure([swapped(c) for c in rows])
    for name, opposite in (("win", "lose"), ("tie", "tie"), ("lose", "win")):
        assert one[name] == other[opposite]
    for name in ("win_rate", "lc_win_rate", "preference"):
        for end, opposite in (("value", "value"), ("low", "high"), ("high", "low")):
            assert one[name][end] == pytest.approx(1 - other[name][opposite], abs=2e-5)
    for name in ("sign_test_p", "agreement", "position", "n"):
        assert one[name] == other[name]


def test_where_a_wins_everywhere_the_intervals_have_a_width():
    made = measure([judged(n, "", (n + 9, 12), 1.0, 1.0) for n in range(8)])
    assert made["win_rate"]["value"] == made["lc_win_rate"]["value"] == 1.0
    assert made["win_rate"]["low"] == made["lc_win_rate"]["low"] == pytest.approx(8 / (8 + 1.959964**2), abs=1e-4)
    assert made["by_category"] == {}


def test_where_the_judge_looks_at_the_place_alone_all_is_tied_and_hardly_known():
    made = measure([judged(n, "", (n + 9, 12), 1.0, 0.0) for n in range(8)])
    assert made["tie"]["value"] == 1.0 and made["agreement"] == 0.0 and made["position"]["first"] == 1.0
    assert made["win_rate"] == made["lc_win_rate"]
    assert made["win_rate"]["low"] == pytest.approx(made["tie"]["low"] / 2, abs=1e-6)
    assert made["win_rate"]["high"] == pytest.approx(1 - made["tie"]["low"] / 2, abs=1e-6)


def test_probabilities_tell_sides_apart_that_a_liking_for_the_first_place_hides():
    made = measure([judged(n, "", (n + 9, 12), 0.95, 0.35) for n in range(8)])
    assert made["tie"]["value"] == 1.0 and made["preference"]["value"] == pytest.approx(0.65)


def test_of_nothing_there_is_nothing_to_say():
    made = measure([judged(1, "", (3, 4), None, 1.0)])
    assert made["n"] == 0 and made["win_rate"]["value"] is None and made["lc_win_rate"]["value"] is None
    assert made["sign_test_p"] == 1.0 and made["length_a"] is None


# ---------------------------------------------------------------------------------------------------------------------
# Length control


def simulated(quality: float, slope: float, longer: float, n: int = 3000, seed: int = 0):
    """Outcomes of a judge of the model's own form; A's answers are `longer` characters longer on the average."""
    rng = np.random.default_rng(seed)
    length_a, length_b = rng.normal(500 + longer, 100, n).round(), rng.normal(500, 100, n).round()
    p = expit(quality + slope * length_term(length_a, length_b))
    return (rng.random(n) < p).astype(float), length_a.astype(int), length_b.astype(int)


def test_a_judge_that_loves_length_alone_leaves_half_at_equal_length():
    y, a, b = simulated(0.0, 2.0, 150)
    controlled = length_controlled(y, a, b, resamples=200)
    assert y.mean() > 0.7
    assert controlled.value == pytest.approx(0.5, abs=0.04)
    assert controlled.low < 0.5 < controlled.high


def test_without_an_influence_of_length_both_rates_are_the_same():
    y, a, b = simulated(0.8, 0.0, 150)
    assert length_controlled(y, a, b, resamples=2).value == pytest.approx(y.mean(), abs=0.04)
    assert y.mean() == pytest.approx(expit(0.8), abs=0.02)


def test_quality_is_found_beside_length():
    y, a, b = simulated(-0.7, 2.0, 150)
    assert y.mean() > 0.55  # the judge likes A
    assert length_controlled(y, a, b, resamples=2).value == pytest.approx(expit(-0.7), abs=0.04)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Coverage of 24 simulations of 95 % intervals; fewer than 19 would come by chance in 1 of 1,000."""
    hits = 0
    for seed in range(24):
        y, a, b = simulated(0.4, 1.0, 80, n=150, seed=seed)
        made = length_controlled(y, a, b, resamples=80)
        hits += made.low <= expit(0.4) <= made.high
    assert hits >= 19


def test_the_gradient_agrees_with_finite_differences():
    y, a, b = simulated(0.3, 1.0, 40, n=50)
    y[::5] = 0.5
    term = length_term(a, b)
    for theta in ([0.0, 0.0], [0.7, -1.2]):
        _, gradient = negative_log_likelihood(np.array(theta), y, term)
        rough = approx_fprime(theta, lambda t: negative_log_likelihood(t, y, term)[0], 1e-6)
        assert gradient == pytest.approx(rough, abs=1e-3)


def test_the_fit_is_the_optimum_that_a_search_without_gradients_finds():
    y, a, b = simulated(0.3, 1.0, 40, n=80)
    term = length_term(a, b)

    def naive(theta):  # the formula once more, a prompt at a time
        total = 0.05 * theta[1] ** 2
        for outcome, x in zip(y, term, strict=True):
            p = 1 / (1 + math.exp(-theta[0] - theta[1] * x))
            total -= outcome * math.log(p) + (1 - outcome) * math.log(1 - p)
        return total

    found = minimize(naive, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    assert fit(y, term) == pytest.approx(found.x, abs=1e-3)


def test_length_that_separates_all_outcomes_has_a_finite_fit():
    a, b = np.array([10, 20, 30, 40]), np.array([40, 30, 20, 10])
    quality, slope = fit((a > b).astype(float), length_term(a, b))
    assert abs(quality) < 1e-6 and 1 < slope < 100


def test_where_all_differences_are_the_same_length_explains_nothing():
    assert not length_term([5, 6, 7], [3, 4, 5]).any()
    assert length_controlled([1.0, 0.0, 1.0], [5, 6, 7], [3, 4, 5], resamples=2).value == pytest.approx(2 / 3)
