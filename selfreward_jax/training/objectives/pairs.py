"""Losses of preference pairs as pure functions of log-probabilities. A new one is one function here."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from selfreward_jax.training.batches import TrainRow
from selfreward_jax.training.objectives.base import Counts, RowArrays


@struct.dataclass
class PairLogps:
    """Summed response log-probabilities in nats of pairs, each [R]."""

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
      Loss per pair [R], ln 2 where policy and reference agree; and TRL's metrics per pair, each [R]. Equal rewards
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


@dataclasses.dataclass(frozen=True)
class DPO:
    """DPO of rows whose first example is the chosen one, the second the rejected one, averaged over pairs."""

    beta: float
    label_smoothing: float = 0.0

    def counts(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        return {"pairs": sum(row.weight for row in rows)}

    def loss(self, logps_nR: jax.Array, rows: RowArrays, counts: Counts) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert rows.reference is not None
        loss, metrics = dpo_loss(PairLogps(*logps_nR), PairLogps(*rows.reference), self.beta, self.label_smoothing)
        mean = lambda values: (rows.weight * values).sum() / counts["pairs"]  # noqa: E731
        return mean(loss), {name: mean(values) for name, values in metrics.items()}
