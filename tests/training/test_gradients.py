"""Gradients are those of finite differences on a second, naive model in float64, however the batch is split."""

import functools

import jax
import numpy as np
import optax
import pytest

from selfreward_jax.core.mesh import put_rows
from selfreward_jax.llama.load import shardings
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.loop import micro_batches
from selfreward_jax.training.objectives import DPO, SFT
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.step import ForwardSettings, add, gradients, init_state, update
from tests.engine.small_llama import GQA, VARIANTS, log_softmax, naive_logp, random_params, small_model

FORWARD = ForwardSettings(dtype="float32", head_chunk=32, remat=True, dropout=0.0)
BUCKET = 16
BETA, SMOOTHING = 0.3, 0.1


def example(rng, most: int) -> Example:
    prompt, response = rng.integers(1, most, 2)
    return Example(*(tuple(rng.integers(0, GQA.vocab_size, n).tolist()) for n in (prompt, response)))


def make_rows(kind: str, count: int, most: int = 9) -> list[TrainRow]:
    rng = np.random.default_rng(0)
    if kind == "sft":
        return [TrainRow((example(rng, most),)) for _ in range(count)]
    pairs = [(example(rng, most), example(rng, most)) for _ in range(count)]
    return [TrainRow(pair, tuple(rng.normal(-4 * len(e.response_ids)) for e in pair)) for pair in pairs]


OBJECTIVES = {"sft": SFT(), "dpo": DPO(BETA, SMOOTHING)}


def summed(config, params, kind: str, rows, micro: int, key=None):
    """Gradients and metric sums of a batch, taken `micro` rows at a time as the training loop does."""
    objective = OBJECTIVES[kind]
    counts = {name: np.float32(value) for name, value in objective.counts(rows).items()}
    key = jax.random.key(0) if key is None else key
    parts = [
        gradients(config, objective, FORWARD, params, batch, arrays, counts, key)
        for batch, arrays in micro_batches(rows, micro, BUCKET)
    ]
    return functools.reduce(add, parts)


def naive_loss(config, params, kind: str, rows) -> float:
    logp = lambda e: naive_logp(config, params, e.prompt_ids, e.response_ids)  # noqa: E731
    if kind == "sft":
        return -sum(logp(r.examples[0]) for r in rows) / sum(len(r.examples[0].response_ids) for r in rows)
    gains = [[logp(e) - ref for e, ref in zip(r.examples, r.reference, strict=True)] for r in rows]
    margins = BETA * np.array([chosen - rejected for chosen, rejected in gains])
    right, wrong = log_softmax(np.stack([margins, 0 * margins], axis=-1)).T
    return -((1 - SMOOTHING) * right + SMOOTHING * wrong).mean()


@pytest.mark.parametrize(("kind", "variant"), [("sft", "mha_with_biases"), ("dpo", "tied_mqa")])
def test_loss_and_gradients_are_those_of_the_naive_model(kind, variant):
    config, rows = VARIANTS[variant], make_rows(kind, 3)
    params = random_params(config)
    grads, sums = summed(config, params, kind, rows, 3)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    assert float(sums["loss"]) == pytest.approx(naive_loss(config, params, kind, rows), rel=1e-5)

    rng, step = np.random.default_rng(0), 1e-5
    leaves, tree = jax.tree.flatten(params)
    for n, ((path, grad), leaf) in enumerate(zip(jax.tree_util.tree_leaves_with_path(grads), leaves, strict=True)):
        direction = rng.normal(size=leaf.shape)
        losses = []
        for sign in (1, -1):
            moved = [*leaves[:n], leaf + sign * step * direction, *leaves[n + 1 :]]
            losses.append(naive_loss(config, jax.tree.unflatten(tree, moved), kind, rows))
        expected = (losses[0] - losses[1]) / (2 * step)
        found = (np.asarray(grad, np.float64) * direction).sum()
        scale = np.linalg.norm(grad) + 1e-3  # what the product with a random direction is about
        assert abs(found - expected) < 1e-4 * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("kind", "count", "micro"), [("sft", 8, 3), ("dpo", 5, 2)])
def test_splitting_a_batch_changes_no_gradient_and_no_metric(kind, count, micro):
    """With rows of unequal token counts and a last part that is not full."""
    rows, params = make_rows(kind, count), random_params(GQA)
    whole, split = summed(GQA, params, kind, rows, count), summed(GQA, params, kind, rows, micro)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, split)


# Large eps: else Adam's first step is the gradient's sign, which rounding turns where the gradient is near 0.
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=0, steps=6, adam_eps=1e-2)
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


def two_steps(model):
    """DPO as the training loop does it: the last gradients, metric sums, and the state."""
    rows = make_rows("dpo", 4)
    state = init_state(GQA, OPTIMIZER, model.params)
    with jax.set_mesh(model.mesh):
        for start, end in ((0, 2), (2, 4)):
            ((batch, arrays),) = micro_batches(rows[start:end], 2, BUCKET)
            batch, arrays = put_rows(batch, model.mesh), put_rows(arrays, model.mesh, axis=-1)
            grads, sums = gradients(
                GQA,
                OBJECTIVES["dpo"],
                FORWARD,
                state.params,
                batch,
                arrays,
                {"pairs": np.float32(2)},
                jax.random.key(0),
            )
            state, _ = update(GQA, OPTIMIZER, state, grads)
    return grads, sums, state


def test_two_updates_on_eight_devices_are_those_on_one():
    one, eight = two_steps(small_model()), two_steps(small_model(**EIGHT))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, eight)


def test_gradients_and_moments_are_laid_out_like_the_weights():
    """Else fully sharded training would need one device to hold them whole."""
    model = small_model(**EIGHT)
    expected = shardings(GQA, model.mesh)
    fresh = init_state(GQA, OPTIMIZER, model.params)
    kept = {name: optax.tree.get(fresh.opt_state, name) for name in ("mu", "nu")}
    grads, _, state = two_steps(model)
    kept |= {"gradients": grads, "weights": state.params}
    for name, tree in kept.items():
        jax.tree.map(lambda x, s, name=name: assert_laid_out(x, s, name), tree, expected)


def assert_laid_out(x, sharding, name):
    assert x.sharding.is_equivalent_to(sharding, x.ndim), f"{name} {x.shape}"
