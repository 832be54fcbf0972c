"""The jitted programs of generation: prefill of a shared prefix, prefill of prompts, first draws, and decoding.

Shape letters: P prompts in a call, N samples of each, R slots, T prompt tokens, C prefix tokens (padded), D embed,
H heads, K kv heads, G query heads per kv head, E head size, V vocabulary, F fed tokens, Z candidate tokens.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct

from selfreward_jax.engine import block
from selfreward_jax.engine.attention import KV, Partial, attend, finish
from selfreward_jax.engine.layout import replicate
from selfreward_jax.engine.regions import (
    Attention,
    Region,
    append_and_attend,
    attend_prompts,
    attend_rows,
    constrain,
    store,
)
from selfreward_jax.engine.sampling import Law, keys_at, sample
from selfreward_jax.llama import model as llama
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params

QUERY_BLOCK = 512  # prompt positions whose attention scores are in memory at a time


@struct.dataclass
class Seats:
    """Which slot reads which prompt. A prompt's samples have seats 0 to N - 1 at its entry, all in one replica.

    Attributes:
      slot_of: the slot in each seat, by replica, int32 [replicas, entries * N]; any slot where the seat is empty.
      seat_of: the seat of each slot, by replica, int32 [replicas, slots].
      lengths: prompt tokens of each entry after the shared prefix, 0 where it has no prompt, int32 [P].
    """

    slot_of: jax.Array
    seat_of: jax.Array
    lengths: jax.Array


@struct.dataclass
class Slots:
    """The state of each slot, all [R, ...]; small, kept by the host and handed to each call.

    Attributes:
      token: drawn or fed last, not yet in the cache.
      count: tokens so far, `token` with them; its place in the cache is `count - 1`.
      base: prompt tokens before them.
      key: 64 bits of each row's own randomness, uint32 [R, 2].
      live: whether the slot is in use.
      feed: tokens to be fed after `token` instead of drawn ones, int32 [R, F].
      to_feed: how many of them, or -1 where tokens are drawn.
    """

    token: jax.Array
    count: jax.Array
    base: jax.Array
    key: jax.Array
    live: jax.Array
    feed: jax.Array
    to_feed: jax.Array


def _causal(q_PTKGE: jax.Array, kv: KV, positions_PT: jax.Array) -> Partial:
    """Attention of some positions of each prompt over their own prompt up to themselves."""
    P, T, K, G, E = q_PTKGE.shape
    S = kv.capacity
    q = q_PTKGE.transpose(0, 2, 1, 3, 4).reshape(P, K, T * G, E)
    scores = jnp.einsum("pkqe,pkes->pkqs", q, kv.k[0], preferred_element_type=jnp.float32).reshape(P, K, T, G, S)
    scores = scores / math.sqrt(E)
    seen_PTS = jnp.arange(S) <= positions_PT[..., None]
    scores = jnp.where(seen_PTS[:, None, :, None], scores, -jnp.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    mixed = weights.reshape(P, K, T * G, S).astype(kv.v.dtype)
    out = jnp.einsum("pkqs,pkse->pkqe", mixed, kv.v[0], preferred_element_type=jnp.float32).reshape(P, K, T, G, E)
    part = Partial(top, weights.sum(axis=-1, keepdims=True), out)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), part)


def _prompt_attention(q_PTKGE, own: KV, prefix: KV | None, prefix_length, positions_PT=None) -> jax.Array:
    """Attention of prompts, whole or at some positions: over the shared prefix, and causally over themselves."""
    P, T, *heads = q_PTKGE.shape

    def part(q, positions):
        parts = [_causal(q, own, positions)]
        if prefix is not None:
            shared = attend(q.reshape(1, -1, *heads), prefix, prefix_length[None])
            parts.append(jax.tree.map(lambda x: x.reshape(P, -1, *x.shape[2:]), shared))
        return finish(parts, q.dtype)

    if positions_PT is not None or T <= QUERY_BLOCK:
        return part(q_PTKGE, jnp.arange(T)[None] if positions_PT is None else positions_PT)
    blocks = -(-T // QUERY_BLOCK)
    q = jnp.pad(q_PTKGE, ((0, 0), (0, blocks * QUERY_BLOCK - T), (0, 0), (0, 0), (0, 0)))
    q = jnp.moveaxis(q.reshape(P, blocks, QUERY_BLOCK, *heads), 1, 0)
    out = jax.lax.map(lambda x: part(*x), (q, jnp.arange(blocks * QUERY_BLOCK).reshape(blocks, 1, QUERY_BLOCK)))
    return jnp.moveaxis(out, 0, 1).reshape(P, -1, *heads)[:, :T]


def _prefill_layers(
    config,
    weights,
    tokens_PT,
    lengths_P,
    prefix: list[KV],
    prefix_length,
    dtype,
    cache_dtype,
    attention: Attention,
    *,
    shared: bool,
):
    """Each prompt's last hidden state [P, D] before the final norm, and each layer's keys and values as one block."""
    T = tokens_PT.shape[1]
    last = (lengths_P - 1)[:, None]
    rope = llama.rope_tables(config, prefix_length + jnp.arange(T)[None])
    x = llama.embed(weights, tokens_PT, dtype)
    made = []
    for n, layer in enumerate(weights["layers"]):
        q, k, v = block.project_qkv(config, layer, x, rope)
        kv = KV(k.transpose(0, 2, 3, 1)[None].astype(cache_dtype), v.transpose(0, 2, 1, 3)[None].astype(cache_dtype))
        made.append(kv)
        if n + 1 == config.num_layers:  # of the last layer nothing but the last position's result is wanted
            q = jnp.take_along_axis(q, last[..., None, None, None], axis=1)
            x = jnp.take_along_axis(x, last[..., None], axis=1)
            out = _prompt_attention(q, kv, prefix[n] if prefix else None, prefix_length, last)
        elif attention == "pallas":
            k, v = k.astype(cache_dtype), v.astype(cache_dtype)
            out = attend_prompts(config, q, k, v, prefix[n] if prefix else None, prefix_length, shared=shared)
        else:
            out = _prompt_attention(q, kv, prefix[n] if prefix else None, prefix_length)
        x = x + block.project_out(config, layer, out)
        x = x + block.mlp(config, layer, x)
    return x[:, 0], made


@functools.partial(jax.jit, static_argnames=("config", "dtype", "cache_dtype", "attention"))
def prefill_prefix(
    config: LlamaConfig, weights: Params, tokens_1C: jax.Array, *, dtype, cache_dtype, attention: Attention = "xla"
) -> list[KV]:
    """Keys and values of the prefix that all requests share, one block of C positions."""
    length = jnp.full(1, tokens_1C.shape[1], jnp.int32)
    none = jnp.int32(0)
    _, made = _prefill_layers(config, weights, tokens_1C, length, [], none, dtype, cache_dtype, attention, shared=True)
    return [constrain(kv, config, shared=True) for kv in made]


@functools.partial(jax.jit, static_argnames=("config", "dtype", "attention"), donate_argnames=("prompts",))
def prefill(
    config: LlamaConfig,
    weights: Params,
    prefix: list[KV],
    prefix_length: jax.Array,
    prompts: list[Region],
    tokens_PT: jax.Array,
    lengths_P: jax.Array,
    entries_DP: jax.Array,
    *,
    dtype,
    attention: Attention = "xla",
) -> tuple[list[Region], jax.Array]:
    """Runs right-padded prompts (without the shared prefix) through the model once.

    Args:
      prefix: empty if nothing is shared.
      prompts: the region of prompts; given up.
      entries_DP: the entry of each prompt in its replica, [replicas, P / replicas]; out of range: not kept.

    Returns:
      The region with the prompts in it, and the logits after each prompt's last token, float32 [P, V].
    """
    cache_dtype = prompts[0].k.dtype if prompts else dtype
    last_PD, made = _prefill_layers(
        config, weights, tokens_PT, lengths_P, prefix, prefix_length, dtype, cache_dtype, attention, shared=False
    )
    last_PD = llama.rms_norm(last_PD, weights["norm"], config.rms_norm_eps)
    logits_PV = llama.logits(config, weights, last_PD)
    regions = zip(prompts, made, strict=True) if prompts else ()
    stored = [constrain(store(region, new, entries_DP), config) for region, new in regions]
    return stored, logits_PV


@functools.partial(jax.jit, static_argnames=("law", "banned"))
def first_tokens(
    logits_PV: jax.Array, keys_PN2: jax.Array, law: Law, *, banned: tuple[int, ...]
) -> tuple[jax.Array, ...]:
    """The first token of each of N samples of each prompt, and its log-probability, [P, N] each."""
    P, N, _ = keys_PN2.shape
    logits = jnp.repeat(logits_PV, N, axis=0)
    keys = keys_at(keys_PN2.reshape(P * N, 2), jnp.zeros(P * N, jnp.int32))
    token, logp = sample(logits, keys, law, _is_one_of(banned, logits.shape[-1]) if banned else None)
    return replicate((token.reshape(P, N), logp.reshape(P, N)))


def _is_one_of(ids: tuple[int, ...], size: int) -> jax.Array:
    return jnp.zeros((1, size), bool).at[0, jnp.asarray(ids, jnp.int32)].set(True)


@jax.jit
def candidate_logps(logits_XV: jax.Array, candidates_Z: jax.Array) -> jax.Array:
    """Log-probabilities of some tokens under the model, float32 [X, Z]."""
    logps = logits_XV[:, candidates_Z] - jax.nn.logsumexp(logits_XV, axis=-1, keepdims=True)
    return replicate((logps,))[0]


def _shared_attention(config, q_RKGE, prefix: KV | None, prefix_length, prompt: Region, seats: Seats) -> list[Partial]:
    """Attention of one new token per slot over the shared prefix and over its prompt; leaves are [R, K, G, .]."""
    q, R = q_RKGE, q_RKGE.shape[0]
    parts = []
    if prefix is not None:
        shared = attend(q[None], prefix, prefix_length[None])
        parts.append(jax.tree.map(lambda x: x[0], shared))
    # A prompt's keys are read once for all its samples, so queries go to their seats and results come back.
    D, P = seats.slot_of.shape[0], prompt.k.shape[1]
    take = jax.vmap(lambda x, at: x[at])
    seated = take(q.reshape(D, R // D, *q.shape[1:]), seats.slot_of).reshape(P, -1, *q.shape[1:])
    found = attend_rows(config, seated, prompt, seats.lengths)
    back = lambda x: take(x.reshape(D, -1, *x.shape[2:]), seats.seat_of).reshape(R, *x.shape[2:])  # noqa: E731
    return [*parts, jax.tree.map(back, found)]


@functools.partial(
    jax.jit,
    static_argnames=("config", "law", "steps", "eos_ids", "dtype"),
    donate_argnames=("own",),
)
def decode(
    config: LlamaConfig,
    weights: Params,
    prefix: list[KV],
    prefix_length: jax.Array,
    prompts: list[Region],
    own: list[Region],
    slots: Slots,
    seats: Seats,
    candidates_Z: jax.Array,
    limits: jax.Array,
    *,
    law: Law,
    steps: int,
    eos_ids: tuple[int, ...],
    dtype,
) -> tuple[list[Region], tuple[jax.Array, ...]]:
    """Continues every live slot, until `patience` of them have ended or after `most` steps.

    Args:
      own: the region of generated tokens; given up.
      candidates_Z: tokens whose log-probabilities are read when a slot has been fed all its tokens; may be empty.
      limits: int32 [4]: `most` steps now (at most `steps`), `patience`, the most and the fewest tokens of a sample.
      steps: width of the result.
      eos_ids: ids that end a sample.

    Returns:
      The region, and: steps done [], tokens int32 [R, steps], their log-probabilities float32 [R, steps], how many of
      them count [R], whether the slot ended [R], candidates' log-probabilities [R, Z].
    """
    most, patience, max_tokens, min_tokens = limits
    R = slots.token.shape[0]
    eos = jnp.asarray(eos_ids, jnp.int32)
    end_RV = _is_one_of(eos_ids, config.vocab_size)
    fed_R = slots.to_feed >= 0

    def going(state):
        step, _, _, ended_R, *_ = state
        return (step < most) & ((ended_R & slots.live).sum() < patience)

    def advance(state):
        step, token_R, count_R, ended_R, own, tokens, logps, added_R, read_RZ = state
        going_R = slots.live & ~ended_R
        rope = llama.rope_tables(config, (slots.base + count_R - 1)[:, None])
        x = llama.embed(weights, token_R[:, None], dtype)
        grown = []
        for n, layer in enumerate(weights["layers"]):
            q, k, v = block.project_qkv(config, layer, x, rope)
            parts = _shared_attention(config, q[:, 0], prefix[n] if prefix else None, prefix_length, prompts[n], seats)
            mine, part = append_and_attend(config, q[:, 0], k[:, 0], v[:, 0], own[n], count_R, going_R)
            out = finish([*parts, part], q.dtype)
            x = x + block.project_out(config, layer, out[:, None])
            x = x + block.mlp(config, layer, x)
            grown.append(mine)
        hidden = llama.rms_norm(x[:, 0], weights["norm"], config.rms_norm_eps)
        logits_RV = llama.logits(config, weights, hidden)

        banned = end_RV & (count_R < min_tokens)[:, None]
        drawn_R, logp_R = sample(logits_RV, keys_at(slots.key, count_R), law, banned, seats.slot_of.shape[0])
        last_R = (jnp.isin(drawn_R, eos) | (count_R + 1 >= max_tokens)) & ~fed_R
        if candidates_Z.shape[0]:
            last_R |= fed_R & (step >= slots.to_feed)
            next_R = jax.lax.dynamic_index_in_dim(
                slots.feed, jnp.minimum(step, slots.feed.shape[1] - 1), 1, keepdims=False
            )
            drawn_R = jnp.where(fed_R, next_R, drawn_R)
            picked_RZ = logits_RV[:, candidates_Z] - jax.nn.logsumexp(logits_RV, axis=-1, keepdims=True)
            read_RZ = jnp.where((going_R & fed_R & last_R)[:, None], picked_RZ, read_RZ)
        tokens = jax.lax.dynamic_update_slice(tokens, jnp.where(going_R, drawn_R, 0)[:, None], (0, step))
        logps = jax.lax.dynamic_update_slice(logps, jnp.where(going_R, logp_R, 0.0)[:, None], (0, step))
        return (
            step + 1,
            jnp.where(going_R, drawn_R, token_R),
            count_R + going_R,
            ended_R | (going_R & last_R),
            grown,
            tokens,
            logps,
            added_R + going_R,
            read_RZ,
        )

    start = (
        jnp.int32(0),
        slots.token,
        slots.count,
        jnp.zeros(R, bool),
        own,
        jnp.zeros((R, steps), jnp.int32),
        jnp.zeros((R, steps), jnp.float32),
        jnp.zeros(R, jnp.int32),
        jnp.zeros((R, candidates_Z.shape[0]), jnp.float32),
    )
    step, _, _, ended_R, own, tokens, logps, added_R, read_RZ = jax.lax.while_loop(going, advance, start)
    return own, replicate((step, tokens, logps, added_R, ended_R, read_RZ))
