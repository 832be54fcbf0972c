"""A hash of a model's weights that doesn't depend on how they are sharded."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.llama.params import Params


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    """Two sums over all elements' bits, one weighted by position; wrapping integers, so any order gives the same."""
    width = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        position = position * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (bits ^ (position * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
    return jnp.stack([bits.sum(dtype=jnp.uint32), (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)])


def params_hash(params: Params) -> str:
    """Sixteen hex digits of names, shapes, dtypes and values."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    facts = [
        [jax.tree_util.keystr(path), list(x.shape), str(x.dtype), [int(n) for n in np.asarray(_sums(x))]]
        for path, x in leaves
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
