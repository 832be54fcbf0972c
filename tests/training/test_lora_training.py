"""Training an adapter: its gradients are exact on any mesh, and nothing else is trained, kept or differentiated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.mesh import put_rows, put_whole
from selfreward_jax.llama.lora import LoraSettings, lora_specs, merge
from selfreward_jax.llama.model import adapter_drop
from selfreward_jax.llama.params import PROJECTIONS, shardings
from selfreward_jax.training.loop import micro_batches, train, trainable
from selfreward_jax.training.packing import Layout
from selfreward_jax.training.step import gradients, init_state, update
from tests.engine.small_llama import GQA, random_params, small_model
from tests.llama.test_lora import merged64, random_adapter
from tests.training.test_gradients import BUCKET, EIGHT, FORWARD, OBJECTIVES, OPTIMIZER, make_rows, naive_loss
from tests.training.test_train import DPO_RUN, SETTINGS, SFT_ROWS, StopAfter

LORA = LoraSettings(rank=3, alpha=6.0)
WITH_LORA = dataclasses.replace(FORWARD, lora=LORA)
DROPPED = dataclasses.replace(FORWARD, lora=dataclasses.replace(LORA, dropout=0.5))


def batch_of(rows, kind: str):
    """What `gradients` takes of all rows at once."""
    ((batch, arrays),) = micro_batches(rows, Layout(len(rows), BUCKET))
    return batch, arrays, {name: np.float32(value) for name, value in OBJECTIVES[kind].counts(rows).items()}


def lora_gradients(params, adapter, rows, kind: str, forward=WITH_LORA, key=None, mesh=None):
    """Of a batch at once, and its metrics."""
    batch, arrays, counts = batch_of(rows, kind)
    if mesh:
        batch, arrays = put_rows(batch, mesh), put_whole(arrays, mesh)
    key = jax.random.key(0) if key is None else key
    return gradients(GQA, OBJECTIVES[kind], forward, adapter, batch, arrays, counts, key, params)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_gradients_are_finite_differences_of_the_naive_model(kind):
    rows, params, adapter = make_rows(kind, 4), random_params(GQA), random_adapter(GQA, LORA)
    grads, sums = lora_gradients(params, adapter, rows, kind)
    loss = lambda adapter: naive_loss(GQA, merged64(GQA, LORA, params, adapter), kind, rows)  # noqa: E731
    adapter = jax.tree.map(lambda x: np.asarray(x, np.float64), adapter)
    assert float(sums["loss"]) == pytest.approx(loss(adapter), rel=1e-5)
    rng, step = np.random.default_rng(0), 1e-5
    leaves, tree = jax.tree.flatten(adapter)
    for n, ((path, grad), leaf) in enumerate(zip(jax.tree_util.tree_leaves_with_path(grads), leaves, strict=True)):
        direction = rng.normal(size=leaf.shape)
        moved = [[*leaves[:n], leaf + sign * step * direction, *leaves[n + 1 :]] for sign in (1, -1)]
        more, less = (loss(jax.tree.unflatten(tree, leaves)) for leaves in moved)
        found = (np.asarray(grad, np.float64) * direction).sum()
        scale = np.linalg.norm(grad) + 1e-3  # what the product with a random direction is about
        assert abs(found - (more - less) / (2 * step)) < 1e-4 * scale, jax.tree_util.keystr(path)


def test_gradients_follow_from_those_of_the_whole_weights_by_the_chain_rule():
    """dL/dA = scale dL/dW B^T and dL/dB = scale A^T dL/dW."""
    rows, params, adapter = make_rows("dpo", 4), random_params(GQA), random_adapter(GQA, LORA)
    grads, _ = lora_gradients(params, adapter, rows, "dpo")
    merged = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), merged64(GQA, LORA, params, adapter))
    whole, _ = gradients(GQA, OBJECTIVES["dpo"], FORWARD, merged, *batch_of(rows, "dpo"), jax.random.key(0))
    for name, pair in adapter.items():
        for n in range(GQA.num_layers):
            a, b = (np.asarray(pair[side][n], np.float64) for side in ("a", "b"))
            a, b = a.reshape(-1, LORA.rank), b.reshape(LORA.rank, -1)
            dw = np.asarray(whole["layers"][name][n], np.float64).reshape(len(a), -1)
            expected = {"a": LORA.scale * dw @ b.T, "b": LORA.scale * a.T @ dw}
            for side, value in expected.items():
                found = np.asarray(grads[name][side][n]).reshape(value.shape)
                assert np.abs(found - value).max() < 1e-5 * np.abs(value).max() + 1e-7, (name, side)


def fresh(model):
    return trainable(model, LORA, jax.random.key(7))


def test_gradients_and_a_fresh_adapter_are_the_same_on_eight_devices_as_on_one():
    rows, one, many = make_rows("dpo", 4), small_model(), small_model(**EIGHT)
    jax.tree.map(np.testing.assert_array_equal, fresh(one), fresh(many))
    expected, sums = lora_gradients(one.params, fresh(one), rows, "dpo")
    with jax.set_mesh(many.mesh):
        found, found_sums = lora_gradients(many.params, fresh(many), rows, "dpo", mesh=many.mesh)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=5e-5), found, expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), found_sums, sums)
    layout = shardings(GQA, many.mesh, lora_specs(GQA, LORA))
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(layout))
    for tree in (found, fresh(many)):
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.shape}"), tree, layout)


def test_gradients_beside_bfloat16_weights_are_float32():
    model = small_model()
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    arguments = batch_of(make_rows("dpo", 4), "dpo")
    forward = dataclasses.replace(WITH_LORA, dtype="bfloat16")
    call = functools.partial(gradients, GQA, OBJECTIVES["dpo"], forward)
    grads, _ = jax.eval_shape(call, fresh(model), *arguments, jax.random.key(0), frozen)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_frozen_weights_have_no_gradient_and_no_product_is_computed_for_one():
    """Every matrix has a shape of its own, and no operation has that shape but its cast and those of its adapter."""
    rows, params, adapter = make_rows("sft", 2), random_params(GQA), random_adapter(GQA, LORA)
    arguments = (*batch_of(rows, "sft"), jax.random.key(0))

    def products(forward, trained, frozen) -> list[tuple[int, ...]]:
        call = functools.partial(gradients, GQA, OBJECTIVES["sft"], forward, frozen=frozen)
        found: list[tuple[int, ...]] = []
        _walk(jax.make_jaxpr(lambda x: call(x, *arguments))(trained).jaxpr, found)
        return found

    shapes = {x.shape[1:] for name, x in params["layers"].items() if name in adapter}
    assert shapes <= {tuple(sorted_out) for sorted_out in _both_ways(products(FORWARD, params, None))}
    assert not shapes & set(_both_ways(products(WITH_LORA, adapter, params)))


def _walk(jaxpr, found: list) -> None:
    """Shapes of the results of all matrix products, those of inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    _walk(getattr(inner, "jaxpr", inner), found)


