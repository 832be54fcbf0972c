"""A plan's programs are those that a run calls: the same functions, with arrays alike in shape, type, layout."""

import dataclasses

import jax
import numpy as np
import pytest

from selfreward_jax.core.config import load_config
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.losses import loss_settings
from selfreward_jax.core.mesh import bytes_on_device, make_mesh, make_rules, mesh_over
from selfreward_jax.engine.generate import Engine
from selfreward_jax.engine.run import STEPS_WITH_STOP
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.engine.schedule import Request
from selfreward_jax.engine.score import score_batch
from selfreward_jax.llama.load import load_model
from selfreward_jax.plan.compiled import compile_planned
from selfreward_jax.plan.machines import parse
from selfreward_jax.plan.shapes import Lengths, Plans
from selfreward_jax.stages.training import train_settings
from selfreward_jax.stages.work import engine_settings
from selfreward_jax.training import loop
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.objectives import make_objective
from selfreward_jax.verbs.plan import programs
from tests import tiny

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
PROMPT, ANSWER, INSTRUCTIONS = 24, 32, 16


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tiny.make_model(tmp_path_factory.mktemp("plan") / "model")
    changes = {f"mesh.{axis}": size for axis, size in MESH.items()} | {
        "model.path": path, "prompts.count": 6, "respond.n": 4, "respond.max_new_tokens": ANSWER,
        "judge.max_new_tokens": 16, "dpo.max_length": 64, "dpo.batch_size": 8, "dpo.micro_batch_size": 4,
        "generation.slots": 16, "generation.score_rows": 8, "generation.cache_gib": 1.0,
        "training.length_bucket": 16,
    }  # fmt: skip
    return load_config(tiny.BASE, [f"--config.{name}={value}" for name, value in changes.items()])


@pytest.fixture(scope="module")
def model(config):
    rules = make_rules(config.mesh.rules.to_dict())
    return load_model(config.model.path, dtype=config.model.dtype, mesh=make_mesh(**MESH), rules=rules)


@pytest.fixture(scope="module")
def plans(config, model):
    lengths = Lengths(PROMPT, INSTRUCTIONS)
    return Plans(config, model.config, mesh_over(MESH, jax.devices()), "cpu", 2.0**34, lengths)


def outline(tree):
    """Shapes, types and layouts of its arrays; of those that lie on no device yet, shapes and types."""

    def one(x):
        sharding = getattr(x, "sharding", None)
        placed = isinstance(sharding, jax.sharding.NamedSharding)
        return np.shape(x), str(x.dtype), str(sharding.devices_indices_map(np.shape(x))) if placed else ""

    return [one(x) for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]


def test_the_weights_take_the_bytes_that_are_told(model, plans):
    assert bytes_on_device(plans.params) == sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(model.params)
    )


def test_training_programs_are_those_of_the_loop(config, model, plans, monkeypatch):
    called = {}

    def spy(name):
        real = getattr(loop, name)

        def record(*args):
            called.setdefault(name, outline(args))
            return real(*args)

        monkeypatch.setattr(loop, name, record)

    for name in ("gradients", "add", "update"):
        spy(name)
    rows = [TrainRow((Example((1,) * PROMPT, (n,) * ANSWER), Example((1,) * PROMPT, (n + 1,) * ANSWER)), (-1.0, -2.0))
            for n in range(8)]  # fmt: skip
    run = dataclasses.make_dataclass("Run", ["config", "rules"])(config, model.rules)
    settings = train_settings(run, config.dpo, len(rows))  # type: ignore[arg-type]
    objective = make_objective(loss_settings(config.dpo))
    fresh = dataclasses.replace(model, params=jax.tree.map(lambda x: x + 0, model.params))
    loop.train(fresh, rows, objective, settings, seed=0, folder=None, title="t", interrupt=Interrupt())
    planned = {p.name: p for p in plans.training("dpo")}
    assert set(planned) == {"dpo gradients", "dpo sum", "dpo update"}
    assert outline(planned["dpo gradients"].arguments) == called["gradients"]
    matrices = [x for x in outline(planned["dpo sum"].arguments) if len(x[0]) > 1]
    assert matrices == [x for x in called["add"] if len(x[0]) > 1]
    assert outline(planned["dpo update"].arguments)[1:] == called["update"][1:]


