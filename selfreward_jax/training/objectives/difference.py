"""Losses of the difference between the rewards of a pair: DPO and its kin.

The reward of an answer is beta log p(y|x) / p_ref(y|x), the implicit one of DPO. `z` is by how much the chosen
answer's exceeds the rejected one's, less the margin by which it should (Amini et al. 2024, "Direct Preference
Optimization with an Offset"; 0 in the other papers).
"""

import jax
import jax.numpy as jnp

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.objectives.base import Pairs


def difference(x: Pairs, s: LossSettings) -> jax.Array:
    chosen, rejected = x.ratios
    return s.beta * (chosen - rejected) - x.margin


def smoothed(z: jax.Array, label_smoothing: float) -> jax.Array:
    """Negative log-likelihood of a preference by the Bradley-Terry model, if such a share of labels is flipped."""
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(z) - label_smoothing * jax.nn.log_sigmoid(-z)


def sigmoid(x: Pairs, s: LossSettings) -> jax.Array:
    """DPO (Rafailov et al. 2023, eq. 7), ln 2 where policy and reference agree.

    With label smoothing, conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    return smoothed(difference(x, s), s.label_smoothing)


def sigmoid_norm(x: Pairs, s: LossSettings) -> jax.Array:
    """DPO with log-probabilities divided by the lengths of the answers (Lambert et al. 2024, "Tulu 3")."""
    chosen, rejected = x.token_ratios
    return smoothed(s.beta * (chosen - rejected) - x.margin, s.label_smoothing)


def robust(x: Pairs, s: LossSettings) -> jax.Array:
    """Unbiased under flipped labels (Chowdhury et al. 2024, "Provably Robust DPO"); negative values are meant."""
    z, e = difference(x, s), s.label_smoothing
    return (-(1 - e) * jax.nn.log_sigmoid(z) + e * jax.nn.log_sigmoid(-z)) / (1 - 2 * e)


def hinge(x: Pairs, s: LossSettings) -> jax.Array:
    """SLiC's hinge on the implicit reward (Zhao et al. 2023; in this form Liu et al. 2024, "RSO")."""
    return jax.nn.relu(1 - difference(x, s))


def ipo(x: Pairs, s: LossSettings) -> jax.Array:
    """Identity preference optimisation (Azar et al. 2024, eq. 17), with beta for tau.

    Log-ratios are averaged over tokens, as TRL does and the authors of the paper confirmed.
    """
    chosen, rejected = x.token_ratios
    return (chosen - rejected - 1 / (2 * s.beta)) ** 2


def exo_pair(x: Pairs, s: LossSettings) -> jax.Array:
    """Exact optimisation with two answers (Ji et al. 2024, eq. 16): KL of the policy from the smoothed labels."""
    z, e = difference(x, s), s.label_smoothing
    right = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-e))
    wrong = jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(e))
    return right + wrong


def discopop(x: Pairs, s: LossSettings) -> jax.Array:
    """The loss that a language model discovered (Lu et al. 2024, eq. 5): logistic and exponential, mixed by a gate.

    The gated exponential is one exponential of a sum: apart, it overflows where the gate is closed.
    """
    z = difference(x, s)
    gate = z / s.discopop_tau
    return -jax.nn.log_sigmoid(z) * jax.nn.sigmoid(-gate) + jnp.exp(jax.nn.log_sigmoid(gate) - z)
