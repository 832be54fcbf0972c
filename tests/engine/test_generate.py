"""Generation says what a naive loop would that runs the whole model again for every token, however it is batched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.core.errors import UserError
from selfreward_jax.engine.decode import decode, prefill
from selfreward_jax.engine.generate import (
    Request,
    SamplingSettings,
    check_fits,
    generate_batch,
    plan_batches,
    row_keys,
)
from selfreward_jax.engine.sampling import sample
from selfreward_jax.engine.score import score_examples
from selfreward_jax.training.batches import Example
from tests.engine.small_llama import GQA, VARIANTS, StubChat, naive_logits, naive_logp, small_model

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=7)
SAMPLED = SamplingSettings(temperature=0.9, top_p=0.95, max_new_tokens=7)
SAMPLES = 3
PLACE = {"seed": 0, "size": 4, "bucket": 16}


def requests(*lengths: int) -> list[Request]:
    rng = np.random.default_rng(1)
    return [
        Request(f"r{n}", tuple(rng.integers(0, GQA.vocab_size, length).tolist())) for n, length in enumerate(lengths)
    ]


REQUESTS = requests(1, 11, 5, 16)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def sampled(model):
    return generate_batch(model, REQUESTS, SAMPLES, SAMPLED, **PLACE)


def ids(completions):
    return [(c.request.id, c.index, c.token_ids) for c in completions]


def naive_loop(model, request, key, settings) -> list[int]:
    """Continues one prompt with one key; the whole text goes through the model for every token."""
    new: list[int] = []
    for step in range(settings.max_new_tokens):
        logits = naive_logits(model.config, model.params, [*request.prompt_ids, *new])[-1:]
        keys = jax.random.fold_in(key, step)[None]
        draw = jax.jit(sample, static_argnames=("temperature", "top_p"))
        token, _ = draw(jnp.asarray(logits, jnp.float32), keys, temperature=settings.temperature, top_p=settings.top_p)
        new.append(int(token[0]))
    return new


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_decoding_is_that_of_a_naive_loop(name):
    model = small_model(VARIANTS[name])
    completions = generate_batch(model, REQUESTS, SAMPLES, GREEDY, **PLACE)
    for n, request in enumerate(REQUESTS):
        expected = tuple(naive_loop(model, request, jax.random.key(0), GREEDY))
        assert [c.token_ids for c in completions[n * SAMPLES : (n + 1) * SAMPLES]] == [expected] * SAMPLES


def test_sampled_decoding_is_that_of_a_naive_loop_with_the_same_keys(model):
    seeds = np.array([5, 6, 7, 8], np.uint32)
    tokens, lengths = np.zeros((4, 16), np.int32), np.array([len(r.prompt_ids) for r in REQUESTS])
    for row, request in enumerate(REQUESTS):
        tokens[row, : lengths[row]] = request.prompt_ids
    keys = row_keys(seeds, SAMPLES)
    found = run(model, tokens, lengths, keys)
    expected = [naive_loop(model, REQUESTS[n // SAMPLES], key, SAMPLED) for n, key in enumerate(keys)]
    np.testing.assert_array_equal(found[0], expected)
    assert len(set(map(tuple, expected))) == len(expected)


def run(model, tokens, lengths, keys, live=(True,) * 4):
    prefilled = prefill(model.config, model.params, tokens, lengths, dtype=jnp.dtype("float32"))
    return jax.device_get(
        decode(
            model.config,
            model.params,
            prefilled,
            lengths,
            np.array(live),
            keys,
            samples=SAMPLES,
            eos_ids=(-1,),
            dtype=jnp.dtype("float32"),
            **dataclasses.asdict(SAMPLED),
        )
    )


def test_what_stands_after_a_prompts_end_has_no_influence(model):
    lengths, keys = np.array([1, 11, 5, 16]), row_keys(np.arange(4, dtype=np.uint32), SAMPLES)
    tokens = np.random.default_rng(0).integers(0, GQA.vocab_size, (4, 16))
    clean = np.where(np.arange(16) < lengths[:, None], tokens, 0)
    for found, expected in zip(run(model, tokens, lengths, keys), run(model, clean, lengths, keys), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rows_that_only_fill_the_batch_generate_nothing(model):
    lengths, keys = np.array([1, 11, 5, 16]), row_keys(np.arange(4, dtype=np.uint32), SAMPLES)
    tokens, counts, logps = run(model, np.ones((4, 16), np.int32), lengths, keys, live=(True, False, True, False))
    np.testing.assert_array_equal(counts.reshape(4, SAMPLES)[:, 0], [7, 0, 7, 0])
    assert not tokens.reshape(4, -1)[[1, 3]].any() and not logps.reshape(4, -1)[[1, 3]].any()


def test_the_log_probability_is_that_of_scoring_the_same_tokens(model, sampled):
    examples = [Example(c.request.prompt_ids, c.token_ids) for c in sampled]
    for indices, logps in score_examples(model, examples, rows=4, bucket=16):
        np.testing.assert_allclose([sampled[i].logp for i in indices], logps, atol=1e-4)


def test_the_log_probability_is_that_of_the_naive_model(model, sampled):
    for c in sampled:
        expected = naive_logp(model.config, model.params, c.request.prompt_ids, c.token_ids)
        assert c.logp == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def stopped(model, sampled):
    """The same samples with two end ids that come in them, and which those are."""
    ends = (sampled[0].token_ids[2], sampled[4].token_ids[4], 69)
    chat = StubChat(ends)
    return generate_batch(dataclasses.replace(model, chat=chat), REQUESTS, SAMPLES, SAMPLED, **PLACE), ends


def test_a_sample_ends_with_the_first_of_several_end_ids(sampled, stopped):
    completions, ends = stopped
    assert {c.token_ids[-1] for c in completions if c.stop_reason == "eos"} >= set(ends[:2])
    for free, found in zip(sampled, completions, strict=True):
        end = next((n + 1 for n, token in enumerate(free.token_ids) if token in ends), 7)
        assert found.token_ids == free.token_ids[:end]


def test_the_stop_reason_says_whether_an_end_id_was_drawn(stopped):
    completions, ends = stopped
    assert [c.stop_reason for c in completions] == ["eos" if c.token_ids[-1] in ends else "length" for c in completions]
    assert {"eos", "length"} == {c.stop_reason for c in completions}
    assert all(len(c.token_ids) == 7 for c in completions if c.stop_reason == "length")


def test_the_log_probability_counts_the_end_id_and_nothing_after_it(model, stopped):
    for c in stopped[0]:
        expected = naive_logp(model.config, model.params, c.request.prompt_ids, c.token_ids)
        assert c.logp == pytest.approx(expected, abs=1e-4)


def test_order_batch_size_and_padding_do_not_change_what_is_sampled(model, sampled):
    by_request = [c for r in reversed(REQUESTS) for c in ids(sampled) if c[0] == r.id]
    assert ids(generate_batch(model, REQUESTS[::-1], SAMPLES, SAMPLED, **PLACE)) == by_request
    alone = [c for r in REQUESTS[:2] for c in generate_batch(model, [r], SAMPLES, SAMPLED, seed=0, size=2, bucket=24)]
    assert ids(alone) == ids(sampled)[: 2 * SAMPLES]


def test_the_number_of_samples_does_not_change_the_first_of_them(model, sampled):
    one = generate_batch(model, REQUESTS, 1, SAMPLED, **PLACE)
    assert ids(one) == [c for c in ids(sampled) if c[1] == 0]


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "judging"}])
def test_another_seed_or_purpose_gives_other_samples(model, sampled, change):
    other = generate_batch(model, REQUESTS, SAMPLES, SAMPLED, **(PLACE | change))
    assert all(a.token_ids != b.token_ids for a, b in zip(sampled, other, strict=True))


def test_requests_of_the_same_text_are_sampled_independently(model):
    twins = [Request(name, REQUESTS[1].prompt_ids) for name in ("a", "b")]
    texts = [c.token_ids for c in generate_batch(model, twins, SAMPLES, SAMPLED, **PLACE)]
    assert len(set(texts)) == 2 * SAMPLES


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_sample_what_one_samples(sampled, mesh):
    found = generate_batch(small_model(**mesh), REQUESTS, SAMPLES, SAMPLED, **PLACE)
    assert ids(found) == ids(sampled)
    np.testing.assert_allclose([c.logp for c in found], [c.logp for c in sampled], atol=1e-4)


@given(
    st.lists(st.integers(1, 9), max_size=40),
    st.integers(1, 8),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_every_request_is_in_one_batch_and_no_batch_is_larger_than_the_first(lengths, samples, rows):
    asked = [Request(str(n), (0,) * length) for n, length in enumerate(lengths)]
    batches = plan_batches(asked, samples, rows)
    assert sorted(r.id for b in batches for r in b) == sorted(r.id for r in asked)
    assert all(0 < len(b) <= len(batches[0]) for b in batches)
    assert all(len(b) * samples <= max(rows, samples) for b in batches)
    in_order = [len(r.prompt_ids) for b in batches for r in b]
    assert in_order == sorted(in_order, reverse=True)


@given(st.permutations(range(12)))
def test_batches_do_not_depend_on_the_requests_order(order):
    asked = [Request(str(n), (0,) * (1 + n % 3)) for n in range(12)]
    assert plan_batches([asked[n] for n in order], 2, 8) == plan_batches(asked, 2, 8)


def test_a_prompt_without_room_for_an_answer_is_an_error_that_names_it():
    check_fits(requests(3, 9), SAMPLED, 16, "prompt")
    with pytest.raises(UserError, match=r"prompt r1: 10 prompt tokens and 7 new ones exceed .* context of 16"):
        check_fits(requests(3, 10), SAMPLED, 16, "prompt")
