"""Drawing a token from logits: temperature, top-k, top-p and min-p, with no sort of the vocabulary.

A draw from the whole distribution that is kept only if it lies in the nucleus is a draw from the nucleus, and
whether token v lies in it takes one masked sum: the mass of the tokens more probable than v must be below top-p.
At top-p 0.9 nine draws of ten are kept, so a step costs little more than plain sampling. The other two limits are a
smallest weight, so they remove tokens before anything is drawn.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from selfreward_jax.core.errors import UserError

_BLOCK = 256
REDRAWN = 16  # rows of a replica that draw again at a time


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How to sample; static under jit where it matters.

    Attributes:
      temperature: 0 is greedy.
      top_p: the nucleus (Holtzman et al. 2020), in (0, 1]; 1 keeps every token.
      max_new_tokens: with the EOS.
      top_k: only the k most probable tokens, with all ties of the last of them; 0 keeps every token.
      min_p: only tokens at least this share as probable as the most probable one; 0 keeps every token.
      min_new_tokens: among so many tokens no EOS is drawn and no stop string that ends a sample begins.
      stop: texts that end a sample where they are completed (see `stopping`).
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    top_k: int = 0
    min_p: float = 0.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()

    def check(self, where: str) -> None:
        """Raises `UserError` for values that can't work."""
        bounds = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p <= 1,
            "max_new_tokens": self.max_new_tokens >= 1,
            "min_new_tokens": 0 <= self.min_new_tokens <= self.max_new_tokens,
        }
        wanted = {
            "temperature": "0 or more",
            "top_p": "above 0 and at most 1",
            "top_k": "0 (all) or more",
            "min_p": "between 0 and 1",
            "max_new_tokens": "1 or more",
            "min_new_tokens": f"between 0 and max_new_tokens, {self.max_new_tokens}",
        }
        for name, holds in bounds.items():
            if not holds:
                raise UserError(f"{where}: {name} is {getattr(self, name)}; it must be {wanted[name]}.")
        if any(not text for text in self.stop):
            raise UserError(f"{where}: a stop string is empty, which would end every sample at once.")

    def law(self) -> "Law":
        return Law(self.temperature, self.top_p, self.top_k, self.min_p)


@dataclasses.dataclass(frozen=True)
class Law:
    """The part of the settings that a compiled program depends on; see `SamplingSettings`."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@struct.dataclass
class _Weights:
    """Unnormalised probabilities in blocks, [R, V / 256, 256], and the cumulative mass of whole blocks."""

    values: jax.Array
    block_cdf: jax.Array


def _in_blocks(weights_RV: jax.Array) -> _Weights:
    R, V = weights_RV.shape
    blocks = -(-V // _BLOCK)
    values = jnp.pad(weights_RV, ((0, 0), (0, blocks * _BLOCK - V))).reshape(R, blocks, _BLOCK)
    return _Weights(values, jnp.cumsum(values.sum(axis=-1), axis=-1))


def _draw(weights: _Weights, uniform_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inverse-CDF draw: picks a block, then a token inside it. Returns token ids [R] and their weights [R]."""
    blocks = weights.values.shape[1]
    target_R = uniform_R * weights.block_cdf[:, -1]
    block_R = jnp.minimum((weights.block_cdf <= target_R[:, None]).sum(axis=-1), blocks - 1)
    before = jnp.take_along_axis(weights.block_cdf, jnp.maximum(block_R - 1, 0)[:, None], axis=1)[:, 0]
    target_R = target_R - jnp.where(block_R > 0, before, 0.0)
    inside = jnp.take_along_axis(weights.values, block_R[:, None, None], axis=1)[:, 0]
    # Rounding may put the target past the block's last token that has any weight.
    last_R = _BLOCK - 1 - jnp.argmax((inside > 0)[:, ::-1], axis=-1)
    offset_R = jnp.minimum((jnp.cumsum(inside, axis=-1) <= target_R[:, None]).sum(axis=-1), last_R)
    weight_R = jnp.take_along_axis(inside, offset_R[:, None], axis=1)[:, 0]
    return (block_R * _BLOCK + offset_R).astype(jnp.int32), weight_R


def _mass_above(weights: _Weights, weight_R: jax.Array) -> jax.Array:
    """Mass of the tokens strictly more probable than one of the given weight, as a share of all, [R]."""
    above = jnp.where(weights.values > weight_R[:, None, None], weights.values, 0.0)
    return above.sum(axis=1).sum(axis=-1) / weights.block_cdf[:, -1]


def kth_largest(x_RV: jax.Array, k: int) -> jax.Array:
    """The k-th largest of each row of non-negative float32 numbers, [R], by bisection on their bits.

    Bit patterns of non-negative floats are ordered like the floats, so 31 counts find the value exactly.
    """
    bits_RV = jax.lax.bitcast_convert_type(x_RV, jnp.int32)

    def narrow(i, found_R):
        tried_R = found_R | (jnp.int32(1) << (30 - i))
        return jnp.where((bits_RV >= tried_R[:, None]).sum(axis=-1) >= k, tried_R, found_R)

    found_R = jax.lax.fori_loop(0, 31, narrow, jnp.zeros(x_RV.shape[0], jnp.int32))
    return jax.lax.bitcast_convert_type(found_R, jnp.float32)


