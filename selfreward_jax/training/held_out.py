"""Rows that training doesn't see: which they are, what a model's loss on them is, and the choice of a checkpoint by it.

The paper (§3.1.3) saves a checkpoint every 200 steps and chooses one with a model from outside on 253 prompts.
Here the choice rests on the rows' own loss or accuracy; another measure is one more metric and one more rank. The
paper's way is in `stages/choice.py`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import put_rows, put_whole
from selfreward_jax.core.rows import Row
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch, TrainRow
from selfreward_jax.training.objectives import Counts, Objective, RowArrays
from selfreward_jax.training.packing import Layout, micro_batches
from selfreward_jax.training.step import ForwardSettings, losses

PREFIX = "eval/"


def split(rows: Sequence[TrainRow], amount: float, *, seed: int) -> tuple[list[TrainRow], list[TrainRow]]:
    """Rows to train on and rows held out, each in its order; no prompt is in both.

    Prompts are drawn in an order that follows from the seed and their tokens alone, until there are enough rows, so
    that more data leaves most of those that were held out where they were.

    Args:
      amount: how many rows to hold out, or below 1 which share of them.

    Raises:
      UserError: nothing would be left to train on.
    """
    if not amount:
        return list(rows), []
    wanted = max(1, round(amount * len(rows) if amount < 1 else amount))
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(row.examples[0].prompt_ids, []).append(number)
    order = sorted(numbers, key=lambda ids: hashlib.sha256(json.dumps([seed, ids]).encode()).digest())
    held: set[int] = set()
    for prompt in order:
        if len(held) >= wanted:
            break
        held.update(numbers[prompt])
    if len(held) == len(rows):
        raise UserError(
            f"config.checkpoint.held_out: {amount:g} of {len(rows)} rows of {len(numbers)} prompts leaves none to"
            " train on; lower it."
        )
    return [r for n, r in enumerate(rows) if n not in held], [r for n, r in enumerate(rows) if n in held]


@dataclasses.dataclass(frozen=True)
class Part:
    """As many held-out rows as a step takes: their micro-batches, and what turns their shares into those of all."""

    batches: list[tuple[Batch, RowArrays]]
    counts: Counts
    weight: float


def plan(objective: Objective, rows: Sequence[TrainRow], batch_size: int, layout: Layout) -> list[Part]:
    """Divides held-out rows so that evaluating them takes no more memory than a step of training.

    The result is that of all rows as one batch. Only an objective that compares rows with each other sees them as many
    at a time as in training, in the order that they come in, and the mean of its batches is taken.
    """
    whole = objective.whole_batch
    ordered = list(rows) if whole else sorted(rows, key=len, reverse=True)
    parts = []
    for part in (ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)):
        counts = objective.counts(part if whole else rows)
        share = sum(row.weight for row in part) / sum(row.weight for row in rows) if whole else 1.0
        counts = {name: np.float32(value) for name, value in counts.items()}
        parts.append(Part(micro_batches(part, layout), counts, share))
    return parts


def evaluate(
    config: LlamaConfig,
    objective: Objective,
    forward: ForwardSettings,
    mesh: Mesh,
    params: Params,
    parts: Sequence[Part],
    frozen: Params | None = None,
) -> dict[str, float | None]:
    """Loss and metrics of held-out rows, named `eval/...`, without dropout; None for what is not finite.

    Args:
      parts: from `plan`.
      frozen: see `gradients`.
    """
    totals: dict[str, float] = {}
    for part in parts:
        for batch, arrays in part.batches:
            placed = put_rows(batch, mesh, forward.rules), put_whole(arrays, mesh)
            shares = jax.device_get(losses(config, objective, forward, params, *placed, part.counts, frozen))
            for name, value in shares.items():
                totals[name] = totals.get(name, 0.0) + part.weight * float(value)
    return {f"{PREFIX}{name}": value if math.isfinite(value) else None for name, value in totals.items()}


def _by_loss(row: Row) -> tuple[float, ...]:
    return (-row["eval/loss"],)


def _by_accuracy(row: Row) -> tuple[float, ...]:
    """Equal accuracies are common, so the loss decides between them; SFT and KTO have none, so there it does alone."""
    return (row.get("eval/rewards/accuracies") or 0.0, *_by_loss(row))


# How good a checkpoint is by the metrics of its step, larger being better, for each `checkpoint.choose` but "last".
RANKS: Mapping[str, Callable[[Row], tuple[float, ...]]] = {"loss": _by_loss, "accuracy": _by_accuracy}


def best_steps(choose: str, log: Sequence[Row], count: int) -> list[int]:
    """The `count` best of the steps that were evaluated, best first.

    None if the last checkpoint is to be the model, or if no step had a finite loss.
    """
    if choose not in RANKS:
        return []
    scored = [row for row in log if row.get(f"{PREFIX}loss") is not None]
    scored.sort(key=lambda row: (*RANKS[choose](row), -row["step"]), reverse=True)
    return [row["step"] for row in scored[:count]]
