"""Summed log-probabilities of given responses, by one program: for the `score` verb, DPO's reference, and the
implicit reward."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.core.mesh import RULES, Rules, put_rows, row_ways
from selfreward_jax.engine.layout import replicate
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import Model
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch, Example, make_batch, round_up
from selfreward_jax.training.logps import response_logps


@functools.partial(jax.jit, static_argnames=("config", "dtype", "head_chunk", "attention", "rules", "tail_weight"))
def score(
    config: LlamaConfig,
    params: Params,
    batch: Batch,
    tail_starts_N: jax.Array | None = None,
    *,
    dtype,
    head_chunk: int,
    attention: str = "auto",
    rules: Rules = RULES,
    tail_weight: float = 1.0,
) -> jax.Array:
    """Summed log-probability of each row's response, [B]; `tail_starts_N` and `tail_weight` as in `sum_tokens`."""
    logps_B = response_logps(
        config,
        params,
        batch,
        dtype=dtype,
        head_chunk=head_chunk,
        attention_backend=attention,
        rules=rules,
        tail_starts_N=tail_starts_N,
        tail_weight=tail_weight,
    )
    return replicate((logps_B,))[0]


def plan_batches(examples: Sequence[Example], rows: int) -> list[list[int]]:
    """Indices of the rows of each batch, rows of like length together, longest first."""
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i]), i))
    return [order[i : i + rows] for i in range(0, len(order), rows)]


def score_batch(
    model: Model,
    examples: Sequence[Example],
    *,
    rows: int,
    bucket: int,
    head_chunk: int,
    attention: str = "auto",
    tail_starts: Sequence[int] | None = None,
    tail_weight: float = 1.0,
) -> list[float]:
    """Log-probabilities of at most `rows` responses; tokens from the start of a response's tail weigh `tail_weight`."""
    rows = round_up(rows, row_ways(model.mesh, model.rules))
    batch = make_batch(examples, rows=rows, bucket=bucket)
    starts = None if tail_starts is None else np.pad(np.array(tail_starts, np.int32), (0, rows - len(examples)))
    with jax.set_mesh(model.mesh):
        logps = score(
            model.config,
            model.params,
            *put_rows((batch, starts), model.mesh, model.rules),
            dtype=jnp.dtype(model.dtype),
            head_chunk=head_chunk,
            attention=attention,
            rules=model.rules,
            tail_weight=tail_weight,
        )
    return jax.device_get(logps)[: len(examples)].tolist()


def score_examples(
    model: Model,
    examples: Sequence[Example],
    *,
    rows: int = 16,
    bucket: int = 64,
    head_chunk: int = 512,
    tail_starts: Sequence[int] | None = None,
    tail_weight: float = 1.0,
) -> Iterator[tuple[list[int], list[float]]]:
    """Yields indices into `examples` and their log-probabilities, batch by batch; every index comes once."""
    for indices in plan_batches(examples, rows):
        logps = score_batch(
            model,
            [examples[i] for i in indices],
            rows=rows,
            bucket=bucket,
            head_chunk=head_chunk,
            tail_starts=tail_starts and [tail_starts[i] for i in indices],
            tail_weight=tail_weight,
        )
        yield indices, logps


def score_in_order(
    model: Model,
    examples: Sequence[Example],
    *,
    rows: int = 16,
    advance: Callable[[int, int], None] = lambda n, t: None,
    tail_starts: Sequence[int] | None = None,
    tail_weight: float = 1.0,
) -> list[float]:
    """Log-probabilities in the order of the examples; `advance` hears of rows and tokens as they are done."""
    found: dict[int, float] = {}
    tails = {"tail_starts": tail_starts, "tail_weight": tail_weight}
    for indices, logps in score_examples(model, examples, rows=rows, **tails):
        found.update(zip(indices, logps, strict=True))
        advance(len(indices), sum(len(examples[i]) for i in indices))
    return [found[i] for i in range(len(examples))]


def implicit_reward(logp: float, reference_logp: float, beta: float) -> float:
    """What a model trained by DPO rewards, up to a term of the prompt (Rafailov et al. 2023, eq. 5), in units of beta.

    Args:
      logp, reference_logp: of the same response under the model and under its reference, in nats.
      beta: of the training.
    """
    return beta * (logp - reference_logp)
