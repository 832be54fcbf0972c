"""Attention in blocks and parts is attention over all keys, and empty blocks change no bit of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.engine.attention import KV, attend, finish, join

X, Q, K, G, E, W = 4, 3, 2, 2, 8, 16
RNG = np.random.default_rng(0)


def random_kv(blocks: int) -> KV:
    make = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)  # noqa: E731
    return KV(make(blocks, X, K, E, W), make(blocks, X, K, W, E))


def plain(q, kv: KV, lengths) -> np.ndarray:
    """Float64, a row and a head at a time, over keys in their order."""
    k = np.moveaxis(np.asarray(kv.k, np.float64), 4, 1).reshape(-1, X, K, E)
    v = np.moveaxis(np.asarray(kv.v, np.float64), 3, 1).reshape(-1, X, K, E)
    out = np.zeros((X, Q, K, G, E))
    for x, i, h, g in np.ndindex(X, Q, K, G):
        n = lengths[x]
        scores = k[:n, x, h] @ np.asarray(q[x, i, h, g], np.float64) / np.sqrt(E)
        weights = np.exp(scores - scores.max())
        out[x, i, h, g] = weights @ v[:n, x, h] / weights.sum()
    return out


LENGTHS = np.array([1, 16, 17, 48])
QUERIES = jnp.asarray(RNG.normal(size=(X, Q, K, G, E)) * 3, jnp.float32)


def test_attention_in_blocks_is_attention_over_all_keys():
    kv = random_kv(3)
    np.testing.assert_allclose(
        finish([attend(QUERIES, kv, jnp.asarray(LENGTHS))], jnp.float32), plain(QUERIES, kv, LENGTHS), atol=1e-5
    )


def test_parts_joined_are_attention_over_the_keys_of_all():
    kv = random_kv(4)
    parts = [
        attend(QUERIES, KV(kv.k[:1], kv.v[:1]), jnp.full(X, W)),
        attend(QUERIES, KV(kv.k[1:3], kv.v[1:3]), jnp.full(X, 2 * W)),
        attend(QUERIES, KV(kv.k[3:], kv.v[3:]), jnp.full(X, 5)),
    ]
    expected = plain(QUERIES, kv, np.full(X, 3 * W + 5))
    np.testing.assert_allclose(finish(parts, jnp.float32), expected, atol=1e-5)
    np.testing.assert_allclose(finish(parts[::-1], jnp.float32), expected, atol=1e-5)


@pytest.mark.parametrize("garbage", [0.0, 1e6, np.nan])
def test_empty_blocks_change_no_bit_whatever_stands_in_them(garbage):
    kv, lengths = random_kv(3), jnp.asarray(LENGTHS)
    fill = KV(jnp.full((5, X, K, E, W), 0.0), jnp.full((5, X, K, W, E), 0.0 if np.isnan(garbage) else garbage))
    more = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), kv, fill)
    run = jax.jit(lambda kv: finish([attend(QUERIES, kv, lengths)], jnp.float32))
    np.testing.assert_array_equal(run(more), run(kv))


def test_a_part_without_any_key_changes_nothing():
    kv = random_kv(2)
    part = attend(QUERIES, kv, jnp.asarray(LENGTHS // 2 + 1))
    empty = attend(QUERIES, kv, jnp.zeros(X, jnp.int32))
    np.testing.assert_array_equal(finish([part, empty], jnp.float32), finish([part], jnp.float32))
    assert np.isfinite(np.asarray(join([empty]).out)).all()
