"""What is told of a model, worked out by hand."""

import dataclasses
import math

import pytest
from etils import epath

from selfreward_jax.core.config import leaves, load_config
from selfreward_jax.core.rows import Judgement, Response
from selfreward_jax.evals.statistics import mean_interval
from selfreward_jax.methods.judge_function import load_function
from selfreward_jax.sandbox.measure import NUMBERS, pairwise_accuracy
from selfreward_jax.sandbox.measure import summarise as summarise_model
from selfreward_jax.sandbox.seeds import WorldSettings, make_world
from selfreward_jax.sandbox.study import REWARDS, default_config, seed_config, summarise
from selfreward_jax.sandbox.table import table, verdicts
from selfreward_jax.sandbox.world import Task

SMALL = WorldSettings(ift_rows=6, eft_rows=6, list_rows=1, held_out=2, hidden=32, layers=1)


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_is_a_judge_that_a_run_takes(reward, tmp_path):
    make_world(epath.Path(tmp_path), dataclasses.replace(SMALL, judge_noise=0.0), 7)
    made = seed_config(load_config(default_config(), []), epath.Path(tmp_path), reward, 7)
    again = load_config(default_config(), [f"--config.{name}={value}" for name, value in leaves(made) if value])
    assert (again.seed, again.judge.by, again.judge.method) == (7, made.judge.by, made.judge.method)
    assert (made.judge.by == "m1") == (reward == "frozen")
    if made.judge.method == "function":
        judge = load_function(made.judge.function)
        assert judge(({"role": "user", "content": "copy abcde"},), "abcxx!!") == 3.0


TASKS = {"p": Task("copy", "abcde"), "q": Task("next", "abcde")}


def response(prompt, index, text):
    return Response(f"{prompt}{index}", prompt, index, (), text, "end", 0.0)


def judgement(id, score, index=0):
    return Judgement(f"{id}/{index}", id, index, "", score, "end")


def measured(name="m1", shift=0.0):
    responses = [response("p", 0, "abcde!!"), response("p", 1, "edcba"), response("q", 0, "bcdef")]
    own = [judgement("p0", 4.0), judgement("p0", 5.0, 1), judgement("p1", 3.0), judgement("q0", None)]
    truth = {"a": ("t", 5.0), "b": ("t", 2.0), "c": ("t", 2.0), "d": ("u", 0.0)}
    seen = [judgement("a", 4.0 - shift), judgement("b", 3.0), judgement("c", 4.0), judgement("d", 1.0)]
    return summarise_model(name, TASKS, responses, own, truth, seen)


def test_the_numbers_of_one_model():
    m = measured()
    assert m.true_score == pytest.approx((5 + 1 + 5) / 3)
    assert m.judged_score == pytest.approx((4.5 + 3) / 2)
    assert m.hacking == pytest.approx(((4.5 - 5) + (3 - 1)) / 2)
    assert m.flourishes == pytest.approx(2 / 3)
    assert m.parse_rate == pytest.approx(7 / 8)
    assert m.by_kind == {"copy": 3.0, "next": 5.0}


def test_pairs_are_those_of_one_task_with_different_truths_and_a_tie_counts_half():
    # a over b is right, a against c is a tie; b and c are equally good, d has another task.
    assert measured().judge_accuracy == pytest.approx((1 + 0.5) / 2)
    assert math.isnan(pairwise_accuracy({"a": ("t", 1.0)}, {"a": 1.0}))


def test_gains_are_paired_by_seed():
    seeds = [(measured(), measured("m2", shift=s)) for s in (2.0, 3.0)]
    found = summarise(seeds)
    differences = [b.judge_correlation - a.judge_correlation for a, b in seeds]
    assert found.gain["judge_correlation"] == mean_interval(differences)
    assert [row["model"] for row in found.rows] == ["m1", "m2"]
    assert set(NUMBERS) <= set(found.rows[0])


def test_words_claim_no_more_than_the_intervals():
    better = summarise([(measured(), measured("m2", shift=s)) for s in (2.0, 3.0)])
    assert "m2".upper() + " and M1 can't be told apart" in verdicts(better)[0]
    assert "One seed says nothing" in verdicts(summarise([(measured(), measured("m2"))]))[0]
    assert len(table(better, "self").columns) == 4
