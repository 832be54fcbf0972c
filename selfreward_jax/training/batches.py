"""Rows of token ids to padded arrays, and the order in which training sees them.

Lengths travel beside the ids; nothing is ever masked by comparing ids. The order is a function of (seed, epoch), so a
resumed run sees what an uninterrupted one would have seen.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from flax import struct


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and a response as token ids; the response (EOS included) has at least one."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    def __post_init__(self):
        if not self.prompt_ids or not self.response_ids:
            raise ValueError("a row needs at least one prompt token and one response token")

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclasses.dataclass(frozen=True)
class TrainRow:
    """What one row of training data holds.

    Attributes:
      examples: one for SFT; chosen and rejected for DPO.
      reference: the frozen model's log-probability of each example, where the objective needs it.
      weight: how many rows this one counts for, > 0.
      margin: by how much the first example should win, in units of the reward.
      desirable: whether the answer is a good one, for objectives of single answers.
    """

    examples: tuple[Example, ...]
    reference: tuple[float, ...] = ()
    weight: float = 1.0
    margin: float = 0.0
    desirable: bool = True

    def __len__(self) -> int:
        return max(len(e) for e in self.examples)


@struct.dataclass
class Batch:
    """Right-padded rows.

    Attributes:
      tokens: prompt and response, int32 [B, T].
      targets: the response alone, int32 [B, W].
      prompt_lengths: tokens before the response, int32 [B].
      response_lengths: tokens of the response, int32 [B]; 0 in rows that only fill the batch up.
    """

    tokens: jax.Array
    targets: jax.Array
    prompt_lengths: jax.Array
    response_lengths: jax.Array


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def make_batch(examples: Sequence[Example | None], *, rows: int, bucket: int) -> Batch:
    """Pads rows to a common length that is a multiple of `bucket`, and their number to `rows`; None is an empty row."""
    T = round_up(max(len(e) for e in examples if e), bucket)
    W = round_up(max(len(e.response_ids) for e in examples if e), bucket)
    tokens, targets = np.zeros((rows, T), np.int32), np.zeros((rows, W), np.int32)
    prompt_lengths, response_lengths = np.ones(rows, np.int32), np.zeros(rows, np.int32)
    for row, example in enumerate(examples):
        if example is None:
            continue
        tokens[row, : len(example)] = example.prompt_ids + example.response_ids
        targets[row, : len(example.response_ids)] = example.response_ids
        prompt_lengths[row], response_lengths[row] = len(example.prompt_ids), len(example.response_ids)
    return Batch(tokens, targets, prompt_lengths, response_lengths)  # type: ignore[arg-type]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """The last, short batch counts as a step: no row is dropped."""
    return math.ceil(rows / batch_size)


def batch_indices(rows: int, batch_size: int, *, seed: int, step: int) -> list[int]:
    """Which rows step `step` (from 0) trains on: a new permutation every epoch, each row once in it."""
    epoch, position = divmod(step, steps_per_epoch(rows, batch_size))
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)
    return order[position * batch_size : (position + 1) * batch_size].tolist()
