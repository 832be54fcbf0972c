"""What `sft` and `dpo` share: settings from the configuration, and turning a finished training into a model."""

from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.rows import Row, content_id
from selfreward_jax.llama.load import MODEL_FILE, Model, save_model_files
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.training.batches import TrainRow, steps_per_epoch
from selfreward_jax.training.loop import TrainSettings, train
from selfreward_jax.training.objectives import Objective
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.step import ForwardSettings


def train_settings(run: Run, section, rows: int) -> TrainSettings:
    """From a section of the configuration (`sft` or `dpo`) and the number of rows."""
    c = run.config
    return TrainSettings(
        optimizer=OptimizerSettings(
            learning_rate=section.learning_rate,
            final_learning_rate=section.final_learning_rate,
            warmup_steps=section.warmup_steps,
            steps=steps_per_epoch(rows, section.batch_size) * section.epochs,
            weight_decay=section.weight_decay,
            adam_b1=section.adam_b1,
            adam_b2=section.adam_b2,
            adam_eps=section.adam_eps,
            clip_norm=section.clip_norm,
        ),
        forward=ForwardSettings(c.model.dtype, c.training.head_chunk, c.training.remat, section.dropout),
        batch_size=section.batch_size,
        micro_batch_size=section.micro_batch_size,
        length_bucket=c.training.length_bucket,
        checkpoint_every=c.checkpoint.every_steps,
        checkpoint_keep=c.checkpoint.keep,
        tensorboard=c.log.tensorboard,
    )


def training_inputs(run: Run, stage: str, section, rows: Sequence[TrainRow], init: ModelRef) -> dict[str, Any]:
    """Everything that the trained weights depend on."""
    return {
        "stage": stage,
        "init_from": {"name": init.name, "hash": init.hash},
        "rows": content_id([[[e.prompt_ids, e.response_ids] for e in row.examples] for row in rows]),
        "settings": section.to_dict(),
        "model": {k: v for k, v in run.config.model.to_dict().items() if k != "path"},
        "training": run.config.training.to_dict(),
        "seed": run.config.seed,
    }


def train_model(
    run: Run,
    t: int,
    title: str,
    init: ModelRef,
    rows: Sequence[TrainRow],
    objective: Objective,
    section,
    inputs: dict[str, Any],
    **facts: Any,
) -> ModelRef:
    """Trains M_t in its folder and records it; a folder left by other inputs is begun anew."""
    folder = run.root / f"m{t}"
    key = folder / "training.sha256"
    run.claim_training(key, inputs)
    start: Model = run.take(init)
    model, step, log = train(
        start,
        rows,
        objective,
        train_settings(run, section, len(rows)),
        seed=run.config.seed + t,
        folder=folder,
        title=title,
        interrupt=run.interrupt,
    )
    save_model_files(folder, model, {"checkpoint": step, "hash": model.hash})
    run.record(f"m{t}/{MODEL_FILE}", inputs, hash=model.hash, metrics=summarise(log), **facts)
    # The optimiser's state is only for going on with a training that was stopped.
    if is_writer():
        (folder / "checkpoints" / str(step) / "opt_state").rmtree(missing_ok=True)
    run.keep(ModelRef(f"m{t}", model.hash), model)
    return run.ref(f"m{t}")


def summarise(log: Sequence[Row]) -> Row:
    """First and last values of a training's metrics, each over a tenth of the steps (at least one)."""
    if not log:
        return {}
    width = max(1, len(log) // 10)
    names = [n for n in log[0] if n not in ("step", "epoch")]
    mean = lambda rows, name: sum(r[name] for r in rows) / len(rows)  # noqa: E731
    return {
        "steps": log[-1]["step"],
        "first": {n: mean(log[:width], n) for n in names},
        "last": {n: mean(log[-width:], n) for n in names},
    }
