"""The objective of preference pairs: a weighted sum of losses, and TRL's metrics."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.batches import TrainRow
from selfreward_jax.training.objectives.base import Counts, PairLoss, Pairs, RowArrays
from selfreward_jax.training.objectives.likelihood import sft


@dataclasses.dataclass(frozen=True)
class Preference:
    """Losses of rows whose first example is the chosen answer, the second the rejected one; the mean over pairs.

    Attributes:
      losses: each with its weight.
    """

    losses: tuple[tuple[PairLoss, float], ...]
    settings: LossSettings

    @property
    def ld_alpha(self) -> float:
        return self.settings.ld_alpha

    @property
    def whole_batch(self) -> bool:
        return bool(self.settings.whole_batch)

    def counts(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        return {
            "pairs": sum(row.weight for row in rows),
            "chosen_tokens": sum(row.weight * len(row.examples[0].response_ids) for row in rows),
        }

    def loss(self, logps_nR: jax.Array, rows: RowArrays, counts: Counts) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Objective`. Equal rewards count as half an accurate pair. `logps/*` are of whole answers."""
        s, real = self.settings, rows.weight > 0
        x = Pairs(
            # Losses may have no finite gradient at the 0 of a row that has no token.
            logps=jnp.where(real, logps_nR, -1.0),
            reference=rows.reference,
            lengths=jnp.maximum(rows.lengths, 1),
            margin=rows.margin,
            real=real,
            mean_tokens=counts["chosen_tokens"] / counts["pairs"],
            length_normalize=s.length_normalize,
        )
        mean = lambda values: (rows.weight * values).sum() / counts["pairs"]  # noqa: E731
        shares = [weight * mean(one(x, s)) for one, weight in self.losses]
        return jnp.stack(shares).sum(), {name: mean(values) for name, values in self.metrics(x).items()}

    def metrics(self, x: Pairs) -> dict[str, jax.Array]:
        """Of each pair, [R], named as in TRL; rewards are per token where there is no reference."""
        chosen, rejected = self.settings.beta * (x.token_logps if x.reference is None else x.ratios)
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (jnp.sign(chosen - rejected) + 1) / 2,
            "logps/chosen": x.logps[0],
            "logps/rejected": x.logps[1],
        }
        if {"sft", "orpo"} & set(self.settings.loss_type):
            metrics["nll_loss"] = sft(x, self.settings)
        return metrics
