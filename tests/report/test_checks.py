"""Each check looks up where it should and nowhere else."""

import dataclasses

import numpy as np
import pytest

from selfreward_jax.evals.statistics import Interval
from selfreward_jax.report.checks import check_run
from selfreward_jax.report.collect import Model
from selfreward_jax.report.results import JudgeResult, Results, WinRate
from tests.report.facts import answers, iteration, pair, run, training


def model(name: str = "M1", *, of=None, how=None) -> Model:
    return Model(name, "h", how, of)


def looks(facts) -> dict[str, list[str]]:
    """What is worth a look: check, and number by number."""
    found: dict[str, list[str]] = {}
    for finding in check_run(facts):
        if finding.look:
            found.setdefault(finding.name, []).append(f"{finding.where}: {finding.number}")
    return found


def test_nothing_is_worth_a_look_where_all_is_well():
    facts = run((model(of=answers()), model("M2", of=answers(), how=training())), (iteration(2), iteration(3)))
    assert check_run(facts)
    assert looks(facts) == {}


def test_a_run_that_has_only_begun_has_nothing_to_check():
    assert check_run(run()) == []


@pytest.mark.parametrize(
    ("metrics", "name", "number"),
    [
        ({"judge/parse_rate": 0.85}, "Judgements with a score", "85%"),
        ({"gen/truncated_frac": 0.2}, "Answers cut by the limit", "20%"),
        ({"judge/tie_rate": 0.5}, "Prompts tied", "50%"),
        ({"judge/score_hist": [0, 0, 0, 0, 75, 25]}, "Commonest score", "75% are 4"),
    ],
)
def test_how_a_model_answers_and_judges(metrics, name, number):
    assert looks(run((model(of=answers(**metrics)),))) == {name: [f"M1: {number}"]}


def test_answers_that_grow():
    grown = answers(**{"gen/len_mean": 66.0})
    facts = run((model(of=answers()), model("M2", of=grown), model("M3", of=grown)))
    assert looks(facts) == {"Answer length": ["M2: 50 → 66 tokens"]}


def test_scores_that_follow_length():
    ordered = dataclasses.replace(answers(), tokens=np.arange(100), scores=np.sqrt(np.arange(100)) / 2)
    assert looks(run((model(of=ordered),))) == {"Correlation of score and length": ["M1: +1.00 (Spearman)"]}


def test_few_pairs_and_few_of_the_prompts():
    few = iteration(2, pairs=tuple(pair(i) for i in range(100)))
    assert looks(run((), (few,))) == {"Number of pairs": ["M2: 100"], "Prompts that give a pair": ["M2: 33%"]}


def test_margins_that_shrink():
    smaller = iteration(3, pairs=tuple(pair(i, margin=0.5) for i in range(300)))
    assert looks(run((), (iteration(2), smaller))) == {"Mean margin of pairs": ["M3: 2.00 → 0.50 points"]}


def test_chosen_answers_that_are_longer():
    longer = iteration(2, pairs=tuple(pair(i, tokens=(80, 40)) for i in range(300)))
    assert looks(run((), (longer,))) == {"Length of chosen against rejected": ["M2: 80 against 40 tokens"]}


def test_training_that_is_no_better_than_chance():
    facts = run((model("M2", how=training(**{"rewards/accuracies": 0.5})),))
    assert looks(facts) == {"Training accuracy": ["M2: 50% over the last step"]}


def test_chosen_answers_that_lose_probability_in_nats():
    # A reward is beta times the change of the log-probability: -0.3 / 0.1.
    lost = model("M2", how=training(**{"rewards/chosen": -0.3}))
    assert looks(run((lost,))) == {"Log-probability of chosen answers": ["M2: -3.00 nats an answer"]}


def test_rewards_without_a_reference_say_nothing_of_lost_probability():
    how = dataclasses.replace(training(**{"rewards/chosen": -9.0}), has_reference=False)
    assert looks(run((model("M2", how=how),))) == {}


def test_skipped_updates():
    how = dataclasses.replace(training(), curve=({"step": 2, "skipped_updates": 1},))
    assert looks(run((model("M2", how=how),))) == {"Skipped updates": ["M2: 1 of 2"]}


def test_prompts_that_repeat():
    again = iteration(3, prompts=("prompt 7  of m2", *iteration(3).prompts[1:]))
    assert looks(run((), (iteration(2), again))) == {"Repeated prompts": ["M3: 1 of 300"]}


def test_a_generator_that_repeats_itself():
    same = iteration(2, rejected={"similar": 500, "keyword": 10})
    assert looks(run((), (same,))) == {"New prompts too like others": ["M2: 62%"]}


def judge(name: str, value: float, longer: float = 0.5) -> JudgeResult:
    metrics = {"pairwise_accuracy": Interval(value, value - 0.03, value + 0.03)}
    baselines = {"longer": {"pairwise_accuracy": Interval(longer, longer, longer)}}
    return JudgeResult(name, 100, 300, 1.0, metrics, baselines, ())


def test_a_judge_that_gets_worse_by_more_than_its_interval():
    found = (judge("M1", 0.6), judge("M2", 0.7), judge("M3", 0.62))
    assert looks(run(results=Results({"d": found}, {}))) == {"Judge accuracy on d": ["M3: 62%, M2 70%"]}


def test_a_judge_that_is_no_better_than_length():
    found = (judge("M1", 0.6, longer=0.58),)
    assert looks(run(results=Results({"d": found}, {}))) == {"Judge against length on d": ["M1: 60% against 58%"]}


def test_a_judge_that_changes_its_mind_with_the_order():
    none = Interval(0.5, 0.4, 0.6)
    found = WinRate("M2", "M1", "j", 10, none, none, none, none, none, 0.5, 0.4, 10.0, 10.0, {})
    expected = {"Agreement of both orders on d": ["M2 against M1: 40%"]}
    assert looks(run(results=Results({}, {"d": (found,)}))) == expected
