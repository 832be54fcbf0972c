"""The two jitted programs of generation: prefill of prompts, and a decode loop that continues each of them N times.

A prompt's keys and values are computed once and read by all its N samples together, as if they were more query
heads. What a row generates goes to a region of its own, in which every row writes at the same step, so that each
update is one contiguous slice whatever the prompts' lengths.

Shape letters: P prompts, N samples of each, R = P * N rows, T prompt tokens, S new tokens, K kv heads, G query heads
per kv head, E head size, L layers, V vocabulary.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct

from selfreward_jax.engine.sampling import sample
from selfreward_jax.llama import model as llama
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params


@struct.dataclass
class Prefilled:
    """Keys and values of the prompts, [L, P, T, K, E], and the logits after each prompt's last token, [P, V]."""

    k: jax.Array
    v: jax.Array
    logits: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def prefill(config: LlamaConfig, params: Params, tokens_PT: jax.Array, lengths_P: jax.Array, *, dtype) -> Prefilled:
    """Runs right-padded prompts through the model once."""
    P, T = tokens_PT.shape
    rope = llama.rope_tables(config, jnp.arange(T)[None])
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (P, T, T))

    def block(x, layer):
        q, k, v = llama.project_qkv(config, layer, x, rope)
        x = x + llama.project_out(config, layer, llama.attention(q, k, v, causal))
        return x + llama.mlp(config, layer, x), (k, v)

    x, (k, v) = jax.lax.scan(block, llama.embed(params, tokens_PT, dtype), params["layers"])
    last_PD = jnp.take_along_axis(x, (lengths_P - 1)[:, None, None], axis=1)[:, 0]
    last_PD = llama.rms_norm(last_PD, params["norm"], config.rms_norm_eps)
    return Prefilled(k=k, v=v, logits=llama.logits(config, params, last_PD))


def _shared_attention(q_RHE, prompt_k, prompt_v, own_k, own_v, prompt_mask_PT, step) -> jax.Array:
    """Attention of one new token per row over its prompt's keys [P, T, K, E] and its own [R, S, K, E]: [R, H, E]."""
    R, H, E = q_RHE.shape
    P, T, K, _ = prompt_k.shape
    N, S = R // P, own_k.shape[1]
    q = q_RHE.reshape(P, N, K, H // K, E) / math.sqrt(E)
    shared = jnp.einsum("pnkge,ptke->pnkgt", q, prompt_k, preferred_element_type=jnp.float32)
    shared = jnp.where(prompt_mask_PT[:, None, None, None], shared, -jnp.inf).reshape(R, K, H // K, T)
    own = jnp.einsum("rkge,rske->rkgs", q.reshape(R, K, H // K, E), own_k, preferred_element_type=jnp.float32)
    own = jnp.where(jnp.arange(S) <= step, own, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([shared, own], axis=-1), axis=-1).astype(own_v.dtype)
    weights_p = weights[..., :T].reshape(P, N, K, H // K, T)
    out = jnp.einsum("pnkgt,ptke->pnkge", weights_p, prompt_v).reshape(R, K, H // K, E)
    return (out + jnp.einsum("rkgs,rske->rkge", weights[..., T:], own_v)).reshape(R, H, E)


@functools.partial(
    jax.jit, static_argnames=("config", "samples", "max_new_tokens", "temperature", "top_p", "eos_ids", "dtype")
)
def decode(
    config: LlamaConfig,
    params: Params,
    prefilled: Prefilled,
    lengths_P: jax.Array,
    live_P: jax.Array,
    keys_R: jax.Array,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    eos_ids: tuple[int, ...],
    dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Continues every prompt `samples` times until an EOS id or `max_new_tokens`.

    Args:
      lengths_P: prompt lengths.
      live_P: False where a row only fills the batch up.
      keys_R: a random key per row; the draw at step s uses `fold_in(key, s)`.

    Returns:
      Tokens int32 [R, S], how many of them count (EOS included) int32 [R], and the summed log-probability [R].
    """
    P, N, S = lengths_P.shape[0], samples, max_new_tokens
    R, T = P * N, prefilled.k.shape[2]
    K, E = config.num_kv_heads, config.head_dim
    # One array per layer: a slice of a stacked array inside the loop would be copied at every step.
    layers = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(config.num_layers)]
    prompt_kv = [(prefilled.k[i], prefilled.v[i]) for i in range(config.num_layers)]
    prompt_mask_PT = jnp.arange(T) < lengths_P[:, None]
    lengths_R = jnp.repeat(lengths_P, N)
    eos = jnp.asarray(eos_ids, jnp.int32)

    def going(state):
        step, _, _, done_R, *_ = state
        return (step < S) & ~jnp.all(done_R)

    def advance(state):
        step, logits_RV, caches, done_R, tokens_RS, count_R, logp_R = state
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_R, step)
        token_R, token_logp_R = sample(logits_RV, keys, temperature=temperature, top_p=top_p)
        tokens_RS = jax.lax.dynamic_update_slice(tokens_RS, jnp.where(done_R, 0, token_R)[:, None], (0, step))
        count_R = count_R + ~done_R
        logp_R = logp_R + jnp.where(done_R, 0.0, token_logp_R)
        done_R = done_R | jnp.isin(token_R, eos)

        rope = llama.rope_tables(config, (lengths_R + step)[:, None])
        x = llama.embed(params, token_R[:, None], dtype)
        new_caches = []
        for layer, (prompt_k, prompt_v), (own_k, own_v) in zip(layers, prompt_kv, caches, strict=True):
            q, k, v = llama.project_qkv(config, layer, x, rope)
            own_k = jax.lax.dynamic_update_slice(own_k, k, (0, step, 0, 0))
            own_v = jax.lax.dynamic_update_slice(own_v, v, (0, step, 0, 0))
            out = _shared_attention(q[:, 0], prompt_k, prompt_v, own_k, own_v, prompt_mask_PT, step)
            x = x + llama.project_out(config, layer, out[:, None])
            x = x + llama.mlp(config, layer, x)
            new_caches.append((own_k, own_v))
        hidden = llama.rms_norm(x[:, 0], params["norm"], config.rms_norm_eps)
        return step + 1, llama.logits(config, params, hidden), new_caches, done_R, tokens_RS, count_R, logp_R

    empty = lambda: jnp.zeros((R, S, K, E), dtype)  # noqa: E731
    state = (
        jnp.int32(0),
        jnp.repeat(prefilled.logits, N, axis=0),
        [(empty(), empty()) for _ in layers],
        jnp.repeat(~live_P, N),
        jnp.zeros((R, S), jnp.int32),
        jnp.zeros(R, jnp.int32),
        jnp.zeros(R, jnp.float32),
    )
    _, _, _, _, tokens_RS, count_R, logp_R = jax.lax.while_loop(going, advance, state)
    return tokens_RS, count_R, logp_R
