"""The training loop that SFT and DPO share: batches in a fixed order, checkpoints, and exact resume."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.mesh import batch_ways, put_rows, replicated
from selfreward_jax.core.metrics import MetricsLog
from selfreward_jax.core.progress import meter
from selfreward_jax.core.rows import Row
from selfreward_jax.llama.load import Model
from selfreward_jax.llama.lora import Adapter, LoraSettings, init_lora, lora_specs, merge
from selfreward_jax.llama.params import Params, shardings
from selfreward_jax.training.batches import Batch, TrainRow, batch_indices, lay_rows, steps_per_epoch
from selfreward_jax.training.objectives import Objective, RowArrays, row_arrays
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.packing import Layout, plan_micro_batches
from selfreward_jax.training.step import ForwardSettings, TrainState, add, gradients, init_state, update

BEFORE_ANY_STEP = 2**32 - 1  # in the place of a step's number, for the key of what is drawn before them


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train; `layout` says how much of a batch is computed at a time."""

    optimizer: OptimizerSettings
    forward: ForwardSettings
    batch_size: int
    layout: Layout
    checkpoint_every: int
    checkpoint_keep: int
    tensorboard: bool


def micro_batches(rows: Sequence[TrainRow], layout: Layout) -> list[tuple[Batch, RowArrays]]:
    """A step's rows as padded arrays (longest first); how they are divided and laid out changes no gradient."""
    return [
        (lay_rows(plan.texts, plan.size * len(plan.rows[0].examples), bucket=layout.pack or layout.bucket),
         row_arrays(plan.rows, plan.size))
        for plan in plan_micro_batches(rows, layout)
    ]  # fmt: skip


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
) -> tuple[Model, int, list[Row]]:
    """Trains on all rows for `settings.optimizer.steps` steps, from the newest checkpoint if there is one.

    Args:
      model: where to start; its weights are given up. With `settings.forward.lora` they are frozen, checkpoints hold
        the adapter alone, and it is merged into them at the end.
      rows: the order in which they are seen follows from `seed`.
      folder: for `checkpoints/`, `metrics.jsonl` and `tb/`.
      title: of the progress bar.

    Returns:
      The trained model, the step of its checkpoint, and the metrics of every step.

    Raises:
      Interrupted: after saving, if a stop was asked for.
      UserError: the loss or its gradient is not finite.
    """
    steps = settings.optimizer.steps
    layout = dataclasses.replace(settings.layout, ways=batch_ways(model.mesh, model.rules))
    per_epoch = steps_per_epoch(len(rows), settings.batch_size)
    lora = settings.forward.lora
    dropout_key = jax.random.key(seed)
    frozen, item = (model.params, "adapter") if lora else (None, "params")
    state = init_state(model.config, settings.optimizer, trainable(model, lora, dropout_key), lora)
    checkpoints = Checkpoints(folder / "checkpoints", settings.checkpoint_keep) if folder else None
    start = (checkpoints.latest() or 0) if checkpoints else 0
    if checkpoints and start:
        restored = checkpoints.restore(start, {item: state.params, "opt_state": state.opt_state})
        state = TrainState(jnp.int32(start), restored[item], restored["opt_state"])
    log = MetricsLog(folder, start_step=start, tensorboard=settings.tensorboard)

    def save(step: int) -> None:
        log.flush()
        if checkpoints and checkpoints.latest() != step:
            checkpoints.save(step, {item: state.params, "opt_state": state.opt_state})

    with meter(title, steps, done=start, unit="steps") as progress, jax.set_mesh(model.mesh):
        for step in range(start, steps):
            chosen = [rows[i] for i in batch_indices(len(rows), settings.batch_size, seed=seed, step=step)]
            counts = {name: np.float32(value) for name, value in objective.counts(chosen).items()}
            total = None
            for n, (batch, arrays) in enumerate(micro_batches(chosen, layout)):
                part = gradients(
                    model.config,
                    objective,
                    settings.forward,
                    state.params,
                    put_rows(batch, model.mesh, model.rules),
                    jax.device_put(arrays, replicated(model.mesh)),
                    counts,
                    jax.random.fold_in(jax.random.fold_in(dropout_key, step), n),
                    frozen,
                )
                total = part if total is None else add(total, part)
            assert total is not None
            grads, shares = total
            state, facts = update(model.config, settings.optimizer, state, grads, lora)
            # Of the size of the weights each; they would outlive the step, through checkpoint and next gradients.
            grads = total = part = None
            shares, facts = jax.device_get((shares, facts))
            loss = float(shares.pop("loss"))
            if not np.isfinite([loss, facts["grad_norm"]]).all():
                raise UserError(
                    f"{title}: the loss is {loss} and the gradient's norm {facts['grad_norm']} at step {step + 1};"
                    " lower the learning rate."
                )
            tokens = sum(len(e) for row in chosen for e in row.examples)
            log.write(
                {
                    "step": step + 1,
                    "epoch": (step + 1) / per_epoch,
                    "loss": loss,
                    **{name: float(value) for name, value in shares.items()},
                    **{name: float(value) for name, value in facts.items()},
                    "num_tokens": tokens + (log.rows[-1]["num_tokens"] if log.rows else 0),
                }
            )
            progress.advance(1, tokens)
            stop = interrupt.requested  # looked at once: the signal may come at any moment
            if stop or (step + 1) % settings.checkpoint_every == 0 or step + 1 == steps:
                save(step + 1)
            if stop:
                raise Interrupted
    if checkpoints:
        checkpoints.close()
    log.close()
    if lora is None:
        return dataclasses.replace(model, params=state.params, adapter=None), steps, log.rows
    merged = merge(lora, model.params, state.params)
    adapter = Adapter(lora, state.params, model.name)
    return dataclasses.replace(model, params=merged, adapter=adapter), steps, log.rows


def trainable(model: Model, lora: LoraSettings | None, key: jax.Array) -> Params:
    """What is trained, as it is before the first step: the weights, or a fresh adapter laid out as they are."""
    if lora is None:
        return model.params
    layout = shardings(model.config, model.mesh, lora_specs(model.config, lora), model.rules)
    init = jax.jit(init_lora, static_argnums=(0, 1), out_shardings=layout)
    return init(model.config, lora, jax.random.fold_in(key, BEFORE_ANY_STEP))
