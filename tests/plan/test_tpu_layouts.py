"""The layouts of the configurations compile for their slices and fit, with the real TPU compiler and no TPU.

A layout takes a minute or two: by default two are compiled, with SELFREWARD_TEST_LAYOUTS=all all fifteen.
"""

import os

import pytest

from selfreward_jax import cli
from selfreward_jax.configs.layouts import SLICES
from selfreward_jax.core.config import load_config
from selfreward_jax.core.mesh import mesh_over, mesh_sizes
from selfreward_jax.llama.known import shape_of
from selfreward_jax.plan.compiled import Result, compile_planned
from selfreward_jax.plan.costs import costs
from selfreward_jax.plan.hlo import Program
from selfreward_jax.plan.machines import parse
from selfreward_jax.plan.shapes import Lengths, Plans
from selfreward_jax.plan.target import devices_of
from tests.tiny import ROOT
from tests.tpu import needs_libtpu

pytestmark = [pytest.mark.slow, needs_libtpu]

ALWAYS = (("llama3_8b", "v5e-256"), ("llama2_70b", "v5p-128"))
ALL = [(path.stem, where) for path in sorted((ROOT / "configs").glob("llama*.py")) for where in SLICES]
CHOSEN = ALL if os.environ.get("SELFREWARD_TEST_LAYOUTS") == "all" else ALWAYS


@pytest.fixture(scope="module", autouse=True)
def several_compilers():
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"


def dpo_step(name: str, where: str) -> tuple[Plans, Result]:
    config, machine = load_config(f"{ROOT}/configs/{name}.py:{where}"), parse(where)
    mesh = mesh_over(mesh_sizes(config.mesh, machine.devices, where), devices_of(machine))
    model = shape_of(config.model.path)
    plans = Plans(config, model, mesh, "tpu", machine.chip.hbm_gib * 2**30, Lengths(512, 512))
    return plans, compile_planned(next(iter(plans.training("dpo"))), machine)


def test_every_configuration_has_a_layout_for_every_slice():
    assert len(ALL) == 15 and set(ALWAYS) < set(ALL)
    for name, where in ALL:
        config = load_config(f"{ROOT}/configs/{name}.py:{where}")
        assert mesh_sizes(config.mesh, parse(where).devices, where)["tensor"] > 1


@pytest.mark.parametrize(("name", "where"), CHOSEN)
def test_a_dpo_step_compiles_and_fits_with_room_to_spare(name, where):
    plans, result = dpo_step(name, where)
    model, machine = plans.model, parse(where)
    assert not result.too_big and not result.notes
    assert result.total < 0.85 * machine.chip.hbm_gib * 2**30
    # What the mathematics needs, and with every layer computed once more at most a third and a little beside it.
    needed = result.planned.model_flops / machine.devices
    assert 1.0 < result.flops / needed < 1.45
    # At no time is more of the weights gathered than a layer's matrix, or the head's share of a tensor group.
    tensor = plans.mesh.shape["tensor"]
    head = model.vocab_size * model.hidden_size / tensor
    matrix = model.hidden_size * model.intermediate_size / tensor
    gathered = [c for c in costs(result.text).collectives if c.kind == "all-gather" and len(c.group) > 1]
    assert gathered
    assert max(c.bytes for c in gathered) <= 2 * 1.01 * max(head, 2 * matrix)
    # No logits of whole rows, in any layout.
    rows, T = 2 * plans.config.dpo.batch_size // plans.mesh.shape["fsdp"], 512 + plans.config.respond.max_new_tokens
    vocabulary = {model.vocab_size, model.vocab_size // tensor}
    for computation in Program(result.text).computations.values():
        for op in computation.values():
            for array in op.results:
                if vocabulary & set(array.shape):
                    others = array.size // max(vocabulary & set(array.shape))
                    assert T not in array.shape and others != rows * T, (op.name, array)


def test_what_is_too_big_is_a_result_with_its_largest_arrays(capsys):
    words = [f"--config={ROOT}/configs/llama3_70b.py", "--topology=v5e:2x2", "--config.mesh.fsdp=4", "--stages=reshard"]
    assert cli.main(["plan", *words, "--config.mesh.tensor=1", "--config.generation.tensor=1"]) == 0
    shown = capsys.readouterr().out
    assert "TOO BIG" in shown and "reshard, a layer does not fit: the program alone needs" in shown
    assert "GiB  bfloat16[8192,2,28672]" in shown  # a layer's half of the MLP, as sampling wants it
    assert "reshard, embeddings does not fit: needs" in shown
