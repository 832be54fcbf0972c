"""The training loop that SFT and DPO share: batches in a fixed order, checkpoints, and exact resume."""

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from selfreward_jax.core.checkpoints import Checkpoints, abstract
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.mesh import put_rows, row_ways
from selfreward_jax.core.metrics import MetricsLog
from selfreward_jax.core.progress import meter
from selfreward_jax.core.rows import Row
from selfreward_jax.llama.load import Model
from selfreward_jax.training.batches import Batch, TrainRow, batch_indices, make_batch, round_up, steps_per_epoch
from selfreward_jax.training.held_out import best_steps, evaluate
from selfreward_jax.training.objectives import Objective, RowArrays, row_arrays
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.step import ForwardSettings, TrainState, add, gradients, init_state, update


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
      micro_batch_size: rows at a time, 0 for the whole batch; rounded up to what the devices share evenly.
      choose: which checkpoint becomes the model, "last" or one of `held_out.RANKS`.
      keep_best: how many of the best checkpoints are kept, unless the last one is chosen.
    """

    optimizer: OptimizerSettings
    forward: ForwardSettings
    batch_size: int
    micro_batch_size: int
    length_bucket: int
    checkpoint_every: int
    checkpoint_keep: int
    tensorboard: bool
    choose: str = "last"
    keep_best: int = 1


def micro_batches(rows: Sequence[TrainRow], size: int, bucket: int) -> list[tuple[Batch, RowArrays]]:
    """Splits a batch into padded micro-batches of like length (longest first); how it is split changes no gradient."""
    ordered = sorted(rows, key=len, reverse=True)
    parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    batches = []
    for part in parts:
        filler = [None] * (size - len(part))
        examples = [e for n in range(len(part[0].examples)) for e in [*(row.examples[n] for row in part), *filler]]
        batches.append((make_batch(examples, rows=len(examples), bucket=bucket), row_arrays(part, size)))
    return batches


def train(
    model: Model,
    rows: Sequence[TrainRow],
    objective: Objective,
    settings: TrainSettings,
    *,
    seed: int,
    folder: epath.Path | None,
    title: str,
    interrupt: Interrupt,
    held_out: Sequence[TrainRow] = (),
) -> tuple[Model, int, list[Row]]:
    """Trains on all rows for `settings.optimizer.steps` steps, from the newest whole checkpoint if there is one.

    Args:
      model: where to start; its weights are given up.
      rows: the order in which they are seen follows from `seed`.
      folder: for `checkpoints/`, `metrics.jsonl` and `tb/`.
      title: of the progress bar.
      held_out: rows on which the model is evaluated wherever a checkpoint is due.

    Returns:
      The trained model, the step of its checkpoint, and the metrics of every step.

    Raises:
      Interrupted: after saving, if a stop was asked for.
      UserError: the loss or its gradient is not finite, or the checkpoints are of no use.
    """
    steps = settings.optimizer.steps
    micro = round_up(settings.micro_batch_size or settings.batch_size, row_ways(model.mesh))
    per_epoch = steps_per_epoch(len(rows), settings.batch_size)
    state = init_state(model.config, settings.optimizer, model.params)
    checkpoints = Checkpoints(folder / "checkpoints", settings.checkpoint_keep) if folder else None
    start = 0
    if checkpoints:
        targets = {"params": state.params, "opt_state": state.opt_state}
        start, restored = checkpoints.newest_whole(lambda step: checkpoints.restore(step, targets)) or (0, {})
        state = TrainState(jnp.int32(start), **restored) if start else state
        del targets, restored
    log = MetricsLog(folder, start_step=start, tensorboard=settings.tensorboard)

    def save(step: int) -> None:
        log.flush()
        if checkpoints and checkpoints.latest() != step:
            best = best_steps(settings.choose, log.rows, settings.keep_best)
            checkpoints.save(step, {"params": state.params, "opt_state": state.opt_state}, also_keep=best)

    unseen = micro_batches(held_out, micro, settings.length_bucket)

    def measures() -> dict[str, float]:
        if not unseen:
            return {}
        counts = {name: np.float32(value) for name, value in objective.counts(held_out).items()}
        return evaluate(model.config, objective, settings.forward, model.mesh, state.params, unseen, counts)

    dropout_key = jax.random.key(seed)
    with (
        meter(title, steps, done=start, unit="steps") as progress,
        jax.set_mesh(model.mesh),
        checkpoints or contextlib.nullcontext(),
    ):
        for step in range(start, steps):
            chosen = [rows[i] for i in batch_indices(len(rows), settings.batch_size, seed=seed, step=step)]
            counts = {name: np.float32(value) for name, value in objective.counts(chosen).items()}
            total = None
            for n, (batch, arrays) in enumerate(micro_batches(chosen, micro, settings.length_bucket)):
                part = gradients(
                    model.config,
                    objective,
                    settings.forward,
                    state.params,
                    put_rows(batch, model.mesh),
                    put_rows(arrays, model.mesh, axis=-1),
                    counts,
                    jax.random.fold_in(jax.random.fold_in(dropout_key, step), n),
                )
                total = part if total is None else add(total, part)
            assert total is not None
            grads, shares = total
            state, facts = update(model.config, settings.optimizer, state, grads)
            # Of the size of the weights each; they would outlive the step, through checkpoint and next gradients.
            grads = total = part = None
            shares, facts = jax.device_get((shares, facts))
            loss = float(shares.pop("loss"))
            if not np.isfinite([loss, facts["grad_norm"]]).all():
                raise UserError(
                    f"{title}: the loss is {loss} and the gradient's norm {facts['grad_norm']} at step {step + 1};"
                    " lower the learning rate."
                )
            due = (step + 1) % settings.checkpoint_every == 0 or step + 1 == steps
            tokens = sum(len(e) for row in chosen for e in row.examples)
            log.write(
                {
                    "step": step + 1,
                    "epoch": (step + 1) / per_epoch,
                    "loss": loss,
                    **{name: float(value) for name, value in shares.items()},
                    **{name: float(value) for name, value in facts.items()},
                    "num_tokens": tokens + (log.rows[-1]["num_tokens"] if log.rows else 0),
                    **(measures() if due else {}),
                }
            )
            progress.advance(1, tokens)
            stop = interrupt.agreed()  # looked at once: the signal may come at any moment
            if stop or due:
                save(step + 1)
            if stop:
                raise Interrupted
        chosen_step = next(iter(best_steps(settings.choose, log.rows, 1)), steps)
        if checkpoints and chosen_step != steps:
            checkpoints.wait()
            target = abstract(state.params)
            state = dataclasses.replace(state, params={}, opt_state=())  # their memory is for the weights of the best
            state = dataclasses.replace(state, params=checkpoints.restore(chosen_step, {"params": target})["params"])
    log.close()
    return dataclasses.replace(model, params=state.params), chosen_step, log.rows
