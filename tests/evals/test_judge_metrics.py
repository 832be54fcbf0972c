"""Judge metrics against naive loops, against scipy, and against cases that were worked by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from selfreward_jax.evals.human import load_human
from selfreward_jax.evals.judge_metrics import Judged, agreement, is_full, judge_metrics, partial_correlation, to_json
from selfreward_jax.evals.subsets import SECTIONS, subset_metrics
from tests import tiny

RANKED = tiny.REAL_DATA / "ranked.jsonl"


def row(ranks, scores, *, lengths=None, full=None, prompt="", subset=""):
    n = len(ranks)
    return Judged(
        prompt or str((ranks, scores)), tuple(ranks), tuple(scores), tuple(lengths or range(1, n + 1)),
        tuple(full or [False] * n), subset,
    )  # fmt: skip


def random_rows(n: int, seed: int = 0, missing: float = 0.0) -> list[Judged]:
    """Ranks and scores with ties, two to five answers a prompt."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        k = int(rng.integers(2, 6))
        ranks = rng.integers(0, k, k).astype(float)
        ranks[:2] = 0, 1
        scores = [None if rng.random() < missing else float(s) for s in rng.integers(0, 6, k)]
        rows.append(
            row(ranks, scores, lengths=rng.integers(1, 9, k).tolist(), full=[s == 5 for s in scores], prompt=f"{i}")
        )
    return rows


def values(found, *path):
    for name in path:
        found = found[name]
    return {name: interval.value for name, interval in found.items()}


def test_a_judge_of_the_same_order_is_right_in_everything():
    found = judge_metrics([row([0, 1, 2], [5, 3, 0], full=[True, False, False])] * 2, resamples=10)
    assert set(values(found, "metrics").values()) == {1.0}


def test_a_judge_of_the_opposite_order_is_wrong_in_everything():
    found = values(judge_metrics([row([0, 1], [1, 5], full=[False, True])], resamples=10), "metrics")
    assert found == pytest.approx(
        {"pairwise_accuracy": 0, "five_best": 0, "exact_match": 0, "spearman": -1, "kendall_tau": -1}
    )


def test_worked_by_hand():
    """Four answers: one tie in the scores, one pair in the wrong order, one that people rank the same."""
    found = agreement([0, 1, 1, 2], [4, 4, 2, 3])
    # Pairs that people order: 01 tied, 02 right, 03 right, 13 right, 23 wrong; 12 is none.
    assert found["pairwise_accuracy"] == (3.5, 5)
    assert found["pairwise_accuracy_ties_wrong"] == (3, 5)
    assert found["tie_rate"] == (1, 5)
    assert found["exact_match"] == (0, 1)


def test_pairs_with_an_answer_without_a_score_are_left_out():
    found = agreement([0, 1, 2], [2, None, 1])
    assert found["pairwise_accuracy"] == (1, 1)
    assert found["pair_coverage"] == (1, 3)
    assert found["exact_match"] == (0, 0)
    assert found["spearman"] == pytest.approx((1, 1))
    assert agreement([0, 1], [3, None])["spearman"] == (0, 0)


def test_equal_scores_are_half_right_and_tell_no_order():
    found = agreement([0, 1, 2], [3, 3, 3])
    assert found["pairwise_accuracy"] == (1.5, 3)
    assert found["spearman"] == found["kendall_tau"] == (0, 1)
    assert found["exact_match"] == (0, 1)


def test_means_that_differ_by_rounding_alone_are_equal():
    assert agreement([0, 1], [0.1 + 0.2, 0.3])["tie_rate"] == (1, 1)


def test_an_order_is_exact_whatever_the_order_of_those_that_people_rank_the_same():
    assert agreement([0, 1, 1, 1], [5, 2, 4, 3])["exact_match"] == (1, 1)
    assert agreement([0, 1, 1, 1], [4, 2, 4, 3])["exact_match"] == (0, 1)


