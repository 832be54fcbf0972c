"""Log-probabilities of responses, with the vocabulary's logits in memory for only a few positions at a time."""

import jax
import jax.numpy as jnp

from selfreward_jax.core.mesh import RULES, Rules, constrain
from selfreward_jax.llama import model as llama
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch


def token_logps(
    config: LlamaConfig, params: Params, hidden_BWD: jax.Array, targets_BW: jax.Array, chunk: int
) -> jax.Array:
    """Log-probability of each target given its hidden state, float32 [B, W]; about [chunk, V] logits at a time.

    A chunk is a few positions of every row, so that it is split over devices as the rows are. Logits are recomputed
    in the backward pass instead of kept.
    """
    B, W, D = hidden_BWD.shape
    size = min(max(chunk // B, 1), W)
    chunks = -(-W // size)
    fill = chunks * size - W
    hidden = jnp.pad(hidden_BWD, ((0, 0), (0, fill), (0, 0))).reshape(B, chunks, size, D)
    targets = jnp.pad(targets_BW, ((0, 0), (0, fill))).reshape(B, chunks, size)

    @jax.checkpoint
    def one(x):
        hidden_BCD, targets_BC = x
        logits_BCV = llama.logits(config, params, hidden_BCD)
        picked_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        return picked_BC - jax.nn.logsumexp(logits_BCV, axis=-1)

    logps = jax.lax.map(one, (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)))
    return jnp.moveaxis(logps, 0, 1).reshape(B, -1)[:, :W]


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
    hidden_BTD = llama.hidden_states(
        config,
        params,
        batch.tokens,
        positions_BT=batch.positions,
        segments=batch.segments,
        dtype=dtype,
        remat=remat,
        attention_backend=attention_backend,
        rules=rules,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        adapter_dropout=adapter_dropout,
    )
    hidden_BWD = jnp.take_along_axis(hidden_BTD, batch.sources[..., None], axis=1)
    # The head is gathered once, not for every chunk.
    name, axes = ("embed", ("vocab", None)) if config.tie_word_embeddings else ("head", (None, "vocab"))
    head = {name: constrain(params[name], axes, rules)}
    logps_BW = token_logps(config, head, hidden_BWD, batch.targets, head_chunk)
    return sum_tokens(logps_BW, batch, tail_starts_N, tail_weight)


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
