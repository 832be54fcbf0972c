"""A training that was interrupted ends, bit for bit, where an uninterrupted one does."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.rows import read_jsonl
from selfreward_jax.training.batches import TrainRow
from selfreward_jax.training.loop import TrainSettings, train
from selfreward_jax.training.objectives import SFT
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.packing import Layout
from selfreward_jax.training.step import ForwardSettings, gradients
from tests.engine.small_llama import GQA, naive_logp, small_model
from tests.training.test_gradients import EIGHT, FORWARD, OBJECTIVES, OPTIMIZER, make_rows

SETTINGS = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=1, steps=6),
    forward=ForwardSettings(dtype="float32", head_chunk=32, remat="none", dropout=0.1),
    batch_size=4,
    layout=Layout(2, 16),
    checkpoint_every=100,
    checkpoint_keep=1,
    tensorboard=False,
)
SFT_ROWS = make_rows("sft", 9)  # three batches an epoch, the last one short

# The same programs as in test_gradients.py, which takes half the time to compile.
DPO_RUN = {
    "rows": make_rows("dpo", 4),
    "objective": OBJECTIVES["dpo"],
    "settings": dataclasses.replace(SETTINGS, optimizer=OPTIMIZER, forward=FORWARD, batch_size=4),
}


class StopAfter(Interrupt):
    """Asks for a stop as soon as so many steps are in the metrics."""

    def __init__(self, folder, steps: int):
        self._path, self._steps = folder / "metrics.jsonl", steps

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self._path.exists() and len(self._path.read_text().splitlines()) >= self._steps


def run(
    folder=None,
    *,
    rows=SFT_ROWS,
    objective=SFT(),  # noqa: B008
    settings=SETTINGS,
    interrupt=None,
    model=None,
    held_out=(),
):
    return train(
        model or small_model(),
        rows,
        objective,
        settings,
        seed=5,
        folder=folder and epath.Path(folder),
        title="test",
        interrupt=interrupt or Interrupt(),
        held_out=held_out,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    model, step, log = run(folder)
    return jax.device_get(model.params), step, log, (folder / "metrics.jsonl").read_bytes()


def test_stopped_and_resumed_is_the_same_as_uninterrupted(uninterrupted, tmp_path):
    for steps in (2, 3):  # in the midst of an epoch, and at its end
        with pytest.raises(Interrupted):
            run(tmp_path, interrupt=StopAfter(tmp_path, steps))
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == steps
    model, step, log = run(tmp_path)
    params, *rest, metrics = uninterrupted
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert [step, log] == rest
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_what_was_logged_after_the_last_checkpoint_is_trained_and_logged_again(uninterrupted, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, interrupt=StopAfter(tmp_path, 2))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "loss": 0.0, "num_tokens": 9}) + '\n{"step": 4, "lo')
    model, *_ = run(tmp_path)
    params, *_, metrics = uninterrupted
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    jax.tree.map(np.testing.assert_array_equal, model.params, params)


def test_training_on_a_mesh_can_be_resumed(tmp_path):
    whole, *_ = run(**DPO_RUN, model=small_model(**EIGHT))
    with pytest.raises(Interrupted):
        run(tmp_path, **DPO_RUN, model=small_model(**EIGHT), interrupt=StopAfter(tmp_path, 3))
    resumed, *_ = run(tmp_path, **DPO_RUN, model=small_model(**EIGHT))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_a_finished_training_is_not_trained_again(uninterrupted, tmp_path):
    run(tmp_path)
    model, _, log = run(tmp_path, rows=[TrainRow(())] * 9)  # rows that could not be trained on
    jax.tree.map(np.testing.assert_array_equal, model.params, uninterrupted[0])
    assert log == uninterrupted[2]


def test_the_metrics_of_a_step_tell_its_place(uninterrupted):
    log = uninterrupted[2]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([row["epoch"] for row in log], np.arange(1, 7) / 3)
    tokens = sum(len(row.examples[0]) for row in SFT_ROWS)
    assert [log[2]["num_tokens"], log[5]["num_tokens"]] == [tokens, 2 * tokens]


def test_sft_lowers_the_loss_of_what_it_is_trained_on(uninterrupted):
    losses = [row["loss"] for row in uninterrupted[2]]
    assert np.mean(losses[3:]) < np.mean(losses[:3]) - 0.1


def test_dropout_is_new_in_every_step():
    still = dataclasses.replace(SETTINGS.optimizer, learning_rate=0.0, final_learning_rate=0.0, steps=3)
    _, _, log = run(rows=SFT_ROWS[:1], settings=dataclasses.replace(SETTINGS, optimizer=still))
    assert len({row["loss"] for row in log}) == 3


@pytest.fixture(scope="module")
def dpo_log():
    """DPO whose reference is the model that it starts from."""
    model = small_model()
    logp = lambda e: naive_logp(GQA, model.params, e.prompt_ids, e.response_ids)  # noqa: E731
    rows = [TrainRow(r.examples, tuple(map(logp, r.examples))) for r in make_rows("dpo", 4)]
    return run(**DPO_RUN | {"rows": rows}, model=model)[2]


def test_dpo_begins_at_ln_2_and_no_margin_where_the_reference_is_the_model_itself(dpo_log):
    assert dpo_log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert dpo_log[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_dpo_moves_the_margin_from_its_first_step_on(dpo_log):
    assert dpo_log[1]["rewards/margins"] > 1e-3
    assert dpo_log[-1]["rewards/accuracies"] == 1.0
    assert dpo_log[-1]["loss"] < dpo_log[1]["loss"] < math.log(2)


def nothing_is_saved(folder) -> bool:
    return not [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]


def test_a_model_that_is_not_finite_is_an_error_and_saves_nothing(tmp_path):
    model = small_model()
    params = {**model.params, "norm": model.params["norm"] * jnp.nan}
    with pytest.raises(UserError, match="^test: the gradient was not finite at 5 steps in a row, 1 to 5, .*; lower"):
        run(tmp_path, model=dataclasses.replace(model, params=params))
    assert nothing_is_saved(tmp_path)
    assert [row["loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [None] * 5


def test_a_training_too_short_for_a_run_of_skips_is_an_error_if_every_update_was_skipped(monkeypatch):
    plant(monkeypatch, at=range(100))
    one = dataclasses.replace(SETTINGS, optimizer=dataclasses.replace(SETTINGS.optimizer, steps=2))
    with pytest.raises(UserError, match="at 2 steps in a row, 1 to 2"):
        run(settings=one)


def plant(monkeypatch, at, value=jnp.inf) -> None:
    """Makes the gradient at these steps (from 0) not finite in one place."""
    calls = itertools.count()

    def planted(*arguments):
        grads, sums = gradients(*arguments)
        step = next(calls) * SETTINGS.layout.rows // SETTINGS.batch_size
        return (grads | {"norm": grads["norm"].at[3].set(value)}, sums) if step in at else (grads, sums)

    monkeypatch.setattr("selfreward_jax.training.loop.gradients", planted)


# Two micro-batches in every step.
EVEN = {"rows": make_rows("sft", 8), "settings": SETTINGS}


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_a_step_without_a_finite_gradient_changes_nothing_but_the_step(value, monkeypatch):
    """Weights are those of a training that stood still there: the same rows and rates at all other steps."""
    plant(monkeypatch, at=(1, 2, 4), value=value)
    _, _, log = run(**EVEN)
    assert [row["skipped_updates"] for row in log] == [0, 1, 2, 2, 3, 3]
    assert [row["grad_norm"] is None for row in log] == [False, True, True, False, True, False]
    monkeypatch.undo()
    whole = run(**EVEN)[2]
    assert [row["learning_rate"] for row in log] == [row["learning_rate"] for row in whole]
    assert log[0] == whole[0] and all(row["loss"] is not None for row in log)


def test_a_run_of_skipped_updates_ends_the_training_where_it_was_resumed_too(tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, max_skipped=3)
    plant(monkeypatch, at=(1, 2, 3))
    with pytest.raises(Interrupted):
        run(tmp_path, **EVEN | {"settings": settings}, interrupt=StopAfter(tmp_path, 3))
    plant(monkeypatch, at=range(100))
    with pytest.raises(UserError, match="at 3 steps in a row, 2 to 4"):
        run(tmp_path, **EVEN | {"settings": settings})


AVERAGED = dataclasses.replace(SETTINGS, optimizer=dataclasses.replace(SETTINGS.optimizer, ema_decay=0.7))


def test_the_trained_model_is_the_average_of_the_weights_after_every_step(tmp_path):
    """The average worked out in float64 from the checkpoints of a training without one."""
    plain = dataclasses.replace(SETTINGS, checkpoint_every=1, checkpoint_keep=6)
    run(tmp_path, settings=plain)
    target = {"params": small_model().params}
    checkpoints = Checkpoints(epath.Path(tmp_path) / "checkpoints", 6)
    weights = [jax.device_get(checkpoints.restore(step, target)["params"]) for step in range(1, 7)]
    shares = 0.7 ** np.arange(5, -1, -1.0)
    model, *_ = run(settings=AVERAGED)
    mean = lambda *xs: np.tensordot(shares / shares.sum(), np.stack(xs).astype(np.float64), 1)  # noqa: E731
    jax.tree.map(
        lambda found, *xs: np.testing.assert_allclose(found, mean(*xs), rtol=1e-4, atol=1e-6), model.params, *weights
    )


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [({}, {"ema_decay": 0.7, "moments_dtype": "int8"}), (EIGHT, {"ema_decay": 0.7, "moments_dtype": "bfloat16"})],
)
def test_averages_and_moments_of_few_bits_are_resumed_bit_for_bit(mesh, changes, tmp_path):
    settings = DPO_RUN["settings"]
    settings = dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, **changes))
    again = lambda *folder, **more: run(*folder, **DPO_RUN | {"settings": settings}, model=small_model(**mesh), **more)  # noqa: E731
    whole, *_ = again(tmp_path / "whole")
    with pytest.raises(Interrupted):
        again(tmp_path / "cut", interrupt=StopAfter(tmp_path / "cut", 3))
    resumed, *_ = again(tmp_path / "cut")
    finished, *_ = again(tmp_path / "cut")  # restored alone
    saved = Checkpoints(epath.Path(tmp_path) / "cut" / "checkpoints").restore(6, {"params": whole.params})["params"]
    for params in (resumed.params, finished.params, saved):
        jax.tree.map(np.testing.assert_array_equal, params, whole.params)


def test_speed_goes_to_a_file_of_its_own(tmp_path, capsys):
    settings = dataclasses.replace(SETTINGS, peak_tflops=1e-3)
    _, _, log = run(tmp_path, settings=settings)
    speeds = read_jsonl(tmp_path / "throughput.jsonl")
    assert [row["step"] for row in speeds] == [row["step"] for row in log]
    tokens = np.diff([0, *(row["num_tokens"] for row in log)])
    np.testing.assert_allclose([row["tokens_per_second"] * row["step_seconds"] for row in speeds], tokens)
    assert all(row["padding"] > 0 and row["mfu"] > 0 for row in speeds)
    np.testing.assert_allclose([r["model_tflops_per_second"] / 1e-3 for r in speeds], [r["mfu"] for r in speeds])
    assert not {"step_seconds", "mfu"} & log[0].keys()
    assert "tok/s, MFU " in capsys.readouterr().err.splitlines()[-1]
