"""Losses as pure functions of log-probabilities, one file a family, and the objectives that training takes."""

from selfreward_jax.training.objectives.base import Counts, Objective, RowArrays, row_arrays
from selfreward_jax.training.objectives.likelihood import SFT
from selfreward_jax.training.objectives.pairs import DPO, PairLogps, dpo_loss

__all__ = ["DPO", "SFT", "Counts", "Objective", "PairLogps", "RowArrays", "dpo_loss", "row_arrays"]
