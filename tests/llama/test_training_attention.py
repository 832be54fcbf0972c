"""Every way to compute attention is the naive one in float64, for packed rows and for responses that share a prompt."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.core.mesh import RULES, make_mesh
from selfreward_jax.llama import attention as module
from selfreward_jax.llama.attention import Segments, attention, choose_backend

B, T, H, K, E = 4, 40, 4, 2, 8
RNG = np.random.default_rng(0)
ARRAYS = tuple(RNG.normal(size=(B, T, n, E)).astype(np.float32) for n in (H, K, K))
IDS = np.repeat([[1, 2, 3, 0], [1, 1, 2, 2], [1, 2, 3, 4], [5, 5, 5, 5]], 10, axis=1).astype(np.int32)
PARENTS = np.repeat([[1, 1, 1, 0], [1, 1, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]], 10, axis=1).astype(np.int32)
WEIGHTS = RNG.normal(size=(B, T, H, E))


def naive(q, k, v, segments: Segments | None):
    """Token by token, head by head."""
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = np.arange(t + 1)
            if segments is not None:
                ids = np.asarray(segments.ids[b])
                own = {ids[t]} | (set() if segments.parents is None else {np.asarray(segments.parents)[b, t]})
                seen = [s for s in seen if ids[s] in own]
            for h in range(q.shape[2]):
                g = h // (q.shape[2] // k.shape[2])
                scores = k[b, seen, g] @ q[b, t, h] / math.sqrt(q.shape[3])
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights / weights.sum() @ v[b, seen, g]
    return out


CASES = {"alone": None, "packed": Segments(IDS), "shared prompt": Segments(IDS, PARENTS)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [16, 256])
def test_in_blocks_it_is_the_naive_one(case, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    expected = naive(*(x.astype(np.float64) for x in ARRAYS), CASES[case])
    found = attention(*ARRAYS, CASES[case], backend="blocks")
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_its_gradients_in_blocks_are_those_of_finite_differences(case, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    loss = lambda arrays: (attention(*arrays, CASES[case], backend="blocks") * WEIGHTS).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(ARRAYS)
    arrays = [x.astype(np.float64) for x in ARRAYS]
    for n, grad in enumerate(grads):
        direction, step = RNG.normal(size=arrays[n].shape), 1e-5
        moved = [[x + sign * step * direction if m == n else x for m, x in enumerate(arrays)] for sign in (1, -1)]
        ends = [naive(*args, CASES[case]) * WEIGHTS for args in moved]
        expected = (ends[0] - ends[1]).sum() / (2 * step)
        assert (np.asarray(grad, np.float64) * direction).sum() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "tensor": 2}])
@pytest.mark.parametrize("case", ["alone", "packed"])
def test_the_tpu_kernel_gives_what_the_blocks_give(case, mesh):
    """Interpreted on this machine: values and gradients, rows that are no multiple of its blocks, and on a mesh."""
    segments = CASES[case]

    def loss(arrays, function):
        out = function(*arrays, segments)
        return (out * WEIGHTS).sum(), out

    splash = lambda *args: module._splash(*args, RULES, interpret=True)  # noqa: E731
    blocks = lambda *args: attention(*args, backend="blocks")  # noqa: E731
    with jax.set_mesh(make_mesh(**mesh)):
        (_, out), grads = jax.jit(jax.value_and_grad(lambda a: loss(a, splash), has_aux=True))(ARRAYS)
    (_, expected), expected_grads = jax.jit(jax.value_and_grad(lambda a: loss(a, blocks), has_aux=True))(ARRAYS)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for grad, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, other, atol=1e-4)


def test_in_sixteen_bits_it_stays_near():
    arrays = tuple(jnp.asarray(x, jnp.bfloat16) for x in ARRAYS)
    found = attention(*arrays, Segments(IDS), backend="blocks")
    assert found.dtype == jnp.bfloat16
    expected = naive(*(np.asarray(x, np.float64) for x in arrays), Segments(IDS))
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.03)


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "expected"),
    [
        ("auto", "tpu", "bfloat16", "splash"),
        ("auto", "gpu", "bfloat16", "cudnn"),
        ("auto", "gpu", "float32", "blocks"),
        ("auto", "cpu", "bfloat16", "blocks"),
        ("blocks", "tpu", "bfloat16", "blocks"),
    ],
)
def test_each_machine_gets_its_own(name, platform, dtype, expected):
    assert choose_backend(name, platform, dtype) == expected
    assert choose_backend(name, platform, dtype, has_parents=True) == "blocks"
