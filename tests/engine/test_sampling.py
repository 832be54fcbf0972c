"""One draw: the nucleus is exact, its frequencies are those of the model, and nothing but the key decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from selfreward_jax.engine import sampling
from selfreward_jax.engine.sampling import sample
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


def exact(p: np.ndarray, top_p: float) -> np.ndarray:
    """The distribution of a draw, by sorting: tokens whose more probable tokens have a mass below top_p."""
    p = p / p.sum()
    descending = np.sort(p)[::-1]
    mass = np.concatenate([[0.0], np.cumsum(descending)])
    above = mass[np.searchsorted(-descending, -p * (1 + 1e-9), side="left")]
    kept = np.where(above < top_p, p, 0.0)
    return kept / kept.sum()


@functools.partial(jax.jit, static_argnames="top_p")
def _draw_all(logits_CV, top_p):
    def one(case):
        logits_V, key = case
        logits = jnp.broadcast_to(logits_V, (DRAWS, V))
        return sample(logits, jax.random.split(key, DRAWS), temperature=TEMPERATURE, top_p=top_p)[0]

    return jax.lax.map(one, (logits_CV, jax.random.split(jax.random.key(0), len(logits_CV))))


@functools.cache
def frequencies(top_p: float) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore"):
        logits = TEMPERATURE * np.log(np.stack(list(CASES.values())))
    tokens = np.asarray(_draw_all(jnp.asarray(logits, jnp.float32), top_p))
    return {name: np.bincount(row, minlength=V) for name, row in zip(CASES, tokens, strict=True)}


@pytest.mark.parametrize("top_p", [TOP_P, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_exact_nucleus(case, top_p):
    expected, found = exact(CASES[case], top_p) * DRAWS, frequencies(top_p)[case]
    assert len(found) == V, "a token outside the vocabulary"
    assert found[expected == 0].sum() == 0, "a token outside the nucleus"
    assert (found[expected > 15] > 0).all(), "a token of the nucleus never comes"
    often, rare = expected >= 5, (expected > 0) & (expected < 5)
    seen, wanted = found[often], expected[often]
    if rare.any():
        seen, wanted = np.append(seen, found[rare].sum()), np.append(wanted, expected[rare].sum())
    if len(seen) > 1:
        assert scipy.stats.chisquare(seen, wanted).pvalue > 1e-4


draw = jax.jit(sample, static_argnames=("temperature", "top_p"))
LOGITS = 2 * jax.random.normal(jax.random.key(0), (50, 300))
KEYS = jax.random.split(jax.random.key(1), 50)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 0.9), (1.0, 1e-6)])
def test_temperature_zero_and_a_tiny_top_p_take_the_most_probable_token(temperature, top_p):
    tokens, _ = draw(LOGITS, KEYS, temperature=temperature, top_p=top_p)
    np.testing.assert_array_equal(tokens, LOGITS.argmax(axis=-1))


def test_the_log_probability_is_the_models_own_without_temperature_and_top_p():
    tokens, logps = draw(LOGITS, KEYS, temperature=0.7, top_p=0.9)
    expected = np.take_along_axis(log_softmax(LOGITS), np.asarray(tokens)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(logps, expected, atol=1e-5)


def test_a_key_gives_the_same_token_in_any_row_of_any_batch():
    together, _ = draw(LOGITS, KEYS, temperature=0.7, top_p=0.9)
    order = np.random.default_rng(0).permutation(50)[:23]
    apart, _ = draw(LOGITS[order], KEYS[order], temperature=0.7, top_p=0.9)
    np.testing.assert_array_equal(apart, together[order])


def test_other_keys_give_other_tokens():
    first, second = (draw(LOGITS, keys, temperature=0.7, top_p=0.9)[0] for keys in (KEYS, KEYS[::-1]))
    assert (first != second).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_without_a_distribution_end_and_leave_other_rows_alone(bad):
    expected, _ = draw(LOGITS, KEYS, temperature=0.7, top_p=0.9)
    tokens, _ = draw(LOGITS.at[7, 3 if bad > 0 else slice(None)].set(bad), KEYS, temperature=0.7, top_p=0.9)
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
    (token,), _ = sample(jnp.zeros((1, 300)), key[None], temperature=1.0, top_p=1.0)
    assert token < 300
