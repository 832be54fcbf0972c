"""Adam's moments in fewer bits are right on average, follow float32, and cost what they should."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selfreward_jax.core.mesh import put_rows
from selfreward_jax.llama.load import shardings
from selfreward_jax.llama.params import count_params, map_specs, param_specs
from selfreward_jax.training.loop import micro_batches
from selfreward_jax.training.moments import FORMATS, block_size, scale_by_adam
from selfreward_jax.training.objectives import SFT
from selfreward_jax.training.optimizer import OptimizerSettings, make_optimizer
from selfreward_jax.training.packing import Layout
from selfreward_jax.training.step import gradients, init_state, update
from tests.engine.small_llama import GQA, random_params, small_model
from tests.training.test_gradients import BUCKET, EIGHT, FORWARD, OBJECTIVES, assert_laid_out, make_rows

SETTINGS = OptimizerSettings(learning_rate=3e-3, final_learning_rate=3e-4, warmup_steps=2, steps=30, weight_decay=0.1)
WIDE = dataclasses.replace(GQA, hidden_size=256, head_dim=64, intermediate_size=512, vocab_size=512)
RNG = np.random.default_rng(0)


def changed(**changes) -> OptimizerSettings:
    return dataclasses.replace(SETTINGS, **changes)


def test_in_float32_it_is_optax_adamw_bit_for_bit():
    params = random_params(GQA)
    theirs = jax.tree.map(jnp.copy, params)
    rates = optax.warmup_cosine_decay_schedule(1e-3, 3e-3, 2, 29, 3e-4)
    decayed = map_specs(lambda spec: spec.kind == "matrix", param_specs(GQA))
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rates, b1=0.9, b2=0.95, weight_decay=0.1, mask=decayed)
    )

    @jax.jit
    def step(params, opt_state, grads):
        updates, opt_state = adamw.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    state, opt_state = init_state(GQA, SETTINGS, params), adamw.init(theirs)
    for n in range(4):
        grads = jax.tree.map(lambda x, n=n: jnp.cos(x * (50 + n)) * 0.1**n, theirs)
        state, _ = update(GQA, SETTINGS, state, grads)
        theirs, opt_state = step(theirs, opt_state, grads)
    jax.tree.map(np.testing.assert_array_equal, state.params, theirs)


def test_moments_are_float32_where_the_weights_are_bfloat16():
    state = init_state(GQA, SETTINGS, random_params(GQA, dtype=jnp.bfloat16))
    state, _ = update(GQA, SETTINGS, state, jax.tree.map(lambda x: x * 0 + 1, state.params))
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(optax.tree.get(state.opt_state, "nu"))} == {"float32"}


def kept(name: str, moment: int, x: np.ndarray) -> np.ndarray:
    """What is read of `x` after it was kept once, each row with bits of its own."""
    form = FORMATS[name][moment]
    bits = RNG.integers(0, 2**16, x.shape, np.uint32)
    return np.asarray(jax.jit(lambda x, bits: form.read(form.keep(x, bits)))(jnp.asarray(x, jnp.float32), bits))


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize("moment", [0, 1])
def test_a_kept_value_is_right_on_average(name, moment):
    """Down to values a ten-thousandth of their block's largest."""
    values = 10.0 ** RNG.uniform(-4, 0, 64) * (1 if moment else RNG.choice([-1, 1], 64))
    found = kept(name, moment, np.tile(values, (20000, 1)))
    error = np.abs(found.mean(axis=0, dtype=np.float64) - values)
    assert (error < 5 * found.std(axis=0) / np.sqrt(20000) + 1e-4 * np.abs(values)).all()


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_a_second_moment_is_never_kept_as_zero_and_its_root_stays_near(name):
    """The update divides by that root."""
    values = np.concatenate([10.0 ** np.linspace(-30, 0, 200), [0.0]])
    found = kept(name, 1, np.tile(values, (50, 1)))
    assert (found[:, :-1] > 0).all() and (found[:, -1] == 0).all()
    root = np.sqrt(found[:, :-1] / values[:-1])[:, values[:-1] > 1e-6]
    assert np.abs(root - 1).max() < 0.4
    assert np.abs(root[:, -20:] - 1).max() < 0.1


