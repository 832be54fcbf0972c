"""The learning rate's course, what weight decay applies to, and which tensors a rule sees."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import LoraSettings, trained_specs
from selfreward_jax.llama.params import full_shape, is_spec, map_specs, param_specs
from selfreward_jax.training.moments import FORMATS
from selfreward_jax.training.optimizer import OptimizerSettings, make_optimizer, schedule
from selfreward_jax.training.step import init_state, update
from tests.engine.small_llama import VARIANTS, random_params, small_model

SETTINGS = OptimizerSettings(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=0, steps=11)


def rates(**changes) -> list[float]:
    settings = dataclasses.replace(SETTINGS, **changes)
    return [float(schedule(settings)(step)) for step in range(settings.steps)]


def test_without_warm_up_the_first_step_has_the_full_rate_and_the_last_the_floor():
    found = rates()
    assert (found[0], found[-1]) == pytest.approx((1e-2, 1e-3))
    assert found[5] == pytest.approx((1e-2 + 1e-3) / 2)
    assert found == sorted(found, reverse=True)


def test_warm_up_rises_evenly_to_the_full_rate_and_the_last_step_has_the_floor():
    found = rates(warmup_steps=4)
    np.testing.assert_allclose(found[:5], [2e-3, 4e-3, 6e-3, 8e-3, 1e-2], rtol=1e-5)
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[-1] == pytest.approx(1e-3)


def test_a_linear_course_falls_evenly_and_the_last_step_has_the_floor():
    np.testing.assert_allclose(rates(schedule="linear"), np.linspace(1e-2, 1e-3, 11), rtol=1e-5)
    found = rates(schedule="linear", warmup_steps=4)
    np.testing.assert_allclose(found, [2e-3, 4e-3, 6e-3, 8e-3, *np.linspace(1e-2, 1e-3, 7)], rtol=1e-5)


def test_a_constant_course_stays_at_the_full_rate_after_warm_up():
    found = rates(schedule="constant", warmup_steps=4)
    np.testing.assert_allclose(found, [2e-3, 4e-3, 6e-3, 8e-3, *[1e-2] * 7], rtol=1e-5)
    np.testing.assert_allclose(rates(schedule="constant"), 1e-2, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (2, 0), (1, 5), (3, 3)])
def test_short_trainings_have_positive_rates(schedule, steps, warmup_steps):
    found = rates(schedule=schedule, steps=steps, warmup_steps=warmup_steps)
    assert all(0 < rate <= np.float32(1e-2) for rate in found)


def test_weight_decay_shrinks_matrices_and_leaves_norms_and_biases_alone():
    config = VARIANTS["mha_with_biases"]
    settings = dataclasses.replace(SETTINGS, weight_decay=0.5)
    params = random_params(config)
    before = jax.device_get(params)
    state = init_state(config, settings, params)
    state, facts = update(config, settings, state, jax.tree.map(np.zeros_like, before))
    factor = map_specs(lambda spec: 1 - 1e-2 * 0.5 if spec.kind == "matrix" else 1.0, param_specs(config))
    jax.tree.map(lambda a, b, f: np.testing.assert_allclose(a, f * b, rtol=1e-5), state.params, before, factor)
    assert facts["learning_rate"] == pytest.approx(1e-2) and state.step == 1


def test_the_norm_is_told_before_clipping_and_clipping_scales_the_gradient():
    """Seen in the first moment, (1 - b1) times the clipped gradient."""
    config = VARIANTS["gqa"]
    state = init_state(config, SETTINGS, random_params(config))
    grads = jax.tree.map(lambda x: np.full_like(x, 3.0), jax.device_get(state.params))
    size = sum(x.size for x in jax.tree.leaves(grads))
    state, facts = update(config, SETTINGS, state, grads)
    assert facts["grad_norm"] == pytest.approx(3 * size**0.5, rel=1e-5)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (config.hidden_size,)]
    np.testing.assert_allclose(moments[0], 0.1 / size**0.5, rtol=1e-4)


# Rules that act on one tensor at a time.

WIDE = LlamaConfig(
    vocab_size=160, hidden_size=256, intermediate_size=144, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=64,
    max_position_embeddings=64, attention_bias=True, mlp_bias=True,
)  # fmt: skip
RULES = {
    "adafactor": dataclasses.replace(SETTINGS, optimizer="adafactor", weight_decay=0.1, clip_norm=0.0),
    "adafactor, clipped": dataclasses.replace(SETTINGS, optimizer="adafactor"),
}
LORA = LoraSettings(rank=128, alpha=16.0, targets=("q", "o", "up"))


def unstacked(specs, tree) -> dict[str, np.ndarray]:
    """The tensors as a Hugging Face file has them, by name."""
    found = {}
    for spec, x in zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(tree), strict=True):
        parts = enumerate(np.asarray(x)) if spec.stacked else [(0, np.asarray(x))]
        found |= {spec.hf_name.format(layer=n): spec.to_hf(part) for n, part in parts}
    return found


def gradients_of(specs, params, step: int):
    """Each layer's ten times those of the one before."""

    def one(spec, x):
        sizes = 10.0 ** np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) if spec.stacked else 1.0
        return jnp.asarray(np.random.default_rng((x.size, step)).normal(size=x.shape) * sizes, x.dtype)

    return jax.tree.map(one, specs, params, is_leaf=is_spec)


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "an adapter"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_for_single_tensors_does_with_each_layer_what_optax_does_with_the_tensors_of_a_file(rule, lora):
    """In float64, over three steps."""
    settings, specs = RULES[rule], trained_specs(WIDE, lora)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = map_specs(lambda spec: jnp.asarray(rng.normal(size=full_shape(WIDE, spec))), specs)
        theirs: Any = jax.tree.map(jnp.asarray, unstacked(specs, params))
        plain = optax.chain(
            optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(settings.weight_decay, mask={name: x.ndim > 1 for name, x in theirs.items()}),
        )  # fmt: skip
        ours = make_optimizer(WIDE, settings, lora)
        state, plain_state = ours.init(params), plain.init(theirs)
        for step in range(3):
            grads = gradients_of(specs, params, step)
            found, state = jax.jit(ours.update)(grads, state, params)
            made: Any = plain.update(unstacked(specs, grads), plain_state, theirs)
            expected, plain_state = made
            for name, x in unstacked(specs, found).items():
                np.testing.assert_allclose(x, expected[name], rtol=1e-10, err_msg=name)
        kept = sum(x.size for x in jax.tree.leaves(plain_state)), sum(x.size for x in jax.tree.leaves(state))
    assert kept[0] == kept[1]


