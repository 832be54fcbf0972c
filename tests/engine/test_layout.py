"""The sampling layout holds the weights that it was given, and says so if it does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from selfreward_jax.engine import block, layout
from selfreward_jax.engine.generate import Engine, EngineSettings
from selfreward_jax.llama import model as llama
from tests.engine.small_llama import GQA, GROUPED, VARIANTS, random_params, small_model


@pytest.mark.parametrize("name", VARIANTS)
def test_a_fused_layer_is_its_weights_and_does_what_they_do(name):
    config = VARIANTS[name]
    params = random_params(config)
    layer = jax.tree.map(lambda x: x[1], params["layers"])
    fused = block.fuse(config, layer)
    jax.tree.map(np.testing.assert_array_equal, block.unfuse(config, fused), layer)

    x = jax.random.normal(jax.random.key(0), (2, 5, config.hidden_size))
    rope = llama.rope_tables(config, jnp.arange(5)[None])
    plain, made = llama.project_qkv(config, layer, x, rope), block.project_qkv(config, fused, x, rope)
    np.testing.assert_allclose(made[0].reshape(plain[0].shape), plain[0], atol=1e-5)
    for a, b in zip(made[1:], plain[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(block.mlp(config, fused, x), llama.mlp(config, layer, x), atol=1e-5)
    out = block.project_out(config, fused, made[0])
    np.testing.assert_allclose(out, llama.project_out(config, layer, plain[0]), atol=1e-5)


def test_weights_are_split_over_tensor_devices_alone():
    engine = Engine(small_model(fsdp=4, tensor=2))
    qkv, embed = engine.weights["layers"][0]["qkv"], engine.weights["embed"]
    assert qkv.sharding.spec[1] == "tensor" and embed.sharding.spec[0] == "tensor"
    assert qkv.addressable_shards[0].data.shape[1] == 1
    assert len({str(s.index) for s in qkv.addressable_shards}) == 2


@pytest.mark.parametrize("at", [("down", (3, 4)), ("qkv", (5, 3, 2, 7))])  # the latter in the second copy of a key
def test_a_weight_that_changes_on_its_way_is_noticed(monkeypatch, at):
    real = layout._program
    name, place = at

    def faulty(function, *fixed, layouts):
        made = real(function, *fixed, layouts=layouts)
        if function is not layout._layer:
            return made
        return lambda *args: (layer := made(*args)) | {name: layer[name].at[place].add(1e-6)}

    monkeypatch.setattr(layout, "_program", faulty)
    with pytest.raises(RuntimeError, match=f"the weight {'k' if name == 'qkv' else name} changed on its way into the"):
        Engine(small_model(GROUPED, seed=3, data=4), EngineSettings(tensor=4))


def test_a_kv_head_for_each_group_of_its_queries():
    def heads(num_heads, num_kv_heads, tensor):
        config = dataclasses.replace(GQA, num_heads=num_heads, num_kv_heads=num_kv_heads)
        mesh = AbstractMesh((1, tensor), (layout.REPLICA, layout.TENSOR))
        held = layout.sampling_config(config, mesh)
        assert layout.sampling_config(held, mesh) == held
        return held.num_kv_heads, layout.splits_kv(held, mesh)

    assert heads(64, 8, 8) == heads(64, 8, 2) == (8, True)
    assert heads(64, 8, 16) == (16, True) and heads(64, 8, 64) == (64, True)
    assert heads(24, 4, 6) == (12, True)
    assert heads(64, 8, 128) == heads(64, 8, 3) == (8, False)


def test_the_computation_is_in_its_own_dtype_and_the_training_weights_stay_as_they_are():
    model = dataclasses.replace(small_model(), dtype="bfloat16")
    engine = Engine(model)
    assert {x.dtype for x in jax.tree.leaves(engine.weights)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}
