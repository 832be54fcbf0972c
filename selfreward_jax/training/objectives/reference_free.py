"""Losses that need no reference: an answer's reward is its own log-probability per token."""

import jax
import jax.numpy as jnp

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.objectives.base import Pairs
from selfreward_jax.training.objectives.difference import smoothed
from selfreward_jax.training.objectives.likelihood import sft


def simpo(x: Pairs, s: LossSettings) -> jax.Array:
    """Simple preference optimisation (Meng et al. 2024, eq. 6): the average log-probabilities gamma / beta apart."""
    chosen, rejected = x.token_logps
    return smoothed(s.beta * (chosen - rejected) - s.simpo_gamma - x.margin, s.label_smoothing)


def orpo(x: Pairs, s: LossSettings) -> jax.Array:
    """Odds ratio preference optimisation (Hong et al. 2024, eq. 6 and 7), with beta for lambda.

    The likelihood is that of the chosen answers; TRL counts the tokens of the prompts, too.
    """
    chosen, rejected = log_odds(x.token_logps)
    return sft(x, s) - s.beta * jax.nn.log_sigmoid(chosen - rejected)


def log_odds(logps: jax.Array) -> jax.Array:
    """log(p / (1 - p)); a probability that rounds to 1 counts as a millionth less."""
    logps = jnp.minimum(logps, -1e-6)
    return logps - jnp.log(-jnp.expm1(logps))
