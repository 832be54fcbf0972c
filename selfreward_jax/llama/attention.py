"""Causal grouped-query attention over whole rows, by what the machine has; no array of [T, T] scores is kept.

A row may hold several texts one after another (packing). Its segments say which belong together: a token sees those
before it of its own segment, and all of its parent segment if it has one (two responses after one prompt).

Shape letters: B rows, T tokens, S keys, H heads, K kv heads, G = H // K, E head size.
"""

import functools
import math
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import struct

from selfreward_jax.core.mesh import RULES, Rules, platform

Backend = Literal["blocks", "cudnn", "splash"]
BLOCK = 256  # queries whose scores are in memory at a time; a multiple of what the TPU kernel needs
LANES = 128  # the TPU kernel works on multiples of so many tokens
KERNEL_BLOCK, KERNEL_BLOCK_MOST = 512, 1024  # tokens of a block of the TPU kernel, of rows that have more than one


@struct.dataclass
class Segments:
    """Which tokens of packed rows belong together, int32 [B, T] each.

    Attributes:
      ids: the segment of each token; unlike in a row's padding, which has an id of its own.
      parents: the id of a segment that the token sees as well, or its own; None if no segment has a parent.
    """

    ids: jax.Array
    parents: jax.Array | None = None


def choose_backend(name: str, platform: str, dtype, has_parents: bool = False) -> Backend:
    """What `auto` means on a platform: a kernel of its own on TPU and NVIDIA (16-bit only), else plain XLA in blocks.

    Segments with parents are more than the kernels can express, so they always go through the blocks.
    """
    if has_parents:
        return "blocks"
    if name != "auto":
        return cast(Backend, name)
    if platform == "tpu":
        return "splash"
    if platform in ("gpu", "cuda") and jnp.dtype(dtype).itemsize == 2:
        return "cudnn"
    return "blocks"


@jax.named_scope("attention")
def attention(
    q_BTHE: jax.Array,
    k_BTKE: jax.Array,
    v_BTKE: jax.Array,
    segments: Segments | None = None,
    *,
    backend: str = "auto",
    rules: Rules = RULES,
) -> jax.Array:
    """Attention of every token over itself and those before it in its segment: [B, T, H, E].

    Scores are scaled by E ** -0.5; the softmax is float32.

    Args:
      segments: None where each row holds one text. What stands after it can't reach it.
      backend: `auto`, or a Backend.
    """
    has_parents = segments is not None and segments.parents is not None
    chosen = choose_backend(backend, platform(), q_BTHE.dtype, has_parents)
    if chosen == "splash":
        return _splash(q_BTHE, k_BTKE, v_BTKE, segments, rules)
    if chosen == "cudnn":
        seen = None if segments is None else _seen(segments, 0, q_BTHE.shape[1])[:, None]
        return jax.nn.dot_product_attention(q_BTHE, k_BTKE, v_BTKE, mask=seen, is_causal=True, implementation="cudnn")
    return _blocks(q_BTHE, k_BTKE, v_BTKE, segments)


def _seen(segments: Segments, start: int, end: int) -> jax.Array:
    """Which keys up to `end` the tokens from `start` to `end` may see, causality apart: [B, queries, end]."""
    keys = segments.ids[:, None, :end]
    seen = segments.ids[:, start:end, None] == keys
    return seen if segments.parents is None else seen | (segments.parents[:, start:end, None] == keys)


@functools.partial(jax.checkpoint, static_argnums=(4, 5))
def _one_block(q_BKGQE, k_BKES, v_BKSE, segments: Segments | None, start: int, end: int) -> jax.Array:
    """Attention of the queries from `start` to `end`; the backward pass computes their weights anew."""
    B, K, G, Q, E = q_BKGQE.shape
    q = q_BKGQE.reshape(B, K, G * Q, E)
    scores = jnp.einsum("bkqe,bkes->bkqs", q, k_BKES, preferred_element_type=jnp.float32) / math.sqrt(E)
    scores = scores.reshape(B, K, G, Q, end)
    seen = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    if segments is not None:
        seen = (seen & _seen(segments, start, end))[:, None, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKSE.dtype)
    out = jnp.einsum("bkqs,bkse->bkqe", weights.reshape(B, K, G * Q, end), v_BKSE)
    return out.reshape(B, K, G, Q, E)


def _blocks(q_BTHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, segments: Segments | None) -> jax.Array:
    """Block after block of queries, each over the keys up to its own end: half the work of all over all."""
    B, T, H, E = q_BTHE.shape
    K = k_BTKE.shape[2]
    q = q_BTHE.reshape(B, T, K, H // K, E).transpose(0, 2, 3, 1, 4)
    k, v = k_BTKE.transpose(0, 2, 3, 1), v_BTKE.transpose(0, 2, 1, 3)
    parts = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        parts.append(_one_block(q[:, :, :, start:end], k[..., :end], v[:, :, :end], segments, start, end))
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, E)


def kernel_block(tokens: int) -> int:
    """Tokens of a block of the TPU kernel, for rows of so many.

    A row of up to 512 is one block. A longer one is filled up to whole blocks of 512, or of that multiple of 128 up to
    1,024 which leaves least to fill. Smaller blocks would read keys and values too often for what is computed with
    them; larger ones compute more of the masked half.
    """
    if tokens <= KERNEL_BLOCK:
        return -(-tokens // LANES) * LANES
    return min(range(KERNEL_BLOCK, KERNEL_BLOCK_MOST + 1, LANES), key=lambda block: (-tokens % block, block))


def _splash(q_BTHE, k_BTKE, v_BTKE, segments: Segments | None, rules: Rules, interpret: bool = False):
    """The TPU's splash attention: rows filled up to whole blocks, each device with its own rows and heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, E = q_BTHE.shape[1], q_BTHE.shape[3]
    block = kernel_block(T)
    fill = -T % block
    size = T + fill
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip

    def local(q, k, v, ids):
        mask = masks.MultiHeadMask([masks.CausalMask((size, size)) for _ in range(q.shape[2])])
        kernel = kernels.make_splash_mha_single_device(mask=mask, block_sizes=sizes, interpret=interpret)
        heads_first = [jnp.swapaxes(jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))), 1, 2) for x in (q, k, v)]
        more = ()
        if ids is not None:
            ids = jnp.pad(ids, ((0, 0), (0, fill)), constant_values=-1)
            more = (kernels.SegmentIds(ids, ids),)
        out = cast(jax.Array, jax.vmap(kernel)(*heads_first, *more))
        return jnp.swapaxes(out, 1, 2)[:, :T]

    args = (q_BTHE / math.sqrt(E), k_BTKE, v_BTKE, None if segments is None else segments.ids)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(*args)
    # A kernel can't be divided by the compiler, so each device is given its part.
    spec = jax.sharding.PartitionSpec
    rows, heads = dict(rules)["batch"], dict(rules)["heads"]
    split = spec(rows, None, heads, None)
    ways, K = math.prod(mesh.shape[a] for a in heads), k_BTKE.shape[2]
    if K % ways:  # each device gets the keys and values of its own query heads
        copies = ways // math.gcd(K, ways)
        args = (args[0], *(jnp.repeat(x, copies, axis=2) for x in args[1:3]), args[3])
    in_specs = (split, split, split, None if segments is None else spec(rows, None))
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)(*args)
