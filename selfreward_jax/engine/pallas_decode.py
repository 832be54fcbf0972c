"""Decode attention on TPU: Pallas kernels that read of each cache row the blocks that its tokens fill, and no more.

XLA can't skip what a row doesn't use; and on TPU it wants the cache in one layout to write a token and in another to
read it, and copies all of it in between. Here a token's heads lie side by side, so that a token is one line to write
and a block one piece to read, and nothing but the kernels touches the cache, in place.

The grid is the list of the used blocks of all rows, made on the device from the rows' lengths. The kernels are told it
ahead of the arrays (scalar prefetch), so that it decides what is fetched; its length is no constant, so that rows of
any lengths cost as many steps as they fill blocks. A block's scores and sums are joined to those before it as in
`attention.join`.

Heads smaller than a TPU's 128 lanes are taken several at a time: their queries stand on the diagonal of a matrix whose
other elements are zero, so that one product of the whole group gives those of each head.

Shape letters: B blocks of W positions, X rows of the cache, Q queries that read the same cache row, K kv heads,
G query heads per kv head, E head size; A groups of heads, M queries and L lanes of a group.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selfreward_jax.engine.attention import MASKED, Partial

LANES = 128
TILE = 16  # lines that are written at a time: a tile of bfloat16, or two of float32
VMEM_BYTES = 16 * 2**20  # what the compiler lets a kernel have unless told otherwise


@struct.dataclass
class TokenKV:
    """Keys and values of one layer, [B, X, W, K * E] each; W is a multiple of TILE."""

    k: jax.Array
    v: jax.Array

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return self.k.shape[0] * self.k.shape[2]


def attend_used(q_XQKGE: jax.Array, kv: TokenKV, lengths_X: jax.Array, *, interpret: bool = False) -> Partial:
    """What `attention.attend` gives: over the first `lengths_X` positions of each row; leaves are [X, Q, K, G, .]."""
    q, whole = _grouped(q_XQKGE, kv.k.dtype), _Rows(q_XQKGE.shape, kv, lengths_X)
    out, stats = pl.pallas_call(
        functools.partial(_attend_kernel, scale=1 / math.sqrt(q_XQKGE.shape[-1])),
        grid_spec=whole.grid([whole.queries], [], []),
        out_shape=whole.results,
        compiler_params=whole.compiler_params,
        name="attend_used",
        interpret=interpret,
    )(*whole.ahead, q, kv.k, kv.v)
    return _ungrouped(out, stats, q_XQKGE.shape)


def append_and_attend(
    q_XKGE: jax.Array, k_XKE: jax.Array, v_XKE: jax.Array, kv: TokenKV, lengths_X: jax.Array, *, interpret: bool = False
) -> tuple[TokenKV, Partial]:
    """Writes one more token in every row, in place, and attends over it and the `lengths_X` before it.

    Args:
      lengths_X: less than the capacity. The rest of the tile of TILE positions in which the token lies becomes zero.

    Returns:
      The region, and the attention; its leaves are [X, K, G, .].
    """
    q_XQKGE = q_XKGE[:, None]
    X, _, K, _, E = q_XQKGE.shape
    q, whole = _grouped(q_XQKGE, kv.k.dtype), _Rows(q_XQKGE.shape, kv, lengths_X)
    new = [x.reshape(X, 1, K * E).astype(kv.k.dtype) for x in (k_XKE, v_XKE)]
    region = jax.ShapeDtypeStruct(kv.k.shape, kv.k.dtype)
    out, stats, k, v = pl.pallas_call(
        functools.partial(_append_kernel, scale=1 / math.sqrt(E)),
        grid_spec=whole.grid([whole.queries], [whole.token] * 2, [whole.tile] * 2),
        out_shape=[*whole.results, region, region],
        input_output_aliases={len(whole.ahead) + 3: 2, len(whole.ahead) + 4: 3},
        compiler_params=whole.compiler_params,
        name="append_and_attend",
        interpret=interpret,
    )(*whole.ahead, q, *new, kv.k, kv.v)
    return TokenKV(k, v), jax.tree.map(lambda x: x[:, 0], _ungrouped(out, stats, q_XQKGE.shape))


def heads_together(K: int, E: int) -> int:
    """How many kv heads make a group: the fewest that fill whole lanes, or all of them."""
    return next((n for n in range(1, K) if K % n == 0 and n * E % LANES == 0), K)


def used_blocks(lengths_X: jax.Array, blocks: int, width: int) -> tuple[jax.Array, ...]:
    """The used blocks of all rows, one row after another; a row without any key has one that nothing is fetched for.

    Returns:
      How many there are, []; the row of each, int32 [X * blocks]; where those of each row begin, int32 [X]; and whose
      last block is at hand when a row's turn comes, int32 [X]: of a row with keys, the row itself.
    """
    X = lengths_X.shape[0]
    many_X = jnp.maximum(-(-lengths_X // width), 1)
    ends_X = jnp.cumsum(many_X, dtype=jnp.int32)
    row_of = (ends_X <= jnp.arange(X * blocks)[:, None]).sum(axis=-1, dtype=jnp.int32)
    at_hand_X = jax.lax.cummax(jnp.where(lengths_X > 0, jnp.arange(X, dtype=jnp.int32), 0))
    return ends_X[-1], jnp.minimum(row_of, X - 1), ends_X - many_X, at_hand_X


def _last_block(length, width: int):
    return jnp.maximum(length - 1, 0) // width


class _Rows:
    """What both kernels are told of the rows, and the pieces that a step of the grid has in VMEM."""

    def __init__(self, shape: tuple[int, ...], kv: TokenKV, lengths_X: jax.Array):
        X, Q, K, G, E = shape
        B, _, W, KE = kv.k.shape
        h = heads_together(K, E)
        A, M, L = K // h, h * Q * G, h * E
        lengths_X = lengths_X.astype(jnp.int32)
        self.steps, row_of, begins_X, at_hand_X = used_blocks(lengths_X, B, W)
        self.ahead = row_of, begins_X, lengths_X, at_hand_X
        self.results = [jax.ShapeDtypeStruct((X, A, M, n), jnp.float32) for n in (L, LANES)]

        def row(t, row_of, *_):
            return row_of[t], 0, 0, 0

        def block(t, row_of, begins, lengths, at_hand):
            row, source = row_of[t], at_hand[row_of[t]]
            return jnp.where(lengths[row] > 0, t - begins[row], _last_block(lengths[source], W)), source, 0, 0

        def tile(t, row_of, begins, lengths, at_hand):
            length = lengths[row_of[t]]
            return length // W, row_of[t], length % W // TILE, 0

        self.queries, self.stats = pl.BlockSpec((1, A, M, L), row), pl.BlockSpec((1, A, M, LANES), row)
        self.token = pl.BlockSpec((1, 1, KE), lambda t, row_of, *_: (row_of[t], 0, 0))
        self.block, self.tile = pl.BlockSpec((1, 1, W, KE), block), pl.BlockSpec((1, 1, TILE, KE), tile)
        # Keys and values of two blocks, the queries' and results' pieces likewise, and as much again to work with.
        held = 4 * W * KE * kv.k.dtype.itemsize + 2 * A * M * (2 * L + LANES) * 4
        self.compiler_params = pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=max(VMEM_BYTES, 2 * held)
        )

    def grid(self, queries: list, tokens: list, tiles: list) -> pltpu.PrefetchScalarGridSpec:
        return pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(self.ahead),
            grid=(self.steps,),
            in_specs=[*queries, *tokens, self.block, self.block],
            out_specs=[self.queries, self.stats, *tiles],
        )


def _grouped(q_XQKGE: jax.Array, dtype) -> jax.Array:
    """Queries of a group of heads on the diagonal of a matrix: [X, A, M, L]."""
    X, Q, K, G, E = q_XQKGE.shape
    h = heads_together(K, E)
    q = jnp.moveaxis(q_XQKGE, 1, 2).reshape(X, K // h, h, Q * G, 1, E).astype(dtype)
    if h > 1:
        q = q * jnp.eye(h, dtype=dtype)[:, None, :, None]
    return q.reshape(X, K // h, h * Q * G, h * E)


def _ungrouped(out: jax.Array, stats: jax.Array, shape: tuple[int, ...]) -> Partial:
    X, Q, K, G, E = shape
    h = heads_together(K, E)
    out = out.reshape(X, K // h, h, Q * G, h, E)
    out = jnp.stack([out[:, :, n, :, n] for n in range(h)], axis=2)
    top, total = (stats[..., n].reshape(X, K, Q, G, 1) for n in range(2))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 2, 1), Partial(top, total, out.reshape(X, K, Q, G, E)))


def _stats(top, total, shape: tuple[int, int]) -> jax.Array:
    """The largest score and the sum of weights, in the first two lanes of one array."""
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, shape, 1) == 0, top, total)


def _join_block(first, length, q_ref, k_ref, v_ref, out_ref, stats_ref, scale: float) -> None:
    """Joins a block whose first position is `first` to what the row has seen; the results' pieces stay till its end."""
    _, A, M, L = q_ref.shape
    seen = first + jax.lax.broadcasted_iota(jnp.int32, (M, k_ref.shape[2]), 1) < length
    for a in range(A):
        lanes = slice(a * L, (a + 1) * L)
        k, v = k_ref[0, 0, :, lanes], v_ref[0, 0, :, lanes]
        product = (((1,), (1,)), ((), ()))
        scores = jax.lax.dot_general(q_ref[0, a], k, product, preferred_element_type=jnp.float32) * scale
        scores = jnp.where(seen, scores, MASKED)
        before, total = stats_ref[0, a, :, 0:1], stats_ref[0, a, :, 1:2]
        top = jnp.maximum(before, scores.max(axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - top), jnp.exp(before - top)
        stats_ref[0, a] = _stats(top, total * kept + weights.sum(axis=-1, keepdims=True), (M, LANES))
        out_ref[0, a] = out_ref[0, a] * kept + jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _attend_kernel(row_of, begins, lengths, at_hand, q_ref, k_ref, v_ref, out_ref, stats_ref, *, scale: float):
    del at_hand
    t = pl.program_id(0)
    row = row_of[t]
    n = t - begins[row]

    @pl.when(n == 0)
    def _begin():
        out_ref[...] = jnp.zeros(out_ref.shape, jnp.float32)
        for a in range(q_ref.shape[1]):
            stats_ref[0, a] = _stats(MASKED, 0.0, stats_ref.shape[2:])

    _join_block(n * k_ref.shape[2], lengths[row], q_ref, k_ref, v_ref, out_ref, stats_ref, scale)


def _append_kernel(
    row_of, begins, lengths, at_hand, q_ref, new_k_ref, new_v_ref, k_ref, v_ref, out_ref, stats_ref, made_k_ref,
    made_v_ref, *, scale: float,
):  # fmt: skip
    del at_hand
    t = pl.program_id(0)
    row = row_of[t]
    n, length, W = t - begins[row], lengths[row], k_ref.shape[2]
    _, A, M, L = q_ref.shape

    @pl.when(n == 0)
    def _begin():  # with the new token's own key
        for a in range(A):
            lanes = slice(a * L, (a + 1) * L)
            q, k, v = (x.astype(jnp.float32) for x in (q_ref[0, a], new_k_ref[0, :, lanes], new_v_ref[0, :, lanes]))
            stats_ref[0, a] = _stats((q * k).sum(axis=-1, keepdims=True) * scale, 1.0, (M, LANES))
            out_ref[0, a] = jnp.broadcast_to(v, (M, L))

    _join_block(n * W, length, q_ref, k_ref, v_ref, out_ref, stats_ref, scale)

    @pl.when(n == _last_block(length, W))
    def _write():
        line = length % TILE
        tile = pl.ds(pl.multiple_of(length % W - line, TILE), TILE)
        lines = jax.lax.broadcasted_iota(jnp.int32, (TILE, k_ref.shape[3]), 0)
        for new_ref, ref, made_ref in ((new_k_ref, k_ref, made_k_ref), (new_v_ref, v_ref, made_v_ref)):
            # Of a new tile nothing is kept, so it doesn't matter that its block may not be the one at hand.
            old, new = ref[0, 0, tile].astype(jnp.float32), new_ref[0].astype(jnp.float32)
            made_ref[0, 0] = jnp.where(lines == line, new, jnp.where(lines < line, old, 0.0)).astype(made_ref.dtype)
