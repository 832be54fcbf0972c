"""The TPU kernels of decoding give what plain attention gives, write what it writes, and read nothing else.

Interpreted on this machine; that they compile for TPUs is tested in test_tpu_programs.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.engine.attention import KV, attend, finish
from selfreward_jax.engine.pallas_decode import TokenKV, append_and_attend, attend_used, heads_together, used_blocks

B, X, W = 3, 5, 32
CAPACITY = B * W
BORDERS = [0, 1, 31, 32, 33, 63, 64, 95]
HEADS = {
    "mha": (4, 1, 64),
    "gqa 4": (2, 4, 128),
    "gqa 8, small heads": (2, 8, 64),
    "heads of no even number": (3, 3, 64),
}
NEAR = {jnp.float32: 1e-5, jnp.bfloat16: 0.02}
read = jax.jit(functools.partial(attend_used, interpret=True))
append = jax.jit(functools.partial(append_and_attend, interpret=True))


@functools.cache
def made(heads: str, dtype, queries: int = 1):
    """Queries, a new token's keys and values, and a region in both forms."""
    K, G, E = HEADS[heads]
    rng = np.random.default_rng(0)
    random = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    q, new_k, new_v = 2 * random(X, queries, K, G, E), random(X, K, E), random(X, K, E)
    k, v = random(B, X, W, K, E), random(B, X, W, K, E)
    tokens = TokenKV(k.reshape(B, X, W, K * E), v.reshape(B, X, W, K * E))
    return q, new_k, new_v, KV(jnp.moveaxis(k, 2, 4), jnp.moveaxis(v, 2, 3)), tokens


def wide(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def in_order(x_BXWN) -> np.ndarray:
    """A region of tokens, by row and position."""
    return np.moveaxis(wide(x_BXWN), 1, 0).reshape(X, CAPACITY, -1)


LENGTHS = st.lists(st.one_of(st.sampled_from(BORDERS), st.integers(0, CAPACITY - 1)), min_size=X, max_size=X)


@pytest.mark.parametrize(("heads", "dtype"), [*((heads, jnp.float32) for heads in HEADS), ("gqa 4", jnp.bfloat16)])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(lengths=LENGTHS)
def test_a_token_is_written_and_attended_to_with_those_before_it(heads, dtype, lengths):
    q, new_k, new_v, plain, tokens = made(heads, dtype)
    found_kv, found = append(q[:, 0], new_k, new_v, tokens, jnp.asarray(lengths))
    rows, at = np.arange(X), np.asarray(lengths)
    after = KV(
        plain.k.at[at // W, rows, :, :, at % W].set(new_k), plain.v.at[at // W, rows, :, at % W].set(new_v)
    )  # fmt: skip
    expected = attend(q, after, jnp.asarray(lengths) + 1)
    np.testing.assert_allclose(found.top, expected.top[:, 0], atol=1e-4)
    np.testing.assert_allclose(wide(finish([found], dtype)), wide(finish([expected], dtype))[:, 0], atol=NEAR[dtype])
    for now, before, new in ((found_kv.k, tokens.k, new_k), (found_kv.v, tokens.v, new_v)):
        now, before, new = in_order(now), in_order(before), wide(new).reshape(X, -1)
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(now[row, :length], before[row, :length])
            np.testing.assert_array_equal(now[row, length], new[row])


@pytest.mark.parametrize("heads", ["gqa 4", "heads of no even number"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(lengths=LENGTHS)
def test_several_queries_of_a_row_see_its_first_positions(heads, lengths):
    q, _, _, plain, tokens = made(heads, jnp.float32, queries=3)
    lengths = jnp.asarray(lengths) + 1
    found, expected = read(q, tokens, lengths), attend(q, plain, lengths)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_a_row_without_any_key_is_finite_and_changes_nothing_that_it_is_joined_to():
    q, _, _, _, tokens = made("gqa 4", jnp.float32)
    part = read(q, tokens, jnp.asarray([5, 40, 64, 1, 95]))
    empty = read(q, tokens, jnp.asarray([0, 0, 33, 0, 0]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(empty))
    joined, alone = finish([part, empty], jnp.float32), finish([part], jnp.float32)
    np.testing.assert_array_equal(joined[np.array([0, 1, 3, 4])], alone[np.array([0, 1, 3, 4])])


def test_blocks_that_no_row_uses_are_never_read():
    """They hold what would spread."""
    q, new_k, new_v, _, tokens = made("gqa 4", jnp.float32)
    lengths = np.array([40, 32, 1, 0, 64])
    unused = (np.arange(B)[:, None] >= np.maximum(-(-lengths // W), 1))[..., None, None]
    spoilt = jax.tree.map(lambda x: jnp.where(unused, jnp.nan, x), tokens)
    args = jnp.asarray(lengths)
    clean = read(q, tokens, args), append(q[:, 0], new_k, new_v, tokens, args)[1]
    for one, other in zip(
        jax.tree.leaves(clean),
        jax.tree.leaves((read(q, spoilt, args), append(q[:, 0], new_k, new_v, spoilt, args)[1])),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_a_row_does_not_change_by_a_bit_with_the_rows_beside_it():
    q, new_k, new_v, _, tokens = made("gqa 8, small heads", jnp.float32)
    alone = append(q[:, 0], new_k, new_v, tokens, jnp.asarray([0, 0, 50, 0, 0]))[1]
    beside = append(q[:, 0], new_k, new_v, tokens, jnp.asarray([95, 64, 50, 1, 32]))[1]
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(beside), strict=True):
        np.testing.assert_array_equal(one[2], other[2])


def test_used_blocks_by_hand():
    count, row_of, begins, at_hand = used_blocks(jnp.array([33, 0, 64, 0, 1]), B, W)
    assert int(count) == 2 + 1 + 2 + 1 + 1
    assert row_of[:7].tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert begins.tolist() == [0, 2, 3, 5, 6]
    assert at_hand.tolist() == [0, 0, 2, 2, 4]


@pytest.mark.parametrize(
    ("K", "E", "group"), [(8, 128, 1), (8, 64, 2), (3, 64, 3), (1, 64, 1), (4, 32, 4), (2, 8, 2), (8, 80, 8)]
)
def test_a_group_fills_whole_lanes_or_is_all_heads(K, E, group):
    assert heads_together(K, E) == group
