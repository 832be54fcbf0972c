"""The training loop that SFT and DPO share: batches in a fixed order, checkpoints, and exact resume."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from selfreward_jax.core.checkpoints import Checkpoints, abstract
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.mesh import put_rows, put_whole, row_ways
from selfreward_jax.core.metrics import MetricsLog, Tracker
from selfreward_jax.core.profile import Tracer
from selfreward_jax.core.progress import meter, say
from selfreward_jax.core.rows import Row
from selfreward_jax.llama.load import Model
from selfreward_jax.llama.lora import Adapter, LoraSettings, init_lora, lora_specs, merge
from selfreward_jax.llama.params import Params, shardings
from selfreward_jax.training.batches import TrainRow, batch_indices, steps_per_epoch
from selfreward_jax.training.held_out import best_steps, evaluate, plan
from selfreward_jax.training.objectives import Objective
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.packing import Layout, micro_batches
from selfreward_jax.training.step import ForwardSettings, TrainState, add, gradients, init_state, resume, update
from selfreward_jax.training.throughput import closing_line, peak_flops, step_timing, train_flops

BEFORE_ANY_STEP = 2**32 - 1  # in the place of a step's number, for the key of what is drawn before them


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
      layout: how much of a batch is computed at a time, and how its texts become arrays.
      max_skipped: steps in a row without a finite gradient that end the training.
      peak_tflops: of one device, 0 to look it up.
      choose: which checkpoint becomes the model, "last" or one of `held_out.RANKS`.
      keep_best: how many of the best checkpoints are kept, unless the last one is chosen.
      keep_due: whether every checkpoint that is due stays, for a choice to be made later.
    """

    optimizer: OptimizerSettings
    forward: ForwardSettings
    batch_size: int
    layout: Layout
    checkpoint_every: int
    checkpoint_keep: int
    tensorboard: bool
    max_skipped: int = 5
    peak_tflops: float = 0.0
    choose: str = "last"
    keep_best: int = 1
    keep_due: bool = False

    @property
    def due(self) -> list[int]:
        """Steps after which a checkpoint is due: every so many, and the last."""
        steps = self.optimizer.steps
        return [*range(self.checkpoint_every, steps, self.checkpoint_every), steps]


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
    tracer: Tracer | None = None,
    tracker: Tracker | None = None,
) -> tuple[Model, int, list[Row]]:
    """Trains on all rows for `settings.optimizer.steps` steps, from the newest whole checkpoint if there is one.

    Args:
      model: where to start; its weights are given up. With `settings.forward.lora` they are frozen, checkpoints hold
        the adapter alone, and it is merged into them at the end.
      rows: the order in which they are seen follows from `seed`.
      folder: for `checkpoints/`, `metrics.jsonl`, `throughput.jsonl` and `tb/`.
      title: of the progress bar.
      held_out: rows on which the model is evaluated wherever a checkpoint is due.
      tracer: of its steps, if some of them are to be profiled.
      tracker: gets the metrics as well, under the name of `folder`.

    Returns:
      The trained model, the step of its checkpoint, and the metrics of every step.

    Raises:
      Interrupted: after saving, if a stop was asked for.
      UserError: the gradient was not finite at `settings.max_skipped` steps in a row, or the checkpoints are of no
        use.
    """
    steps, due = settings.optimizer.steps, set(settings.due)
    layout = dataclasses.replace(settings.layout, ways=row_ways(model.mesh, model.rules))
    per_epoch = steps_per_epoch(len(rows), settings.batch_size)
    lora = settings.forward.lora
    dropout_key = jax.random.key(seed)
    frozen, item = (model.params, "adapter") if lora else (None, "params")
    state = init_state(model.config, settings.optimizer, trainable(model, lora, dropout_key), lora)
    checkpoints = Checkpoints(folder / "checkpoints", settings.checkpoint_keep) if folder else None
    start = 0
    if checkpoints:
        read = checkpoints.restore

        def restored(step: int) -> TrainState:
            if step < steps:
                return resume(state, item, step, functools.partial(read, step))
            trained = read(step, {item: abstract(state.trained)})[item]
            return TrainState(jnp.int32(step), trained, ())  # nothing goes on from here

        start, state = checkpoints.newest_whole(restored, "opt_state", steps) or (0, state)
        if start and not lora:
            jax.tree.map(lambda x: x.delete(), model.params)  # nobody needs where the training began any more
    log = MetricsLog(
        folder,
        start_step=start,
        tensorboard=settings.tensorboard,
        tracker=tracker,
        expected=checkpoints.facts(start).get("metrics", "") if checkpoints and start else "",
    )

    @functools.partial(jax.profiler.annotate_function, name="checkpoint")
    def save(step: int) -> None:
        log.flush()
        if checkpoints and checkpoints.latest() != step:
            kept = due if settings.keep_due else best_steps(settings.choose, log.rows, settings.keep_best)
            trees = {item: state.trained, "opt_state": state.resumable}
            checkpoints.save(step, trees, kept, dropping="opt_state", facts={"metrics": log.id})

    unseen = plan(objective, held_out, settings.batch_size, layout)

    @functools.partial(jax.profiler.annotate_function, name="evaluate")
    def measures() -> dict[str, float | None]:
        if not unseen:
            return {}
        return evaluate(model.config, objective, settings.forward, model.mesh, state.trained, unseen, frozen)

    peak = peak_flops(model.mesh.devices.flat[0].device_kind, settings.peak_tflops)
    with (
        meter(title, steps, done=start, unit="steps") as progress,
        jax.set_mesh(model.mesh),
        checkpoints or contextlib.nullcontext(),
        tracer or Tracer() as traced,
    ):
        for step in traced.steps("training step", range(start, steps)):
            begun = time.perf_counter()
            chosen = [rows[i] for i in batch_indices(len(rows), settings.batch_size, seed=seed, step=step)]
            counts = {name: np.float32(value) for name, value in objective.counts(chosen).items()}
            total, positions = None, 0
            for n, (batch, arrays) in enumerate(micro_batches(chosen, layout)):
                part = gradients(
                    model.config,
                    objective,
                    settings.forward,
                    state.params,
                    put_rows(batch, model.mesh, model.rules),
                    put_whole(arrays, model.mesh),
                    counts,
                    jax.random.fold_in(jax.random.fold_in(dropout_key, step), n),
                    frozen,
                )
                positions += batch.tokens.size
                total = part if total is None else add(total, part)
            assert total is not None
            grads, shares = total
            state, facts = update(model.config, settings.optimizer, state, grads, lora)
            # Of the size of the weights each; they would outlive the step, through checkpoint and next gradients.
            grads = total = part = None
            shares, facts = jax.device_get((shares, facts))
            loss = finite(shares.pop("loss"))
            examples = [e for row in chosen for e in row.examples]
            tokens = sum(map(len, examples))
            speed = step_timing(
                step + 1,
                time.perf_counter() - begun,
                tokens=tokens,
                positions=positions,
                flops=train_flops(model.config, examples, lora),
                devices=model.mesh.size,
                peak=peak,
            )
            before = log.rows[-1] if log.rows else {"num_tokens": 0, "skipped_updates": 0}
            log.write(
                {
                    "step": step + 1,
                    "epoch": (step + 1) / per_epoch,
                    "loss": loss,
                    **{name: finite(value) for name, value in shares.items()},
                    **{name: finite(value) for name, value in facts.items()},
                    "num_tokens": before["num_tokens"] + tokens,
                    "skipped_updates": before["skipped_updates"] + (finite(facts["grad_norm"]) is None),
                    **(measures() if step + 1 in due else {}),
                },
                speed,
            )
            # Of a training of fewer steps, none would have had an effect.
            stop_if_lost(title, log.rows, min(settings.max_skipped, steps))
            progress.advance(1, tokens, f"MFU {100 * speed['mfu']:.0f}%" if peak else "")
            stop = interrupt.agreed()  # looked at once: the signal may come at any moment
            if stop or step + 1 in due:
                save(step + 1)
            if stop:
                raise Interrupted
        chosen_step = next(iter(best_steps(settings.choose, log.rows, 1)), steps)
        if checkpoints and chosen_step != steps:
            checkpoints.wait()
            target = abstract(state.trained)
            state = dataclasses.replace(state, params={}, opt_state=(), ema=None)  # room for the weights of the best
            state = dataclasses.replace(state, params=checkpoints.restore(chosen_step, {item: target})[item])
    log.close()
    if start < steps:
        skipped = log.rows[-1]["skipped_updates"]
        say(f"{title}: {closing_line(log.speeds)}" + (f"; {skipped} of {steps} updates skipped" if skipped else ""))
    if lora is None:
        return dataclasses.replace(model, params=state.trained, adapter=None), chosen_step, log.rows
    merged = merge(lora, model.params, state.trained)
    adapter = Adapter(lora, state.trained, model.name)
    return dataclasses.replace(model, params=merged, adapter=adapter), chosen_step, log.rows


def trainable(model: Model, lora: LoraSettings | None, key: jax.Array) -> Params:
    """What is trained, as it is before the first step: the weights, or a fresh adapter laid out as they are."""
    if lora is None:
        return model.params
    layout = shardings(model.config, model.mesh, lora_specs(model.config, lora), model.rules)
    init = jax.jit(init_lora, static_argnums=(0, 1), out_shardings=layout)
    return init(model.config, lora, jax.random.fold_in(key, BEFORE_ANY_STEP))


def finite(value) -> float | None:
    """None for what is not finite, which JSON can't hold."""
    return float(value) if np.isfinite(value) else None


def stop_if_lost(title: str, rows: Sequence[Row], max_skipped: int) -> None:
    """Raises `UserError` if the last `max_skipped` steps had no finite gradient."""
    skipped = [row["step"] for row in itertools.takewhile(lambda row: row["grad_norm"] is None, reversed(rows))]
    if len(skipped) >= max_skipped:
        raise UserError(
            f"{title}: the gradient was not finite at {len(skipped)} steps in a row, {skipped[-1]} to {skipped[0]}, and"
            " no update was made; lower the learning rate, compute in float32 (config.model.dtype), or see whether the"
            " model that it began with is sound."
        )
