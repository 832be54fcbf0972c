"""An exponential moving average of the weights, whose model is often better than the last weights.

The average after n steps is sum_i d^(n-i) w_i / sum_i d^(n-i) over the weights w_1 to w_n after each step: Adam's
bias correction (Kingma and Ba 2015, section 3), so the weights that training began with have no part in it, and it is
already w_1 after the first step. It is kept in float32, since a step's share would be lost in bfloat16.
"""

import math

import jax
import jax.numpy as jnp

from selfreward_jax.llama.params import Params


def start(params: Params) -> Params:
    """The average of no step yet, laid out like the weights."""
    layout = jax.tree.map(lambda x: x.sharding, params)
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)  # noqa: E731
    return jax.jit(zeros, out_shardings=layout)(params)


def average(decay: float, step: jax.Array, ema: Params, params: Params) -> Params:
    """The average with the weights after step `step` (from 0) taken in; 0 < decay < 1."""
    share = (1 - decay) / -jnp.expm1((step + 1) * math.log(decay))
    return jax.tree.map(lambda mean, weight: mean + share * (weight.astype(jnp.float32) - mean), ema, params)


def weights(ema: Params, params: Params) -> Params:
    """The average as weights of the dtype of `params`."""
    return jax.tree.map(lambda mean, weight: mean.astype(weight.dtype), ema, params)
