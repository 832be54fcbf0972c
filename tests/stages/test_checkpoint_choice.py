"""The checkpoint that is best on held-out rows is the stage's model, and it is on record why."""

import json

import pytest

from selfreward_jax import cli
from selfreward_jax.llama.load import load_model
from tests import tiny

pytestmark = pytest.mark.slow

CHANGES = {
    "sft.epochs": 3,
    "checkpoint.every_steps": 2,
    "checkpoint.held_out": 0.25,
    "checkpoint.choose": "loss",
    "checkpoint.keep_best": 2,
    "log.tensorboard": False,
}


def test_the_best_checkpoint_is_the_model_and_on_record(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(tiny.arguments("sft", run, data, CHANGES)) == 0
    said = capsys.readouterr().err
    log = tiny.read_jsonl(run / "m1" / "metrics.jsonl")
    scored = sorted((row["eval/loss"], row["step"]) for row in log if "eval/loss" in row)
    (loss, step), (_, second) = scored[:2]

    model = json.loads((run / "m1" / "model.json").read_text())
    assert model["checkpoint"] == step
    held_out = model["best"].pop("held_out")
    assert 16 <= held_out < 64
    assert model["best"] == {"checkpoint": step, "by": "loss", "eval/loss": loss}
    (entry,) = (row for row in tiny.read_jsonl(run / "manifest.jsonl") if row["artefact"] == "m1/model.json")
    assert entry["best"] == model["best"] | {"held_out": held_out}
    assert f"M1 SFT: {held_out} of 64 rows are held out\n" in said
    assert f"M1 SFT: the model is step {step} of {log[-1]['step']}, chosen by loss; on held-out rows" in said

    kept = {path.name for path in (run / "m1" / "checkpoints").iterdir()}
    assert kept == {str(step), str(second), str(log[-1]["step"])}
    assert not list((run / "m1").glob("checkpoints/*/opt_state"))
    assert load_model(str(run / "m1")).hash == model["hash"]

    assert cli.main(tiny.arguments("sft", run, data, CHANGES)) == 0
    assert "M1 SFT: done already" in capsys.readouterr().err


def test_more_held_out_than_there_is_are_one_line_and_nothing_is_lost(data, tmp_path, capsys):
    words = tiny.arguments("sft", tmp_path / "run", data, CHANGES | {"checkpoint.held_out": 64})
    assert cli.main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfreward: ")]
    assert len(said) == 1
    assert "config.checkpoint.held_out: 64 of 64 rows" in said[0]
    assert not (tmp_path / "run" / "m1").exists()
