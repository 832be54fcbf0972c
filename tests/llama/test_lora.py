"""An adapter acts as the matrix it stands for: fresh not at all, merged as beside the weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.lora import Adapter, LoraSettings, attach, compose, count_lora, init_lora, lora_specs, merge
from selfreward_jax.llama.model import forward
from selfreward_jax.llama.params import PROJECTIONS, full_shape, map_specs
from tests.engine.small_llama import GQA, VARIANTS, naive_logits, random_params, small_model

TOKENS = np.random.default_rng(3).integers(0, GQA.vocab_size, (2, 11))
SETTINGS = LoraSettings(rank=3, alpha=6.0)


def random_adapter(config, settings, seed: int = 1, size: float = 0.3):
    """Both factors random, so that every target changes the model."""
    rng = np.random.default_rng(seed)
    draw = lambda spec: jnp.asarray(size * rng.normal(size=full_shape(config, spec)), jnp.float32)  # noqa: E731
    return map_specs(draw, lora_specs(config, settings))


def merged64(config, settings, params, adapter):
    """The merged weights by the definition, one layer at a time in float64."""
    layers = {name: np.array(stack, np.float64) for name, stack in params["layers"].items()}
    for name, pair in adapter.items():
        for n in range(config.num_layers):
            a, b = (np.asarray(pair[side][n], np.float64) for side in ("a", "b"))
            product = a.reshape(-1, settings.rank) @ b.reshape(settings.rank, -1)
            layers[name][n] += settings.scale * product.reshape(layers[name][n].shape)
    return params | {"layers": layers}


logits = jax.jit(forward, static_argnums=0)


def test_a_fresh_adapter_changes_no_bit_of_the_logits():
    params = random_params(GQA)
    fresh = init_lora(GQA, SETTINGS, jax.random.key(0))
    with_it = logits(GQA, attach(SETTINGS, params, fresh), TOKENS)
    np.testing.assert_array_equal(with_it, logits(GQA, params, TOKENS))
    assert all(np.any(pair["a"]) and not np.any(pair["b"]) for pair in fresh.values())


def test_a_fresh_adapter_is_drawn_within_the_bound_of_peft():
    for name, pair in init_lora(GQA, SETTINGS, jax.random.key(0)).items():
        bound = 1 / np.sqrt(np.prod(pair["a"].shape[1:-1]))
        assert 0.8 * bound < np.abs(pair["a"]).max() <= bound, name
        assert np.abs(np.mean(pair["a"])) < 0.2 * bound, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_and_unmerged_logits_are_those_of_the_naive_model(variant):
    config = VARIANTS[variant]
    params, adapter = random_params(config), random_adapter(config, SETTINGS)
    expected = naive_logits(config, merged64(config, SETTINGS, params, adapter), TOKENS[0])
    assert np.abs(expected - naive_logits(config, params, TOKENS[0])).max() > 1
    beside = logits(config, attach(SETTINGS, params, adapter), TOKENS)[0]
    merged = logits(config, merge(SETTINGS, params, adapter), TOKENS)[0]
    np.testing.assert_allclose(beside, expected, atol=1e-4)
    np.testing.assert_allclose(merged, expected, atol=1e-4)


def test_every_target_alone_changes_the_logits():
    params = random_params(GQA)
    plain = logits(GQA, params, TOKENS)
    found = {name: random_adapter(GQA, dataclasses.replace(SETTINGS, targets=(name,))) for name in PROJECTIONS}
    for name, adapter in found.items():
        assert adapter.keys() == {name}
        weights = merged64(GQA, SETTINGS, params, adapter)
        changed = [key for key in weights["layers"] if np.any(weights["layers"][key] != params["layers"][key])]
        assert changed == [name]
        assert np.abs(naive_logits(GQA, weights, TOKENS[0]) - plain[0]).max() > 1e-2, name


def test_merging_keeps_dtype_and_layout_and_rounds_once():
    model = small_model(data=1, fsdp=2, tensor=2)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    expected = jax.tree.map(lambda x: (x.dtype, x.sharding), params)
    exact = merged64(GQA, SETTINGS, params, random_adapter(GQA, SETTINGS))
    merged = merge(SETTINGS, params, random_adapter(GQA, SETTINGS))
    assert jax.tree.map(lambda x: (x.dtype, x.sharding), merged) == expected
    for name in PROJECTIONS:
        error = np.abs(np.asarray(merged["layers"][name], np.float64) - exact["layers"][name])
        assert (error <= np.abs(exact["layers"][name]) * 2.0**-8 + 1e-6).all(), name


def test_rslora_scales_by_the_square_root_of_the_rank():
    assert LoraSettings(rank=16, alpha=8).scale == 0.5
    assert LoraSettings(rank=16, alpha=8, use_rslora=True).scale == 2.0


def test_composed_adapters_do_what_they_did_one_after_another():
    first, second = LoraSettings(2, 4.0, ("q", "down")), LoraSettings(3, 3.0, ("q", "o"), use_rslora=True)
    adapters = [Adapter(s, random_adapter(GQA, s, seed), "base") for seed, s in enumerate((first, second))]
    expected = random_params(GQA)
    for adapter in adapters:
        expected = merged64(GQA, adapter.settings, expected, adapter.params)
    whole = compose(GQA, adapters)
    assert (whole.settings.rank, whole.settings.targets, whole.base) == (5, ("q", "o", "down"), "base")
    found = merged64(GQA, whole.settings, random_params(GQA), whole.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)


def test_the_count_of_weights_is_theirs():
    fresh = init_lora(GQA, SETTINGS, jax.random.key(0))
    assert count_lora(GQA, SETTINGS) == sum(x.size for x in jax.tree.leaves(fresh))


@pytest.mark.parametrize(
    ("fields", "reason"), [({"rank": 0}, "rank 0"), ({"targets": ()}, "on nothing"), ({"targets": ("qq",)}, "on qq")]
)
def test_settings_that_can_not_work_are_refused(fields, reason):
    with pytest.raises(UserError, match=reason):
        LoraSettings(**{"rank": 2, "alpha": 1.0} | fields)
