"""What passes between the training step, an objective, and a loss of preference pairs.

The step knows log-probabilities and gradients, an objective what they are worth; `RowArrays` is all that an objective
sees of a row beside its log-probabilities.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.batches import TrainRow

Counts = Mapping[str, Any]


@struct.dataclass
class RowArrays:
    """Facts of a micro-batch's R rows of n examples each. Rows that fill it up come last, with weight and lengths 0.

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

    @property
    def ld_alpha(self) -> float:
        """What a token counts for beyond the end of the shortest response of its row; 1 for the same as any other."""
        ...

    @property
    def whole_batch(self) -> bool:
        """Whether it compares all rows of a batch with each other, so that they must be computed together."""
        ...

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


@dataclasses.dataclass(frozen=True)
class Pairs:
    """R preference pairs as their losses see them; in arrays [2, R] the chosen answers come first.

    Attributes:
      logps: summed log-probabilities of the answers under the model in training, in nats, [2, R].
      reference: the same under the frozen model; None where no loss needs it.
      lengths: tokens of the answers, at least 1, [2, R].
      margin: by how much the chosen answer's reward should be the higher one, [R].
      real: False for rows that only fill the micro-batch up, [R]; all after the others.
      mean_tokens: tokens of a chosen answer, on average over the whole batch.
      length_normalize: whether an answer's log-probability means that of one of its tokens, on average.
    """

    logps: jax.Array
    reference: jax.Array | None
    lengths: jax.Array
    margin: jax.Array
    real: jax.Array
    mean_tokens: jax.Array
    length_normalize: bool = False

    def scaled(self, logps_2R: jax.Array) -> jax.Array:
        """Log-probabilities of answers, or of their tokens on average if that is asked for."""
        return logps_2R / self.lengths if self.length_normalize else logps_2R

    @property
    def summed_ratios(self) -> jax.Array:
        """How far the model has moved from its reference, log p(y|x) - log p_ref(y|x), [2, R]."""
        assert self.reference is not None
        return self.logps - self.reference

    @property
    def ratios(self) -> jax.Array:
        return self.scaled(self.summed_ratios)

    @property
    def token_ratios(self) -> jax.Array:
        return self.summed_ratios / self.lengths

    @property
    def token_logps(self) -> jax.Array:
        return self.logps / self.lengths


# From R pairs to the loss of each, [R]; the batch's loss is their weighted mean.
PairLoss = Callable[[Pairs, LossSettings], jax.Array]


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
