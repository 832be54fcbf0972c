"""Kahneman-Tversky optimisation: single answers that are good or bad, against a reference point of the whole batch."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.batches import TrainRow
from selfreward_jax.training.objectives.base import Counts, RowArrays

EPSILON = 1e-9  # what a batch without any desirable (or undesirable) answer is divided by


@dataclasses.dataclass(frozen=True)
class KTO:
    """KTO (Ethayarajh et al. 2024, eq. 7 and 8), the mean over answers.

    A row's first example is the answer; the second is the answer to another prompt, put to this one. Over the batch,
    the mean of the second ones' log-ratios estimates the KL divergence from the reference, at least 0, which is the
    point that rewards are measured from; no gradient passes through it.
    """

    settings: LossSettings

    @property
    def ld_alpha(self) -> float:
        return self.settings.ld_alpha

    @property
    def whole_batch(self) -> bool:
        return bool(self.settings.whole_batch)

    def counts(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        return {
            "rows": sum(row.weight for row in rows),
            "desirable": sum(row.weight for row in rows if row.desirable),
            "undesirable": sum(row.weight for row in rows if not row.desirable),
        }

    def loss(self, logps_nR: jax.Array, rows: RowArrays, counts: Counts) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Objective`; exact only where the micro-batch is the whole batch.

        Metrics of desirable (`chosen`) or undesirable answers (`rejected`) are 0 in a batch that has none.
        """
        assert rows.reference is not None
        s = self.settings
        ratios = logps_nR - rows.reference
        if s.length_normalize:
            ratios = ratios / jnp.maximum(rows.lengths, 1)
        kl = jax.lax.stop_gradient(jnp.maximum((rows.weight * ratios[1]).sum() / counts["rows"], 0))
        ahead = s.beta * (ratios[0] - kl)
        losses = jnp.where(
            rows.desirable,
            s.desirable_weight * jax.nn.sigmoid(-ahead),
            s.undesirable_weight * jax.nn.sigmoid(ahead),
        )

        def mean(values, which, count):
            return (rows.weight * which * values).sum() / jnp.maximum(counts[count], EPSILON)

        metrics = {"kl": kl}
        for side, which, count in (
            ("chosen", rows.desirable, "desirable"),
            ("rejected", ~rows.desirable, "undesirable"),
        ):
            metrics[f"rewards/{side}"] = mean(s.beta * ratios[0], which, count)
            metrics[f"logps/{side}"] = mean(logps_nR[0], which, count)
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return mean(losses, 1.0, "rows"), metrics
