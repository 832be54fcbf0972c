"""Losses, gradients and metrics are TRL's, and those of a batch are the sums of its micro-batches' shares."""

import dataclasses
import importlib.metadata
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.core.losses import LOSSES, LossSettings, loss_settings
from selfreward_jax.training.batches import Batch, Example, TrainRow
from selfreward_jax.training.logps import sum_tokens
from selfreward_jax.training.objectives import PAIR_LOSSES, SFT, RowArrays, make_objective, row_arrays
from tests.training.make_golden_losses import CASES, GOLDEN, make_inputs, trl_loss

GOLDENS = json.loads(GOLDEN.read_text())
EVERY = list(LOSSES)
SUMS = [name for name in EVERY if not LOSSES[name].whole_batch]
BETA = 0.3


def title(case) -> str:
    return "-".join(f"{v}" for v in case["settings"].values())


def settings_of(name: str, **more) -> LossSettings:
    smoothing = 0.1 if LOSSES[name].smoothing and "label_smoothing" not in more else 0.0
    return LossSettings(**{"loss_type": (name,), "beta": BETA, "label_smoothing": smoothing} | more)


# ---------------------------------------------------------------------------------------------------------------------
# TRL


def rows_of_lengths(lengths, width: int) -> Batch:
    """One response a row, of tokens that don't matter."""
    places = np.tile(np.arange(width), (len(lengths), 1))
    return Batch(places, places, places, places, places < np.asarray(lengths)[:, None], lengths)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=title)
def test_loss_gradient_and_metrics_are_those_of_trl(case):
    settings = loss_settings(case["settings"])
    objective = make_objective(settings)
    inputs = {name: np.array(values) for name, values in GOLDENS["inputs"].items()}
    lengths = jnp.asarray(inputs["lengths"], jnp.int32)
    R = lengths.shape[1]
    tails = jnp.tile(lengths.min(axis=0), 2) if settings.ld_alpha != 1 else None
    batch = rows_of_lengths(lengths.reshape(-1), inputs["policy"].shape[-1])
    total = lambda x: sum_tokens(x.reshape(2 * R, -1), batch, tails, settings.ld_alpha).reshape(2, R)  # noqa: E731
    reference = total(jnp.asarray(inputs["reference"], jnp.float32)) if settings.needs_reference else None
    desirable = jnp.asarray(inputs["desirable"])
    rows = RowArrays(lengths, jnp.ones(R), jnp.zeros(R), desirable, reference)
    chosen_tokens = float(lengths[0].sum())
    counts = {"pairs": R, "chosen_tokens": chosen_tokens, "rows": R, "desirable": 3.0, "undesirable": 2.0}
    policy = jnp.asarray(inputs["policy"], jnp.float32)
    (loss, metrics), gradient = jax.value_and_grad(lambda x: objective.loss(total(x), rows, counts), has_aux=True)(
        policy
    )
    assert float(loss) == pytest.approx(case["loss"], rel=2e-5)
    np.testing.assert_allclose(gradient, case["gradient"], atol=2e-6 * max(1, np.abs(case["gradient"]).max()))
    for name, value in case["metrics"].items():
        assert float(metrics[name]) == pytest.approx(value, rel=2e-5, abs=1e-6), name


def test_the_golden_numbers_are_of_every_loss():
    assert {name for case in GOLDENS["cases"] for name in case["settings"]["loss_type"]} == {*EVERY}


@pytest.mark.torch("trl")
@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_golden_numbers_are_what_trl_computes_now(case):
    if not importlib.metadata.version("trl").startswith("1."):
        pytest.skip("losses as of TRL 1")
    found, golden = trl_loss(CASES[case], make_inputs()), GOLDENS["cases"][case]
    assert found["loss"] == pytest.approx(golden["loss"], rel=1e-6)
    np.testing.assert_allclose(found["gradient"], golden["gradient"], atol=1e-6)


def test_the_table_of_losses_and_that_of_their_facts_have_the_same_names():
    assert {*EVERY} == {*PAIR_LOSSES, "kto"}


# ---------------------------------------------------------------------------------------------------------------------
# Limits


def make_rows(name: str, count: int, seed: int = 0, **fields) -> tuple[list[TrainRow], np.ndarray]:
    """Rows of random lengths, weights, margins and references, and log-probabilities of the policy, [2, R]."""
    rng = np.random.default_rng(seed)
    facts, rows, logps = LOSSES[name], [], []
    for n in range(count):
        examples = tuple(Example((1,), (2,) * int(rng.integers(1, 9))) for _ in range(2))
        likely = [-rng.exponential(len(e.response_ids)) - 0.01 for e in examples]
        given = {
            "reference": tuple(x + rng.normal() for x in likely) if facts.reference else (),
            "weight": float(rng.choice([1, 2, 0.5])) if facts.weights else 1.0,
            "margin": float(rng.choice([0, 0.4])),
            "desirable": n % 3 != 1,
        }
        rows.append(TrainRow(examples, **given | fields))
        logps.append(likely)
    return rows, np.array(logps, np.float32).T


