"""The engine's kernels and programs compile for TPUs, and no copy of the cache is made in them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from selfreward_jax.engine import pallas_decode, programs
from selfreward_jax.engine.layout import REPLICA, TENSOR, sampling_config, sampling_weights
from selfreward_jax.engine.pallas_decode import TokenKV
from selfreward_jax.engine.regions import region_shapes
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import full_shape, map_specs, param_specs
from selfreward_jax.plan.hlo import Program
from tests.tpu import described, described_mesh, needs_libtpu

pytestmark = needs_libtpu
BF16, INT = jnp.bfloat16, jnp.int32
CALL = "tpu_custom_call"

# The heads of Llama-3.1-8B; the rest is small so that it compiles faster.
LLAMA = LlamaConfig(
    vocab_size=1024,
    hidden_size=512,
    intermediate_size=4096,
    num_layers=1,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=8192,
)
SLOTS, ENTRIES, SAMPLES = 256, 96, 4


def mesh_of(kind: str, tensor: int):
    return described_mesh(kind, (1, tensor), (REPLICA, TENSOR))


def size(regions) -> int:
    """Bytes on each device."""
    each = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize  # noqa: E731
    return sum(map(each, jax.tree.leaves(regions)))


@pytest.mark.parametrize(("kind", "K", "G", "E"), [("v5e", 8, 4, 128), ("v5p", 8, 8, 64), ("v6e", 3, 3, 64)])
def test_the_kernels_of_decoding_compile(kind, K, G, E):
    mesh = mesh_of(kind, 1)
    arg = functools.partial(described, mesh)
    with jax.set_mesh(mesh):
        kv = TokenKV(*(arg((2, 32, 256, K * E), BF16),) * 2)
        read = jax.jit(pallas_decode.attend_used).lower(arg((32, 4, K, G, E), BF16), kv, arg((32,), INT)).compile()
        kv = TokenKV(*(arg((4, 32, 128, K * E), BF16),) * 2)
        row = arg((32, K, E), BF16)
        append = jax.jit(pallas_decode.append_and_attend, donate_argnums=3)
        append = append.lower(arg((32, K, G, E), BF16), row, row, kv, arg((32,), INT)).compile()
    assert CALL in read.as_text() and CALL in append.as_text()
    assert append.memory_analysis().alias_size_in_bytes == size(kv)


def copied(text: str, weights) -> list[str]:
    """Weights of a layer that are copied, which is to say brought into another order in memory."""
    shapes = {name: x.sharding.shard_shape(x.shape) for name, x in weights["layers"][0].items() if x.ndim > 2}
    ops = [op for ops in Program(text).computations.values() for op in ops.values() if op.code == "copy"]
    return [name for name, shape in shapes.items() for op in ops if op.results[0].shape == shape]


def describe(mesh):
    """The model's shape on these devices, its weights, and what describes a region."""
    params = map_specs(lambda spec: jax.ShapeDtypeStruct(full_shape(LLAMA, spec), BF16), param_specs(LLAMA))
    config = sampling_config(LLAMA, mesh)
    weights = sampling_weights(config, params, mesh, BF16)
    return config, weights, functools.partial(region_shapes, config, mesh, dtype=BF16)


@pytest.mark.parametrize(("kind", "tensor"), [("v5e", 4), ("v5p", 1), ("v5e-16", 16)])
def test_decoding_makes_no_copy_of_the_cache_nor_of_a_weight(kind, tensor):
    mesh = mesh_of(kind, tensor)
    config, weights, region = describe(mesh)
    prefix = region(blocks=1, rows=1, width=512, shared=True)
    prompts = region(blocks=2, rows=ENTRIES, width=256, attention="pallas")
    own = region(blocks=8, rows=SLOTS, width=128, attention="pallas")
    arg = functools.partial(described, mesh)
    of_slots = lambda dtype, *more: arg((SLOTS, *more), dtype, REPLICA)  # noqa: E731
    slots = programs.Slots(
        of_slots(INT), of_slots(INT), of_slots(INT), of_slots(jnp.uint32, 2), of_slots(bool), of_slots(INT, 1),
        of_slots(INT),
    )  # fmt: skip
    seats = programs.Seats(
        arg((1, ENTRIES * SAMPLES), INT, REPLICA), arg((1, SLOTS), INT, REPLICA), arg((ENTRIES,), INT, REPLICA)
    )
    with jax.set_mesh(mesh):
        compiled = programs.decode.lower(
            config, weights, prefix, arg((), INT), prompts, own, slots, seats, arg((0,), INT), arg((4,), INT),
            law=SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=512).law(), steps=32, eos_ids=(1,),
            dtype=BF16,
        ).compile()  # fmt: skip
    memory = compiled.memory_analysis()
    assert compiled.as_text().count(CALL) == 2 * LLAMA.num_layers
    assert memory.alias_size_in_bytes == size(own)
    assert memory.temp_size_in_bytes < size(prompts) / 2  # which is smaller than either half of `own`
    assert not copied(compiled.as_text(), weights)


def test_prefill_keeps_the_scores_to_the_kernel_and_the_region_in_its_place():
    mesh = mesh_of("v5e", 4)
    config, weights, region = describe(mesh)
    prefix = region(blocks=1, rows=1, width=512, shared=True)
    prompts = region(blocks=8, rows=ENTRIES, width=256, attention="pallas")
    arg = functools.partial(described, mesh)
    config = dataclasses.replace(config, num_layers=2)  # the last needs one position alone, and so no kernel
    with jax.set_mesh(mesh):
        compiled = programs.prefill.lower(
            config, weights | {"layers": weights["layers"] * 2}, prefix * 2, arg((), INT), prompts * 2,
            arg((1, 2048), INT, REPLICA), arg((1,), INT, REPLICA), arg((1, 1), INT, REPLICA), dtype=BF16,
            attention="pallas",
        ).compile()  # fmt: skip
    memory = compiled.memory_analysis()
    assert compiled.as_text().count(CALL) == 1
    assert memory.alias_size_in_bytes == 2 * size(prompts)
    assert memory.temp_size_in_bytes < 32 / 4 * 2048 * 2048 * 4  # one device's scores
