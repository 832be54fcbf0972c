"""What passes between an objective and the training step.

The step knows log-probabilities and gradients, an objective what they are worth; `RowArrays` is all that an objective
sees of a row beside its log-probabilities.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct

from selfreward_jax.training.batches import TrainRow

Counts = Mapping[str, Any]


@struct.dataclass
class RowArrays:
    """Facts of a micro-batch's R rows of n examples each. Rows that only fill it up have weight 0 and length 0.

    Attributes:
      lengths: response tokens, int32 [n, R].
      weight: how many rows this one counts for, float32 [R].
      margin: by how much the first example should win, in units of the reward, float32 [R].
      desirable: whether the answer is a good one, for objectives of single answers, bool [R].
      reference: the frozen model's log-probabilities in nats, float32 [n, R]; None if the objective needs none.
    """

    lengths: jax.Array
    weight: jax.Array
    margin: jax.Array
    desirable: jax.Array
    reference: jax.Array | None


class Objective(Protocol):
    """A loss over rows. It is static under jit, so a frozen dataclass."""

    def counts(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        """What the sums over a whole batch are divided by, for instance its tokens; known before any is computed."""
        ...

    def loss(self, logps_nR: jax.Array, rows: RowArrays, counts: Counts) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A micro-batch's share of the batch's loss and of its metrics: over all micro-batches they add up to them.

        Args:
          logps_nR: summed log-probabilities of the responses in nats, as many a row as it has examples.
          counts: of the whole batch.
        """
        ...


def row_arrays(rows: Sequence[TrainRow], size: int) -> RowArrays:
    """Rows as arrays, on the host, filled up to `size` rows."""
    n = len(rows[0].examples)
    lengths, weight, margin = np.zeros((n, size), np.int32), np.zeros(size, np.float32), np.zeros(size, np.float32)
    desirable = np.ones(size, bool)
    reference = np.zeros((n, size), np.float32) if rows[0].reference else None
    for i, row in enumerate(rows):
        lengths[:, i] = [len(e.response_ids) for e in row.examples]
        weight[i], margin[i], desirable[i] = row.weight, row.margin, row.desirable
        if reference is not None:
            reference[:, i] = row.reference
    return RowArrays(lengths, weight, margin, desirable, reference)  # type: ignore[arg-type]
