"""Generation says what a naive loop would that runs the whole model again for every token, wherever a row ran."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from selfreward_jax.core.errors import UserError
from selfreward_jax.engine import block, layout
from selfreward_jax.engine import run as generation
from selfreward_jax.engine.generate import Engine, EngineSettings, Reading, check_requests
from selfreward_jax.engine.sampling import SamplingSettings, keys_at, sample
from selfreward_jax.engine.schedule import Request, sample_key, shared_prefix
from selfreward_jax.engine.score import score_examples
from selfreward_jax.training.batches import Example
from tests.engine.small_llama import (
    GQA,
    GROUPED,
    VARIANTS,
    StubChat,
    log_softmax,
    naive_logits,
    naive_logp,
    small_model,
)
from tests.engine.test_stopping import naive_end

RNG = np.random.default_rng(1)
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=7)
SAMPLED = SamplingSettings(temperature=0.9, top_p=0.95, max_new_tokens=7)
N = 3
TINY = EngineSettings(slots=5, length_bucket=16, prefill_tokens=64)


def requests(*lengths: int, start: tuple[int, ...] = ()) -> list[Request]:
    return [Request(f"r{n}", (*start, *RNG.integers(0, 70, length).tolist())) for n, length in enumerate(lengths)]


# One token, a bucket's worth, more than a block of the cache; all with a start in common or not.
PLAIN = requests(1, 11, 5, 16, 70, 9)
SHARED = requests(1, 11, 5, 16, 40, 9, start=tuple(RNG.integers(0, 70, 21).tolist()))


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, TINY)


def run(engine, asked, samples=N, settings=SAMPLED, *, seed=0, **options):
    return {(c.request.id, c.index): c for c in engine.run(asked, samples, settings, seed=seed, **options)}


def tokens(found):
    return {key: c.token_ids for key, c in found.items()}


@pytest.fixture(scope="module")
def sampled(engine):
    return run(engine, PLAIN)


def naive_loop(model, request, key, settings) -> tuple[int, ...]:
    """Continues one prompt with one key; the whole text goes through the model for every token."""
    new: list[int] = []
    draw = jax.jit(sample, static_argnames="law")
    for step in range(settings.max_new_tokens):
        logits = naive_logits(model.config, model.params, [*request.prompt_ids, *new])[-1:]
        at = keys_at(key[None], jnp.array([step]))
        new.append(int(draw(jnp.asarray(logits, jnp.float32), at, law=settings.law())[0][0]))
    return tuple(new)


@pytest.mark.parametrize("asked", [PLAIN, SHARED], ids=["plain", "shared prefix"])
@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_those_of_a_naive_loop_for_mixed_lengths_and_refilled_slots(name, asked):
    model = small_model(VARIANTS[name])
    found = tokens(run(Engine(model, TINY), asked, settings=GREEDY))
    expected = {r.id: naive_loop(model, r, np.zeros(2, np.uint32), GREEDY) for r in asked}
    assert found == {(r.id, n): expected[r.id] for r in asked for n in range(N)}


def test_sampled_tokens_are_those_of_a_naive_loop_with_the_same_keys(model, sampled):
    expected = {(r.id, n): naive_loop(model, r, sample_key(0, "", r.id, n), SAMPLED) for r in PLAIN for n in range(N)}
    assert tokens(sampled) == expected
    assert len(set(expected.values())) == len(expected)


def test_answers_longer_than_a_block_of_the_cache_are_those_of_a_naive_loop():
    model = small_model(dataclasses.replace(GQA, max_position_embeddings=512))
    settings = dataclasses.replace(GREEDY, max_new_tokens=150)
    (found,) = Engine(model, TINY).run(PLAIN[1:2], 1, settings, seed=0)
    # The whole row at once: every token must be the most probable after those before it.
    logits = naive_logits(model.config, model.params, [*PLAIN[1].prompt_ids, *found.token_ids])
    assert found.token_ids == tuple(logits[len(PLAIN[1].prompt_ids) - 1 : -1].argmax(axis=-1))


def test_a_prompt_longer_than_a_block_of_queries_is_read_right(monkeypatch):
    from selfreward_jax.engine import programs

    monkeypatch.setattr(programs, "QUERY_BLOCK", 24)
    model = small_model(dataclasses.replace(GQA, rms_norm_eps=2e-5))  # of its own, so that it is compiled anew
    found = run(Engine(model, TINY), SHARED, 1, GREEDY)
    assert tokens(found) == {(r.id, 0): naive_loop(model, r, np.zeros(2, np.uint32), GREEDY) for r in SHARED}


# Invariance. Equality of completions is that of every bit of the log-probabilities too.


def test_order_changes_no_bit(engine, sampled):
    assert run(engine, PLAIN[::-1]) == sampled
    assert run(engine, [PLAIN[n] for n in (3, 1, 5, 0, 4, 2)]) == sampled


def test_what_was_made_before_an_interruption_changes_no_bit_of_the_rest(engine, sampled):
    done = {key for n, key in enumerate(sorted(sampled)) if n % 3}
    rest = run(engine, PLAIN, done=done)
    assert rest == {key: c for key, c in sampled.items() if key not in done}


@pytest.mark.parametrize("slots", [1, 2, 7, 64])
def test_the_number_of_slots_does_not_change_what_is_sampled(model, sampled, slots):
    found = run(Engine(model, dataclasses.replace(TINY, slots=slots)), PLAIN)
    assert tokens(found) == tokens(sampled)
    np.testing.assert_allclose([found[k].logp for k in found], [sampled[k].logp for k in found], atol=1e-4)


def test_padding_and_batching_of_prefill_do_not_change_what_is_sampled(model, sampled):
    other = EngineSettings(slots=5, length_bucket=24, prefill_tokens=200)
    assert tokens(run(Engine(model, other), PLAIN)) == tokens(sampled)


def test_the_number_of_samples_does_not_change_the_first_of_them(engine, sampled):
    assert tokens(run(engine, PLAIN, 1)) == {key: ids for key, ids in tokens(sampled).items() if key[1] == 0}


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "judging"}])
def test_another_seed_or_purpose_gives_other_samples(engine, sampled, change):
    other = run(engine, PLAIN, **change)
    assert all(other[key].token_ids != c.token_ids for key, c in sampled.items())


def test_requests_of_the_same_text_are_sampled_independently(engine):
    twins = [Request(name, PLAIN[1].prompt_ids) for name in ("a", "b")]
    assert len(set(tokens(run(engine, twins)).values())) == 2 * N


@pytest.mark.parametrize(
    "mesh",
    [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=["8 replicas", "4 replicas of 2"],
)
def test_eight_devices_sample_what_one_samples(sampled, mesh):
    found = run(Engine(small_model(**mesh), dataclasses.replace(TINY, slots=8)), PLAIN)
    assert tokens(found) == tokens(sampled)
    np.testing.assert_allclose([found[k].logp for k in found], [sampled[k].logp for k in found], atol=1e-4)


def test_another_split_for_sampling_than_for_training_samples_the_same(sampled):
    engine = Engine(small_model(fsdp=8), dataclasses.replace(TINY, slots=8, tensor=2))
    assert dict(engine.mesh.shape) == {"replica": 4, "tensor": 2}
    assert tokens(run(engine, PLAIN)) == tokens(sampled)


def test_each_of_more_devices_than_kv_heads_has_a_copy_of_one_and_a_part_of_its_queries(capfd):
    config = GROUPED
    engine = Engine(small_model(config, data=8), dataclasses.replace(TINY, slots=8, tensor=4))
    assert "2 K/V heads can't be split over 4 tensor devices; each is kept 2 times" in capfd.readouterr().err
    assert [x.data.shape[1:3] for x in engine.weights["layers"][0]["qkv"].addressable_shards] == [(1, 2 + 2)] * 8
    plan, whole = (e.plan(PLAIN, N, 7) for e in (engine, Engine(small_model(config), TINY)))
    assert plan.bytes_per_token * 2 == whole.bytes_per_token
    found, expected = run(engine, PLAIN), run(Engine(small_model(config), TINY), PLAIN)
    assert tokens(found) == tokens(expected)
    np.testing.assert_allclose([found[k].logp for k in found], [expected[k].logp for k in found], atol=1e-4)


def test_heads_that_the_tensor_devices_can_not_share_are_kept_whole_on_each_with_a_word(capfd):
    config = dataclasses.replace(GQA, vocab_size=72)
    engine = Engine(small_model(config, data=8), dataclasses.replace(TINY, slots=8, tensor=8))
    assert "2 K/V heads can't be split over 8 tensor devices; each keeps all" in capfd.readouterr().err
    assert tokens(run(engine, PLAIN)) == tokens(run(Engine(small_model(config), TINY), PLAIN))


def test_the_order_of_the_weights_in_memory_does_not_change_what_is_sampled(sampled, monkeypatch):
    """On TPU it is another; here it is forced."""
    orders = block.TPU_ORDER
    in_order = lambda mesh, name, lay: Format(Layout(orders[name]), lay) if name in orders else lay  # noqa: E731
    monkeypatch.setattr(layout, "_in_order", in_order)
    engine = Engine(small_model(data=2, tensor=2), TINY)
    assert engine.weights["layers"][0]["gate_up"].format.layout.major_to_minor == (1, 0, 2)
    assert tokens(run(engine, PLAIN)) == tokens(sampled)


PALLAS = dataclasses.replace(TINY, attention="pallas")  # interpreted on this machine


def test_the_tpu_kernels_sample_what_plain_attention_samples_with_heads_over_the_mesh(sampled):
    found = run(Engine(small_model(data=2, tensor=2), PALLAS), PLAIN)
    assert tokens(found) == tokens(sampled)
    np.testing.assert_allclose([found[k].logp for k in found], [sampled[k].logp for k in found], atol=1e-4)


@pytest.mark.parametrize(
    ("config", "tensor"),
    [(dataclasses.replace(GQA, num_kv_heads=4, vocab_size=72), 8), (VARIANTS["tied_mqa"], 2)],
    ids=["all heads on each device", "half of the queries of a head each"],
)
def test_the_tpu_kernels_give_the_tokens_of_a_naive_loop_after_a_shared_prefix(config, tensor):
    model = small_model(config, data=tensor)
    found = tokens(run(Engine(model, dataclasses.replace(PALLAS, tensor=tensor)), SHARED, 2, GREEDY))
    expected = {r.id: naive_loop(model, r, np.zeros(2, np.uint32), GREEDY) for r in SHARED}
    assert found == {(r.id, n): expected[r.id] for r in SHARED for n in range(2)}


@pytest.mark.parametrize(
    ("tensor", "message"),
    [(4, "embed has 70 vocab, which 4 tensor devices can't split evenly"), (3, "3 does not divide the 8 devices")],
)
def test_a_split_that_does_not_come_out_even_is_refused_with_the_numbers(tensor, message):
    with pytest.raises(UserError, match=message):
        Engine(small_model(data=8), dataclasses.replace(TINY, tensor=tensor))


def test_a_bfloat16_cache_samples_nearly_the_same(model, sampled):
    found = run(Engine(model, dataclasses.replace(TINY, cache_dtype="bfloat16")), PLAIN, settings=GREEDY)
    exact = run(Engine(model, TINY), PLAIN, settings=GREEDY)
    same = [found[k].logp for k in found if found[k].token_ids == exact[k].token_ids]
    assert len(same) > len(found) / 2
    assert found != exact  # it is used at all
    np.testing.assert_allclose(
        same, [exact[k].logp for k in found if found[k].token_ids == exact[k].token_ids], atol=0.2
    )


# Log-probabilities and ends.


def test_the_log_probability_is_that_of_scoring_the_same_tokens(model, sampled):
    made = list(sampled.values())
    examples = [Example(c.request.prompt_ids, c.token_ids) for c in made]
    for indices, logps in score_examples(model, examples, rows=4, bucket=16):
        np.testing.assert_allclose([made[i].logp for i in indices], logps, atol=1e-4)


@pytest.fixture(scope="module")
def stopped(model, sampled):
    """The same samples with two end ids that come in them, and which those are."""
    ends = (sampled["r0", 0].token_ids[2], sampled["r1", 1].token_ids[4], 69)
    return run(Engine(dataclasses.replace(model, chat=StubChat(ends)), TINY), PLAIN), ends


def test_a_sample_ends_with_the_first_of_several_end_ids(sampled, stopped):
    found, ends = stopped
    assert {c.token_ids[-1] for c in found.values() if c.stop_reason == "eos"} >= set(ends[:2])
    for key, free in sampled.items():
        end = next((n + 1 for n, token in enumerate(free.token_ids) if token in ends), 7)
        assert found[key].token_ids == free.token_ids[:end]


def test_the_stop_reason_says_whether_an_end_id_was_drawn(stopped):
    found, ends = stopped
    assert {"eos", "length"} == {c.stop_reason for c in found.values()}
    for c in found.values():
        assert c.stop_reason == ("eos" if c.token_ids[-1] in ends else "length")
        assert len(c.token_ids) == 7 or c.stop_reason == "eos"


def test_the_log_probability_counts_the_end_id_and_nothing_after_it(model, stopped):
    for c in stopped[0].values():
        expected = naive_logp(model.config, model.params, c.request.prompt_ids, c.token_ids)
        assert c.logp == pytest.approx(expected, abs=1e-4)


def test_no_sample_ends_before_its_fewest_tokens_and_the_log_probability_is_still_the_models(model, stopped):
    settings = dataclasses.replace(SAMPLED, min_new_tokens=7)
    found = run(Engine(dataclasses.replace(model, chat=StubChat(stopped[1])), TINY), PLAIN, settings=settings)
    assert all(len(c.token_ids) == 7 and not set(c.token_ids) & set(stopped[1]) for c in found.values())
    c = found["r0", 0]
    assert c.logp == pytest.approx(naive_logp(model.config, model.params, c.request.prompt_ids, c.token_ids), abs=1e-4)


def test_one_new_token_needs_no_decoding(engine, sampled):
    before = engine.counters["gen/decode_steps"]
    found = run(engine, PLAIN, settings=dataclasses.replace(SAMPLED, max_new_tokens=1))
    assert tokens(found) == {key: ids[:1] for key, ids in tokens(sampled).items()}
    assert engine.counters["gen/decode_steps"] == before


LOOKS = [(1, 5), (3, 5), (8, 1), (8, 64)]  # tokens between two looks, and slots


@pytest.mark.parametrize(("steps", "slots"), LOOKS)
@pytest.mark.parametrize("least", [0, 3])
def test_a_sample_ends_where_a_loop_over_its_tokens_would_end_it(model, monkeypatch, steps, slots, least):
    """Compared with its own run without stop strings, so that rounding plays no part; the stub writes 17 as `17`."""
    monkeypatch.setattr(generation, "STEPS_WITH_STOP", steps)
    engine = Engine(model, dataclasses.replace(TINY, slots=slots))
    free = run(engine, PLAIN)
    ids = free["r1", 0].token_ids
    settings = dataclasses.replace(SAMPLED, stop=(f"{str(ids[2])[-1]} {ids[3]}", "6", "3 1"), min_new_tokens=least)
    before = engine.counters["gen/tokens"]
    found = run(engine, PLAIN, settings=settings)
    for key, c in found.items():
        end = naive_end(model.chat, list(free[key].token_ids), settings)
        assert end
        assert (c.stop_reason, c.drawn, c.rest) == (end.reason, end.drawn, end.rest)
        assert c.token_ids == free[key].token_ids[: end.kept] and c.text == model.chat.decode(c.token_ids)
        logp = naive_logp(model.config, model.params, c.request.prompt_ids, c.token_ids) if c.token_ids else 0.0
        assert c.logp == pytest.approx(logp, abs=1e-4)
    assert {"stop", "length"} == {c.stop_reason for c in found.values()}
    assert engine.counters["gen/tokens"] - before == sum(c.drawn for c in found.values())


# Reading probabilities.

CANDIDATES = (3, 20, 41, 68)


def naive_read(model, ids) -> np.ndarray:
    return log_softmax(naive_logits(model.config, model.params, ids)[-1])[list(CANDIDATES)]


@pytest.mark.parametrize("asked", [PLAIN, SHARED], ids=["plain", "shared prefix"])
def test_what_is_read_after_a_prompt_is_the_models_distribution(engine, model, asked):
    found = dict(engine.read(asked, CANDIDATES))
    assert found.keys() == set(asked)
    for request, logps in found.items():
        np.testing.assert_allclose(logps, naive_read(model, request.prompt_ids), atol=1e-4)


@pytest.mark.parametrize("settings", [TINY, PALLAS], ids=["xla", "pallas"])
def test_what_is_read_after_a_sample_is_the_distribution_after_the_fed_tokens(model, stopped, settings):
    ended = Engine(dataclasses.replace(model, chat=StubChat(stopped[1])), settings)
    reading = Reading(lambda text: (7, 8) if len(text) % 2 else (9,), CANDIDATES, longest=3)
    found = run(ended, PLAIN, reading=reading)
    assert tokens(found) == tokens(stopped[0])  # reading changes nothing about the samples
    for c in found.values():
        kept = c.token_ids[:-1] if c.stop_reason == "eos" else c.token_ids
        fed = reading.feed(StubChat().decode(c.token_ids))
        np.testing.assert_allclose(c.read, naive_read(model, [*c.request.prompt_ids, *kept, *fed]), atol=1e-4)


@pytest.mark.parametrize(("steps", "slots"), LOOKS)
def test_what_is_read_after_a_stop_string_replaces_the_tokens_it_stands_in(model, monkeypatch, steps, slots):
    monkeypatch.setattr(generation, "STEPS_WITH_STOP", steps)
    engine = Engine(model, dataclasses.replace(TINY, slots=slots))
    first = run(engine, PLAIN)["r1", 0].token_ids
    reading = Reading(lambda text: (5, 6) if len(text) % 2 else (7,), CANDIDATES, longest=3)
    settings = dataclasses.replace(SAMPLED, stop=(f" {first[2]} {first[3]}", str(first[0])))
    found = run(engine, PLAIN, settings=settings, reading=reading)
    assert tokens(found) == tokens(run(engine, PLAIN, settings=settings))
    assert found["r1", 0].token_ids == ()
    for c in found.values():
        fed = reading.feed(c.text)
        np.testing.assert_allclose(c.read, naive_read(model, [*c.request.prompt_ids, *c.token_ids, *fed]), atol=1e-4)


# Work done once.


@pytest.mark.parametrize("asked", [PLAIN, SHARED], ids=["plain", "shared prefix"])
def test_prompt_tokens_are_computed_once_and_the_counters_say_so(model, asked):
    engine = Engine(model, TINY)
    made = run(engine, asked)
    prefix, alone = shared_prefix(asked), sum(N * len(r.prompt_ids) for r in asked)
    computed = prefix + sum(len(r.prompt_ids) - prefix for r in asked)
    assert engine.counters["gen/prefill_tokens_computed"] == computed
    assert engine.counters["gen/prefill_tokens_shared"] == alone - computed
    assert engine.counters["gen/tokens"] == sum(len(c.token_ids) for c in made.values()) == 7 * N * len(asked)
    # The first token of each comes from the prefill.
    assert engine.counters["gen/slot_steps"] == 6 * N * len(asked)


def test_a_finished_slot_takes_the_next_sample_at_once(model):
    """With slots refilled, the steps are those of the work itself, not of the longest sample of each batch."""
    ends = tuple(range(0, 70, 9))
    engine = Engine(dataclasses.replace(model, chat=StubChat(ends)), dataclasses.replace(TINY, slots=4))
    settings = dataclasses.replace(SAMPLED, max_new_tokens=30)
    made = run(engine, PLAIN, 8, settings)
    work = sum(len(c.token_ids) - 1 for c in made.values())
    longest = max(len(c.token_ids) for c in made.values())
    assert engine.counters["gen/slot_steps"] == work
    assert work / 4 <= engine.counters["gen/decode_steps"] <= work / 4 + longest
    assert len({len(c.token_ids) for c in made.values()}) > 5


def test_the_prefix_is_what_all_requests_share_and_leaves_each_a_token():
    assert shared_prefix(SHARED) >= 21 and shared_prefix(PLAIN) == 0
    same = [Request("a", (1, 2, 3)), Request("b", (1, 2, 3)), Request("c", (1, 2, 3, 4))]
    assert shared_prefix(same) == 2
    assert shared_prefix(same[:1]) == 0


# Bad input.


def bad(**change) -> SamplingSettings:
    return dataclasses.replace(SAMPLED, **change)


@pytest.mark.parametrize(
    ("asked", "samples", "settings", "message"),
    [
        (requests(3, 122), 1, SAMPLED, r"prompt r1: 122 prompt tokens and 7 new ones exceed .* context of 128"),
        ([], 1, SAMPLED, "prompt: none given"),
        (requests(3), 0, SAMPLED, "prompt: 0 samples asked for; at least 1"),
        (requests(3) * 2, 1, SAMPLED, "prompt: the same id is given twice"),
        (requests(3, 0), 1, SAMPLED, "prompt r1: empty, not one token"),
        (requests(3), 1, bad(temperature=-0.1), "temperature is -0.1; it must be 0 or more"),
        (requests(3), 1, bad(top_p=0.0), "top_p is 0.0; it must be above 0"),
        (requests(3), 1, bad(top_k=-1), "top_k is -1"),
        (requests(3), 1, bad(min_p=1.5), "min_p is 1.5"),
        (requests(3), 1, bad(max_new_tokens=0), "max_new_tokens is 0"),
        (requests(3), 1, bad(min_new_tokens=8), "min_new_tokens is 8; it must be between 0 and max_new_tokens, 7"),
        (requests(3), 1, bad(stop=("a", "")), "a stop string is empty"),
    ],
)
def test_what_can_not_be_generated_is_one_line(engine, asked, samples, settings, message):
    with pytest.raises(UserError, match=message) as error:
        check_requests(asked, samples, settings, engine.model.context, "prompt")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        next(engine.run(asked, samples, settings, seed=0))


def test_an_end_id_outside_the_vocabulary_is_one_line(model):
    with pytest.raises(UserError, match="the end id 70 lies outside the vocabulary of 70; mend eos_token_id"):
        Engine(dataclasses.replace(model, chat=StubChat((3, 70))), TINY)


def test_a_cache_too_small_for_one_row_is_refused_with_the_numbers(model):
    engine = Engine(model, dataclasses.replace(TINY, cache_gib=1e-5))
    with pytest.raises(
        UserError, match=r"one row of 80 prompt tokens, with padding, and 7 new ones needs 0\.0\d\d GiB .* 0.000"
    ):
        next(engine.run(PLAIN, N, SAMPLED, seed=0))


def test_a_small_cache_means_fewer_slots_and_the_same_samples(model, sampled):
    small = Engine(model, dataclasses.replace(TINY, cache_gib=6e-5))
    assert 0 < small.plan(PLAIN, N, 7).slots < TINY.slots
    assert tokens(run(small, PLAIN)) == tokens(sampled)
