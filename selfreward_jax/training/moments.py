"""Adam whose moments are kept in fewer bits between steps; each step computes in float32.

Rounding is stochastic, so that what is kept equals the float32 value on average: rounded to the nearest, a moment that
should shrink by less than half a step of its format would never shrink at all. The bits follow from the number of the
update, so a resumed training rounds as an uninterrupted one.

`int8` is blockwise (Dettmers et al. 2022, arXiv 2110.02861): one float32 scale, the largest magnitude, for a block of
neighbours along the last axis. Within a block the codes are powers of evenly spaced numbers, dense near zero: squares
with a sign for the first moment, fourth powers for the second, whose square root thus has squares too. A second moment
that is not zero is never kept as zero, since the update divides by its square root.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

BLOCK = 256  # values that share a scale, as far as the last axis allows
ROUNDING_SEED = 0x5D


@struct.dataclass
class Quantised:
    """Codes of a weight's shape, and a float32 scale per block: [..., blocks]."""

    codes: jax.Array
    scales: jax.Array


class Format(NamedTuple):
    """How one moment is kept. `zeros` takes a shape, `keep` the float32 moment and 16 random bits per value."""

    zeros: Callable[[tuple[int, ...]], Any]
    keep: Callable[[jax.Array, jax.Array], Any]
    read: Callable[[Any], jax.Array]


def block_size(length: int) -> int:
    """The divisor of `length` nearest to `BLOCK`, by ratio: no block is short and none needs filling up."""
    divisors = [n for n in range(1, length + 1) if length % n == 0]
    return min(divisors, key=lambda n: max(n / BLOCK, BLOCK / n))


def _in_blocks(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], -1, block_size(x.shape[-1]))


def quantise(x: jax.Array, bits: jax.Array, *, levels: int, power: int, dtype) -> Quantised:
    """Codes c, of the sign of x, with |x| about scale (|c| / levels)^power, and equal to it on average over the bits.

    Args:
      x: float32 of any shape with at least one axis.
      bits: random, of the same shape, uint32 below 2**16.
    """
    size = _in_blocks(jnp.abs(x))
    scales = size.max(axis=-1)
    spread = size / jnp.where(scales > 0, scales, 1.0)[..., None] * float(levels) ** power
    code = jnp.minimum(jnp.floor(spread ** (1 / power)), levels - 1)
    low, high = code**power, (code + 1) ** power
    code += (_in_blocks(bits) + 0.5) / 2**16 < (spread - low) / (high - low)
    if dtype == jnp.uint8:
        code = jnp.maximum(code, size > 0)
    return Quantised((code.reshape(x.shape) * jnp.sign(x)).astype(dtype), scales)


def dequantise(x: Quantised, *, levels: int, power: int) -> jax.Array:
    code = _in_blocks(x.codes.astype(jnp.float32))
    size = (jnp.abs(code) / levels) ** power * x.scales[..., None]
    return (jnp.sign(code) * size).reshape(x.codes.shape)


def round_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """To one of the two neighbours in bfloat16, equal to `x` on average over 16 random bits; zero stays zero."""
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits
    return jax.lax.bitcast_convert_type((whole >> 16).astype(jnp.uint16), jnp.bfloat16)


def zeros(shape: tuple[int, ...], dtype) -> Quantised:
    return Quantised(jnp.zeros(shape, dtype), jnp.zeros((*shape[:-1], shape[-1] // block_size(shape[-1]))))


def _eight_bit(**code) -> Format:
    return Format(
        zeros=lambda shape: zeros(shape, code["dtype"]),
        keep=lambda x, bits: quantise(x, bits, **code),
        read=lambda kept: dequantise(kept, levels=code["levels"], power=code["power"]),
    )


_HALF = Format(lambda shape: jnp.zeros(shape, jnp.bfloat16), round_to_bfloat16, lambda kept: kept.astype(jnp.float32))
_WHOLE = Format(jnp.zeros, lambda x, bits: x, lambda kept: kept)
# First and second moment.
FORMATS: dict[str, tuple[Format, Format]] = {
    "float32": (_WHOLE, _WHOLE),
    "bfloat16": (_HALF, _HALF),
    "int8": (_eight_bit(levels=127, power=2, dtype=jnp.int8), _eight_bit(levels=255, power=4, dtype=jnp.uint8)),
}


def scale_by_adam(b1: float, b2: float, eps: float, moments_dtype: str) -> optax.GradientTransformation:
    """optax's `scale_by_adam` with moments in float32, whatever the weights are, or kept as `FORMATS` says."""
    adam = optax.scale_by_adam(b1, b2, eps)
    first, second = FORMATS[moments_dtype]
    is_kept = lambda x: isinstance(x, Quantised)  # noqa: E731

    def init(params):
        zeros = lambda format: jax.tree.map(lambda x: format.zeros(x.shape), params)  # noqa: E731
        return optax.ScaleByAdamState(jnp.int32(0), zeros(first), zeros(second))

    def update(updates, state: Any, params=None):
        del params
        grads = jax.tree.map(lambda x: x.astype(jnp.float32), updates)
        mu = jax.tree.map(first.read, state.mu, is_leaf=is_kept)
        nu = jax.tree.map(second.read, state.nu, is_leaf=is_kept)
        directions, made = adam.update(grads, optax.ScaleByAdamState(state.count, mu, nu))
        return directions, made if moments_dtype == "float32" else keep(made)

    def keep(state: Any) -> optax.ScaleByAdamState:
        key = jax.random.fold_in(jax.random.key(ROUNDING_SEED), state.count)
        leaves, tree = jax.tree.flatten(state.mu)
        kept = []
        for n, (mu, nu) in enumerate(zip(leaves, jax.tree.leaves(state.nu), strict=True)):
            bits = jax.random.bits(jax.random.fold_in(key, n), mu.shape, jnp.uint32)
            kept.append((first.keep(mu, bits & 0xFFFF), second.keep(nu, bits >> 16)))
        mu, nu = (tree.unflatten(moment) for moment in zip(*kept, strict=True))
        return optax.ScaleByAdamState(state.count, mu, nu)

    return optax.GradientTransformation(init, update)