def evaluate(objective, rows, logps_nR, counts=None, size: int = 0):
    """Loss, metrics, and gradient with respect to the log-probabilities of all rows, filled up to `size`."""
    size = size or len(rows)
    padded = jnp.pad(jnp.asarray(logps_nR), ((0, 0), (0, size - len(rows))))
    arrays, counts = row_arrays(rows, size), counts or objective.counts(rows)
    (loss, metrics), gradient = jax.value_and_grad(lambda x: objective.loss(x, arrays, counts), has_aux=True)(padded)
    return {"loss": loss, **metrics}, gradient


def assert_same(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 2e-5, "atol": 1e-6} | tolerance), found, expected
    )


LN2, E = math.log(2), 0.1
AT_REFERENCE = {
    "sigmoid": LN2,
    "sigmoid_norm": LN2,
    "hinge": 1.0,
    "ipo": 1 / (2 * BETA) ** 2,
    "robust": LN2,
    "exo_pair": -LN2 - (math.log(1 - E) + math.log(E)) / 2,
    "discopop": LN2 / 2 + 1 / 2,
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 2 * (0.5 / BETA) ** 2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "aot": LN2,
    "aot_unpaired": LN2,
    "kto": 0.5,
}


@pytest.mark.parametrize("name", AT_REFERENCE)
def test_a_policy_that_is_its_reference_has_no_reward_and_the_loss_worked_out_by_hand(name):
    rows, logps = make_rows(name, 6, margin=0.0)
    rows = [dataclasses.replace(row, reference=tuple(x)) for row, x in zip(rows, logps.T, strict=True)]
    metrics, _ = evaluate(make_objective(settings_of(name)), rows, logps)
    assert metrics["loss"] == pytest.approx(AT_REFERENCE[name], rel=1e-5)
    assert [float(metrics[f"rewards/{side}"]) for side in ("chosen", "rejected", "margins")] == [0, 0, 0]
    if name != "kto":
        assert metrics["rewards/accuracies"] == 0.5


def test_the_metrics_of_one_pair_are_those_worked_out_by_hand():
    """The chosen answer gained 0.5 nats on the reference and the rejected one lost 1, so 1.5 apart, times beta."""
    row = TrainRow((Example((1,), (2,)), Example((1,), (3,))), reference=(-13.0, -14.0))
    metrics, _ = evaluate(make_objective(LossSettings(beta=0.1)), [row], np.float32([[-12.5], [-15.0]]))
    assert metrics["loss"] == pytest.approx(math.log(1 + math.exp(-0.15)), rel=1e-6)
    rewards = [metrics[f"rewards/{name}"] for name in ("chosen", "rejected", "margins", "accuracies")]
    np.testing.assert_allclose(rewards, [0.05, -0.1, 0.15, 1.0], rtol=1e-5)


def test_swapping_chosen_and_rejected_turns_margins_and_accuracies_round():
    rows, logps = make_rows("sigmoid", 6, margin=0.0)
    swapped = [TrainRow(r.examples[::-1], r.reference[::-1], r.weight) for r in rows]
    objective = make_objective(settings_of("sigmoid"))
    a, b = evaluate(objective, rows, logps)[0], evaluate(objective, swapped, logps[::-1])[0]
    np.testing.assert_allclose(b["rewards/margins"], -a["rewards/margins"], rtol=1e-5)
    np.testing.assert_allclose(b["rewards/accuracies"], 1 - a["rewards/accuracies"], rtol=1e-6)


@pytest.mark.parametrize("far", [1e4, -1e4])
@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradient_are_finite_however_far_policy_and_reference_are_apart(name, far):
    rows, logps = make_rows(name, 3)
    shift = np.float32([[-abs(far) + far], [-abs(far) - far]])
    metrics, gradient = evaluate(make_objective(settings_of(name)), rows, logps + shift)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", SUMS)
