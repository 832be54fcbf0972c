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

from selfreward_jax.llama.attention import Segments


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


@dataclasses.dataclass(frozen=True)
class Text:
    """What stands together in a row: a prompt and one response, or several that don't see each other.

    Attributes:
      owners: of each response, the example whose log-probability it is.
    """

    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + sum(map(len, self.responses))


@struct.dataclass
class Batch:
    """Right-padded rows, and the places in them whose next token is scored.

    Attributes:
      tokens: int32 [B, T].
      sources: the position before each target, int32 [B, W].
      targets: tokens of responses, int32 [B, W].
      places: of each target in its response, from 0, int32 [B, W].
      real: whether there is a target, bool [B, W].
      lengths: response tokens of each example, int32 [N]; 0 for one that only fills the batch up.
      owners: the example that each target belongs to, int32 [B, W]; None where row b is example b.
      positions: of each token in its text, int32 [B, T]; None where each row is one text.
      segments: the same.
    """

    tokens: jax.Array
    sources: jax.Array
    targets: jax.Array
    places: jax.Array
    real: jax.Array
    lengths: jax.Array
    owners: jax.Array | None = None
    positions: jax.Array | None = None
    segments: Segments | None = None


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def make_batch(examples: Sequence[Example | None], *, rows: int, bucket: int) -> Batch:
    """A row for each example, filled up to a length that is a multiple of `bucket`, and to `rows`; None is empty."""
    texts = [[] if e is None else [Text(e.prompt_ids, (e.response_ids,), (n,))] for n, e in enumerate(examples)]
    return lay_rows([*texts, *([[]] * (rows - len(texts)))], rows, bucket=bucket)


def lay_rows(rows: Sequence[Sequence[Text]], examples: int, *, bucket: int, target_bucket: int = 0) -> Batch:
    """Texts one after another in each row.

    Args:
      rows: the texts of each row.
      examples: how many there are (N), fillers among them.
      bucket: rows are padded to a multiple of so many tokens.
      target_bucket: their targets are; 0: as their tokens.
    """
    parents = any(len(text.responses) > 1 for texts in rows for text in texts)
    longest = max(sum(map(len, texts)) for texts in rows)
    scored = max(sum(len(r) for t in texts for r in t.responses) for texts in rows)
    T = round_up(max(longest, 1), bucket)
    W = min(T, round_up(max(scored, 1), target_bucket or bucket))
    B = len(rows)
    tokens, positions = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    ids, of_prompt = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    sources, targets, places, owners = (np.zeros((B, W), np.int32) for _ in range(4))
    real, lengths = np.zeros((B, W), bool), np.zeros(examples, np.int32)
    for b, texts in enumerate(rows):
        at, scored, segment = 0, 0, 0
        for text in texts:
            start, size = at, len(text.prompt_ids)
            tokens[b, at : at + size], positions[b, at : at + size] = text.prompt_ids, np.arange(size)
            segment += 1
            ids[b, at : at + size] = of_prompt[b, at : at + size] = own = segment
            at += size
            for response, owner in zip(text.responses, text.owners, strict=True):
                n = len(response)
                tokens[b, at : at + n], positions[b, at : at + n] = response, size + np.arange(n)
                segment += parents
                ids[b, at : at + n], of_prompt[b, at : at + n] = segment, own
                targets[b, scored : scored + n], places[b, scored : scored + n] = response, np.arange(n)
                # The token at position i is predicted by the hidden state before it: the prompt's last, at first.
                sources[b, scored : scored + n] = [start + size - 1, *range(at, at + n - 1)]
                owners[b, scored : scored + n], real[b, scored : scored + n], lengths[owner] = owner, True, n
                at, scored = at + n, scored + n
    arrays = [tokens, sources, targets, places, real, lengths]
    alone = examples == B and not parents and all(len(t) <= 1 for t in rows)
    if not (alone and all(t.owners == (b,) for b, texts in enumerate(rows) for t in texts)):
        arrays += [owners, positions, Segments(ids, of_prompt if parents else None)]  # type: ignore[arg-type]
    return Batch(*arrays)  # type: ignore[arg-type]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """The last, short batch counts as a step: no row is dropped."""
    return math.ceil(rows / batch_size)


def batch_indices(rows: int, batch_size: int, *, seed: int, step: int) -> list[int]:
    """Which rows step `step` (from 0) trains on: a new permutation every epoch, each row once in it."""
    epoch, position = divmod(step, steps_per_epoch(rows, batch_size))
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)
    return order[position * batch_size : (position + 1) * batch_size].tolist()
