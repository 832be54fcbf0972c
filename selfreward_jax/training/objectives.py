"""Losses as pure functions of log-probabilities. A new one is one function here."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class PairLogps:
    """Summed response log-probabilities in nats of pairs, each [B]."""

    chosen: jax.Array
    rejected: jax.Array


def dpo_loss(
    policy: PairLogps, reference: PairLogps, beta: float, label_smoothing: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Direct preference optimisation loss of each pair (Rafailov et al. 2023, eq. 7), `sigmoid` in TRL.

    Args:
      policy, reference: log-probabilities of the same pairs under the model in training and the frozen one.
      beta: strength of the tie to the reference, > 0.
      label_smoothing: assumed share of flipped labels, in [0, 0.5] (conservative DPO).

    Returns:
      Loss per pair [B], ln 2 where policy and reference agree; and TRL's metrics per pair, each [B]. Equal rewards
      count as half an accurate pair.
    """
    rewards_chosen = beta * (policy.chosen - reference.chosen)
    rewards_rejected = beta * (policy.rejected - reference.rejected)
    margins = rewards_chosen - rewards_rejected
    loss = -(1 - label_smoothing) * jax.nn.log_sigmoid(margins) - label_smoothing * jax.nn.log_sigmoid(-margins)
    return loss, {
        "rewards/chosen": rewards_chosen,
        "rewards/rejected": rewards_rejected,
        "rewards/margins": margins,
        "rewards/accuracies": (jnp.sign(margins) + 1) / 2,
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
    }
