"""Judgements are kept where they agree with people's order, none at the cost of another, and scores are spread."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.methods.eft import agreeing_scores, balance, chance_agreement
from selfreward_jax.methods.score_forms import FIVE, find_score


@pytest.mark.parametrize(
    ("ranks", "scores", "expected"),
    [
        ([0, 1], [[4], [3]], (0, 0)),
        ([0, 1], [[3], [4]], None),
        ([0, 1], [[4], [4]], None),  # a tie is no order
        ([1, 0], [[3], [4]], (0, 0)),  # whichever comes first
        ([0, 3, 7], [[5], [3], [1]], (0, 0, 0)),  # ranks may be skipped
        ([0, 1, 2], [[5], [1], [3]], None),
        ([0, 1], [[3, 5, 4], [4, 3, 4]], (2, 1)),  # 4 over 3 is nearer to the means, 4 and 3.67, than 5 over 4
        ([0, 1], [[3, 3, 4], [3, 3, 3]], (2, 0)),  # one sample is enough
        ([0, 1, 1], [[4], [2], [3]], (0, 0, 0)),  # equal ranks are in no order
        ([0, 1, 1], [[3], [2], [3]], None),
        ([0, 0], [[1], [4]], (0, 0)),
        ([0, 1], [[3.5], [3]], (0, 0)),
        ([0, 1], [[3.25], [3]], None),
    ],
)
def test_scores_are_chosen_that_fall_as_people_ranked(ranks, scores, expected):
    assert agreeing_scores(ranks, scores, 0.5) == expected


def test_no_gap_lets_ties_pass_but_no_wrong_order():
    assert agreeing_scores([0, 1], [[4], [4]], 0) == (0, 0)
    assert agreeing_scores([0, 1], [[3], [4]], 0) is None


SCORES = st.integers(0, 5) | st.sampled_from([2.25, 3.3, 4.75])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(SCORES, min_size=1, max_size=3)), min_size=1, max_size=4),
    st.sampled_from([0, 0.5, 1, 2]),
)
def test_the_choice_is_the_cheapest_of_all_that_agree(answers, gap):
    ranks, scores = [rank for rank, _ in answers], [own for _, own in answers]
    means = [sum(own) / len(own) for own in scores]

    def agrees(picked) -> bool:
        pairs = itertools.permutations(zip(ranks, picked, strict=True), 2)
        return all(better - worse >= gap - 1e-6 for (r, better), (s, worse) in pairs if r < s)

    costs = [
        sum(abs(p - m) for p, m in zip(picked, means, strict=True))
        for picked in itertools.product(*scores)
        if agrees(picked)
    ]
    found = agreeing_scores(ranks, scores, gap)
    if not costs:
        assert found is None
        return
    assert found is not None
    picked = [own[n] for own, n in zip(scores, found, strict=True)]
    assert agrees(picked)
    assert math.isclose(sum(abs(p - m) for p, m in zip(picked, means, strict=True)), min(costs), abs_tol=1e-9)


@pytest.mark.parametrize(
    ("ranks", "scores", "expected"),
    [
        ([0, 1], [[5], [1]], 1 / 2),
        ([0, 1, 2], [[5], [3], [1]], 1 / 6),
        ([0, 1], [[3], [3]], 0),
        ([0, 1], [[1, 5], [1, 5]], 1),  # with enough samples, any order can be found
    ],
)
def test_chance_is_the_share_of_dealings_that_agree(ranks, scores, expected):
    assert chance_agreement(ranks, scores, 0.5, 0) == pytest.approx(expected)


def test_many_answers_are_dealt_out_a_few_times_and_always_the_same():
    ranks, scores = list(range(5)), [[5], [4], [3], [2], [1]]
    assert chance_agreement(ranks, scores, 0.5, 1) == chance_agreement(ranks, scores, 0.5, 1) < 0.2


@given(
    st.lists(st.tuples(st.integers(0, 4), st.lists(SCORES, min_size=1, max_size=3)), min_size=1, max_size=4),
    st.sampled_from([0, 0.5, 1, 2]),
)
def test_chance_counts_the_dealings_in_which_some_choice_of_one_score_each_agrees(answers, gap):
    ranks, scores = [rank for rank, _ in answers], [own for _, own in answers]

    def agrees(dealt) -> bool:
        return any(
            all(
                x - y >= gap - 1e-6
                for (r, x), (s, y) in itertools.permutations(zip(ranks, picked, strict=True), 2)
                if r < s
            )
            for picked in itertools.product(*dealt)
        )

    dealings = [agrees(dealt) for dealt in itertools.permutations(scores)]
    assert chance_agreement(ranks, scores, gap, 0) == sum(dealings) / len(dealings)


def test_hundreds_of_answers_and_of_judgements_are_a_matter_of_moments():
    """Every way tried, these would take hours; gone down rank by rank, too deep for Python."""
    ranks = list(range(600))
    scores = [[float(600 - rank), 0.0] for rank in ranks]
    assert agreeing_scores(ranks, scores, 0.5) == (0,) * 600
    assert chance_agreement([0, 1, 2, 3], [[n / 1000 for n in range(i, 2000 + i)] for i in range(4)], 0.5, 0) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Balance


@pytest.mark.parametrize(
    ("counts", "share", "most", "expected"),
    [
        ({4: 100, 3: 60, 2: 40}, 0.35, 1000, {4: 46, 3: 46, 2: 40}),  # 46 / 132 is 0.348, 47 / 134 is 0.351
        ({4: 10, 3: 10}, 0.35, 1000, {4: 10, 3: 10}),  # two scores can't have less than a half each
        ({4: 3}, 0.35, 1000, {4: 3}),
        ({4: 10, 3: 10}, 1.0, 1000, {4: 10, 3: 10}),
        ({4: 100, 3: 2}, 1.0, 1000, {4: 100, 3: 2}),
        ({4: 100, 3: 30, 2: 10}, 1.0, 50, {4: 20, 3: 20, 2: 10}),  # the frequent give way first
        ({4: 100, 3: 30, 2: 10}, 1.0, 49, {4: 19, 3: 20, 2: 10}),
        ({4: 5, 3: 5, 2: 5}, 0.35, 2, {3: 1, 2: 1}),
        ({4: 5}, 0.35, 0, {}),
        ({}, 0.35, 5, {}),
    ],
)
def test_no_score_has_more_than_its_share(counts, share, most, expected):
    scores = [float(score) for score, n in counts.items() for _ in range(n)]
    kept = balance(scores, share, most)
    assert {score: n for score in counts if (n := sum(scores[i] == score for i in kept))} == expected


def test_the_rows_that_stay_are_the_first_of_their_score():
    assert balance([4.0, 3.0, 4.0, 4.0, 3.0], 0.35, 4) == [0, 1, 2, 4]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 4.4, 5.0])), st.floats(0.05, 1), st.integers(0, 40))
def test_balanced_rows_keep_to_share_and_number(scores, share, most):
    kept = balance(scores, share, most)
    assert len(kept) <= most and kept == sorted(set(kept))
    bins = [int(scores[i] + 0.5) for i in kept]
    present = len({int(s + 0.5) for s in scores})
    for score in set(bins):
        # Of fewer rows than all, the last may be missing from another score.
        assert bins.count(score) <= max(share, 1 / present) * (len(kept) + present - 1) + 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# What is learnt of a judgement


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("Good and short.\nScore: 4", "Good and short."),
        ("Good.\n\n**Score: 4/5**\nThank you!", "Good."),
        ("Good. Score: 3. Score: 9", ""),
        ('It says "bread".\n\nTherefore, my final score: 4', 'It says "bread".'),
        ('{"reason": "Good.", "score": 4}', '{"reason": "Good.",'),
        ("Good.\n<b>Score: 4</b>", "Good."),
        ("Good.\n$\\boxed{4}$", "Good."),
        ("Score: 4", ""),
        ("No mark.", ""),
    ],
)
def test_reasons_are_what_stands_before_the_score_that_counts(text, reasons):
    found = find_score(text, FIVE)
    assert (text[: found.reasons_end] if found else "") == reasons
    assert find_score(reasons + "\nScore: 4", FIVE).number == 4  # type: ignore[union-attr]
