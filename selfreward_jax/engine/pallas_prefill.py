"""Attention of prompts on TPU: JAX's splash kernel, over the shared prefix and causally over the prompts themselves.

XLA computes every score, the masked ones too, and moves all of them through the memory of the device; the kernel
computes the blocks that are seen and keeps them to itself. The prefix stands before each prompt's own keys, so that
one causal mask, moved by the prefix, serves both; what fills the prefix up is of another segment than the rest.

Shape letters: P prompts, T their tokens, C prefix tokens with padding, K kv heads, G query heads per kv head,
E head size.
"""

import math
from typing import cast

import jax
import jax.numpy as jnp

from selfreward_jax.engine.attention import KV
from selfreward_jax.llama.attention import kernel_block


def attend_prompts(
    q_PTKGE: jax.Array,
    k_PTKE: jax.Array,
    v_PTKE: jax.Array,
    prefix: KV | None,
    prefix_length: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention of every prompt token over the first `prefix_length` of the prefix and its prompt up to itself.

    Args:
      prefix: of one row; None if nothing is shared.

    Returns:
      [P, T, K, G, E], in the dtype of the queries.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    P, T, K, G, E = q_PTKGE.shape
    C = prefix.capacity if prefix else 0
    block_q, block_kv = kernel_block(T), kernel_block(C + T)
    rows, keys = T + -T % block_q, C + T + -(C + T) % block_kv
    fill = lambda x, size: jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0)))  # noqa: E731
    q = jnp.swapaxes(q_PTKGE.reshape(P, T, K * G, E), 1, 2) / math.sqrt(E)
    k, v = jnp.swapaxes(k_PTKE, 1, 2), jnp.swapaxes(v_PTKE, 1, 2)
    ids = ()
    if prefix is not None:
        before = jnp.moveaxis(prefix.k, 4, 3), prefix.v
        before = (jnp.swapaxes(x[:, 0], 0, 1).reshape(K, C, E) for x in before)
        k, v = (jnp.concatenate([jnp.broadcast_to(b, (P, K, C, E)), x], 2) for b, x in zip(before, (k, v), strict=True))
        place = jnp.arange(keys)
        unused = (place >= prefix_length) & (place < C)
        ids = (kernels.SegmentIds(jnp.zeros(rows, jnp.int32), unused.astype(jnp.int32)),)
    kernel = kernels.make_splash_mha_single_device(
        mask=masks.MultiHeadMask([masks.CausalMask((rows, keys), offset=C)] * (K * G)),
        block_sizes=kernels.BlockSizes(block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv),
        interpret=interpret,
    )
    run = jax.vmap(lambda q, k, v: kernel(q, k, v, *ids))
    out = cast(jax.Array, run(fill(q.astype(k.dtype), rows), fill(k, keys), fill(v, keys)))
    return jnp.swapaxes(out[:, :, :T], 1, 2).reshape(P, T, K, G, E).astype(q_PTKGE.dtype)
