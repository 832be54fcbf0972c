"""Losses of whole distributions: the rewards of a batch are compared sorted, not pair by pair.

Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport" (AOT): the chosen side shall
dominate at every quantile. So the loss of a batch is no sum over its micro-batches, and rows weigh the same.
"""

import jax
import jax.numpy as jnp

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.objectives.base import Pairs
from selfreward_jax.training.objectives.difference import smoothed


def aot(x: Pairs, s: LossSettings) -> jax.Array:
    """Paired AOT: the policy's margins, sorted, against those of the reference."""
    assert x.reference is not None
    policy, reference = x.scaled(x.logps), x.scaled(x.reference)
    ahead = _sorted(policy[0] - policy[1], x.real) - _sorted(reference[0] - reference[1], x.real)
    return smoothed(s.beta * ahead, s.label_smoothing)


def aot_unpaired(x: Pairs, s: LossSettings) -> jax.Array:
    """Unpaired AOT: the rewards of all chosen answers, sorted, against those of all rejected ones."""
    chosen, rejected = x.ratios
    return smoothed(s.beta * (_sorted(chosen, x.real) - _sorted(rejected, x.real)), s.label_smoothing)


def _sorted(values_R: jax.Array, real_R: jax.Array) -> jax.Array:
    """In ascending order, rows that only fill the batch up last, as they were."""
    return jnp.sort(jnp.where(real_R, values_R, jnp.finfo(values_R.dtype).max))
