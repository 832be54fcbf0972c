"""Rows keep their length beside their ids, and every epoch shows every row once in an order that the seed decides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.training.batches import Example, batch_indices, make_batch, steps_per_epoch


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**31), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(rows, batch_size, seed, epoch):
    steps = steps_per_epoch(rows, batch_size)
    batches = [batch_indices(rows, batch_size, seed=seed, step=epoch * steps + n) for n in range(steps)]
    assert sorted(i for b in batches for i in b) == list(range(rows))
    assert all(len(b) == batch_size for b in batches[:-1]) and 0 < len(batches[-1]) <= batch_size


def test_epochs_and_seeds_differ_in_their_order():
    orders = [batch_indices(40, 40, seed=seed, step=step) for seed in (0, 1) for step in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_the_order_follows_from_seed_and_step_alone():
    """A golden value: another order would silently change what a resumed run sees."""
    assert batch_indices(10, 4, seed=3, step=4) == [8, 1, 3, 9]


def test_a_batch_holds_prompt_and_response_and_the_lengths_of_both():
    batch = make_batch([Example((1, 2, 3), (4, 5)), None, Example((0,), (0, 0, 0))], rows=4, bucket=4)
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 3, 4, 5, 0, 0, 0], *[[0] * 8] * 3])
    np.testing.assert_array_equal(batch.targets, [[4, 5, 0, 0], *[[0] * 4] * 3])
    np.testing.assert_array_equal(batch.lengths, [2, 0, 3, 0])
    np.testing.assert_array_equal(batch.real.sum(axis=1), [2, 0, 3, 0])
    np.testing.assert_array_equal(batch.sources[[0, 2]], [[2, 3, 0, 0], [0, 1, 2, 0]])
    assert batch.segments is None


@pytest.mark.parametrize(("prompt", "response"), [((), (1,)), ((1,), ())])
def test_a_row_without_prompt_or_response_is_refused(prompt, response):
    with pytest.raises(ValueError, match="at least one prompt token and one response token"):
        Example(prompt, response)
