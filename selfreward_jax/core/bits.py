"""Sums over the bits of arrays that don't depend on how these are sharded, and a hash of a tree made of them."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SPREAD, _MIX = 2654435761, 2246822519


def bit_sums(x: jax.Array) -> jax.Array:
    """Two sums over all elements' bits, one weighted by position; wrapping integers, so any order gives the same.

    Both are taken in one reduction, along the last axis first: of two, or over all axes at once, XLA's CPU compiler
    makes loops that run on one core, one element at a time.
    """
    u32 = jnp.uint32
    x = x if x.ndim else x[None]
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(u32)
    row = jnp.zeros(x.shape[:-1], u32)
    for axis, size in enumerate(x.shape[:-1]):
        row = row * u32(size) + jax.lax.broadcasted_iota(u32, row.shape, axis)
    # The position times _SPREAD: of the row's beginning, and of the place in the row.
    begin = row * u32(x.shape[-1] * _SPREAD % 2**32)
    mixed = (bits ^ (begin[..., None] + jax.lax.iota(u32, x.shape[-1]) * u32(_SPREAD))) * u32(_MIX)
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])  # noqa: E731
    rows = jax.lax.reduce((bits, mixed ^ (mixed >> 15)), (u32(0), u32(0)), add, (x.ndim - 1,))
    return jnp.stack([part.sum(dtype=u32) for part in rows])


sums = jax.jit(bit_sums)


Fact = list[Any]  # of one array: its name in the tree, shape, dtype, and sums


def fact(path: Any, x: Any) -> Fact:
    return [jax.tree_util.keystr(path), list(x.shape), str(x.dtype), sums(x)]


def hash_facts(facts: list[Fact]) -> str:
    told = [[*names, [int(n) for n in np.asarray(pair)]] for *names, pair in facts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def tree_hash(tree: Any) -> str:
    """Sixteen hex digits of a tree's names, shapes, dtypes and values, wherever it lies and however it is sharded."""
    return hash_facts([fact(path, x) for path, x in jax.tree_util.tree_leaves_with_path(tree)])
