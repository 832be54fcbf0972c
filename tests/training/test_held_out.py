"""Held-out rows share no prompt with those trained on; the checkpoint that is best on them becomes the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupted
from selfreward_jax.core.losses import LossSettings
from selfreward_jax.core.rows import read_jsonl
from selfreward_jax.llama.load import abstract_params
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.held_out import best_steps, plan, split
from selfreward_jax.training.objectives import make_objective
from selfreward_jax.training.packing import Layout
from tests.engine.small_llama import GQA, small_model
from tests.training.test_gradients import OBJECTIVES, make_rows, naive_loss
from tests.training.test_train import DPO_RUN, SETTINGS, StopAfter, run


def rows_of(prompts: list[int]) -> list[TrainRow]:
    """Rows whose prompts are these numbers; no two rows are the same."""
    return [TrainRow((Example((prompt,), (n,)),)) for n, prompt in enumerate(prompts, 1)]


ROWS = rows_of([n % 17 for n in range(100)])


@pytest.mark.parametrize(("amount", "wanted"), [(1, 1), (20, 20), (0.25, 25), (0.001, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_prompt_is_in_both_parts_and_no_row_is_lost(amount, wanted, seed):
    trained, held = split(ROWS, amount, seed=seed)
    prompts = [{row.examples[0].prompt_ids for row in part} for part in (trained, held)]
    assert not prompts[0] & prompts[1]
    assert sorted(trained + held, key=ROWS.index) == ROWS
    assert trained == sorted(trained, key=ROWS.index) and held == sorted(held, key=ROWS.index)
    assert wanted <= len(held) < wanted + 6  # a prompt has six rows at most


def test_what_is_held_out_follows_from_the_seed_and_not_from_the_order():
    first = split(ROWS, 20, seed=0)[1]
    assert split(ROWS, 20, seed=0)[1] == first
    assert {*split(ROWS[::-1], 20, seed=0)[1]} == {*first}
    assert {*split(ROWS, 20, seed=1)[1]} != {*first}


def test_more_data_leaves_held_out_what_was():
    few = {row.examples[0].prompt_ids for row in split(rows_of(list(range(50))), 0.2, seed=0)[1]}
    more = {row.examples[0].prompt_ids for row in split(rows_of(list(range(55))), 0.2, seed=0)[1]}
    assert len(few & more) >= 8


def test_nothing_held_out_is_everything_trained_on():
    assert split(ROWS, 0, seed=0) == (ROWS, [])


@pytest.mark.parametrize(("rows", "amount"), [(rows_of([1, 1, 1]), 1), (ROWS, 100), (ROWS, 0.999)])
def test_holding_out_everything_is_one_line_with_the_numbers(rows, amount):
    with pytest.raises(UserError, match=f"held_out: {amount:g} of {len(rows)} rows"):
        split(rows, amount, seed=0)


LOG = [
    {"step": 1, "loss": 9.0},
    {"step": 2, "eval/loss": 3.0, "eval/rewards/accuracies": 0.5},
    {"step": 4, "eval/loss": 1.0, "eval/rewards/accuracies": 0.5},
    {"step": 6, "eval/loss": 2.0, "eval/rewards/accuracies": 0.7},
    {"step": 8, "eval/loss": 1.0, "eval/rewards/accuracies": 0.6},
]


@pytest.mark.parametrize(
    ("choose", "best"),
    [("last", []), ("loss", [4, 8, 6, 2]), ("accuracy", [6, 8, 4, 2])],
)
def test_the_best_come_first_and_of_equals_the_earlier(choose, best):
    assert best_steps(choose, LOG, 9) == best
    assert best_steps(choose, LOG, 2) == best[:2]


def test_without_accuracies_the_loss_decides():
    log = [{name: x for name, x in row.items() if "accuracies" not in name} for row in LOG]
    assert best_steps("accuracy", log, 9) == best_steps("loss", log, 9)


# Training that overshoots: the loss on held-out rows falls, then rises, so the best is neither first nor last.
HELD_OUT = make_rows("sft", 12)[9:]
CHOICE = dataclasses.replace(
    SETTINGS,
    optimizer=dataclasses.replace(SETTINGS.optimizer, learning_rate=3e-2, final_learning_rate=3e-2, steps=6),
    forward=dataclasses.replace(SETTINGS.forward, dropout=0.0),
    checkpoint_every=1,
    choose="loss",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choice")
    model, step, log = run(folder, settings=CHOICE, held_out=HELD_OUT)
    return jax.device_get(model.params), step, log, folder


def test_the_chosen_model_is_the_checkpoint_of_the_lowest_loss_on_rows_not_trained_on(uninterrupted):
    params, step, log, folder = uninterrupted
    losses = [row["eval/loss"] for row in log]
    assert step == 1 + int(np.argmin(losses))
    assert losses[step - 1] == pytest.approx(naive_loss(GQA, params, "sft", HELD_OUT), rel=1e-5)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {str(step), "6"}
    with Checkpoints(epath.Path(folder) / "checkpoints") as checkpoints:
        target = {"params": abstract_params(GQA, small_model().mesh, jnp.dtype("float32"))}
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(step, target)["params"], params)


def test_the_choice_is_the_same_after_interruptions(uninterrupted, tmp_path):
    params, step, log, folder = uninterrupted
    for steps in (1, 3, 5):
        with pytest.raises(Interrupted):
            run(tmp_path, settings=CHOICE, held_out=HELD_OUT, interrupt=StopAfter(tmp_path, steps))
    model, *rest = run(tmp_path, settings=CHOICE, held_out=HELD_OUT)
    assert rest == [step, log]
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_stop_between_two_checkpoints_is_no_candidate(tmp_path):
    settings = dataclasses.replace(CHOICE, checkpoint_every=4)
    with pytest.raises(Interrupted):
        run(tmp_path, settings=settings, held_out=HELD_OUT, interrupt=StopAfter(tmp_path, 3))
    _, step, log = run(tmp_path, settings=settings, held_out=HELD_OUT)
    assert [row["step"] for row in log if "eval/loss" in row] == [4, 6]
    assert step in (4, 6)


def test_dpo_is_scored_by_its_accuracy_on_held_out_pairs(tmp_path):
    rows = make_rows("dpo", 7)
    settings = dataclasses.replace(DPO_RUN["settings"], checkpoint_every=3, choose="accuracy")
    model, step, log = run(tmp_path, **DPO_RUN | {"settings": settings}, held_out=rows[4:])
    scored = [row for row in log if "eval/loss" in row]
    assert [row["step"] for row in scored] == [3, 6]
    chosen = next(row for row in scored if row["step"] == step)
    assert chosen["eval/rewards/accuracies"] == max(row["eval/rewards/accuracies"] for row in scored)
    assert {"eval/rewards/margins", "eval/logps/chosen"} <= chosen.keys()
    assert chosen["eval/loss"] == pytest.approx(
        naive_loss(GQA, jax.device_get(model.params), "dpo", rows[4:]), rel=1e-4
    )
    assert read_jsonl(tmp_path / "metrics.jsonl") == log


def test_held_out_rows_and_dropout_have_no_part_in_training():
    settings = dataclasses.replace(SETTINGS, checkpoint_every=2)
    with_them = run(settings=settings, held_out=HELD_OUT)
    without = run(settings=settings)
    jax.tree.map(np.testing.assert_array_equal, with_them[0].params, without[0].params)
    losses = [row["eval/loss"] for row in with_them[2] if "eval/loss" in row]
    assert losses[-1] == pytest.approx(naive_loss(GQA, jax.device_get(with_them[0].params), "sft", HELD_OUT), rel=1e-5)


def test_the_objectives_know_no_rows_at_all():
    for objective in OBJECTIVES.values():
        assert set(objective.counts([]).values()) <= {0}


def test_a_checkpoint_whose_loss_is_not_finite_is_never_the_best():
    log = [{"step": n, "eval/loss": loss} for n, loss in ((1, None), (2, 1.0), (3, None), (4, 0.5))]
    assert best_steps("loss", log, 3) == [4, 2]
    assert best_steps("accuracy", log[:1], 3) == []


@pytest.mark.parametrize(("loss_type", "whole"), [("sigmoid", False), ("aot", True)])
def test_held_out_rows_are_evaluated_no_more_at_a_time_than_a_step_takes(loss_type, whole):
    rows, objective = make_rows("dpo", 7), make_objective(LossSettings(loss_type=(loss_type,)))
    parts = plan(objective, rows, 3, Layout(0, 16, pack=32))
    assert [sum(int((a.weight > 0).sum()) for _, a in part.batches) for part in parts] == [3, 3, 1]
    assert [float(part.counts["pairs"]) for part in parts] == ([3, 3, 1] if whole else [7, 7, 7])
    assert sum(part.weight for part in parts) == pytest.approx(1 if whole else 3)
