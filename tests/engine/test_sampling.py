"""One draw: the nucleus is exact, its frequencies are those of the model, and nothing but the key decides."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from selfreward_jax.engine import sampling
from selfreward_jax.engine.sampling import Law, keys_at, kth_largest, sample
from tests.engine.small_llama import log_softmax

TOP_P, TEMPERATURE = 0.9, 0.7
DRAWS = 4_000
V = 700  # three blocks, the last of them padded


def weights(*groups: tuple[int, float], shuffle: bool = True) -> np.ndarray:
    """Probabilities: (how many, how much each) one after another from token 0, zero for the rest."""
    x = np.concatenate([np.full(count, each) for count, each in groups])
    x = np.pad(x, (0, V - len(x)))
    return np.random.default_rng(0).permutation(x) if shuffle else x


# The probabilities after temperature. No mass of whole tokens comes near top_p.
CASES = {
    "one token above p": weights((1, 0.95), (1, 0.03), (1, 0.02)),
    "one token just below p": weights((1, 0.89), (1, 0.11)),
    "flat": weights((V, 1 / V)),
    "flat in part": weights((70, 1 / 70)),
    "ties at the border all stay": weights((1, 0.6), (4, 0.08), (200, 0.0004)),
    "tokens below the ties go": weights((1, 0.5), (2, 0.21), (4, 0.02)),
    "tiny tail": weights((1, 0.5), (1, 0.3), (1, 0.15), (500, 0.0001)),
    "falling by a tenth": weights(*((1, 0.1 * 0.9**n) for n in range(V))),
    "all in one block": weights((256, 0.0), (1, 0.4), (1, 0.3), (252, 0.0), (1, 0.25), (1, 0.05), shuffle=False),
    "first and last token": weights((1, 0.5), (V - 2, 0.0), (1, 0.5), shuffle=False),
    "block borders": weights((255, 0.0), (2, 0.3), (254, 0.0), (2, 0.2), shuffle=False),
}


def exact(p: np.ndarray, law: Law) -> np.ndarray:
    """The distribution of a draw, by sorting: top-k with its ties, then tokens whose more probable tokens have a mass
    below top_p, then those of at least min_p of the largest."""
    p = p / p.sum()
    descending = np.sort(p)[::-1]
    if law.top_k:
        p = np.where(p >= descending[law.top_k - 1] * (1 - 1e-6), p, 0.0)
        p = p / p.sum()
        descending = np.sort(p)[::-1]
    mass = np.concatenate([[0.0], np.cumsum(descending)])
    above = mass[np.searchsorted(-descending, -p * (1 + 1e-9), side="left")]
    kept = np.where((above < law.top_p) & (p >= law.min_p * descending[0]), p, 0.0)
    return kept / kept.sum()


@functools.partial(jax.jit, static_argnames="law")
def _draw_all(logits_CV, law):
    def one(case):
        logits_V, key = case
        logits = jnp.broadcast_to(logits_V, (DRAWS, V))
        return sample(logits, jax.random.split(key, DRAWS), law)[0]

    return jax.lax.map(one, (logits_CV, jax.random.split(jax.random.key(0), len(logits_CV))))


@functools.cache
def frequencies(law: Law) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore"):
        logits = TEMPERATURE * np.log(np.stack(list(CASES.values())))
    tokens = np.asarray(_draw_all(jnp.asarray(logits, jnp.float32), law))
    return {name: np.bincount(row, minlength=V) for name, row in zip(CASES, tokens, strict=True)}


LAWS = {
    "top-p": Law(TEMPERATURE, TOP_P),
    "all": Law(TEMPERATURE),
    "top-k": Law(TEMPERATURE, top_k=3),
    "min-p": Law(TEMPERATURE, min_p=0.3),
    "top-k and top-p": Law(TEMPERATURE, 0.8, top_k=4),
    "all three": Law(TEMPERATURE, TOP_P, top_k=60, min_p=0.05),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_exact_distribution(case, law):
    expected, found = exact(CASES[case], law) * DRAWS, frequencies(law)[case]
    assert len(found) == V, "a token outside the vocabulary"
    assert found[expected == 0].sum() == 0, "a token outside the nucleus"
    assert (found[expected > 15] > 0).all(), "a token of the nucleus never comes"
    often, rare = expected >= 5, (expected > 0) & (expected < 5)
    seen, wanted = found[often], expected[often]
    if rare.any():
        seen, wanted = np.append(seen, found[rare].sum()), np.append(wanted, expected[rare].sum())
    if len(seen) > 1:
        assert scipy.stats.chisquare(seen, wanted).pvalue > 1e-4


draw = jax.jit(sample, static_argnames="law")
LAW = Law(0.7, 0.9)
LOGITS = 2 * jax.random.normal(jax.random.key(0), (50, 300))
KEYS = jax.random.split(jax.random.key(1), 50)


@pytest.mark.parametrize("law", [Law(0.0, 0.9), Law(1.0, 1e-6), Law(1.0, top_k=1), Law(1.0, min_p=1.0)])
def test_temperature_zero_and_limits_at_their_tightest_take_the_most_probable_token(law):
    tokens, _ = draw(LOGITS, KEYS, law)
    np.testing.assert_array_equal(tokens, LOGITS.argmax(axis=-1))


def test_the_log_probability_is_the_models_own_without_temperature_and_top_p():
    tokens, logps = draw(LOGITS, KEYS, LAW)
    expected = np.take_along_axis(log_softmax(LOGITS), np.asarray(tokens)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(logps, expected, atol=1e-5)


def test_a_key_gives_the_same_token_in_any_row_of_any_batch():
    together, _ = draw(LOGITS, KEYS, LAW)
    order = np.random.default_rng(0).permutation(50)[:23]
    apart, _ = draw(LOGITS[order], KEYS[order], LAW)
    np.testing.assert_array_equal(apart, together[order])


@pytest.mark.parametrize("rows", [1, 5, 17])
def test_draws_that_are_repeated_for_a_few_rows_are_those_rows_own(rows):
    """At a small top-p most draws are repeated, each row another number of times."""
    together, _ = draw(LOGITS, KEYS, Law(1.5, 0.2))
    apart, _ = draw(LOGITS[:rows], KEYS[:rows], Law(1.5, 0.2))
    np.testing.assert_array_equal(apart, together[:rows])


@pytest.mark.parametrize("replicas", [2, 5, 50])
def test_what_is_drawn_does_not_depend_on_the_replicas(replicas):
    alone, _ = draw(LOGITS, KEYS, Law(1.5, 0.2))
    split, _ = sample(LOGITS, KEYS, Law(1.5, 0.2), None, replicas)
    np.testing.assert_array_equal(split, alone)


def test_no_weights_leave_their_replica_to_be_drawn_from_again():
    mesh = jax.make_mesh((8,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replica"))
    given = [
        jax.ShapeDtypeStruct((64, 5000), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((64, 2), jnp.uint32, sharding=rows),
    ]

    def sent(replicas: int) -> list[str]:
        def drawn(logits, key_data):
            return sample(logits, keys_at(key_data, jnp.zeros(64, jnp.int32)), Law(1.0, 0.9), None, replicas)

        text = jax.jit(drawn).lower(*given).compile().as_text()
        return re.findall(r"= (.*) (?:all-reduce|all-gather|all-to-all|collective-permute)\(", text)

    assert any(",256]" in shape for shape in sent(1))
    assert sent(8) == ["pred[]"]  # whether any row is left


def test_other_keys_give_other_tokens():
    first, second = (draw(LOGITS, keys, LAW)[0] for keys in (KEYS, KEYS[::-1]))
    assert (first != second).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_without_a_distribution_end_and_leave_other_rows_alone(bad):
    expected, _ = draw(LOGITS, KEYS, LAW)
    tokens, _ = draw(LOGITS.at[7, 3 if bad > 0 else slice(None)].set(bad), KEYS, LAW)
    assert 0 <= tokens[7] < 300
    np.testing.assert_array_equal(np.delete(tokens, 7), np.delete(expected, 7))


def test_a_draw_that_rounding_puts_on_no_token_is_drawn_again(monkeypatch):
    """A running sum in float32 is not monotone, so a target may fall on a token of no weight, or past the last one."""
    key = jax.random.key(0)
    first = jax.random.uniform(jax.random.fold_in(key, 0))
    real = sampling._draw

    def past_the_end_at_first(weights, uniform_R):
        token_R, weight_R = real(weights, uniform_R)
        return jnp.where(uniform_R == first, 511, token_R), jnp.where(uniform_R == first, 0.0, weight_R)

    monkeypatch.setattr(sampling, "_draw", past_the_end_at_first)
    (token,), _ = sample(jnp.zeros((1, 300)), key[None], Law(1.0))
    assert token < 300


@pytest.mark.parametrize("k", [1, 2, 7, 299, 300])
def test_the_kth_largest_is_that_of_sorting(k):
    x = jax.nn.softmax(LOGITS).at[:, 5].set(0.0).at[:, 9].set(1e-42)
    np.testing.assert_array_equal(kth_largest(x, k), np.sort(x, axis=-1)[:, -k])


def test_a_banned_token_never_comes_and_the_log_probability_is_still_the_models():
    best = LOGITS.argmax(axis=-1)
    banned = jnp.zeros(LOGITS.shape, bool).at[jnp.arange(50), best].set(True)
    tokens, logps = draw(LOGITS, KEYS, Law(0.0), banned)
    np.testing.assert_array_equal(tokens, np.argsort(LOGITS, axis=-1)[:, -2])
    expected = np.take_along_axis(log_softmax(LOGITS), np.asarray(tokens)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(logps, expected, atol=1e-5)


def test_keys_differ_by_row_and_position_and_use_all_64_bits():
    data = jnp.asarray([[1, 2], [1, 3], [2, 2], [1, 2]], jnp.uint32)
    drawn = jax.vmap(jax.random.bits)(keys_at(data, jnp.asarray([0, 0, 0, 1])))
    assert len(set(drawn.tolist())) == 4
