"""What `sft` and `dpo` share: settings from the configuration, and turning a finished training into a model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.config import split_names
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Row, content_id
from selfreward_jax.llama.load import MODEL_FILE, Model, save_merged, save_model_files
from selfreward_jax.llama.lora import LoraSettings, count_lora
from selfreward_jax.llama.params import count_params
from selfreward_jax.stages.adapters import write_adapter
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.training.batches import TrainRow, steps_per_epoch
from selfreward_jax.training.held_out import PREFIX, split
from selfreward_jax.training.loop import TrainSettings, train
from selfreward_jax.training.objectives import Objective
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.packing import Layout
from selfreward_jax.training.step import ForwardSettings


def optimizer_settings(config: Any, section, steps: int) -> OptimizerSettings:
    """From the whole configuration, its section `sft` or `dpo`, and how many steps there will be."""
    return OptimizerSettings(
        learning_rate=section.learning_rate,
        final_learning_rate=section.final_learning_rate,
        warmup_steps=section.warmup_steps,
        steps=steps,
        weight_decay=section.weight_decay,
        adam_b1=section.adam_b1,
        adam_b2=section.adam_b2,
        adam_eps=section.adam_eps,
        clip_norm=section.clip_norm,
        schedule=section.schedule,
        optimizer=config.training.optimizer,
        moments_dtype=config.training.moments_dtype,
        ema_decay=config.training.ema_decay,
    )


def train_settings(run: Run, section, rows: int) -> TrainSettings:
    """From a section of the configuration (`sft` or `dpo`) and the number of rows."""
    c = run.config
    return TrainSettings(
        optimizer=optimizer_settings(c, section, steps_per_epoch(rows, section.batch_size) * section.epochs),
        forward=ForwardSettings(
            c.model.dtype,
            c.training.head_chunk,
            c.training.remat,
            section.dropout,
            c.training.attention,
            run.rules,
            lora_settings(c.lora),
        ),
        batch_size=section.batch_size,
        layout=Layout(
            section.micro_batch_size or (0 if c.training.pack else section.batch_size),
            c.training.length_bucket,
            c.training.pack,
            c.training.share_prompt,
        ),
        checkpoint_every=c.checkpoint.every_steps,
        checkpoint_keep=c.checkpoint.keep,
        tensorboard=c.log.tensorboard,
        max_skipped=c.training.max_skipped,
        peak_tflops=c.log.peak_tflops,
        choose=c.checkpoint.choose,
        keep_best=c.checkpoint.keep_best,
    )


def lora_settings(section) -> LoraSettings | None:
    """From the section `lora` of the configuration; None where all weights are trained."""
    if not section.rank:
        return None
    return LoraSettings(
        section.rank, float(section.alpha), split_names(section.targets), section.dropout, section.use_rslora
    )


def training_inputs(run: Run, stage: str, section, rows: Sequence[TrainRow], init: ModelRef) -> dict[str, Any]:
    """Everything that the trained weights depend on."""
    checkpoint = run.config.checkpoint
    choice: dict[str, Any] = {"held_out": checkpoint.held_out} if checkpoint.held_out else {}
    if checkpoint.choose != "last":
        choice |= {"choose": checkpoint.choose, "every_steps": checkpoint.every_steps}
    return {
        "stage": stage,
        "init_from": {"name": init.name, "hash": init.hash},
        "rows": content_id(
            [[[[e.prompt_ids, e.response_ids] for e in row.examples], row.weight, row.margin] for row in rows]
        ),
        "settings": section.to_dict(),
        "model": {k: v for k, v in run.config.model.to_dict().items() if k not in ("path", "adapter")},
        "training": {k: v for k, v in run.config.training.to_dict().items() if k != "max_skipped"},
        "lora": run.config.lora.to_dict() if run.config.lora.rank else None,
        "seed": run.config.seed,
        **choice,
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
    rows, held_out = split(rows, run.config.checkpoint.held_out, seed=run.config.seed)
    key = folder / "training.sha256"
    run.claim_training(key, inputs)
    if held_out:
        say(f"{title}: {len(held_out)} of {len(rows) + len(held_out)} rows are held out")
    start: Model = run.take(init)
    settings = train_settings(run, section, len(rows))
    if lora := settings.forward.lora:
        share = f"{count_lora(start.config, lora):,} of {count_params(start.config):,}"
        say(f"{title}: LoRA of rank {lora.rank}, {share} weights are trained")
    model, step, log = train(
        start,
        rows,
        objective,
        settings,
        seed=run.config.seed + t,
        folder=folder,
        title=title,
        interrupt=run.interrupt,
        held_out=held_out,
        tracer=run.tracer(f"m{t}/{inputs['stage']}"),
    )
    choice = chosen(run, title, step, log, len(held_out)) if held_out else {}
    where = {}
    if model.adapter:
        write_adapter(folder, model.config, dataclasses.replace(model.adapter, base=init.name))
        where = save_merged(folder, step, model.params)
    save_model_files(folder, model, {"checkpoint": step, "hash": model.hash, **where, **choice})
    run.record(f"m{t}/{MODEL_FILE}", inputs, hash=model.hash, metrics=summarise(log), **choice, **facts)
    # The optimiser's state is only for going on with a training that was stopped.
    if is_writer():
        for state in (folder / "checkpoints").glob("*/opt_state"):
            state.rmtree()
    run.keep(ModelRef(f"m{t}", model.hash), model)
    return run.ref(f"m{t}")


def chosen(run: Run, title: str, step: int, log: Sequence[Row], held_out: int) -> dict[str, Row]:
    """What is on record of the checkpoint that became the model, as `best`; said as well."""
    by = run.config.checkpoint.choose
    measured = {name: x for row in log if row["step"] == step for name, x in row.items() if name.startswith(PREFIX)}
    told = [(name, measured.get(name)) for name in ("eval/loss", "eval/rewards/accuracies")]
    shown = ", ".join(f"{name} {value:.4f}" for name, value in told if value is not None) or "nothing finite"
    say(f"{title}: the model is step {step} of {log[-1]['step']}, chosen by {by}; on held-out rows {shown}")
    return {"best": {"checkpoint": step, "by": by, "held_out": held_out, **measured}}


def summarise(log: Sequence[Row]) -> Row:
    """First and last values of a training's metrics, each over a tenth of the steps (at least one).

    Steps at which a value was not finite have no part; None if it was at none of them.
    """
    if not log:
        return {}
    width = max(1, len(log) // 10)
    names = [n for n in log[0] if n not in ("step", "epoch") and not n.startswith(PREFIX)]

    def mean(rows: Sequence[Row], name: str) -> float | None:
        values = [row[name] for row in rows if row[name] is not None]
        return sum(values) / len(values) if values else None

    return {
        "steps": log[-1]["step"],
        "first": {n: mean(log[:width], n) for n in names},
        "last": {n: mean(log[-width:], n) for n in names},
    }
