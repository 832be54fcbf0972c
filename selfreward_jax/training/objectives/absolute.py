"""Losses that look at the reward of each answer of a pair by itself, so that both can't fall together unseen."""

import jax

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.objectives.base import Pairs


def nca_pair(x: Pairs, s: LossSettings) -> jax.Array:
    """Noise contrastive alignment of two answers (Chen et al. 2024, "Noise Contrastive Alignment")."""
    chosen, rejected = s.beta * x.ratios
    both = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
    return -jax.nn.log_sigmoid(chosen) - both / 2


def bco_pair(x: Pairs, s: LossSettings) -> jax.Array:
    """Binary classifier optimisation of two answers (Jung et al. 2024), without reward shift, as in TRL."""
    chosen, rejected = s.beta * x.ratios
    return -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)


def sppo_hard(x: Pairs, s: LossSettings) -> jax.Array:
    """Self-play preference optimisation (Wu et al. 2024, eq. 4.7), with certain labels and beta for 1 / eta."""
    chosen, rejected = x.ratios
    return (chosen - 0.5 / s.beta) ** 2 + (rejected + 0.5 / s.beta) ** 2


def apo_zero(x: Pairs, s: LossSettings) -> jax.Array:
    """Anchored preference optimisation (D'Oosterlinck et al. 2024, eq. 7): chosen up, rejected down.

    For chosen answers that are better than what the model would say.
    """
    chosen, rejected = s.beta * x.ratios
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)


def apo_down(x: Pairs, s: LossSettings) -> jax.Array:
    """Anchored preference optimisation (D'Oosterlinck et al. 2024, eq. 8): both down, rejected further.

    For chosen answers that are worse than what the model would say.
    """
    chosen, rejected = s.beta * x.ratios
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)
