"""Log-probabilities of responses, with the vocabulary's logits in memory for only a few positions at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from selfreward_jax.llama import model as llama
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch


def token_logps(
    config: LlamaConfig, params: Params, hidden_ND: jax.Array, targets_N: jax.Array, chunk: int
) -> jax.Array:
    """Log-probability of each target given its hidden state, float32 [N]; at most [chunk, V] logits at a time.

    Logits are recomputed in the backward pass instead of kept.
    """
    N, D = hidden_ND.shape
    chunk = min(chunk, N)
    chunks = -(-N // chunk)
    hidden = jnp.pad(hidden_ND, ((0, chunks * chunk - N), (0, 0))).reshape(chunks, chunk, D)
    targets = jnp.pad(targets_N, (0, chunks * chunk - N)).reshape(chunks, chunk)

    @jax.checkpoint
    def one(x):
        hidden_CD, targets_C = x
        logits_CV = llama.logits(config, params, hidden_CD)
        picked_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
        return picked_C - jax.nn.logsumexp(logits_CV, axis=-1)

    return jax.lax.map(one, (hidden, targets)).reshape(-1)[:N]


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
        constrain=constrain,
    )
    B, W = batch.targets.shape
    offsets_W = jnp.arange(W)
    # The token at position i is predicted by the hidden state at i - 1.
    sources_BW = jnp.minimum(batch.prompt_lengths[:, None] - 1 + offsets_W, batch.tokens.shape[1] - 1)
    hidden_BWD = jnp.take_along_axis(hidden_BTD, sources_BW[..., None], axis=1)
    logps_BW = token_logps(
        config, params, hidden_BWD.reshape(B * W, -1), batch.targets.reshape(-1), head_chunk
    ).reshape(B, W)
    return jnp.where(offsets_W < batch.response_lengths[:, None], logps_BW, 0.0).sum(axis=-1)
