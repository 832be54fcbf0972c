"""Losses as pure functions of log-probabilities, one file a family, and the objectives that training takes.

A new loss of pairs is one function, a line of the table here, and a line of what it takes in `core/losses.py`.
"""

from collections.abc import Mapping

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.training.objectives.absolute import apo_down, apo_zero, bco_pair, nca_pair, sppo_hard
from selfreward_jax.training.objectives.base import Counts, Objective, PairLoss, Pairs, RowArrays, row_arrays
from selfreward_jax.training.objectives.difference import discopop, exo_pair, hinge, ipo, robust, sigmoid, sigmoid_norm
from selfreward_jax.training.objectives.kto import KTO
from selfreward_jax.training.objectives.likelihood import SFT, sft
from selfreward_jax.training.objectives.preference import Preference
from selfreward_jax.training.objectives.reference_free import orpo, simpo
from selfreward_jax.training.objectives.transport import aot, aot_unpaired

PAIR_LOSSES: Mapping[str, PairLoss] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "exo_pair": exo_pair,
    "discopop": discopop,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "sft": sft,
    "simpo": simpo,
    "orpo": orpo,
}


def make_objective(settings: LossSettings) -> Objective:
    """The objective of settings that have been checked."""
    if settings.unpaired:
        return KTO(settings)
    weights = settings.loss_weights or (1.0,) * len(settings.loss_type)
    losses = tuple((PAIR_LOSSES[name], w) for name, w in zip(settings.loss_type, weights, strict=True))
    return Preference(losses, settings)


__all__ = [
    "KTO",
    "PAIR_LOSSES",
    "SFT",
    "Counts",
    "Objective",
    "Pairs",
    "Preference",
    "RowArrays",
    "make_objective",
    "row_arrays",
]
