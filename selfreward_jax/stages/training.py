"""What `sft` and `dpo` share: settings from the configuration, and turning a finished training into a model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.config import split_names
from selfreward_jax.core.errors import UserError, about
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.metrics import METRICS_FILE
from selfreward_jax.core.paths import matching
from selfreward_jax.core.progress import say
from selfreward_jax.core.readers import fingerprint
from selfreward_jax.core.rows import Prompt, Row, content_id
from selfreward_jax.core.stored import read_json
from selfreward_jax.llama.load import MODEL_FILE, save_merged, save_model_files
from selfreward_jax.llama.lora import LoraSettings, count_lora
from selfreward_jax.llama.params import count_params
from selfreward_jax.stages.adapters import write_adapter
from selfreward_jax.stages.choice import WIN_RATE, Asked, Choice, choose_by_win_rate, validation_prompts
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
        choose="last" if c.checkpoint.choose == WIN_RATE else c.checkpoint.choose,
        keep_best=c.checkpoint.keep_best,
        keep_due=c.checkpoint.choose == WIN_RATE,
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
    c = run.config.checkpoint
    choice: dict[str, Any] = {"held_out": c.held_out} if c.held_out else {}
    if c.choose != "last":
        choice |= {"choose": c.choose, "every_steps": c.every_steps}
    if c.choose == WIN_RATE:
        choice |= {"judge": c.judge, "prompts": _file_hash(c.prompts), "prompts_max": c.prompts_max}
        choice |= {"answering": run.config.respond.to_dict(), "judging": run.config.judge.to_dict()}
    return {
        "stage": stage,
        "init_from": {"name": init.name, "hash": init.hash},
        "rows": content_id(
            [
                [[[e.prompt_ids, e.response_ids] for e in row.examples], row.weight, row.margin, row.desirable]
                for row in rows
            ]
        ),
        "settings": section.to_dict(),
        "model": {k: v for k, v in run.config.model.to_dict().items() if k not in ("path", "adapter")},
        "training": {k: v for k, v in run.config.training.to_dict().items() if k != "max_skipped"},
        "lora": run.config.lora.to_dict() if run.config.lora.rank else None,
        "seed": run.config.seed,
        **choice,
    }


def _file_hash(path: str) -> str:
    with about("config.checkpoint.prompts"):
        return fingerprint(path) if path else ""


def is_trained(run: Run, t: int, title: str, inputs: dict[str, Any]) -> bool:
    """Whether M_t was made from these inputs before; a stop may have left what is of no more use.

    Raises:
      UserError: the training's metrics are no longer what they were, and only another training would give them.
    """
    if not run.is_made(f"m{t}/{MODEL_FILE}", inputs):
        return False
    if changed := run.manifest.changed(f"m{t}/{METRICS_FILE}"):
        again = f"remove m{t}/{MODEL_FILE} and m{t}/checkpoints to train M{t} again"
        raise UserError(f"{run.root}: {changed}; restore it from a copy, or {again}.")
    run.skip(title)
    tidy(run, t)
    return True


def tidy(run: Run, t: int) -> None:
    """Removes what only a training in the making needs: the optimiser's state, and what a judge has not chosen."""
    if not is_writer():
        return
    c, folder = run.config.checkpoint, run.root / f"m{t}"
    for state in matching(folder / "checkpoints", "*/opt_state"):
        state.rmtree()
    if c.choose == WIN_RATE:
        steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
        chosen = read_json(folder / MODEL_FILE, needs={"checkpoint": int})["checkpoint"]
        for step in set(steps) - {chosen, *steps[-c.keep :]}:
            (folder / "checkpoints" / str(step)).rmtree()


def train_model(
    run: Run,
    t: int,
    title: str,
    init: ModelRef,
    rows: Sequence[TrainRow],
    objective: Objective,
    section,
    inputs: dict[str, Any],
    asked: Asked,
    **facts: Any,
) -> ModelRef:
    """Trains M_t in its folder and records it; a folder left by other inputs is begun anew.

    Args:
      asked: the conversations that the rows' prompts come from, by their token ids.
    """
    folder = run.root / f"m{t}"
    rows, held_out = split(rows, run.config.checkpoint.held_out, seed=run.config.seed)
    settings = train_settings(run, section, len(rows))
    lora, config = settings.forward.lora, run.words(init)[0]
    prompts: list[Prompt] = []
    if settings.keep_due:
        prompts = validation_prompts(run, title, held_out, asked)
        Choice(run, t, init, lora).check_judge()
    run.claim_training(folder / "training.json", inputs)
    if held_out:
        say(f"{title}: {len(held_out)} of {len(rows) + len(held_out)} rows are held out")
    if lora:
        share = f"{count_lora(config, lora):,} of {count_params(config):,}"
        say(f"{title}: LoRA of rank {lora.rank}, {share} weights are trained")
    model, step, log = train(
        run.take(init),
        rows,
        objective,
        settings,
        seed=run.config.seed + t,
        folder=folder,
        title=title,
        interrupt=run.interrupt,
        held_out=held_out,
        tracer=run.tracer(f"m{t}/{inputs['stage']}"),
        tracker=run.tracker,
    )
    record: Row = {"held_out": len(held_out)} if held_out else {}
    if settings.keep_due and len(settings.due) > 1:
        del model  # at most one model is in memory
        work = Choice(run, t, init, lora)
        step, found = choose_by_win_rate(work, title, settings.due, prompts)
        record |= found
        model = work.load(work.step(step))
        del work
    choice = chosen(run, title, step, log, record) if record else {}
    run.check_again(f"m{t}/{MODEL_FILE}", inputs, hash=model.hash)
    where, beside = {}, []
    if model.adapter:
        beside += write_adapter(folder, model.config, dataclasses.replace(model.adapter, base=init.name))
        where = save_merged(folder, step, model.params)
    beside += save_model_files(folder, model, {"checkpoint": step, "hash": model.hash, **where, **choice})
    told = {"hash": model.hash, "metrics": summarise(log), **choice, **facts}
    run.record(f"m{t}/{METRICS_FILE}", inputs)
    run.record(f"m{t}/{MODEL_FILE}", inputs, files=sorted(beside), **told)
    tidy(run, t)
    run.keep(ModelRef(f"m{t}", model.hash), model)
    return run.ref(f"m{t}")


def chosen(run: Run, title: str, step: int, log: Sequence[Row], record: Row) -> dict[str, Row]:
    """What is on record of the checkpoint that became the model, as `best`; said as well.

    Args:
      record: what there is to tell beside the metrics of its step.
    """
    by = run.config.checkpoint.choose
    measured = {name: x for row in log if row["step"] == step for name, x in row.items() if name.startswith(PREFIX)}
    told = [(name, measured.get(name)) for name in ("eval/loss", "eval/rewards/accuracies")]
    shown = ", ".join(f"{name} {value:.4f}" for name, value in told if value is not None) or "nothing finite"
    tail = f"; on held-out rows {shown}" if "held_out" in record else ""
    say(f"{title}: the model is step {step} of {log[-1]['step']}, chosen by {by}{tail}")
    return {"best": {"checkpoint": step, "by": by, **record, **measured}}


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
