"""A training that was interrupted ends, bit for bit, where an uninterrupted one does."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.rows import read_jsonl
from selfreward_jax.training.batches import TrainRow
from selfreward_jax.training.loop import TrainSettings, train
from selfreward_jax.training.objectives import SFT
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.step import ForwardSettings, gradients
from tests.engine.small_llama import GQA, naive_logp, small_model
from tests.training.test_gradients import EIGHT, FORWARD, OBJECTIVES, OPTIMIZER, make_rows

SETTINGS = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=1, steps=6),
    forward=ForwardSettings(dtype="float32", head_chunk=32, remat=False, dropout=0.1),
    batch_size=4,
    micro_batch_size=2,
    length_bucket=16,
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


def test_a_loss_that_is_not_finite_is_an_error_and_saves_nothing(tmp_path):
    model = small_model()
    params = {**model.params, "norm": model.params["norm"] * jnp.nan}
    with pytest.raises(UserError, match="test: the loss is nan .* at step 1; lower the learning rate"):
        run(tmp_path, model=dataclasses.replace(model, params=params))
    assert nothing_is_saved(tmp_path)


def test_a_gradient_that_is_not_finite_is_an_error_and_saves_nothing(tmp_path, monkeypatch):
    """Else the weights of the last step would be of no use, and only the next stage would see it."""

    def overflown(*arguments):
        grads, sums = gradients(*arguments)
        return grads | {"norm": grads["norm"] * jnp.inf}, sums

    monkeypatch.setattr("selfreward_jax.training.loop.gradients", overflown)
    settings = dataclasses.replace(SETTINGS, checkpoint_every=1)
    with pytest.raises(UserError, match=r"the gradient's norm (inf|nan) at step 1"):
        run(tmp_path, settings=settings)
    assert nothing_is_saved(tmp_path)
