"""The splash kernel of training compiles for TPUs, forward and backward, with its rows and heads over a mesh."""

import jax
import jax.numpy as jnp
import pytest

from selfreward_jax.core.mesh import AXES
from selfreward_jax.llama.attention import Segments, attention, kernel_block
from tests.tpu import described, described_mesh, needs_libtpu


@needs_libtpu
@pytest.mark.parametrize(("kind", "T", "E"), [("v5e", 2048, 128), ("v5p", 2688, 128), ("v6e", 4096, 64)])
def test_packed_rows_over_fsdp_and_tensor_compile_in_both_directions(kind, T, E):
    mesh = described_mesh(kind, (1, 2, 2), AXES)
    arg = lambda heads: described(mesh, (4, T, heads, E), jnp.bfloat16, ("data", "fsdp"), None, "tensor")  # noqa: E731
    ids = described(mesh, (4, T), jnp.int32, ("data", "fsdp"))

    def grads(q, k, v, ids):
        loss = lambda *qkv: attention(*qkv, Segments(ids)).astype(jnp.float32).sum()  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    with jax.set_mesh(mesh):  # its devices are what `auto` goes by
        compiled = jax.jit(grads).lower(arg(8), arg(2), arg(2), ids).compile()
    assert compiled.as_text().count("tpu_custom_call") == 3
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * T * T * 2  # one device's scores in 16 bits


@pytest.mark.parametrize(
    ("tokens", "block"),
    [(1, 128), (128, 128), (300, 384), (512, 512), (1024, 512), (4096, 512), (1300, 512), (1900, 640)],
)
def test_blocks_fill_rows_up_as_little_as_they_may(tokens, block):
    assert kernel_block(tokens) == block
