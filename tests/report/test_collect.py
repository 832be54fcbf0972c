"""The facts of a real run are those that stand in its files."""

import collections
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.report.collect import RunFacts, collect
from selfreward_jax.report.page import render
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def facts(finished) -> RunFacts:
    return collect(epath.Path(finished), samples=50)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the test's own, without the weights."""
    ignore = shutil.ignore_patterns("checkpoints", "tb", "tokenizer.json")
    return shutil.copytree(finished, tmp_path / "run", ignore=ignore)


def test_every_model_is_there_with_what_it_did(facts):
    assert [m.name for m in facts.models] == ["M0", "M1", "M2", "M3"]
    assert [bool(m.training) for m in facts.models] == [False, True, True, True]
    assert [bool(m.answers) for m in facts.models] == [False, True, True, True]
    assert facts.finished


def test_answers_are_those_of_the_closing_table(facts, finished):
    summary = json.loads((finished / "summary.json").read_text())
    for model, row in zip(facts.models[1:], summary, strict=True):
        assert model.hash == row["hash"]
        assert model.answers and model.answers.metrics.items() <= row.items()
        assert model.training and model.training.last == row["train"]["last"]


def test_the_mean_score_lies_in_its_interval_and_is_the_table_s(facts):
    for model in facts.models[1:]:
        score = model.answers.mean_score
        assert score.low <= score.value <= score.high
        assert score.value == pytest.approx(model.answers.metrics["judge/score_mean"])
        assert score.value == pytest.approx(np.nanmean(model.answers.scores))


def test_pairs_and_drops_are_those_in_the_files(facts, finished):
    for i in facts.iterations:
        rows = tiny.read_jsonl(finished / f"m{i.t}" / "pairs.jsonl")
        assert [p.margin for p in i.pairs] == [r["margin"] for r in rows]
        assert [p.tokens_chosen for p in i.pairs] == [len(r["chosen_token_ids"]) for r in rows]
        drops = tiny.read_jsonl(finished / f"m{i.t}" / "dropped.jsonl")
        assert i.dropped_prompts == collections.Counter(d["reason"] for d in drops if d["response_id"] is None)
        assert i.dropped_answers == collections.Counter(d["reason"] for d in drops if d["response_id"] is not None)
        no_rank = sum(d["reason"] == "fewer_than_two_ranked" for d in drops)
        assert i.ranked == len(i.prompts) - no_rank


def test_every_sample_has_all_its_answers_and_their_judgements(facts, finished):
    shown = [s for s in facts.samples if s["where"] == "M1 → M2"]
    responses = tiny.read_jsonl(finished / "m2" / "responses.jsonl")
    assert [len(a["text"]) for s in shown for a in s["answers"]] == [len(r["text"]) for r in responses]
    assert all(len(a["judgements"]) == 3 for s in shown for a in s["answers"])
    pairs = len(tiny.read_jsonl(finished / "m2" / "pairs.jsonl"))
    assert sum(a["role"] == "chosen" for s in shown for a in s["answers"]) == pairs


def test_no_more_samples_than_asked_for_shared_by_the_iterations(finished):
    for n in (0, 1, 4):
        assert len(collect(epath.Path(finished), samples=n).samples) == n
    where = collections.Counter(s["where"] for s in collect(epath.Path(finished), samples=4).samples)
    assert where == {"M1 → M2": 2, "M2 → M3": 1, "M3, not trained on": 1}


STAGES = ("prompts", "responses", "judgements", "pairs")


@pytest.mark.parametrize("left", range(5))
def test_a_run_in_the_making_shows_what_is_there(run, left):
    """Of M2's rows the first `left` files are there, of M3 nothing."""
    shutil.rmtree(run / "m3")
    (run / "m2" / "model.json").unlink()
    for name in ("dropped", "positives", "reference_logps", "metrics"):
        (run / "m2" / f"{name}.jsonl").unlink()
    for name in STAGES[left:]:
        (run / "m2" / f"{name}.jsonl").unlink()
    manifest = [r for r in tiny.read_jsonl(run / "manifest.jsonl") if not r["artefact"].startswith(("m2/model", "m3"))]
    tiny.write_manifest(run, manifest)
    facts = collect(epath.Path(run), samples=50)
    assert not facts.finished
    assert [m.name for m in facts.models] == ["M0", "M1"]
    assert bool(facts.iterations) == (left > 0)
    assert bool(facts.models[1].answers) == bool(facts.samples) == (left > 2)
    assert "In the making" in render(facts)


def test_a_line_of_metrics_that_is_being_written_is_left_out(run):
    path = run / "m3" / "metrics.jsonl"
    steps = len(tiny.read_jsonl(path))
    path.write_text(path.read_text() + '{"step": 99, "lo')
    tiny.forget(run, "m3/metrics.jsonl")
    training = collect(epath.Path(run), samples=0).models[3].training
    assert training and len(training.curve) == steps


def test_iterations_without_pairs_are_no_error(run):
    (run / "m3" / "pairs.jsonl").write_text("")
    tiny.forget(run, "m3/pairs.jsonl")
    facts = collect(epath.Path(run), samples=50)
    assert facts.iterations[1].pairs == ()
    assert "From prompts to pairs" in render(facts)


def test_a_damaged_file_is_named_with_its_line(run):
    path = run / "m2" / "judgements.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"m2/judgements.jsonl: not what was written"):
        collect(epath.Path(run), samples=0)
    tiny.forget(run, "m2/judgements.jsonl")
    with pytest.raises(UserError, match=r"m2/judgements.jsonl:\d+: not valid JSON"):
        collect(epath.Path(run), samples=0)


def test_prompts_of_both_seeds_are_there_once(run, tmp_path):
    judged = [{"prompt": "Why is it so?", "response": r, "judgement": "Score: 3"} for r in "ab"]
    asked = [{"role": "user", "content": "How good is it?"}, {"role": "assistant", "content": "Score: 1"}]
    rows = [*judged, {"messages": asked}, {"prompt": "And <b>now</b>?", "response": "c", "judgement": "Score: 0"}]
    (tmp_path / "eft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((run / "config.json").read_text())
    config["seeds"]["eft"] = str(tmp_path / "eft.jsonl")
    (run / "config.json").write_text(json.dumps(config))
    tiny.forget(run, "config.json")
    seeds = collect(epath.Path(run), samples=0).seeds
    assert seeds["EFT seeds"] == ("Why is it so?", "And <b>now</b>?")
    assert seeds["IFT seeds"]


def test_a_run_whose_seeds_are_gone_has_a_report(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["seeds"]["ift"] = str(tmp_path / "gone.jsonl")
    (run / "config.json").write_text(json.dumps(config))
    tiny.forget(run, "config.json")
    assert "IFT seeds" not in collect(epath.Path(run), samples=0).seeds
