"""Intervals against scipy's own, and against how often they hold what is true."""

import math

import numpy as np
import pytest
from scipy import stats

from selfreward_jax.evals.statistics import Interval, bootstrap, mean_interval, sign_test


def test_a_bootstrap_agrees_with_scipys():
    x = np.random.default_rng(0).exponential(size=80)
    ours = bootstrap(len(x), lambda draw: x[draw].mean(), resamples=4000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(x.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_a_bootstrap_holds_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        x = rng.normal(3.0, 1.0, 50)
        made = bootstrap(50, lambda draw, x=x: x[draw].mean(), resamples=300)
        hits += made.low <= 3.0 <= made.high
    assert 0.88 <= hits / 200 <= 0.99


def test_undefined_draws_count_for_nothing():
    x = np.array([1.0, math.nan])

    def only_defined(draw):
        kept = x[draw][np.isfinite(x[draw])]
        return kept.mean() if len(kept) else math.nan

    assert bootstrap(2, only_defined) == Interval(1.0, 1.0, 1.0)


def test_the_interval_of_nothing_is_undefined_and_json_says_null():
    assert bootstrap(0, lambda draw: 0.0).to_json() == {"value": None, "low": None, "high": None}


def test_the_t_interval_is_scipys():
    x = [1.0, 2.0, 4.0, 4.5, 3.0]
    theirs = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    ours = mean_interval(x)
    assert (ours.value, ours.low, ours.high) == pytest.approx((np.mean(x), theirs.low, theirs.high))


def test_the_sign_test_of_nine_wins_in_ten():
    assert sign_test(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert sign_test(0, 0) == 1.0
