"""However texts are laid out in rows, each is there once, and log-probabilities, loss and gradients are the same."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.core.losses import LossSettings
from selfreward_jax.core.mesh import put_rows
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.loop import micro_batches
from selfreward_jax.training.objectives import SFT, make_objective
from selfreward_jax.training.packing import Layout, plan_micro_batches
from selfreward_jax.training.step import ForwardSettings, add, gradients
from tests.engine.small_llama import GQA, naive_logp, random_params, small_model

FORWARD = ForwardSettings(dtype="float32", head_chunk=32, remat="none", dropout=0.0)
RNG = np.random.default_rng(0)
PREFERENCE = make_objective(LossSettings(beta=0.3))
TOLERANCE = 5e-5  # programs here are compiled without optimisation, and sum less exactly for it


def ids(n: int) -> tuple[int, ...]:
    return tuple(RNG.integers(0, GQA.vocab_size, n).tolist())


def row(*lengths: int) -> TrainRow:
    """A prompt of the first length, and a response of each of the others."""
    prompt = ids(lengths[0])
    examples = tuple(Example(prompt, ids(n)) for n in lengths[1:])
    return TrainRow(examples, tuple(-4.0 * n for n in lengths[1:]) if len(examples) > 1 else ())


SINGLES = [row(*n) for n in [(3, 5), (1, 1), (9, 2), (2, 8), (4, 4), (6, 7), (1, 3)]]
PAIRS = [row(*n) for n in [(6, 5, 2), (1, 1, 3), (3, 2, 8), (4, 4, 4), (2, 1, 1)]]
LAYOUTS = {
    "a row each, two at a time": Layout(2, 16),
    "packed, all at once": Layout(0, 16, pack=24),
    "packed, one row at a time": Layout(1, 16, pack=24),
    "shared prompt": Layout(2, 16, share_prompt=True),
    "shared prompt, packed": Layout(0, 16, pack=32, share_prompt=True),
    "packed, for eight devices": Layout(0, 16, pack=24, ways=8),
}


def computed(model, rows, objective, layout, forward=FORWARD):
    counts = {name: np.float32(value) for name, value in objective.counts(rows).items()}
    with jax.set_mesh(model.mesh):
        parts = [
            gradients(
                model.config, objective, forward, model.params, put_rows(batch, model.mesh), arrays, counts,
                jax.random.key(0),
            )
            for batch, arrays in micro_batches(rows, layout)
        ]  # fmt: skip
        return jax.device_get(functools.reduce(add, parts))


def relative_difference(found, expected) -> float:
    """Of whole gradients, over each array's norm."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-12)) for a, b in pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_layout_changes_neither_loss_nor_gradient(kind, layout):
    rows, objective = {"sft": (SINGLES, SFT()), "dpo": (PAIRS, PREFERENCE)}[kind]
    model = small_model()
    expected, facts = computed(model, rows, objective, Layout(len(rows), 16))
    found, found_facts = computed(model, rows, objective, LAYOUTS[layout])
    assert relative_difference(found, expected) < TOLERANCE
    for name, value in facts.items():
        assert found_facts[name] == pytest.approx(value, rel=TOLERANCE), name


@pytest.mark.parametrize("remat", ["dots", "block"])
def test_what_is_recomputed_changes_nothing(remat):
    model, objective = small_model(), PREFERENCE
    forward = dataclasses.replace(FORWARD, remat=remat)
    expected, _ = computed(model, PAIRS, objective, LAYOUTS["shared prompt, packed"])
    found, _ = computed(model, PAIRS, objective, LAYOUTS["shared prompt, packed"], forward)
    assert relative_difference(found, expected) < TOLERANCE


def test_packed_rows_on_a_mesh_have_the_gradients_of_one_device():
    layout, objective = LAYOUTS["packed, for eight devices"], PREFERENCE
    expected, _ = computed(small_model(), PAIRS, objective, layout)
    found, _ = computed(small_model(data=2, fsdp=2, tensor=2), PAIRS, objective, layout)
    assert relative_difference(found, expected) < TOLERANCE


def test_the_log_probabilities_of_packed_pairs_are_the_naive_ones():
    """Read off the objective's own metrics, which are means over the pairs."""
    params = random_params(GQA)
    chosen, rejected = (
        np.mean([naive_logp(GQA, params, p.examples[n].prompt_ids, p.examples[n].response_ids) for p in PAIRS])
        for n in range(2)
    )
    _, facts = computed(small_model(), PAIRS, PREFERENCE, LAYOUTS["shared prompt, packed"])
    assert facts["logps/chosen"] == pytest.approx(chosen, rel=1e-4)
    assert facts["logps/rejected"] == pytest.approx(rejected, rel=1e-4)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30),
    st.integers(0, 4),
    st.sampled_from([0, 27, 64]),
    st.booleans(),
    st.integers(1, 3),
)
def test_every_row_is_planned_once_and_fits(lengths, rows, pack, share, ways):
    data = [row(*n) for n in lengths]
    plans = plan_micro_batches(data, Layout(rows, 16, pack, share, ways))
    assert sorted(map(id, (r for p in plans for r in p.rows))) == sorted(map(id, data))
    for plan in plans:
        assert plan.size >= len(plan.rows) and len(plan.texts) % ways == 0
        assert not pack or all(sum(map(len, texts)) <= pack for texts in plan.texts)
        owners = sorted(owner for texts in plan.texts for text in texts for owner in text.owners)
        assert owners == sorted(n * plan.size + r for n in range(2) for r in range(len(plan.rows)))


def test_many_short_texts_fill_packed_rows_to_nine_tenths():
    data = [row(*RNG.integers(1, 40, 2)) for _ in range(200)]
    (plan,) = plan_micro_batches(data, Layout(0, 16, pack=256))
    used = [sum(map(len, texts)) for texts in plan.texts if texts]
    assert np.mean(used) > 0.9 * 256


def test_pairs_with_different_prompts_do_not_share_one():
    odd = TrainRow((Example(ids(3), ids(2)), Example(ids(3), ids(2))), (-8.0, -8.0))
    (plan,) = plan_micro_batches([*PAIRS, odd], Layout(6, 16, share_prompt=True))
    assert all(len(text.responses) == 1 for texts in plan.texts for text in texts)


def test_a_text_that_fits_into_no_row_is_refused():
    with pytest.raises(ValueError, match="longer than the 8 tokens"):
        plan_micro_batches([row(6, 5)], Layout(0, 16, pack=8))