def test_no_layer_has_a_larger_update_for_the_sake_of_another():
    """Stacked layers were clipped as one tensor: their root mean squares were 1.19 and 0.77 instead of 1."""
    optimizer, specs = make_optimizer(WIDE, RULES["adafactor"]), param_specs(WIDE)
    params = jax.tree.map(jnp.zeros_like, random_params(WIDE))  # so that nothing decays
    step = jax.jit(optimizer.update)
    _, state = step(gradients_of(specs, params, 0), optimizer.init(params), params)
    updates, _ = step(jax.tree.map(lambda x: 30 * x, gradients_of(specs, params, 1)), state, params)
    for name, x in updates["layers"].items():
        sizes = np.sqrt(np.mean(np.square(x.reshape(WIDE.num_layers, -1)), axis=1))
        np.testing.assert_allclose(sizes, 1.0, rtol=1e-5, err_msg=name)


def test_over_a_mesh_adafactors_update_is_that_of_one_device():
    settings, specs = RULES["adafactor, clipped"], param_specs(WIDE)
    alone, spread = small_model(WIDE), small_model(WIDE, data=2, fsdp=2, tensor=2)
    made = []
    for model in (alone, spread):
        state = init_state(WIDE, settings, model.params)
        for step in range(2):
            grads = gradients_of(specs, state.params, step)
            grads = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), grads, state.params)
            with jax.set_mesh(model.mesh):
                state, facts = update(WIDE, settings, state, grads)
            assert np.isfinite(facts["grad_norm"])
        made.append(jax.device_get((state.params, state.opt_state)))
    (params, kept), (other, beside) = made
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, other)
    assert jax.tree.map(np.shape, kept) == jax.tree.map(np.shape, beside)


def test_the_means_over_a_matrix_are_laid_out_as_its_axes_are():
    model = small_model(WIDE, data=2, fsdp=2, tensor=2)
    state = init_state(WIDE, RULES["adafactor"], model.params)
    rows, columns = (optax.tree.get(state.opt_state, name)["layers"] for name in ("v_row", "v_col"))
    # q is a matrix [256, 4 * 64], split over fsdp and tensor; up is [256, 144].
    assert rows["q"].shape == columns["q"].shape == (3, 256) and rows["up"].shape == (3, 144)
    assert rows["up"].sharding.shard_shape(rows["up"].shape) == (3, 72)
    assert columns["up"].sharding.shard_shape(columns["up"].shape) == (3, 128)
    assert rows["k"].sharding.shard_shape(rows["k"].shape) == (3, 64)


def test_an_int8_block_lies_within_a_layer():
    """So that no layer's codes depend on another's values."""
    keep, x = FORMATS["int8"][0].keep, np.random.default_rng(0).normal(size=(3, 24, 4, 64))
    bits = jnp.full(x.shape, 2**15, jnp.uint32)
    stacked = keep(jnp.asarray(x * [[[[1]]], [[[100]]], [[[1e4]]]], jnp.float32), bits)
    for n in range(3):
        alone = keep(jnp.asarray(x[n] * 100.0**n, jnp.float32), bits[n])
        np.testing.assert_array_equal(stacked.codes[n], alone.codes)
        np.testing.assert_array_equal(stacked.scales[n], alone.scales)


def test_a_state_of_stacked_tensors_as_it_was_kept_before_is_refused_and_ours_is_restored(tmp_path):
    params, refusal = random_params(WIDE), "of another model or other settings: opt_state/.* use a new folder"
    state = jax.device_get(make_optimizer(WIDE, RULES["adafactor"]).init(params))
    before = optax.chain(
        optax.identity(), optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)), optax.identity()
    ).init(params)
    for name, kept in (("ours", state), ("before", before)):
        with Checkpoints(epath.Path(tmp_path / name)) as checkpoints:
            checkpoints.save(1, {"opt_state": kept})
            checkpoints.wait()
            if name == "ours":
                restored = checkpoints.restore(1, {"opt_state": jax.tree.map(jnp.asarray, state)})["opt_state"]
                jax.tree.map(np.testing.assert_array_equal, restored, state)
            else:
                with pytest.raises(UserError, match=refusal):
                    checkpoints.restore(1, {"opt_state": jax.tree.map(jnp.asarray, state)})
