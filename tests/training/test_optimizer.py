"""The learning rate's course, and what weight decay applies to."""

import dataclasses

import jax
import numpy as np
import pytest

from selfreward_jax.llama.params import map_specs, param_specs
from selfreward_jax.training.optimizer import OptimizerSettings, schedule
from selfreward_jax.training.step import init_state, update
from tests.engine.small_llama import VARIANTS, random_params

SETTINGS = OptimizerSettings(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=0, steps=11)


def rates(**changes) -> list[float]:
    settings = dataclasses.replace(SETTINGS, **changes)
    return [float(schedule(settings)(step)) for step in range(settings.steps)]


def test_without_warm_up_the_first_step_has_the_full_rate_and_the_last_the_floor():
    found = rates()
    assert (found[0], found[-1]) == pytest.approx((1e-2, 1e-3))
    assert found[5] == pytest.approx((1e-2 + 1e-3) / 2)
    assert found == sorted(found, reverse=True)


def test_warm_up_rises_evenly_to_the_full_rate_and_the_last_step_has_the_floor():
    found = rates(warmup_steps=4)
    np.testing.assert_allclose(found[:5], [2e-3, 4e-3, 6e-3, 8e-3, 1e-2], rtol=1e-5)
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[-1] == pytest.approx(1e-3)


def test_a_linear_course_falls_evenly_and_the_last_step_has_the_floor():
    np.testing.assert_allclose(rates(schedule="linear"), np.linspace(1e-2, 1e-3, 11), rtol=1e-5)
    found = rates(schedule="linear", warmup_steps=4)
    np.testing.assert_allclose(found, [2e-3, 4e-3, 6e-3, 8e-3, *np.linspace(1e-2, 1e-3, 7)], rtol=1e-5)


def test_a_constant_course_stays_at_the_full_rate_after_warm_up():
    found = rates(schedule="constant", warmup_steps=4)
    np.testing.assert_allclose(found, [2e-3, 4e-3, 6e-3, 8e-3, *[1e-2] * 7], rtol=1e-5)
    np.testing.assert_allclose(rates(schedule="constant"), 1e-2, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (2, 0), (1, 5), (3, 3)])
def test_short_trainings_have_positive_rates(schedule, steps, warmup_steps):
    found = rates(schedule=schedule, steps=steps, warmup_steps=warmup_steps)
    assert all(0 < rate <= np.float32(1e-2) for rate in found)


def test_weight_decay_shrinks_matrices_and_leaves_norms_and_biases_alone():
    config = VARIANTS["mha_with_biases"]
    settings = dataclasses.replace(SETTINGS, weight_decay=0.5)
    params = random_params(config)
    before = jax.device_get(params)
    state = init_state(config, settings, params)
    state, facts = update(config, settings, state, jax.tree.map(np.zeros_like, before))
    factor = map_specs(lambda spec: 1 - 1e-2 * 0.5 if spec.kind == "matrix" else 1.0, param_specs(config))
    jax.tree.map(lambda a, b, f: np.testing.assert_allclose(a, f * b, rtol=1e-5), state.params, before, factor)
    assert facts["learning_rate"] == pytest.approx(1e-2) and state.step == 1


def test_the_norm_is_told_before_clipping_and_clipping_scales_the_gradient():
    """Seen in the first moment, (1 - b1) times the clipped gradient."""
    config = VARIANTS["gqa"]
    state = init_state(config, SETTINGS, random_params(config))
    grads = jax.tree.map(lambda x: np.full_like(x, 3.0), jax.device_get(state.params))
    size = sum(x.size for x in jax.tree.leaves(grads))
    state, facts = update(config, SETTINGS, state, grads)
    assert facts["grad_norm"] == pytest.approx(3 * size**0.5, rel=1e-5)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (config.hidden_size,)]
    np.testing.assert_allclose(moments[0], 0.1 / size**0.5, rtol=1e-4)