def test_against_naive_loops_and_scipy():
    rows = random_rows(60, missing=0.1)
    right = n = exact = complete = best = full = 0
    rho, tau = [], []
    for x in rows:
        known = [i for i, s in enumerate(x.scores) if s is not None]
        all_right = True
        for i, j in itertools.combinations(range(len(x.ranks)), 2):
            if x.ranks[i] == x.ranks[j]:
                continue
            better, worse = (i, j) if x.ranks[i] < x.ranks[j] else (j, i)
            a, b = x.scores[better], x.scores[worse]
            if a is None or b is None:
                all_right = False
                continue
            n += 1
            right += 1 if a > b else 0.5 if a == b else 0
            all_right &= a > b
        if len(known) == len(x.scores):
            complete += 1
            exact += all_right
        for i, is_five in enumerate(x.full):
            full += is_five
            best += is_five and x.ranks[i] == min(x.ranks)
        ranks, scores = [-x.ranks[i] for i in known], [x.scores[i] for i in known]
        if len(set(ranks)) > 1:
            same = len(set(scores)) == 1
            rho.append(0.0 if same else stats.spearmanr(ranks, scores).statistic)
            tau.append(0.0 if same else stats.kendalltau(ranks, scores).statistic)
    assert values(judge_metrics(rows, resamples=10), "metrics") == pytest.approx(
        {
            "pairwise_accuracy": right / n,
            "five_best": best / full,
            "exact_match": exact / complete,
            "spearman": np.mean(rho),
            "kendall_tau": np.mean(tau),
        }
    )


def test_a_full_score_is_five_in_every_judgement():
    assert is_full([5, 5, None])
    assert is_full([4.6], read=True) and not is_full([4.6])
    assert not is_full([5, 5, 4])
    assert not is_full([None, None])


def test_five_best_counts_answers_and_an_equal_best_is_a_best():
    rows = [row([0, 0, 1], [5, 5, 5], full=[True] * 3), row([0, 1], [1, 5], full=[False, True])]
    found = judge_metrics(rows, resamples=10)
    assert found["metrics"]["five_best"].value == 0.5
    assert found["full_scores"] == 4


def test_the_baseline_is_a_judge_whose_scores_are_lengths():
    rows = random_rows(40, seed=3)
    as_scores = [row(x.ranks, [float(n) for n in x.lengths], lengths=x.lengths, prompt=x.prompt_id) for x in rows]
    longer = values(judge_metrics(rows, resamples=10), "baselines", "longer")
    same = judge_metrics(as_scores, resamples=10)
    assert longer == pytest.approx({k: v for k, v in values(same, "metrics").items() if k != "five_best"})
    assert same["over_longer"].value == 0.0


def test_the_baseline_speaks_of_the_pairs_that_were_scored():
    found = judge_metrics([row([0, 1, 2], [2, None, 1], lengths=[1, 9, 2])], resamples=10)
    assert found["baselines"]["longer"]["pairwise_accuracy"].value == 0.0


def test_length_bias_worked_by_hand():
    rows = [
        row([0, 1], [1, 2], lengths=[5, 9]),  # people prefer the shorter, the judge the longer
        row([0, 1], [3, 1], lengths=[9, 5]),  # both prefer the longer
        row([0, 1], [2, 2], lengths=[9, 5]),  # people prefer the longer, the judge neither
        row([0, 1], [2, 1], lengths=[7, 7]),  # of the same length
    ]
    found = values(judge_metrics(rows, resamples=10), "length_bias")
    assert found["judge_prefers_longer"] == pytest.approx(2.5 / 3)
    assert found["people_prefer_longer"] == pytest.approx(2 / 3)
    assert found["accuracy_where_longer_is_better"] == pytest.approx(0.75)
    assert found["accuracy_where_shorter_is_better"] == 0.0


def test_a_partial_correlation_is_that_of_what_the_third_variable_leaves():
    rng = np.random.default_rng(0)
    z = rng.normal(size=400)
    x = np.stack([z + rng.normal(size=400), 2 * z + rng.normal(size=400), z])
    x -= x.mean(1, keepdims=True)
    rest = [v - x[2] * (v @ x[2]) / (x[2] @ x[2]) for v in x[:2]]
    assert partial_correlation(x @ x.T) == pytest.approx(stats.pearsonr(*rest).statistic)
    assert math.isnan(partial_correlation(np.zeros((3, 3))))


