"""`selfreward plan`, whole: tables and JSON for a machine that isn't here, and one line for what can't be planned."""

import json
import sys
import types

import pytest

from selfreward_jax import cli
from selfreward_jax.llama.known import shape_of
from selfreward_jax.llama.load import read_config
from selfreward_jax.llama.params import count_params
from tests import tiny


def words(*more):
    return ["plan", f"--config={tiny.BASE}", "--config.model.path=models/SmolLM2-135M", *more]


def test_a_run_is_planned_whole(tmp_path):
    """In a process of its own, which has not looked for devices yet."""
    out, model = tmp_path / "plan.json", tiny.make_model(tmp_path / "model")
    done = tiny.run_command(
        "plan", f"--config={tiny.BASE}", f"--config.model.path={model}", f"--output={out}", "--topology=gpu:2xh100",
        "--price=2", "--config.respond.max_new_tokens=64", "--config.generation.slots=8",
        "--config.generation.cache_gib=1", "--config.training.remat=none", "--config.dpo.micro_batch_size=4",
        "--config.sft.max_length=128", "--config.dpo.max_length=128", "--instruction_tokens=64",
        "--prompt_tokens=64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for told in ("dpo gradients", "temporaries", "all-gather", "chip-hours", "USD", "judgements of 160 tokens"):
        assert told in done.stdout
    facts = json.loads(out.read_text())
    assert facts["chips"] == 2 and facts["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    programs = {p["program"]: p for p in facts["programs"]}
    parameters = programs["dpo gradients"]["memory"]["parameters"]
    whole = count_params(read_config(str(model)))
    assert parameters == pytest.approx(4 * whole / 2, rel=0.01)  # float32, split over two devices
    assert programs["dpo update"]["memory"]["optimizer"] == pytest.approx(2 * parameters, rel=0.01)
    assert programs["dpo gradients"]["flops"] >= 0.95 * programs["dpo gradients"]["model_flops"] / 2
    assert programs["decode, answers"]["memory"]["KV cache"] > 0
    stages = facts["iteration"]
    assert [s["stage"] for s in stages] == ["reshard", "respond", "judge", "reference", "dpo"]
    assert all(s["usd"] == 2 * s["chip_hours"] == 4 * s["hours"] > 0 for s in stages)
    assert facts["total"]["hours"] == pytest.approx(sum(s["hours"] for s in stages))
    assert programs["dpo gradients"]["mfu"] > 0 and facts["tried"] == []
    assert "dpo update: " in done.stderr


@pytest.mark.parametrize(
    ("path", "billions"),
    [("models/Llama-3.1-8B-Instruct", 8.030), ("x/Llama-2-70b-hf/", 68.977), ("Llama-3.2-1B", 1.236)],
)
def test_public_models_are_known_by_their_names(path, billions):
    assert count_params(shape_of(path)) / 1e9 == pytest.approx(billions, abs=0.001)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--topology=v5q:4x4"], "known are v4:2x2x1"),
        (["--topology=cpu:8", "--config.mesh.fsdp=3", "--config.mesh.data=2"], "does not multiply to the 8 devices"),
        (
            ["--topology=cpu:8", "--config.mesh.tensor=8"],
            "has 3 kv_heads, which 8 devices of mesh axis tensor can't split",
        ),
        (["--topology=cpu:8", "--stages=dpo,judgge"], "no stage 'judgge'"),
        (
            ["--topology=cpu:8", "--config.model.path=models/unheard-of"],
            "Without its files these can be planned by name",
        ),
        (
            ["--topology=cpu:8", "--stages=respond", "--config.generation.cache_gib=0.001"],
            "config.generation.cache_gib",
        ),
    ],
)
def test_what_can_not_be_planned_is_told_in_a_line(more, told, capsys):
    assert cli.main(words(*more)) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("selfreward: ") and told in err


def test_a_plan_that_is_stopped_does_not_promise_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr("selfreward_jax.core.interrupt.Interrupt.agreed", lambda self: True)
    assert cli.main(words("--topology=cpu:8", "--stages=reshard")) == 130
    assert "of a plan nothing is kept" in capsys.readouterr().err


def test_the_compiler_that_is_missing_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(words("--topology=v5e:2x2")) == 2
    assert "pip install 'selfreward_jax[tpu]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ABORTED: Internal error when accessing libtpu multi-process lockfile.", "in use by another process"),
        ("INVALID_ARGUMENT: Topology layout is not divisible", "the TPU compiler does not know it"),
        ("INVALID_ARGUMENT: Topology layout is not divisible", "known are v4:2x2x1 to v4:8x8x8"),
    ],
)
def test_what_the_compiler_refuses_is_told_in_a_line(said, told, capsys, monkeypatch):
    def refuse(**_):
        raise RuntimeError(said)

    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    assert cli.main(words("--topology=v5e:2x2", "--config.mesh.fsdp=4")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert told in line and said in line
