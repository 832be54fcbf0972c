"""Likelihood of answers: supervised fine-tuning, and its loss beside those of preference pairs."""

import dataclasses
from collections.abc import Sequence

import jax

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.batches import TrainRow
from selfreward_jax.training.objectives.base import Counts, Pairs, RowArrays


@dataclasses.dataclass(frozen=True)
class SFT:
    """Negative log-likelihood of response tokens, averaged over the batch's tokens."""

    @property
    def ld_alpha(self) -> float:
        return 1.0

    @property
    def whole_batch(self) -> bool:
        return False

    def counts(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        return {"tokens": sum(row.weight * len(row.examples[0].response_ids) for row in rows)}

    def loss(self, logps_nR: jax.Array, rows: RowArrays, counts: Counts) -> tuple[jax.Array, dict[str, jax.Array]]:
        return -(rows.weight * logps_nR[0]).sum() / counts["tokens"], {}


def sft(x: Pairs, s: LossSettings) -> jax.Array:
    """Negative log-likelihood of the chosen answers; its mean over pairs is the mean over the batch's chosen tokens.

    Beside `sigmoid` this is RPO (Pang et al. 2024, "Iterative Reasoning Preference Optimization"), but for their
    average over answers.
    """
    return -x.logps[0] / x.mean_tokens
