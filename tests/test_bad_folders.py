"""Folders that belong to something else, and stages out of order."""

import json
import shutil
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.config import leaves
from tests import tiny
from tests.refused import assert_refused_at_once


def test_a_folder_that_is_no_run_is_left_alone(capsys, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert_refused_at_once(capsys, tiny.arguments("run", tmp_path, data), f"--workdir={tmp_path}", "not a run")
    assert tiny.snapshot(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_is_no_workdir(capsys, data, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused_at_once(capsys, tiny.arguments("run", tmp_path / "file", data), "not a run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_can_not_be_made_is_named(capsys, data):
    assert_refused_at_once(capsys, tiny.arguments("run", Path("/proc/nowhere"), data), "/proc/nowhere", "can't write")


def test_an_export_into_an_existing_folder_is_refused(capsys, data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    words = ["export", f"--model={data / 'model'}", f"--output={tmp_path}"]
    assert_refused_at_once(capsys, words, str(tmp_path), "exists")
    assert tiny.snapshot(tmp_path) == {"mine.txt": b"mine"}


def test_an_export_that_can_not_be_written_is_named(capsys, data):
    words = ["export", f"--model={data / 'model'}", "--output=/proc/nowhere/out"]
    assert_refused_at_once(capsys, words, "/proc/nowhere")


@pytest.mark.slow
def test_a_run_of_another_configuration_says_what_differs(capsys, data, finished):
    before = tiny.snapshot(finished)
    words = tiny.arguments("run", finished, data, {"dpo.beta": 0.3, "seed": tiny.SEED + 7})
    assert_refused_at_once(
        capsys, words, "dpo.beta: 0.1 -> 0.3", f"seed: {tiny.SEED} -> {tiny.SEED + 7}", "--resume=force"
    )
    assert tiny.snapshot(finished) == before


def test_a_configuration_can_be_mended_before_training_has_begun(capsys, data, tmp_path):
    run = tmp_path / "run"
    assert_refused_at_once(capsys, tiny.arguments("run", run, data, {"seeds.ift": "/no/where"}), "/no/where")
    assert_refused_at_once(capsys, tiny.arguments("run", run, data, {"seeds.eft": "/not/here"}), "/not/here")
    assert json.loads((run / "config.json").read_text())["seeds"]["ift"] == str(data / "ift.jsonl")


def test_a_broken_config_of_a_run_is_named(capsys, data, tmp_path):
    (tmp_path / "config.json").write_text("{")
    for words in (["run", f"--workdir={tmp_path}"], tiny.arguments("run", tmp_path, data)):
        assert_refused_at_once(capsys, words, str(tmp_path / "config.json"))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["prompts", "respond", "judge", "pairs", "dpo"])
@pytest.mark.parametrize("iteration", [1, 4])
def test_an_iteration_out_of_range_is_refused(verb, iteration, capsys, data, finished):
    words = [*tiny.arguments(verb, finished, data), f"--iteration={iteration}"]
    assert_refused_at_once(capsys, words, f"--iteration={iteration}", "from 2 to loop.iterations, 3")


@pytest.mark.parametrize(
    ("verb", "missing"),
    [
        ("prompts", "m1: M1 has not been made yet"),
        ("respond", "m1: M1 has not been made yet"),
        ("judge", "m2/prompts.jsonl: not there yet"),
        ("pairs", "m2/prompts.jsonl: not there yet"),
        ("dpo", "m2/pairs.jsonl: not there yet"),
    ],
)
def test_a_stage_before_its_inputs_says_what_is_missing(verb, missing, capsys, data, tmp_path):
    assert_refused_at_once(capsys, tiny.arguments(verb, tmp_path / "run", data), missing)


@pytest.mark.slow
def test_resume_force_redoes_what_depends_on_the_change_and_nothing_else(data, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    changed = {"dpo.beta": 0.3}
    assert cli.main([*tiny.arguments("run", run, data, changed), "--resume=force"]) == 0
    config = dict(leaves(json.loads((run / "config.json").read_text())))
    assert config["dpo.beta"] == 0.3
    before, after = tiny.snapshot(finished), tiny.snapshot(run)
    for name in ("prompts", "responses", "judgements", "pairs"):
        assert after[f"m2/{name}.jsonl"] == before[f"m2/{name}.jsonl"]
    assert after["m1/model.json"] == before["m1/model.json"]
    for t in (2, 3):
        assert after[f"m{t}/model.json"] != before[f"m{t}/model.json"]
    assert after["m3/responses.jsonl"] != before["m3/responses.jsonl"]

    # The folder now belongs to the new configuration, with which it is the run that began with it.
    again = tiny.snapshot(run)
    assert cli.main(tiny.arguments("run", run, data, changed)) == 0
    assert tiny.snapshot(run) == again
