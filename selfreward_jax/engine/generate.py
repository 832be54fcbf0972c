"""Sampling from a model: requests in, completions out, in batches whose make-up depends on the requests alone.

Every draw's key follows from (seed, model, request, sample, position), so neither the batch nor the slot in which a
row ran has a say in what it says.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import put_rows
from selfreward_jax.engine.decode import decode, prefill
from selfreward_jax.llama.load import Model
from selfreward_jax.training.batches import round_up


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How to sample. `temperature` 0 is greedy; `max_new_tokens` counts the EOS."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue; `id` enters the random keys, so it must be the request's own."""

    id: str
    prompt_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sample: `token_ids` as drawn, EOS included; `stop_reason` is `eos` or `length`; `logp` in nats."""

    request: Request
    index: int
    token_ids: tuple[int, ...]
    text: str
    stop_reason: str
    logp: float


def check_fits(requests: Sequence[Request], settings: SamplingSettings, context: int, what: str) -> None:
    """Raises `UserError` for a prompt that leaves no room for an answer in the model's context."""
    for request in requests:
        if len(request.prompt_ids) + settings.max_new_tokens > context:
            raise UserError(
                f"{what} {request.id}: {len(request.prompt_ids)} prompt tokens and {settings.max_new_tokens} new ones"
                f" exceed the model's context of {context}; shorten the prompt or lower max_new_tokens."
            )


def plan_batches(requests: Sequence[Request], samples: int, rows: int) -> list[list[Request]]:
    """Requests sorted by length (longest first, so that the most memory is needed at once), in batches of like size.

    Args:
      samples: of each request; all of them run in one batch.
      rows: the most that may run at a time.
    """
    ordered = sorted(requests, key=lambda r: (-len(r.prompt_ids), r.id))
    batches = math.ceil(len(ordered) / max(1, rows // samples))
    per_batch = math.ceil(len(ordered) / max(batches, 1))
    return [ordered[i : i + per_batch] for i in range(0, len(ordered), max(per_batch, 1))]


def _request_key(seed: int, purpose: str, request: Request) -> int:
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{request.id}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def generate_batch(
    model: Model,
    batch: Sequence[Request],
    samples: int,
    settings: SamplingSettings,
    *,
    seed: int,
    size: int,
    bucket: int,
    purpose: str = "",
    stop_ids: tuple[int, ...] = (),
) -> list[Completion]:
    """Continues each request `samples` times, request by request, sample by sample.

    Args:
      size: requests in a full batch; a smaller one is filled up to the same shape, so that it needs no new program.
      bucket: prompts are padded to a multiple of this.
      purpose: what the samples are for and the model's hash; part of every random key.
      stop_ids: ids that end a sample beside the model's own end ids.
    """
    P = max(size, len(batch))
    T = round_up(max(len(r.prompt_ids) for r in batch), bucket)
    tokens, lengths = np.zeros((P, T), np.int32), np.ones(P, np.int32)
    seeds = np.zeros(P, np.uint32)
    for i, request in enumerate(batch):
        tokens[i, : len(request.prompt_ids)] = request.prompt_ids
        lengths[i], seeds[i] = len(request.prompt_ids), _request_key(seed, purpose, request)
    dtype = jnp.dtype(model.dtype)
    with jax.set_mesh(model.mesh):
        tokens, lengths = put_rows((tokens, lengths), model.mesh)
        prefilled = prefill(model.config, model.params, tokens, lengths, dtype=dtype)
        ids, counts, logps = decode(
            model.config,
            model.params,
            prefilled,
            lengths,
            np.arange(P) < len(batch),
            row_keys(seeds, samples),
            samples=samples,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            eos_ids=model.chat.eos_ids + stop_ids,
            dtype=dtype,
        )
    ids, counts, logps = jax.device_get((ids, counts, logps))
    completions = []
    for i, request in enumerate(batch):
        for n in range(samples):
            row = i * samples + n
            token_ids = tuple(ids[row, : counts[row]].tolist())
            stop = "eos" if token_ids[-1] in model.chat.eos_ids + stop_ids else "length"
            completions.append(Completion(request, n, token_ids, model.chat.decode(token_ids), stop, float(logps[row])))
    return completions


def row_keys(seeds_P: np.ndarray, samples: int) -> jax.Array:
    """One key per (request, sample), [P * N], request by request."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds_P))
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
    return fold(keys, jnp.arange(samples)).reshape(-1)