def test_a_judge_of_length_alone_has_nothing_beyond_length():
    rng = np.random.default_rng(1)
    rows = []
    for i in range(100):
        lengths = rng.permutation(100)[:4]
        noisy = np.argsort(np.argsort(-(lengths + rng.normal(0, 60, 4))))  # people like length, and other things
        rows.append(
            row(
                noisy.tolist(), [float(n + rng.normal(0, 20)) for n in lengths], lengths=lengths.tolist(), prompt=f"{i}"
            )
        )
    found = judge_metrics(rows, resamples=20)["length_bias"]
    assert found["spearman_score_length"].value > 0.5
    assert abs(found["partial_correlation"].value) < 0.2


def test_rows_of_one_prompt_are_drawn_together():
    """Ten copies of a row tell no more than one, so the interval stays as wide."""
    rows = random_rows(8, seed=5)
    once = judge_metrics(rows, resamples=100)["metrics"]["pairwise_accuracy"]
    many = judge_metrics([x for x in rows for _ in range(10)], resamples=100)["metrics"]["pairwise_accuracy"]
    assert (many.value, many.low, many.high) == pytest.approx((once.value, once.low, once.high))


def test_all_rows_of_one_prompt_count():
    found = judge_metrics([row([0, 1], [2, 1], prompt="p"), row([0, 1], [1, 2], prompt="p")], resamples=10)
    accuracy = found["metrics"]["pairwise_accuracy"]
    assert (found["pairs"], accuracy.value, accuracy.low, accuracy.high) == (2, 0.5, 0.5, 0.5)


def test_calibration_tells_what_people_thought_of_each_score():
    found = judge_metrics([row([0, 1, 2], [5, 4.4, None]), row([0, 1], [4, 4.6])], resamples=10)["calibration"]
    assert found == [{"score": 4, "n": 2, "mean_human": 0.75}, {"score": 5, "n": 2, "mean_human": 0.5}]


def test_results_are_json_without_nan():
    found = to_json(judge_metrics([row([0, 1], [None, None])], resamples=10))
    assert found["metrics"]["pairwise_accuracy"] == {"value": None, "low": None, "high": None}
    json.dumps(found, allow_nan=False)


# ---------------------------------------------------------------------------------------------------------------------
# Subsets and sections


def of_subset(subset: str, right: int, wrong: int) -> list[Judged]:
    made = [row([0, 1], [2, 1], subset=subset, prompt=f"{subset} right {n}") for n in range(right)]
    return made + [row([0, 1], [1, 2], subset=subset, prompt=f"{subset} wrong {n}") for n in range(wrong)]


def test_sections_weigh_their_subsets_by_count_but_for_mathematics_and_programming():
    rows = [
        *of_subset("alpacaeval-easy", 3, 0), *of_subset("mt-bench-med", 0, 1),  # Chat: (3 * 1 + 1 * 0) / 4
        *of_subset("donotanswer", 1, 1),  # Safety: 1/2
        *of_subset("math-prm", 1, 0), *of_subset("hep-go", 0, 4),  # Reasoning: 984 / (984 + 164)
    ]  # fmt: skip
    found = to_json(subset_metrics(rows, resamples=10))
    got = {name: x["value"] for name, x in found["sections"].items()}
    assert got == pytest.approx({"Chat": 0.75, "Safety": 0.5, "Reasoning": 984 / 1148}, abs=1e-6)
    assert found["section_mean"]["value"] == pytest.approx((0.75 + 0.5 + 984 / 1148) / 3, abs=1e-6)
    assert found["subsets"]["hep-go"] == {"n": 4, "pairwise_accuracy": {"value": 0.0, "low": 0.0, "high": 0.0}}


def test_every_subset_belongs_to_one_section():
    every = [name for members in SECTIONS.values() for name in members]
    assert len(every) == len(set(every)) == 23


def test_other_subsets_make_no_sections_and_none_make_nothing():
    assert "sections" not in subset_metrics(of_subset("poems", 1, 1), resamples=10)
    assert subset_metrics([row([0, 1], [1, 2])], resamples=10) == {}


@pytest.mark.skipif(not RANKED.exists(), reason=f"no {RANKED}")
def test_the_longer_answer_wins_in_most_pairs_of_open_assistant():
    rows = [
        row(x.ranks, [0.0] * len(x.ranks), lengths=[len(t) for t in x.answers], prompt=x.prompt.id)
        for x in load_human(RANKED, split="test").rows
    ]
    longer = judge_metrics(rows, resamples=50)["baselines"]["longer"]["pairwise_accuracy"]
    assert 0.69 <= longer.value <= 0.81