def test_signs_zeros_and_the_largest_value_of_a_block_are_exact():
    x = RNG.normal(size=(3, 512)) * (RNG.random((3, 512)) < 0.7)
    found = kept("int8", 0, x)
    assert ((np.sign(found) == np.sign(x)) | (found == 0)).all() and (found[x == 0] == 0).all()
    blocks = np.abs(x.reshape(-1, 256))
    np.testing.assert_allclose(np.abs(found.reshape(-1, 256)).max(axis=1), blocks.max(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("length", "size"), [(1, 1), (64, 64), (576, 288), (4096, 256), (11008, 256), (32000, 256), (509, 509)]
)
def test_blocks_divide_an_axis_and_are_as_near_to_256_as_they_can(length, size):
    assert block_size(length) == size


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize("b2", [0.95, 0.999])
def test_moments_without_gradient_fade_as_in_float32(name, b2):
    """Rounded to the nearest, those of b2 = 0.999 would stand still for ever."""
    adams = [scale_by_adam(0.9, b2, 1e-8, dtype) for dtype in ("float32", name)]
    alive = jnp.asarray(np.arange(2048) % 2, jnp.float32)
    first = jnp.asarray(RNG.normal(size=2048) + 3, jnp.float32)

    @jax.jit
    def second_moments():
        def after(adam):
            _, state = adam.update(first, adam.init(first))
            grad = lambda n: alive * first  # noqa: E731
            return jax.lax.fori_loop(0, 100, lambda n, state: adam.update(grad(n), state)[1], state)

        whole, packed = map(after, adams)
        return whole.nu, FORMATS[name][1].read(packed.nu)

    whole, packed = jax.device_get(second_moments())
    for part in (slice(0, None, 2), slice(1, None, 2)):
        assert packed[part].mean() == pytest.approx(whole[part].mean(), rel=0.1)


UPDATES_APART = {"int8": 0.08, "bfloat16": 0.01}


@pytest.mark.parametrize("name", UPDATES_APART)
def test_training_follows_that_in_float32(name):
    """SFT on eight rows until most of the loss is gone, and at each step the two updates for the same gradients."""
    rows = make_rows("sft", 8)
    ((batch, arrays),) = micro_batches(rows, Layout(8, BUCKET))
    counts = {name: np.float32(value) for name, value in SFT().counts(rows).items()}
    states = [init_state(GQA, changed(moments_dtype=d), random_params(GQA)) for d in ("float32", name)]
    losses, apart = [], []
    direct = [scale_by_adam(0.9, 0.95, 1e-8, d) for d in ("float32", name)]
    beside = [adam.init(states[0].params) for adam in direct]
    both = jax.jit(lambda grads, beside: [a.update(grads, s) for a, s in zip(direct, beside, strict=True)])
    for _ in range(SETTINGS.steps):
        made = [
            gradients(GQA, OBJECTIVES["sft"], FORWARD, s.params, batch, arrays, counts, jax.random.key(0))
            for s in states
        ]
        losses.append([float(sums["loss"]) for _, sums in made])
        (u, v), beside = zip(*both(made[0][0], beside), strict=True)
        apart.append(float(optax.global_norm(jax.tree.map(jnp.subtract, u, v)) / optax.global_norm(u)))
        states = [
            update(GQA, changed(moments_dtype=d), s, g)[0]
            for d, s, (g, _) in zip(("float32", name), states, made, strict=True)
        ]
    losses = np.array(losses)
    assert losses[-1, 0] < 0.5 * losses[0, 0]
    assert max(apart) < UPDATES_APART[name]
    np.testing.assert_allclose(losses[:, 1], losses[:, 0], rtol=0.003)


@pytest.mark.parametrize(("changes", "most"), [({}, 8.001), ({"moments_dtype": "bfloat16"}, 4.001)]
    + [({"moments_dtype": "int8"}, 2.1), ({"optimizer": "adafactor"}, 0.04)])  # fmt: skip
def test_bytes_of_state_for_a_weight(changes, most):
    """Of Adafactor's means, a row's and a column's number for each matrix."""
    init = make_optimizer(WIDE, changed(**changes)).init
    state = jax.eval_shape(init, jax.eval_shape(lambda: random_params(WIDE)))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert 0.5 * most < size / count_params(WIDE) <= most


def test_codes_are_laid_out_like_the_weights_and_scales_where_they_divide():
    model = small_model(WIDE, **EIGHT)
    settings = changed(moments_dtype="int8")
    expected = shardings(WIDE, model.mesh)
    state = init_state(WIDE, settings, model.params)
    with jax.set_mesh(model.mesh):
        after, _ = update(WIDE, settings, state, jax.tree.map(lambda x: x * 0.1, model.params))
    for when in (init_state(WIDE, settings, small_model(WIDE, **EIGHT).params), after):
        for moment in ("mu", "nu"):
            tree = optax.tree.get(when.opt_state, moment)
            is_kept = lambda x: hasattr(x, "codes")  # noqa: E731
            codes = jax.tree.map(lambda x: x.codes, tree, is_leaf=is_kept)
            jax.tree.map(lambda x, s, name=moment: assert_laid_out(x, s, name), codes, expected)
            scales = tree["layers"]["gate"].scales  # [L, D, F / 256], D over fsdp, F over tensor
            assert scales.shape == (2, 256, 2) and scales.sharding.shard_shape(scales.shape) == (2, 128, 1)
            assert tree["head"].scales.sharding.shard_shape((256, 2)) == (128, 1)


def test_adafactor_lowers_the_loss_and_lays_its_means_out():
    settings = changed(optimizer="adafactor", learning_rate=1e-2, steps=6)
    model, rows = small_model(WIDE, **EIGHT), make_rows("sft", 4)
    ((batch, arrays),) = micro_batches(rows, Layout(4, BUCKET))
    state, losses = init_state(WIDE, settings, model.params), []
    means = optax.tree.get(state.opt_state, "v_row")["layers"]["gate"]  # [L, D], of [L, D, F]
    assert means.shape == (2, 256) and means.sharding.shard_shape(means.shape) == (2, 128)
    with jax.set_mesh(model.mesh):
        batch = put_rows(batch, model.mesh)
        for _ in range(settings.steps):
            grads, sums = gradients(
                WIDE, SFT(), FORWARD, state.params, batch, arrays, SFT().counts(rows), jax.random.key(0)
            )
            state, _ = update(WIDE, settings, state, grads)
            losses.append(float(sums["loss"]))
    assert losses[-1] < 0.8 * losses[0]
