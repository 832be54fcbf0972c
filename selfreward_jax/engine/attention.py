"""Attention of new tokens over a cache that several rows share, in parts that are joined by their log-sum-exp.

Keys and values lie in blocks of W positions, heads before positions, so that each product is a plain matrix product
that reads the cache once and in order: on a CPU ten times faster than with positions before heads.

A block that is masked whole contributes exactly nothing, and blocks are joined one after another, so a row's result
doesn't change by a single bit with the number of empty blocks behind it: neither with how long the answers beside it
have become, nor with the slot it runs in.

Shape letters: B blocks of W positions, X rows of the cache, Q queries that read the same cache row, K kv heads,
G query heads per kv head, E head size.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

MASKED = -1e30  # finite, so that a block without any key has weights of 0 and not of NaN


@struct.dataclass
class KV:
    """Keys [B, X, K, E, W] and values [B, X, K, W, E] of one layer."""

    k: jax.Array
    v: jax.Array

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return self.k.shape[0] * self.k.shape[4]


@struct.dataclass
class Partial:
    """Attention over some of the keys, float32: largest score, sum of weights (both [..., 1]), weighted values."""

    top: jax.Array
    total: jax.Array
    out: jax.Array


@jax.named_scope("attention")
def attend(q_XQKGE: jax.Array, kv: KV, lengths_X: jax.Array) -> Partial:
    """Attention of queries over the first `lengths_X` positions of their cache row; leaves are [X, Q, K, G, .].

    Scores and sums are float32; products are of the cache's dtype.
    """
    X, Q, K, G, E = q_XQKGE.shape
    B, W = kv.k.shape[0], kv.k.shape[4]
    q = jnp.swapaxes(q_XQKGE, 1, 2).reshape(X, K, Q * G, E).astype(kv.k.dtype)
    q = jnp.broadcast_to(q, (B, *q.shape))
    scores = jnp.einsum("bxkqe,bxkew->bxkqw", q, kv.k, preferred_element_type=jnp.float32) / math.sqrt(E)
    positions = jnp.arange(B * W).reshape(B, 1, W)
    scores = jnp.where((positions < lengths_X[None, :, None])[:, :, None, None], scores, MASKED)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    out = jnp.einsum("bxkqw,bxkwe->bxkqe", weights.astype(kv.v.dtype), kv.v, preferred_element_type=jnp.float32)
    # A block without any key has the same weight everywhere; it is joined with weight exp(MASKED - top) = 0.
    joined = join([Partial(top[b], weights[b].sum(axis=-1, keepdims=True), out[b]) for b in range(B)])
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(X, K, Q, G, -1), 1, 2), joined)


def join(parts: Sequence[Partial]) -> Partial:
    """Attention over the keys of all parts together."""
    if len(parts) == 1:
        return parts[0]
    top = functools.reduce(jnp.maximum, (p.top for p in parts))
    scales = [jnp.exp(p.top - top) for p in parts]
    total = functools.reduce(jnp.add, (p.total * s for p, s in zip(parts, scales, strict=True)))
    out = functools.reduce(jnp.add, (p.out * s for p, s in zip(parts, scales, strict=True)))
    return Partial(top, total, out)


@jax.named_scope("attention")
def finish(parts: Sequence[Partial], dtype) -> jax.Array:
    """The attention itself, [..., E]."""
    joined = join(parts)
    return (joined.out / joined.total).astype(dtype)
