"""Sums over weights' bits, layer by layer, by which the same weights in two forms are known to be the same."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.core.bits import bit_sums, sums
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params

Parts = Callable[[LlamaConfig, Params], Params]  # another form of layers' weights


@functools.partial(jax.jit, static_argnames=("parts", "config", "dtype"))
def _stacked(parts: Parts, config: LlamaConfig, params: Params, dtype) -> dict[str, jax.Array]:
    each = lambda x: bit_sums(x.astype(dtype))  # noqa: E731
    whole = {name: each(x) for name, x in params.items() if name != "layers"}
    return whole | {name: jax.vmap(each)(x) for name, x in parts(config, params["layers"]).items()}


@functools.partial(jax.jit, static_argnames=("parts", "config"))
def _of_one(parts: Parts, config: LlamaConfig, layer: Params) -> dict[str, jax.Array]:
    return {name: bit_sums(x) for name, x in parts(config, layer).items()}


def sums_by_layer(parts: Parts, config: LlamaConfig, params: Params, dtype) -> dict[str, np.ndarray]:
    """Sums of each weight as if cast to `dtype`, uint32 [2] or, of the stacked layers once in that form, [L, 2]."""
    return {name: np.asarray(x) for name, x in _stacked(parts, config, params, jnp.dtype(dtype)).items()}


def sums_of_layers(parts: Parts, config: LlamaConfig, params: Params) -> dict[str, np.ndarray]:
    """The same of weights whose `layers` is a list, each taken in that form."""
    whole = {name: np.asarray(sums(x)) for name, x in params.items() if name != "layers"}
    layers = [_of_one(parts, config, layer) for layer in params["layers"]]
    return whole | {name: np.stack([np.asarray(layer[name]) for layer in layers]) for name in layers[0]}
