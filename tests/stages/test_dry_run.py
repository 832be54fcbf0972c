"""What a dry run tells is what the arrays then take, and it touches nothing."""

import jax
import pytest

from selfreward_jax import cli
from selfreward_jax.core.config import load_config
from selfreward_jax.core.mesh import make_mesh, make_rules
from selfreward_jax.llama.load import load_model
from selfreward_jax.stages.dry_run import placed_arrays
from selfreward_jax.stages.training import optimizer_settings
from selfreward_jax.training.step import init_state
from tests import tiny

MESH = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("dry") / "model")


def on_one_device(tree) -> int:
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("more", [[], ["--config.training.moments_dtype=int8", "--config.mesh.rules.mlp="]])
def test_the_bytes_told_are_those_of_the_arrays(model, more):
    config = load_config(tiny.BASE, [f"--config.model.path={model}", *MESH, *more])
    told: dict[str, int] = {}
    for x in placed_arrays(config, "dpo"):
        told[x.group] = told.get(x.group, 0) + x.bytes_per_device
    loaded = load_model(str(model), mesh=make_mesh(2, 2, 2), rules=make_rules(config.mesh.rules.to_dict()))
    assert told["weights"] == told["gradients"] == on_one_device(loaded.params)
    state = init_state(loaded.config, optimizer_settings(config, config.dpo, 1), loaded.params)
    assert told["optimiser"] == on_one_device(state.opt_state)


def test_a_pod_is_planned_without_one_and_nothing_is_made(model, tmp_path, capsys):
    workdir = tmp_path / "run"
    words = ["sft", "--dry-run", f"--config={tiny.BASE}", f"--workdir={workdir}", f"--config.model.path={model}"]
    assert cli.main([*words, "--config.mesh.data=64", "--config.mesh.fsdp=8", "--config.sft.batch_size=512"]) == 0
    out = capsys.readouterr().out
    assert "data 64 x fsdp 8 x tensor 1" in out and "layers.gate" in out and "on each device" in out
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mesh.tensor=3", "has 364 vocab, which 3 devices of mesh axis tensor"),
        ("mesh.rules.embed=tenser", "names tenser"),
        ("mesh.rules.embd=fsdp", "no such field. Did you mean mesh.rules.embed"),
        ("mesh.rules.mlp=tensor+tensor", "an axis twice"),
        ("training.pack=64", "can't hold sft.max_length"),
    ],
)
def test_what_can_not_be_laid_out_is_refused_with_the_numbers(model, override, expected, capsys):
    words = ["sft", "--dry-run", f"--config={tiny.BASE}", "--workdir=none", f"--config.model.path={model}"]
    assert cli.main([*words, f"--config.{override}"]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


def test_an_axis_split_twice_over_the_same_devices_is_refused(model, capsys):
    words = ["sft", "--dry-run", f"--config={tiny.BASE}", "--workdir=none", f"--config.model.path={model}"]
    assert cli.main([*words, "--config.mesh.fsdp=2", "--config.mesh.rules.mlp=fsdp"]) == 2
    assert "would be split twice over fsdp" in capsys.readouterr().err