@pytest.mark.parametrize("stage", ["respond", "judge"])
def test_sampling_programs_are_those_of_the_engine(config, model, plans, stage, monkeypatch):
    engine = Engine(model, engine_settings(config.generation))
    called = {}
    monkeypatch.setattr(
        engine, "prepare", lambda what, function, *args, **static: called.update({function: (args, static)})
    )
    planned = {p.function: p for p in plans.stage(stage).programs()}
    section = config[stage]
    length, count = (PROMPT, 6) if stage == "respond" else (INSTRUCTIONS + PROMPT + ANSWER, 24)
    shared = () if stage == "respond" else (3,) * INSTRUCTIONS
    prompts = [(*shared, n + 4, *(5,) * (length - len(shared) - 1)) for n in range(count)]
    requests = [Request(str(n), ids) for n, ids in enumerate(prompts)]
    samples = config.respond.n if stage == "respond" else config.judge.samples
    sampling = SamplingSettings(
        section.temperature, section.top_p, section.max_new_tokens, min_new_tokens=section.max_new_tokens
    )
    assert len(list(engine.run(requests, samples, sampling, seed=0))) == count * samples
    for function, plan in planned.items():
        args, static = called[function]
        assert outline(plan.arguments[1:]) == outline(args[1:])  # the first is the model's shape
        assert {k: v for k, v in static.items() if k != "eos_ids"} == {
            k: v for k, v in plan.static.items() if k != "eos_ids"
        }


def test_draws_outside_of_the_nucleus_are_repeated(config, model):
    def stage(top_p, temperature=0.7):
        other = config.copy_and_resolve_references()
        other.respond.top_p, other.respond.temperature, other.generation.slots = top_p, temperature, 24
        mesh = mesh_over(MESH, jax.devices())
        return Plans(other, model.config, mesh, "cpu", 2.0**34, Lengths(PROMPT, INSTRUCTIONS)).stage("respond")

    assert stage(0.2).rows == 24
    # A fifth of the draws is kept, so each of a replica's six rows takes four more, and sixteen are made at a time.
    assert [stage(*law).redraws() for law in ((0.2,), (0.9,), (1.0,), (0.2, 0.0))] == [2, 1, 0, 0]
    decode = list(stage(0.2).programs())[-1]
    assert decode.notes and "draw again, 2 times a step" in decode.notes[0]
    result = compile_planned(decode, parse("cpu:8"))
    assert result.notes == list(decode.notes)  # and no loop whose rounds are unknown


def test_programs_follow_the_way_of_judging_and_the_losses(config, model):
    def plans(**changes):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(changes)
        lengths = Lengths(PROMPT, INSTRUCTIONS)
        return Plans(other, model.config, mesh_over(MESH, jax.devices()), "cpu", 2.0**34, lengths)

    read = plans(**{"judge.method": "expected", "judge.rationale": False})
    (prefill,) = read.stage("judge").programs()
    assert prefill.name == "prefill, judgements" and prefill.arguments[4] == []
    assert not list(programs(plans(**{"judge.method": "function"}), ["judge"]))
    assert list(plans(**{"respond.stop": ("x",)}).stage("respond").programs())[-1].static["steps"] == STEPS_WITH_STOP
    (scores,) = plans(**{"dpo.ld_alpha": 0.5}).reference()
    assert scores.arguments[3].shape == (8,) and scores.static["tail_weight"] == 0.5
    assert not list(plans(**{"dpo.data": "positives"}).reference())


def test_sampling_that_does_not_fit_is_a_result(config, model):
    free = config.copy_and_resolve_references()
    free.generation.cache_gib = 0.0
    plans = Plans(free, model.config, mesh_over(MESH, jax.devices()), "gpu", 2.0**16, Lengths(PROMPT, INSTRUCTIONS))
    (planned,) = plans.stage("judge").programs()
    result = compile_planned(planned, parse("gpu:8xh100"))
    assert "parameters and sampling weights take" in result.too_big and result.seconds == {}
    assert {"parameters", "sampling weights"} < set(result.memory) and result.largest


@pytest.mark.parametrize("micro", [3, 8, 5])
def test_a_micro_batch_does_as_much_as_it_has_rows(config, model, micro):
    other = config.copy_and_resolve_references()
    other.dpo.micro_batch_size = micro
    plans = Plans(other, model.config, mesh_over(MESH, jax.devices()), "cpu", 2.0**34, Lengths(PROMPT, INSTRUCTIONS))
    gradients = next(iter(plans.training("dpo")))
    rows = gradients.arguments[4].tokens.shape[0]  # of 8 pairs; none of the first one's stand empty
    assert gradients.texts == min(rows, 16) and gradients.tokens == gradients.texts * (PROMPT + ANSWER)


def test_scores_are_those_of_the_reference(config, model, plans, monkeypatch):
    from selfreward_jax.engine import score

    called = []
    real = score.score
    monkeypatch.setattr(score, "score", lambda *args, **static: called.append((args, static)) or real(*args, **static))
    examples = [Example((1,) * PROMPT, (2,) * ANSWER)] * 8
    score_batch(model, examples, rows=8, bucket=config.training.length_bucket, head_chunk=config.training.head_chunk)
    (planned,) = plans.reference()
    assert outline(planned.arguments) == outline(called[0][0])