def test_an_answer_that_the_model_is_certain_of_has_a_finite_loss(name):
    rows, logps = make_rows(name, 3)
    metrics, gradient = evaluate(make_objective(settings_of(name)), rows, 0 * logps)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(gradient).all()


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@pytest.mark.parametrize("name", [*SUMS, "SFT"])
def test_shares_of_micro_batches_add_up_to_the_batch(name):
    rows, logps = make_rows(name.lower(), 7)
    objective = SFT() if name == "SFT" else make_objective(settings_of(name))
    counts = objective.counts(rows)
    whole, gradient = evaluate(objective, rows, logps)
    parts = [evaluate(objective, rows[i : i + 3], logps[:, i : i + 3], counts, size=3) for i in (0, 3, 6)]
    assert_same(jax.tree.map(lambda *x: sum(x), *(p[0] for p in parts)), whole)
    assert_same(jnp.concatenate([p[1] for p in parts], axis=1)[:, :7], gradient)


@pytest.mark.parametrize("name", EVERY)
def test_rows_that_fill_a_batch_up_change_nothing(name):
    rows, logps = make_rows(name, 5)
    objective = make_objective(settings_of(name))
    exact, filled = evaluate(objective, rows, logps), evaluate(objective, rows, logps, size=8)
    assert_same(filled[0], exact[0])
    assert_same(filled[1][:, :5], exact[1])
    assert not filled[1][:, 5:].any()


@pytest.mark.parametrize("name", [*(name for name in EVERY if LOSSES[name].weights), "SFT"])
def test_a_row_of_weight_2_counts_as_two_rows(name):
    rows, logps = make_rows(name.lower(), 4, weight=1.0)
    objective = SFT() if name == "SFT" else make_objective(settings_of(name))
    heavy = [dataclasses.replace(rows[0], weight=2.0), *rows[1:]]
    assert_same(
        evaluate(objective, heavy, logps)[0],
        evaluate(objective, [rows[0], *rows], np.concatenate([logps[:, :1], logps], axis=1))[0],
    )


@pytest.mark.parametrize("name", SUMS)
def test_a_margin_is_a_handicap_of_the_chosen_answer(name):
    """Its reward must be that much higher for the same loss; losses that take none are not touched."""
    rows, logps = make_rows(name, 5, margin=0.0)
    objective = make_objective(settings_of(name))
    given = [dataclasses.replace(row, margin=0.7) for row in rows]
    per_token = name in ("sigmoid_norm", "simpo")
    worth = np.array([len(r.examples[0].response_ids) if per_token else 1 for r in rows])
    handicap = 0.7 / BETA * worth * LOSSES[name].margin
    lowered = logps - np.stack([handicap, 0 * handicap])
    assert_same(evaluate(objective, given, logps)[0]["loss"], evaluate(objective, rows, lowered)[0]["loss"])


@pytest.mark.parametrize("name", [name for name in EVERY if LOSSES[name].reference])
def test_length_normalised_log_probabilities_are_those_of_one_token(name):
    """`ipo` and `sigmoid_norm` divide by lengths anyway."""
    rows, logps = make_rows(name, 5)
    short = [tuple(Example((1,), (2,)) for _ in row.examples) for row in rows]
    tokens = np.array([[len(e.response_ids) for e in row.examples] for row in rows])
    per_token = [
        dataclasses.replace(row, examples=e, reference=tuple(np.array(row.reference) / n))
        for row, e, n in zip(rows, short, tokens, strict=True)
    ]
    normal, plain = (make_objective(settings_of(name, length_normalize=x)) for x in (True, False))
    expected = evaluate(plain, per_token, logps / tokens.T)[0]["loss"]
    assert_same(evaluate(normal, rows, logps)[0]["loss"], expected)


def test_kto_has_no_gradient_through_its_reference_point_which_is_never_negative():
    rows, logps = make_rows("kto", 6)
    objective = make_objective(settings_of("kto"))
    up, down = (evaluate(objective, rows, logps + np.float32([[0], [by]])) for by in (5, -5))
    assert float(up[0]["kl"]) > 3
    assert float(down[0]["kl"]) == 0
    assert up[1][0].any()
    assert not up[1][1].any()


def test_kto_of_a_batch_without_bad_answers_has_finite_metrics():
    rows, logps = make_rows("kto", 4, desirable=True)
    metrics, _ = evaluate(make_objective(settings_of("kto")), rows, logps)
    assert metrics["rewards/rejected"] == metrics["logps/rejected"] == 0
    assert metrics["rewards/margins"] == metrics["rewards/chosen"] != 0


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_losses_by_transport_do_not_depend_on_the_order_of_the_rows(name):
    rows, logps = make_rows(name, 6)
    objective, order = make_objective(settings_of(name)), [3, 0, 5, 1, 4, 2]
    assert_same(evaluate(objective, [rows[i] for i in order], logps[:, order])[0], evaluate(objective, rows, logps)[0])
