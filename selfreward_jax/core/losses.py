"""What each preference loss needs and takes, without the losses themselves: enough to refuse settings before any work.

The losses are in `training/objectives/`. Names are TRL's where TRL has them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from selfreward_jax.core.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class LossFacts:
    """What a loss needs and takes.

    Attributes:
      reference: it needs the frozen model's log-probabilities.
      smoothing: the interval of `label_smoothing` that it takes, "" if it takes none.
      margin: it takes a margin between the two rewards.
      ld_alpha: it can weigh the tokens of a response differently.
      weights: it can weigh rows differently.
      whole_batch: it compares all rows of a batch with each other, so that they must be in memory together.
      unpaired: its rows are single answers, good or bad, instead of pairs.
    """

    reference: bool = True
    smoothing: str = ""
    margin: bool = False
    ld_alpha: bool = True
    weights: bool = True
    whole_batch: bool = False
    unpaired: bool = False


LOSSES: Mapping[str, LossFacts] = {
    "sigmoid": LossFacts(smoothing="[0, 0.5]", margin=True),
    "sigmoid_norm": LossFacts(smoothing="[0, 0.5]", margin=True),
    "hinge": LossFacts(margin=True),
    "ipo": LossFacts(),
    "robust": LossFacts(smoothing="[0, 0.5)", margin=True),
    "exo_pair": LossFacts(smoothing="(0, 0.5]", margin=True),
    "discopop": LossFacts(margin=True),
    "nca_pair": LossFacts(),
    "bco_pair": LossFacts(),
    "sppo_hard": LossFacts(),
    "apo_zero": LossFacts(),
    "apo_down": LossFacts(),
    "aot": LossFacts(smoothing="[0, 0.5]", weights=False, whole_batch=True),
    "aot_unpaired": LossFacts(smoothing="[0, 0.5]", weights=False, whole_batch=True),
    "sft": LossFacts(reference=False, ld_alpha=False),
    "simpo": LossFacts(reference=False, smoothing="[0, 0.5]", margin=True, ld_alpha=False),
    "orpo": LossFacts(reference=False, ld_alpha=False),
    "kto": LossFacts(ld_alpha=False, whole_batch=True, unpaired=True),
}


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The configuration's fields of the same names, section `dpo`; see configs/base.py for what they mean."""

    loss_type: tuple[str, ...] = ("sigmoid",)
    loss_weights: tuple[float, ...] = ()
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalize: bool = False
    ld_alpha: float = 1.0
    margin_scale: float = 0.0
    simpo_gamma: float = 0.5
    discopop_tau: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def facts(self) -> tuple[LossFacts, ...]:
        return tuple(LOSSES[name] for name in self.loss_type)

    @property
    def needs_reference(self) -> bool:
        return any(f.reference for f in self.facts)

    @property
    def unpaired(self) -> bool:
        return any(f.unpaired for f in self.facts)

    @property
    def whole_batch(self) -> tuple[str, ...]:
        """Names of the losses that can't be accumulated over micro-batches."""
        return tuple(name for name in self.loss_type if LOSSES[name].whole_batch)


def loss_settings(fields: Mapping[str, Any]) -> LossSettings:
    """Picks the losses' fields out of a section of the configuration; `loss_type` may also be `"sigmoid,sft"`."""
    picked = {f.name: fields[f.name] for f in dataclasses.fields(LossSettings) if f.name in fields}
    names = picked.get("loss_type", ("sigmoid",))
    names = [names] if isinstance(names, str) else names
    picked["loss_type"] = tuple(part.strip() for name in names for part in str(name).split(","))
    picked["loss_weights"] = tuple(picked.get("loss_weights", ()))
    return LossSettings(**picked)


def check_losses(s: LossSettings, where: str) -> None:
    """Raises `UserError` for losses that don't exist, or that don't go with each other or with the other settings.

    Args:
      where: what stands before a field's name in the message.
    """
    for name in s.loss_type:
        if name not in LOSSES:
            hint = did_you_mean(name, LOSSES)
            raise UserError(f"{where}loss_type: no loss {name!r}; there are {', '.join(LOSSES)}.{hint}")
    if not s.loss_type:
        raise UserError(f"{where}loss_type: empty; there are {', '.join(LOSSES)}.")
    if s.unpaired and len(s.loss_type) > 1:
        raise UserError(f"{where}loss_type: kto learns from single answers and can't be combined with losses of pairs.")
    weights = s.loss_weights
    if weights and len(weights) != len(s.loss_type):
        raise UserError(f"{where}loss_weights: {len(weights)} for {len(s.loss_type)} losses; give one for each.")
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights)
    if weights and not (numbers and all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights)):
        raise UserError(f"{where}loss_weights: {weights!r} must be numbers from 0 on, not all of them 0.")
    names = ", ".join(s.loss_type)
    for name, facts in zip(s.loss_type, s.facts, strict=True):
        if facts.smoothing and not _inside(s.label_smoothing, facts.smoothing):
            raise UserError(
                f"{where}label_smoothing: {s.label_smoothing} is outside of {facts.smoothing}, which {name} needs."
            )
        if s.ld_alpha < 1 and not facts.ld_alpha:
            raise UserError(f"{where}ld_alpha: {name} weighs all tokens of an answer alike; set it to 1.")
    if s.label_smoothing and not any(f.smoothing for f in s.facts):
        raise UserError(f"{where}label_smoothing: has no effect on {names}; set it to 0.")
    if s.margin_scale and not any(f.margin for f in s.facts):
        raise UserError(f"{where}margin_scale: has no effect on {names}; set it to 0.")
    if s.unpaired and not s.desirable_weight + s.undesirable_weight:
        raise UserError(f"{where}desirable_weight: 0 like undesirable_weight; nothing would be learnt.")


def _inside(value: float, interval: str) -> bool:
    """Whether a value is in an interval from 0 to 0.5, written as in mathematics."""
    least, most = interval[0] == "[", interval[-1] == "]"
    return (value >= 0 if least else value > 0) and (value <= 0.5 if most else value < 0.5)
