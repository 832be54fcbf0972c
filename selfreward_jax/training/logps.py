"""Log-probabilities of responses, with the vocabulary's logits in memory for only a few positions at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

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
    remat: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    adapter_dropout: float = 0.0,
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Summed log-probability of each row's response given its prompt, float32 [B], in nats.

    Prompt positions never reach the head, and padding is left out by length, so neither has any influence.
    """
    hidden_BTD = llama.hidden_states(
        config,
        params,
        batch.tokens,
        dtype=dtype,
        remat=remat,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        adapter_dropout=adapter_dropout,
        constrain=constrain,
    )
    offsets_W = jnp.arange(batch.targets.shape[1])
    # The token at position i is predicted by the hidden state at i - 1.
    sources_BW = jnp.minimum(batch.prompt_lengths[:, None] - 1 + offsets_W, batch.tokens.shape[1] - 1)
    hidden_BWD = jnp.take_along_axis(hidden_BTD, sources_BW[..., None], axis=1)
    logps_BW = token_logps(config, params, hidden_BWD, batch.targets, head_chunk)
    return jnp.where(offsets_W < batch.response_lengths[:, None], logps_BW, 0.0).sum(axis=-1)
