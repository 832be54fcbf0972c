"""Sums over weights' bits that don't depend on how they are sharded, and a model's hash made of them."""

import functools
import hashlib
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params


def _bit_sums(x: jax.Array) -> jax.Array:
    """Two sums over all elements' bits, one weighted by position; wrapping integers, so any order gives the same."""
    width = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        position = position * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (bits ^ (position * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
    return jnp.stack([bits.sum(dtype=jnp.uint32), (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)])


_sums = jax.jit(_bit_sums)


def params_hash(params: Params) -> str:
    """Sixteen hex digits of names, shapes, dtypes and values."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    facts = [
        [jax.tree_util.keystr(path), list(x.shape), str(x.dtype), [int(n) for n in np.asarray(_sums(x))]]
        for path, x in leaves
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


Parts = Callable[[LlamaConfig, Params], Params]  # another form of layers' weights


@functools.partial(jax.jit, static_argnames=("parts", "config", "dtype"))
def _stacked(parts: Parts, config: LlamaConfig, params: Params, dtype) -> dict[str, jax.Array]:
    each = lambda x: _bit_sums(x.astype(dtype))  # noqa: E731
    whole = {name: each(x) for name, x in params.items() if name != "layers"}
    return whole | {name: jax.vmap(each)(x) for name, x in parts(config, params["layers"]).items()}


@functools.partial(jax.jit, static_argnames=("parts", "config"))
def _of_one(parts: Parts, config: LlamaConfig, layer: Params) -> dict[str, jax.Array]:
    return {name: _bit_sums(x) for name, x in parts(config, layer).items()}


def sums_by_layer(parts: Parts, config: LlamaConfig, params: Params, dtype) -> dict[str, np.ndarray]:
    """Sums of each weight as if cast to `dtype`, uint32 [2] or, of the stacked layers once in that form, [L, 2]."""
    return {name: np.asarray(x) for name, x in _stacked(parts, config, params, jnp.dtype(dtype)).items()}


def sums_of_layers(parts: Parts, config: LlamaConfig, params: Params) -> dict[str, np.ndarray]:
    """The same of weights whose `layers` is a list, each taken in that form."""
    whole = {name: np.asarray(_sums(x)) for name, x in params.items() if name != "layers"}
    layers = [_of_one(parts, config, layer) for layer in params["layers"]]
    return whole | {name: np.stack([np.asarray(layer[name]) for layer in layers]) for name in layers[0]}
