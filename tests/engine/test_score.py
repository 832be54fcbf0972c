"""Scoring gives the log-probability of the response alone, whatever rows it is batched with."""

import dataclasses

import numpy as np
import pytest

from selfreward_jax.engine.score import plan_batches, score, score_batch, score_examples
from selfreward_jax.training.batches import Example, make_batch
from tests.engine.small_llama import GQA, naive_logp, small_model

RNG = np.random.default_rng(0)
EXAMPLES = [
    Example(*(tuple(RNG.integers(0, GQA.vocab_size, n).tolist()) for n in lengths))
    for lengths in [(1, 1), (3, 12), (10, 6), (7, 1), (2, 5), (15, 1), (4, 4)]
]
LAYOUT = {"rows": 4, "bucket": 16, "head_chunk": 8}


@pytest.fixture(scope="module")
def model():
    return small_model()


def score_all(model, examples, **layout) -> list[float]:
    found = dict(pair for batch in score_examples(model, examples, **layout) for pair in zip(*batch, strict=True))
    return [found[i] for i in range(len(examples))]


def test_scores_are_those_of_the_naive_model(model):
    expected = [naive_logp(GQA, model.params, e.prompt_ids, e.response_ids) for e in EXAMPLES]
    np.testing.assert_allclose(score_all(model, EXAMPLES, **LAYOUT), expected, atol=1e-4)


def test_scores_do_not_depend_on_the_rows_order(model):
    found = score_all(model, EXAMPLES[::-1], **LAYOUT)[::-1]
    np.testing.assert_allclose(found, score_all(model, EXAMPLES, **LAYOUT), atol=1e-5)


def test_scores_do_not_depend_on_batch_size_and_padding(model):
    found = score_all(model, EXAMPLES, rows=7, bucket=20, head_chunk=512)
    np.testing.assert_allclose(found, score_all(model, EXAMPLES, **LAYOUT), atol=1e-5)


def test_eight_devices_score_what_one_scores(model):
    found = score_all(small_model(data=2, fsdp=2, tensor=2), EXAMPLES, **LAYOUT)
    np.testing.assert_allclose(found, score_all(model, EXAMPLES, **LAYOUT), atol=1e-4)


def test_what_stands_after_a_rows_end_changes_no_bit(model):
    b = make_batch(EXAMPLES[:3], rows=4, bucket=16)
    ends, garbage = np.array([*map(len, EXAMPLES[:3]), 0])[:, None], RNG.integers(0, GQA.vocab_size, (2, 4, 32))
    poisoned = dataclasses.replace(
        b,
        tokens=np.where(np.arange(b.tokens.shape[1]) < ends, b.tokens, garbage[0, :, : b.tokens.shape[1]]),
        targets=np.where(b.real, b.targets, garbage[1, :, : b.targets.shape[1]]),
    )
    assert (poisoned.tokens != b.tokens).any() and (poisoned.targets != b.targets).any()
    clean, found = (score(GQA, model.params, x, dtype=np.dtype("float32"), head_chunk=8) for x in (b, poisoned))
    np.testing.assert_array_equal(found, clean)


def test_a_short_batch_gives_as_many_scores_as_it_has_rows(model):
    assert len(score_batch(model, EXAMPLES[:3], **LAYOUT)) == 3


def test_every_row_is_scored_once_with_rows_of_like_length_together():
    batches = plan_batches(EXAMPLES, 3)
    assert sorted(i for b in batches for i in b) == list(range(len(EXAMPLES)))
    lengths = [len(EXAMPLES[i]) for b in batches for i in b]
    assert lengths == sorted(lengths, reverse=True)