@jax.named_scope("sample")
def sample(
    logits_RV: jax.Array, keys_R: jax.Array, law: Law, banned_RV: jax.Array | None = None, replicas: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row.

    Args:
      logits_RV: float32.
      keys_R: one random key per row; which row of which batch it is plays no part.
      law: top-k acts first, top-p on what it leaves, and min-p last, as in `transformers`. The nucleus is every token
        whose more probable tokens have a mass below top-p: the smallest set that reaches top-p, together with all
        ties of its last token.
      banned_RV: True where a token must not be drawn, broadcast against the logits.
      replicas: how many the rows are split over, in equal parts; what is drawn doesn't depend on it.

    Returns:
      Token ids int32 [R], and their log-probabilities under the model itself (temperature 1, every token) [R].
    """
    model_RV = logits_RV
    R, V = logits_RV.shape
    if banned_RV is not None:
        logits_RV = jnp.where(banned_RV, -jnp.inf, logits_RV)
    top_R = logits_RV.max(axis=-1)
    if law.temperature == 0.0:
        token_R = jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    else:
        weights_RV = jnp.exp((logits_RV - top_R[:, None]) / law.temperature)
        if 0 < law.top_k < V:
            weights_RV = jnp.where(weights_RV >= kth_largest(weights_RV, law.top_k)[:, None], weights_RV, 0.0)
        nucleus = _in_blocks(weights_RV)
        # The largest weight is 1. What min-p keeps and the nucleus lie within one another, so that of the draws from
        # the former at least top-p are kept.
        drawn = nucleus if law.min_p <= 0.0 else _in_blocks(jnp.where(weights_RV >= law.min_p, weights_RV, 0.0))

        def attempt(drawn: _Weights, nucleus: _Weights, keys, top, number) -> tuple[jax.Array, jax.Array]:
            """A draw for each of some rows, and whether it is kept."""
            keys = jax.vmap(jax.random.fold_in)(keys, number)
            new_R, weight_R = _draw(drawn, jax.vmap(jax.random.uniform)(keys))
            # A running sum rounds up and down, so a draw may hit a token of no weight, or none at all.
            kept_R = weight_R > 0
            if law.top_p < 1.0:
                kept_R &= _mass_above(nucleus, weight_R) < law.top_p
            # NaN logits would never be kept; the row ends with whatever was drawn instead of looping for ever.
            return new_R, kept_R | ~jnp.isfinite(top)

        def redraw(drawn: _Weights, nucleus: _Weights, keys, top, tries, token, kept):
            """Another attempt for the first few rows of a replica that still need one; most rows need none."""
            own = len(token)
            (rows,) = jnp.nonzero(~kept, size=min(REDRAWN, own), fill_value=own)
            # Rows in place of none point past the end: what is read there is some row's, what is written is nobody's.
            some = jnp.minimum(rows, own - 1)
            new, well = attempt(*jax.tree.map(lambda x: x[some], (drawn, nucleus, keys, top, tries)))
            token = token.at[rows].set(new, mode="drop")
            return tries.at[rows].add(1, mode="drop"), token, kept.at[rows].set(well, mode="drop")

        def by_replica(tree):
            """[replicas, R / replicas, ...], so that no row's weights leave where they are to be drawn from again."""
            return jax.tree.map(lambda x: x.reshape(replicas, R // replicas, *x.shape[1:]), tree)

        given = by_replica((drawn, nucleus, keys_R, top_R))
        first = attempt(drawn, nucleus, keys_R, top_R, jnp.zeros(R, jnp.int32))
        _, token_DR, _ = jax.lax.while_loop(
            lambda state: ~jnp.all(state[2]),
            lambda state: jax.vmap(redraw)(*given, *state),
            by_replica((jnp.ones(R, jnp.int32), *first)),
        )
        token_R = token_DR.reshape(R)
    logit_R = jnp.take_along_axis(model_RV, token_R[:, None], axis=-1)[:, 0]
    return token_R, logit_R - log_normaliser(model_RV, model_RV.max(axis=-1))


def log_normaliser(logits_RV: jax.Array, top_R: jax.Array) -> jax.Array:
    """Log of the sum of exponentials, given the largest logit of each row, [R]."""
    return top_R + jnp.log(jnp.exp(logits_RV - top_R[:, None]).sum(axis=-1))


@functools.partial(jax.vmap, in_axes=(0, 0))
def keys_at(key_data_R2: jax.Array, position_R: jax.Array) -> jax.Array:
    """The key of each row's draw at a position, from the row's own 64 bits (uint32 [R, 2])."""
    return jax.random.fold_in(jax.random.wrap_key_data(key_data_R2, impl="threefry2x32"), position_R)
