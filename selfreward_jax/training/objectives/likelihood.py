"""Likelihood of responses: supervised fine-tuning."""

import dataclasses
from collections.abc import Sequence

import jax

from selfreward_jax.training.batches import TrainRow
from selfreward_jax.training.objectives.base import Counts, RowArrays


@dataclasses.dataclass(frozen=True)
class SFT:
    """Negative log-likelihood of response tokens, averaged over the batch's tokens."""

    def counts(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        return {"tokens": sum(row.weight * len(row.examples[0].response_ids) for row in rows)}

    def loss(self, logps_nR: jax.Array, rows: RowArrays, counts: Counts) -> tuple[jax.Array, dict[str, jax.Array]]:
        return -(rows.weight * logps_nR[0]).sum() / counts["tokens"], {}
