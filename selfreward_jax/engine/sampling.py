"""Drawing a token from logits: temperature and top-p, with no sort and no search over the vocabulary.

A draw from the whole distribution that is kept only if it lies in the nucleus is a draw from the nucleus, and
whether token v lies in it takes one masked sum: the mass of the tokens more probable than v must be below top-p.
At top-p 0.9 nine draws of ten are kept, so a step costs little more than plain sampling.
"""

import jax
import jax.numpy as jnp
from flax import struct

_BLOCK = 256


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


def sample(logits_RV: jax.Array, keys_R: jax.Array, *, temperature: float, top_p: float) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row.

    Args:
      logits_RV: float32.
      keys_R: one random key per row; which row of which batch it is plays no part.
      temperature: 0 is greedy.
      top_p: in (0, 1]. The nucleus (Holtzman et al. 2020) is every token whose more probable tokens have a mass
        below top_p: the smallest set that reaches top_p, together with all ties of its last token.

    Returns:
      Token ids int32 [R], and their log-probabilities under the model itself (temperature 1, no top-p) [R].
    """
    R = logits_RV.shape[0]
    top_R = logits_RV.max(axis=-1)
    if temperature == 0.0:
        token_R = jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    else:
        weights = _in_blocks(jnp.exp((logits_RV - top_R[:, None]) / temperature))

        def outside(state):
            _, _, kept_R = state
            return ~jnp.all(kept_R)

        def redraw(state):
            attempt, token_R, kept_R = state
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_R, attempt)
            new_R, weight_R = _draw(weights, jax.vmap(jax.random.uniform)(keys))
            # A running sum rounds up and down, so a draw may hit a token of no weight, or none at all.
            inside_R = weight_R > 0
            if top_p < 1.0:
                inside_R &= _mass_above(weights, weight_R) < top_p
            # NaN logits would never be kept; the row ends with whatever was drawn instead of looping for ever.
            inside_R |= ~jnp.isfinite(top_R)
            return attempt + 1, jnp.where(kept_R, token_R, new_R), kept_R | inside_R

        start = (jnp.int32(0), jnp.zeros(R, jnp.int32), jnp.zeros(R, bool))
        _, token_R, _ = jax.lax.while_loop(outside, redraw, start)
    logit_R = jnp.take_along_axis(logits_RV, token_R[:, None], axis=-1)[:, 0]
    return token_R, logit_R - jax.nn.logsumexp(logits_RV, axis=-1)