def _both_ways(shapes):
    """A gradient may be computed transposed."""
    return [way for shape in shapes for n in range(max(len(shape), 1)) for way in (shape[n:] + shape[:n],)]


def test_the_optimiser_keeps_moments_of_the_adapter_alone():
    model = small_model()
    adapter = fresh(model)
    state = init_state(GQA, OPTIMIZER, adapter, LORA)
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(state.params) == size(adapter)
    assert 2 * size(adapter) <= size(state.opt_state) <= 2 * size(adapter) + 64
    assert size(state.opt_state) < size(init_state(GQA, OPTIMIZER, model.params).opt_state) / 3


def test_decay_shrinks_both_factors():
    adapter = random_adapter(GQA, LORA)
    settings = dataclasses.replace(OPTIMIZER, weight_decay=0.5)
    state = init_state(GQA, settings, adapter, LORA)
    zero = jax.tree.map(jnp.zeros_like, adapter)
    before = jax.tree.map(np.asarray, adapter)
    after, _ = update(GQA, settings, state, zero, LORA)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x * (1 - 0.5e-2), rtol=1e-6), before, after.params)


def test_dropout_acts_on_adapters_inputs_and_is_drawn_for_each_matrix():
    rows, params, adapter = make_rows("sft", 2), random_params(GQA), random_adapter(GQA, LORA)

    def loss(forward, key, adapter=adapter) -> float:
        return float(lora_gradients(params, adapter, rows, "sft", forward, jax.random.key(key))[1]["loss"])

    assert loss(WITH_LORA, 0) == loss(WITH_LORA, 1)
    assert len({loss(DROPPED, key) for key in (0, 1)} | {loss(WITH_LORA, 0)}) == 3
    assert loss(DROPPED, 0) == loss(DROPPED, 0)
    nothing = jax.tree.map(jnp.zeros_like, adapter)
    assert loss(DROPPED, 0, nothing) == loss(DROPPED, 1, nothing) == pytest.approx(loss(WITH_LORA, 0, nothing))
    # Not one mask for all: the same input in the same matrix's place, under another name.
    drop = adapter_drop(0.5, jax.random.key(0))
    ones = jnp.ones(64)
    masks = {name: tuple(np.asarray(drop(name, ones)).tolist()) for name in PROJECTIONS}
    assert len(set(masks.values())) == len(PROJECTIONS)
    assert set(masks["q"]) == {0.0, 2.0}


