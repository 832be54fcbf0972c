"""Log-probabilities of responses, with the vocabulary's logits in memory for only a few positions at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.core.mesh import RULES, Rules, constrain
from selfreward_jax.llama import model as llama
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch


def _by_chunks(one: Callable[[tuple[jax.Array, jax.Array]], Any], hidden_BWD: jax.Array, targets_BW: jax.Array,
               chunk: int) -> Any:  # fmt: skip
    """`one` of all positions, a few of every row at a time, so that a chunk is split over devices as the rows are."""
    B, W, D = hidden_BWD.shape
    size = min(max(chunk // B, 1), W)
    chunks = -(-W // size)
    fill = chunks * size - W
    hidden = jnp.pad(hidden_BWD, ((0, 0), (0, fill), (0, 0))).reshape(B, chunks, size, D)
    targets = jnp.pad(targets_BW, ((0, 0), (0, fill))).reshape(B, chunks, size)
    found = jax.lax.map(one, (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :W], found)


def token_logps(
    config: LlamaConfig, params: Params, hidden_BWD: jax.Array, targets_BW: jax.Array, chunk: int
) -> jax.Array:
    """Log-probability of each target given its hidden state, float32 [B, W]; about [chunk, V] logits at a time.

    Logits are recomputed in the backward pass instead of kept.
    """

    @jax.checkpoint
    def one(x):
        hidden_BCD, targets_BC = x
        return _pick(llama.logits(config, params, hidden_BCD), targets_BC)

    return _by_chunks(one, hidden_BWD, targets_BW, chunk)


def greedy_token_logps(
    config: LlamaConfig, params: Params, hidden_BWD: jax.Array, targets_BW: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """As `token_logps`, and whether no token is more probable than the target, bool [B, W]."""

    def one(x):
        hidden_BCD, targets_BC = x
        logits_BCV = llama.logits(config, params, hidden_BCD)
        return _pick(logits_BCV, targets_BC), logits_BCV.argmax(axis=-1) == targets_BC

    return _by_chunks(one, hidden_BWD, targets_BW, chunk)


def _pick(logits_BCV: jax.Array, targets_BC: jax.Array) -> jax.Array:
    picked_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return picked_BC - jax.nn.logsumexp(logits_BCV, axis=-1)


@jax.named_scope("logps")
def response_logps(
    config: LlamaConfig,
    params: Params,
    batch: Batch,
    *,
    dtype,
    head_chunk: int,
    remat: str = "none",
    attention_backend: str = "auto",
    rules: Rules = RULES,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    tail_starts_N: jax.Array | None = None,
    tail_weight: float = 1.0,
    adapter_dropout: float = 0.0,
) -> jax.Array:
    """Summed log-probability of each example's response given its prompt, float32 [N], in nats.

    Prompt positions never reach the head, and padding is left out by its place, so neither has any influence.

    Args:
      tail_starts_N, tail_weight: see `sum_tokens`.
    """
    head, hidden_BWD = before_targets(
        config,
        params,
        batch,
        rules,
        dtype=dtype,
        remat=remat,
        attention_backend=attention_backend,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        adapter_dropout=adapter_dropout,
    )
    logps_BW = token_logps(config, head, hidden_BWD, batch.targets, head_chunk)
    return sum_tokens(logps_BW, batch, tail_starts_N, tail_weight)


def before_targets(
    config: LlamaConfig, params: Params, batch: Batch, rules: Rules, **how: Any
) -> tuple[Params, jax.Array]:
    """The head, gathered once and not for every chunk, and the hidden state before each target, [B, W, D]."""
    hidden_BTD = llama.hidden_states(
        config, params, batch.tokens, positions_BT=batch.positions, segments=batch.segments, rules=rules, **how
    )
    name, axes = ("embed", ("vocab", None)) if config.tie_word_embeddings else ("head", (None, "vocab"))
    head = {name: constrain(params[name], axes, rules)}
    return head, jnp.take_along_axis(hidden_BTD, batch.sources[..., None], axis=1)


def sum_tokens(
    logps_BW: jax.Array, batch: Batch, tail_starts_N: jax.Array | None = None, tail_weight: float = 1.0
) -> jax.Array:
    """Sum over each example's tokens, [N]; those of its response from `tail_starts_N` on weigh `tail_weight`.

    With the length of the shorter answer of a pair as the start, this is the log-probability of LD-DPO (Liu et al.
    2024, "Length Desensitization in Direct Preference Optimization"), whose alpha is the weight.
    """
    if tail_starts_N is not None:
        starts = tail_starts_N[:, None] if batch.owners is None else tail_starts_N[batch.owners]
        logps_BW = jnp.where(batch.places < starts, logps_BW, tail_weight * logps_BW)
    logps_BW = jnp.where(batch.real, logps_BW, 0.0)
    if batch.owners is None:
        return logps_BW.sum(axis=-1)
    return jax.ops.segment_sum(logps_BW.reshape(-1), batch.owners.reshape(-1), batch.lengths.shape[0])
