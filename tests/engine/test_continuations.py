"""Continuations are scored as the naive model scores them, however they share rows, and greedy ones are told apart."""

import numpy as np
import pytest

from selfreward_jax.engine.continuations import score_continuations, shared_texts
from selfreward_jax.training.batches import Example
from tests.engine.small_llama import GQA, log_softmax, naive_logits, naive_logp, small_model

RNG = np.random.default_rng(0)


def draw(n: int) -> tuple[int, ...]:
    return tuple(RNG.integers(0, GQA.vocab_size, n).tolist())


QUESTION, OTHER = draw(9), draw(30)
EXAMPLES = [
    *(Example(QUESTION, draw(n)) for n in (1, 4, 2, 7)),
    *(Example(OTHER, draw(n)) for n in (1, 1)),
    Example(draw(1), draw(20)),
]


@pytest.fixture(scope="module")
def model():
    return small_model()


def scored(model, examples, **settings) -> list[tuple[float, bool]]:
    found = {n: (logp, greedy) for n, logp, greedy in score_continuations(model, examples, **settings)}
    assert found.keys() == set(range(len(examples)))
    return [found[n] for n in range(len(examples))]


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_log_probabilities_are_those_of_the_naive_model(model, rows):
    expected = [naive_logp(GQA, model.params, e.prompt_ids, e.response_ids) for e in EXAMPLES]
    found = [logp for logp, _ in scored(model, EXAMPLES, rows=rows, head_chunk=8)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def greedy_continuation(model, prompt: tuple[int, ...], n: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(log_softmax(naive_logits(GQA, model.params, ids))[-1].argmax()))
    return tuple(ids[len(prompt) :])


def test_only_what_greedy_decoding_writes_is_greedy(model):
    best = greedy_continuation(model, QUESTION, 5)
    wrong = [(*best[:n], (best[n] + 1) % GQA.vocab_size, *best[n + 1 :]) for n in range(5)]
    examples = [Example(QUESTION, best), *(Example(QUESTION, ids) for ids in wrong), Example(QUESTION, best[:2])]
    assert [greedy for _, greedy in scored(model, examples)] == [True, *[False] * 5, True]


def test_a_prompt_is_computed_once_for_all_its_continuations():
    texts = shared_texts(EXAMPLES, GQA.max_position_embeddings)
    assert sorted(text.prompt_ids for text in texts) == sorted({e.prompt_ids for e in EXAMPLES})
    assert sorted(n for text in texts for n in text.owners) == list(range(len(EXAMPLES)))


def test_rows_grow_no_longer_than_the_context():
    examples = [Example(QUESTION, draw(5)) for _ in range(10)]
    assert [len(text) for text in shared_texts(examples, 20)] == [19] * 5


def test_eight_devices_score_what_one_scores(model):
    found = scored(small_model(data=2, fsdp=2, tensor=2), EXAMPLES)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in scored(model, EXAMPLES)], atol=1e-4)
