"""Rows that training doesn't see: which they are, what a model's loss on them is, and the choice of a checkpoint by it.

The paper (appendix A.3) saves a checkpoint every 200 steps and chooses one with a model from outside on 253 prompts.
Here the choice rests on the rows' own loss or accuracy; another measure is one more metric and one more rank.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import Mesh

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import put_rows, put_whole
from selfreward_jax.core.rows import Row
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch, TrainRow
from selfreward_jax.training.objectives import Counts, Objective, RowArrays
from selfreward_jax.training.step import ForwardSettings, add, losses

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


def evaluate(
    config: LlamaConfig,
    objective: Objective,
    forward: ForwardSettings,
    mesh: Mesh,
    params: Params,
    batches: Sequence[tuple[Batch, RowArrays]],
    counts: Counts,
    frozen: Params | None = None,
) -> dict[str, float]:
    """Loss and metrics of rows as one batch, named `eval/...`, without dropout.

    Args:
      batches: all of the rows, in micro-batches.
      counts: of all of them, from `objective.counts`.
      frozen: see `gradients`.
    """
    parts = [
        losses(
            config, objective, forward, params, put_rows(batch, mesh, forward.rules), put_whole(arrays, mesh), counts,
            frozen,
        )
        for batch, arrays in batches
    ]  # fmt: skip
    return {f"{PREFIX}{name}": float(value) for name, value in jax.device_get(functools.reduce(add, parts)).items()}


def _by_loss(row: Row) -> tuple[float, ...]:
    return (-row["eval/loss"],)


def _by_accuracy(row: Row) -> tuple[float, ...]:
    """Equal accuracies are common, so the loss decides between them; SFT has no accuracy, so there it does alone."""
    return (row.get("eval/rewards/accuracies", 0.0), *_by_loss(row))


# How good a checkpoint is by the metrics of its step, larger being better, for each `checkpoint.choose` but "last".
RANKS: Mapping[str, Callable[[Row], tuple[float, ...]]] = {"loss": _by_loss, "accuracy": _by_accuracy}


def best_steps(choose: str, log: Sequence[Row], count: int) -> list[int]:
    """The `count` best of the steps that were evaluated, best first; none if the last checkpoint is to be the model."""
    if choose not in RANKS:
        return []
    scored = [row for row in log if f"{PREFIX}loss" in row]
    scored.sort(key=lambda row: (*RANKS[choose](row), -row["step"]), reverse=True)
    return [row["step"] for row in scored[:count]]