# ---------------------------------------------------------------------------------------------------------------------
# The loop

SFT_LORA = {
    "rows": SFT_ROWS,
    "objective": OBJECTIVES["sft"],
    "settings": dataclasses.replace(SETTINGS, forward=DROPPED, checkpoint_every=2),
}
# The same programs as above, which take long to compile.
DPO_LORA = DPO_RUN | {"settings": dataclasses.replace(DPO_RUN["settings"], forward=WITH_LORA, layout=Layout(4, 16))}


def run(folder=None, *, interrupt=None, model=None, **what):
    return train(
        model or small_model(), **what, seed=5, folder=folder and epath.Path(folder), title="test",
        interrupt=interrupt or Interrupt(),
    )  # fmt: skip


def weights(folder, step: int, name: str, like):
    checkpoints = Checkpoints(epath.Path(folder) / "checkpoints")
    found = checkpoints.restore(step, {name: like})[name]
    checkpoints.close()
    return found


def test_what_a_training_ends_with_is_its_base_and_its_adapter_merged(tmp_path):
    model, step, log = run(tmp_path, **SFT_LORA)
    assert model.adapter and model.adapter.base == "small"
    assert log[-1]["loss"] < log[0]["loss"]
    base = random_params(GQA)
    jax.tree.map(np.testing.assert_array_equal, model.params, merge(LORA, base, model.adapter.params))
    saved = weights(tmp_path, step, "adapter", model.adapter.params)
    jax.tree.map(np.testing.assert_array_equal, saved, model.adapter.params)
    base = random_params(GQA)
    for name in ("embed", "norm", "head"):
        np.testing.assert_array_equal(model.params[name], base[name])
    assert all(np.any(model.params["layers"][name] != base["layers"][name]) for name in model.adapter.params)


def test_stopped_and_resumed_is_the_same_as_uninterrupted(tmp_path):
    whole, _, log = run(tmp_path / "whole", **SFT_LORA)
    for steps in (3, 6):  # in the midst, and with all steps done
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped", **SFT_LORA, interrupt=StopAfter(tmp_path / "stopped", steps))
    resumed, _, again = run(tmp_path / "stopped", **SFT_LORA)
    assert again == log
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.adapter.params, whole.adapter.params)
    assert resumed.hash == whole.hash


def test_a_checkpoint_holds_the_adapter_and_its_optimiser_alone(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, **SFT_LORA, interrupt=StopAfter(tmp_path, 3))
    items = {path.name for path in (tmp_path / "checkpoints" / "3").iterdir() if path.is_dir()}
    assert items == {"adapter", "opt_state"}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_training_on_a_mesh_keeps_the_layout_and_can_be_resumed(tmp_path):
    whole, *_ = run(**DPO_LORA, model=small_model(**EIGHT))
    layout = shardings(GQA, whole.mesh)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.shape}"), whole.params, layout)
    with pytest.raises(Interrupted):
        run(tmp_path, **DPO_LORA, model=small_model(**EIGHT), interrupt=StopAfter(tmp_path, 3))
    resumed, *_ = run(tmp_path, **DPO_LORA, model=small_model(**EIGHT))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
