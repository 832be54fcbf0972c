"""The DPO loss is the paper's and TRL's, and starts at ln 2."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.training.objectives import PairLogps, dpo_loss

POLICY = PairLogps(jnp.array([-12.5, -3.0, -40.0, -7.25]), jnp.array([-15.0, -3.5, -8.0, -7.25]))
REFERENCE = PairLogps(jnp.array([-13.0, -2.0, -41.5, -7.0]), jnp.array([-14.0, -4.5, -3.0, -7.0]))
SWAPPED = PairLogps(POLICY.rejected, POLICY.chosen), PairLogps(REFERENCE.rejected, REFERENCE.chosen)

# From the `sigmoid` branch of TRL 0.24.0's `DPOTrainer.dpo_loss`, in float64.
GOLDEN = {
    (0.1, 0.0): [0.62095705, 0.79813887, 0.42005534, 0.69314718],
    (0.5, 0.1): [0.46187101, 1.2132617, 0.36304137, 0.69314718],
    (2.0, 0.5): [1.5485874, 2.0181499, 6.5000023, 0.69314718],
}


@pytest.mark.parametrize(("beta", "smoothing"), GOLDEN)
def test_the_loss_is_that_of_trl(beta, smoothing):
    loss, _ = dpo_loss(POLICY, REFERENCE, beta, smoothing)
    np.testing.assert_allclose(loss, GOLDEN[beta, smoothing], rtol=1e-5)


def test_the_loss_of_one_pair_is_that_worked_out_by_hand():
    """The chosen answer gained 0.5 nats on the reference and the rejected one lost 1, so 1.5 apart, times beta."""
    loss, metrics = dpo_loss(POLICY, REFERENCE, 0.1)
    assert loss[0] == pytest.approx(math.log(1 + math.exp(-0.15)), rel=1e-6)
    rewards = [metrics[f"rewards/{name}"][0] for name in ("chosen", "rejected", "margins", "accuracies")]
    np.testing.assert_allclose(rewards, [0.05, -0.1, 0.15, 1.0], rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_policy_that_is_its_reference_has_loss_ln_2_no_margin_and_half_an_accuracy(smoothing):
    loss, metrics = dpo_loss(POLICY, POLICY, 0.1, smoothing)
    np.testing.assert_allclose(loss, math.log(2), atol=1e-6)
    assert not metrics["rewards/margins"].any()
    np.testing.assert_array_equal(metrics["rewards/accuracies"], 0.5)


def test_swapping_chosen_and_rejected_turns_margins_and_accuracies_round():
    (_, a), (_, b) = dpo_loss(POLICY, REFERENCE, 0.3), dpo_loss(*SWAPPED, 0.3)
    np.testing.assert_allclose(b["rewards/margins"], -a["rewards/margins"], rtol=1e-6)
    np.testing.assert_array_equal(b["rewards/accuracies"], 1 - a["rewards/accuracies"])
    np.testing.assert_array_equal(a["rewards/accuracies"], [1, 0, 1, 0.5])


def test_smoothing_mixes_the_loss_with_that_of_the_swapped_pair():
    mixed, _ = dpo_loss(POLICY, REFERENCE, 0.3, 0.1)
    straight, swapped = dpo_loss(POLICY, REFERENCE, 0.3)[0], dpo_loss(*SWAPPED, 0.3)[0]
    np.testing.assert_allclose(mixed, 0.9 * straight + 0.1 * swapped, rtol=1e-6)


def test_the_gradient_is_finite_however_far_policy_and_reference_are_apart():
    loss = lambda far: dpo_loss(PairLogps(-far, far), PairLogps(0 * far, 0 * far), 0.5, 0.1)[0].sum()  # noqa: E731
    assert jnp.isfinite(jax.grad(loss)(jnp.array([1e4, -1e4]))).all()
