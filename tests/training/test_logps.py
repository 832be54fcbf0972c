"""A response's log-probability: the naive one, in any chunks, untouched by padding and by what a prompt predicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.training.batches import Example, make_batch
from selfreward_jax.training.logps import response_logps
from tests.engine.small_llama import GQA, VARIANTS, naive_logp, random_params

RNG = np.random.default_rng(0)
EXAMPLES = [
    Example(*(tuple(RNG.integers(0, GQA.vocab_size, n).tolist()) for n in lengths))
    for lengths in [(1, 1), (3, 12), (10, 6), (15, 1)]
]
BATCH = make_batch(EXAMPLES, rows=5, bucket=16)  # one row more, which only fills up
PARAMS = random_params(GQA)


def logps(params=PARAMS, batch=BATCH, *, config=GQA, **settings):
    settings = {"dtype": jnp.dtype("float32"), "head_chunk": 16} | settings
    return jax.jit(lambda params, batch: response_logps(config, params, batch, **settings))(params, batch)


@jax.jit
def value_and_grad(params, batch):
    """Of the sum weighted by row, so that rows can't stand in for each other; fill-up rows are weighted too."""
    loss = lambda p: (  # noqa: E731
        response_logps(GQA, p, batch, dtype=jnp.dtype("float32"), head_chunk=16) @ jnp.arange(1.0, 6.0)
    )
    return jax.value_and_grad(loss)(params)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_that_of_the_naive_model(name):
    config, params = VARIANTS[name], random_params(VARIANTS[name])
    expected = [naive_logp(config, params, e.prompt_ids, e.response_ids) for e in EXAMPLES]
    np.testing.assert_allclose(logps(params, config=config)[:4], expected, atol=1e-4)


def test_a_row_that_only_fills_up_counts_nothing():
    assert logps()[4] == 0.0


@pytest.mark.parametrize("chunk", [1, 35])
def test_the_chunks_of_the_head_change_nothing(chunk):
    np.testing.assert_allclose(logps(head_chunk=chunk), logps(), atol=1e-5)


def test_ids_beyond_the_lengths_change_no_bit_of_loss_and_gradients():
    garbage = np.random.default_rng(1).integers(0, GQA.vocab_size, (2, 5, 32)).astype(np.int32)
    ends = np.array([*map(len, EXAMPLES), 0])[:, None]
    poisoned = dataclasses.replace(
        BATCH,
        tokens=np.where(np.arange(BATCH.tokens.shape[1]) < ends, BATCH.tokens, garbage[0, :, : BATCH.tokens.shape[1]]),
        targets=np.where(BATCH.real, BATCH.targets, garbage[1, :, : BATCH.targets.shape[1]]),
        sources=np.where(BATCH.real, BATCH.sources, 5),
    )
    assert (poisoned.tokens != BATCH.tokens).any() and (poisoned.targets != BATCH.targets).any()
    assert_same_bits(value_and_grad(PARAMS, poisoned), value_and_grad(PARAMS, BATCH))


def test_only_the_positions_that_predict_the_response_reach_the_head(monkeypatch):
    """Hidden states elsewhere, at prompt and padding, have a gradient of exactly zero."""
    hidden = jnp.asarray(RNG.normal(size=(5, 16, GQA.hidden_size)), jnp.float32)
    monkeypatch.setattr("selfreward_jax.llama.model.hidden_states", lambda *_, **__: hidden_in[0])
    hidden_in = [hidden]

    def loss(x):
        hidden_in[0] = x
        return response_logps(GQA, PARAMS, BATCH, dtype=jnp.dtype("float32"), head_chunk=16).sum()

    touched = np.abs(np.asarray(jax.grad(loss)(hidden))).sum(axis=-1) > 0
    first = np.array([len(e.prompt_ids) - 1 for e in EXAMPLES] + [0])[:, None]
    np.testing.assert_array_equal(touched, (np.arange(16) >= first) & (np.arange(16) < first + BATCH.lengths[:, None]))
