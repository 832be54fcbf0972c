"""The Python face: what notebooks use as `import selfreward_jax as sr`. Plain values in, rows and models out."""

import dataclasses
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import safetensors
from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.configs import base
from selfreward_jax.core.config import CHOICES, check, check_loss_bounds, leaves, load_config
from selfreward_jax.core.errors import UserError, did_you_mean
from selfreward_jax.core.forms import demonstration
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.lock import held
from selfreward_jax.core.losses import LossSettings, check_losses, loss_settings
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import meter, say
from selfreward_jax.core.rows import (
    Judgement,
    Pair,
    Prompt,
    Response,
    Row,
    as_messages,
    check_characters,
    content_id,
    parse_row,
)
from selfreward_jax.engine.compiling import keep_compiled_programs
from selfreward_jax.engine.generate import Completion, Engine, EngineSettings, Reading, Request
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.engine.score import implicit_reward, score_in_order
from selfreward_jax.evals.judge_eval import judged_of
from selfreward_jax.evals.judge_metrics import judge_metrics as measure_judge
from selfreward_jax.evals.judge_metrics import to_json
from selfreward_jax.llama import hf_save
from selfreward_jax.llama.load import Model, load_model
from selfreward_jax.llama.lora import LoraSettings
from selfreward_jax.llama.peft import save_adapter
from selfreward_jax.loop import self_reward
from selfreward_jax.methods.judge_function import JudgeFunction, source_hash
from selfreward_jax.methods.judging import JudgeTemplate
from selfreward_jax.methods.pairing import PAIR_RULES
from selfreward_jax.methods.score_slot import ScoreSlot
from selfreward_jax.report.card import model_card, sampling_of
from selfreward_jax.report.make import report_on
from selfreward_jax.stages import summary
from selfreward_jax.stages.judge import (
    function_row,
    judge_requests,
    judge_sampling,
    judgement_row,
    needs_sampling,
    read_row,
    slot_requests,
)
from selfreward_jax.stages.pairs import make_pairs
from selfreward_jax.stages.respond import response_row
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.training.batches import Example, TrainRow, steps_per_epoch
from selfreward_jax.training.loop import TrainSettings, train
from selfreward_jax.training.objectives import SFT, Objective, make_objective
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.packing import Layout
from selfreward_jax.training.preferences import Single, given, preference_rows
from selfreward_jax.training.step import ForwardSettings

T = TypeVar("T")


def config(path: str = "", **fields: Any) -> ConfigDict:
    """A configuration: a file (`configs/quickstart.py`) or every default, with fields changed.

    Args:
      fields: dotted names with `__` for the dot, such as `dpo__beta=0.2`; where a field holds several values, a tuple,
        or the only one.

    Raises:
      UserError: no such file or field, or a value that can't work.
    """
    made = load_config(path) if path else base.get_config()
    try:
        known = dict(leaves(made))
        given = {name.replace("__", "."): value for name, value in fields.items()}
        lists = {name for name, value in given.items() if isinstance(known.get(name), tuple) and isinstance(value, str)}
        made.update_from_flattened_dict({n: (value,) if n in lists else value for n, value in given.items()})
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"config: {str(error).splitlines()[0]}") from None
    check(made)
    return made


def load(
    path: epath.PathLike,
    *,
    adapter: epath.PathLike = "",
    dtype: str = "float32",
    chat_template: epath.PathLike = "",
    date: str = "",
) -> Model:
    """A model from a Hugging Face folder, `org/name[@revision]`, a .gguf file, a run's model or `package:NAME`.

    Args:
      adapter: a folder (or `org/name`) with a LoRA adapter in PEFT's format, merged into the weights.
      chat_template: "" for the model's own, the name of one of several, "plain", or a Jinja file.
      date: what a template that asks for today's date is told, YYYY-MM-DD; "": that of the run, or 2024-07-26.
    """
    keep_compiled_programs()
    return load_model(
        os.fspath(path),
        dtype=dtype,
        adapter=os.fspath(adapter),
        chat_template=os.fspath(chat_template),
        date=date,
    )


def _parsed(rows: Iterable[Any], parse: Callable[[Any], T], where: str, kind: str = "row") -> list[T]:
    """What `parse` makes of each row, with what is wrong told by its place. Raises `UserError`."""
    if isinstance(rows, str | bytes | os.PathLike | Mapping):
        raise UserError(f"{where}: takes a list of {kind}s, and this is {type(rows).__name__}.")

    def made(row: Any) -> T:
        check_characters(row)
        return parse(row)

    return [parse_row(row, made, f"{where}: {kind} {number}") for number, row in enumerate(rows, 1)]


def _prompts(prompts: Sequence[Any], where: str) -> list[Prompt]:
    def made(prompt: Any) -> Prompt:
        if isinstance(prompt, Prompt):
            return prompt
        messages = as_messages(prompt)
        return Prompt(content_id(messages), messages, "given")

    return _parsed(prompts, made, where, "prompt")


def generate(
    model: Model,
    prompts: Sequence[Any],
    *,
    n: int = 4,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    max_new_tokens: int = 256,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    seed: int = 0,
    slots: int = 64,
) -> list[Response]:
    """`n` answers to each prompt (text, messages or `Prompt`), in the prompts' order.

    Args:
      slots: rows decoded at a time; changes the speed, never what comes out.
    """
    asked = list({p.id: p for p in _prompts(prompts, "sr.generate")}.values())
    ids = model.chat.prompts_ids([p.messages for p in asked])
    requests = [Request(p.id, tuple(some)) for p, some in zip(asked, ids, strict=True)]
    settings = SamplingSettings(temperature, top_p, max_new_tokens, top_k, min_p, min_new_tokens, tuple(stop))
    engine = Engine(model, EngineSettings(slots=slots))
    found = _sample(engine, requests, n, settings, seed, "respond", "answers")
    return [response_row(model.hash, x) for x in found]


def judge(
    model: Model,
    prompts: Sequence[Any],
    responses: Sequence[Response],
    *,
    method: str = "sampled",
    function: JudgeFunction | None = None,
    rationale: bool = True,
    samples: int = 3,
    template: str = "",
    temperature: float = 0.7,
    top_p: float = 0.9,
    max_new_tokens: int = 256,
    seed: int = 0,
    slots: int = 64,
) -> list[Judgement]:
    """Judgements of each answer; `score` is None where none could be read.

    Args:
      method: "sampled" (paper): the score stands in the text; "completion": the most probable one after the reasons;
        "expected": the mean of the model's distribution over the scores; "function": what `function` gives.
      function: from a prompt's messages and an answer's text to a score from 0 to 5, or None. No model judges then.
      rationale: for "expected": reasons first. Without them there is one judgement an answer, and nothing is sampled.
      samples: judgements an answer.
    """
    if method not in CHOICES["judge.method"]:
        raise UserError(f"judge: the method {method!r} is not one of {', '.join(CHOICES['judge.method'])}.")
    if (method == "function") != (function is not None):
        raise UserError('judge: function=... goes with method="function", and that with it.')
    asked = {p.id: p.messages for p in _prompts(prompts, "sr.judge")}
    if function:
        return [function_row(source_hash(function), function, asked[r.prompt_id], r) for r in responses]
    shown = JudgeTemplate(template)
    shown.check_method(method)
    slot = None if method == "sampled" else ScoreSlot.of(model.chat)
    limit = model.context - max_new_tokens - (slot.longest if slot else 0)
    requests = judge_requests(model.chat, shown, asked, responses, limit)
    engine = Engine(model, EngineSettings(slots=slots))
    if slot and not needs_sampling(method, rationale):
        read = dict(engine.read(slot_requests(requests, slot), slot.candidates))
        by_id = {request.id: logps for request, logps in read.items()}
        return [read_row(model.hash, method, r.id, 0, "", "read", by_id[r.id]) for r in requests]
    settings, reading = judge_sampling(SamplingSettings(temperature, top_p, max_new_tokens), slot)
    found = _sample(engine, requests, samples, settings, seed, "judge", "judgements", reading)
    return [judgement_row(model.hash, method, shown, x) for x in found]


def _sample(
    engine: Engine,
    requests: Sequence[Request],
    samples: int,
    settings: SamplingSettings,
    seed: int,
    purpose: str,
    title: str,
    reading: Reading | None = None,
) -> list[Completion]:
    """Completions in the order of requests and samples."""
    place = {r.id: i for i, r in enumerate(requests)}
    found = []
    with meter(title, samples * len(requests)) as progress:
        key = f"{purpose}\0{engine.model.hash}"
        for made in engine.run(requests, samples, settings, seed=seed, purpose=key, reading=reading):
            found.append(made)
            progress.advance(1, made.drawn)
    return sorted(found, key=lambda c: (place[c.request.id], c.index))


def score(
    model: Model,
    rows: Sequence[Mapping[str, Any]],
    *,
    reference: Model | None = None,
    beta: float = 0.1,
    batch_size: int = 16,
) -> list[Row]:
    """Log-probability (nats, EOS included) and token count of each row's `response` given its `prompt`.

    Args:
      rows: of any form of `core.forms.demonstration`; an answer may be empty.
      reference: adds `reference_logp`, and `reward`, the implicit one of DPO with this `beta`.
    """
    examples = _examples(model, rows, "sr.score", empty=True)
    logps = score_in_order(model, examples, rows=batch_size)
    made: list[Row] = [{"logp": logp, "tokens": len(e.response_ids)} for logp, e in zip(logps, examples, strict=True)]
    if reference is not None:
        for row, logp in zip(made, score_in_order(reference, examples, rows=batch_size), strict=True):
            row |= {"reference_logp": logp, "reward": implicit_reward(row["logp"], logp, beta)}
    return made


def _examples(model: Model, rows: Sequence[Mapping[str, Any]], where: str, *, empty: bool = False) -> list[Example]:
    def made(row: Mapping[str, Any]) -> Example:
        given = demonstration(row, empty=empty)
        prompt_ids, response_ids = model.chat.answer_ids(given.messages, given.response)
        return Example(tuple(prompt_ids), tuple(response_ids))

    return _parsed(rows, made, where)


def judge_metrics(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Row:
    """How well scores agree with people's ranks, as `selfreward eval judge` measures it.

    Args:
      rows: one an answer: `prompt`, `response`, `rank` (lower is better), `score` (0 to 5, None where there is none);
        such as `rows.jsonl` of an evaluation.
      seed: of the intervals.
    """
    try:
        judged = judged_of([dict(row) for row in rows])
    except KeyError as error:
        raise UserError(f"sr.judge_metrics: a row lacks the field {error}.") from None
    if not judged:
        raise UserError("sr.judge_metrics: no prompt has two answers of different ranks.")
    return to_json(measure_judge(judged, seed=seed))


def pairs(
    model: Model,
    prompts: Sequence[Any],
    responses: Sequence[Response],
    judgements: Sequence[Judgement],
    *,
    rule: str = "best_worst",
    min_parsed: int = 2,
    min_margin: float = 0.0,
    keep_truncated: bool = False,
) -> list[Pair]:
    """Highest against lowest mean score of each prompt; ties make no pair."""
    if rule not in PAIR_RULES:
        raise UserError(f"pairs: the rule {rule!r} is not one of {', '.join(PAIR_RULES)}.")
    ref = ModelRef(model.name, model.hash)
    made, _, _ = make_pairs(
        model.chat, _prompts(prompts, "sr.pairs"), responses, judgements, model=ref, reference=ref,
        rule=rule, min_parsed=min_parsed, min_margin=min_margin, keep_truncated=keep_truncated,
    )  # fmt: skip
    return made


def sft(
    model: Model,
    rows: Sequence[Mapping[str, Any]],
    *,
    learning_rate: float = 5.5e-6,
    final_learning_rate: float = 1.1e-6,
    epochs: int = 1,
    batch_size: int = 16,
    dropout: float = 0.1,
    lora: LoraSettings | None = None,
    seed: int = 0,
) -> tuple[Model, list[Row]]:
    """A new model, trained on the `response` of each row, and the metrics of every step; `model` stays usable.

    Args:
      rows: of any form of `core.forms.demonstration`.
      lora: trains an adapter alone, such as `LoraSettings(rank=8, alpha=16)`; it is merged into the new model, and
        `export(..., adapter_only=True)` writes it.
    """
    data = [TrainRow((example,)) for example in _examples(model, rows, "sr.sft")]
    if not data:
        raise UserError("sr.sft: no rows to learn from.")
    settings = _settings(model, len(data), learning_rate, final_learning_rate, epochs, batch_size, dropout, lora)
    return _train(model, data, SFT(), settings, seed, "SFT", epochs=epochs)


def dpo(
    model: Model,
    pairs: Sequence[Pair | Single | Mapping[str, Any]],
    *,
    reference: Model | None = None,
    beta: float = 0.1,
    loss_type: str | Sequence[str] = "sigmoid",
    learning_rate: float = 1e-6,
    final_learning_rate: float = 1e-7,
    epochs: int = 1,
    batch_size: int = 16,
    dropout: float = 0.1,
    lora: LoraSettings | None = None,
    seed: int = 0,
    **loss_options: Any,
) -> tuple[Model, list[Row]]:
    """A new model by DPO or another loss, and the metrics of every step.

    Args:
      pairs: what `sr.pairs` gives; or rows of your own, of any form of `core.forms.preference`; for
        `loss_type="kto"` also of `core.forms.unpaired`. Pairs with the same answer twice are left out and counted.
      reference: `model` itself if none is given; not used by losses without one.
      loss_type: one name or several; see section `dpo` of configs/base.py.
      lora: as in `sft`.
      loss_options: further fields of `core.losses.LossSettings`, for instance `label_smoothing`.
    """
    losses = loss_settings({"beta": beta, "loss_type": loss_type} | loss_options)
    if unknown := loss_options.keys() - vars(losses).keys():
        name = min(unknown)
        raise UserError(f"sr.dpo: no option {name!r}.{did_you_mean(name, vars(losses))}")
    check_loss_bounds(losses, "sr.dpo: ")
    check_losses(losses, "sr.dpo: ")
    size = model.config.vocab_size
    made = _parsed(pairs, lambda row: row if isinstance(row, Pair | Single) else given(row, model.chat, size), "sr.dpo")
    prepared = preference_rows(made, losses, model.context, "sr.dpo")
    labelled, left_out = prepared.rows, prepared.left_out(model.context)
    if not labelled:
        raise UserError(f"sr.dpo: no pairs to learn from; there are {left_out or 'none'}.")
    if left_out:
        say(f"sr.dpo: {left_out} of {len(made)} left out")
    data = [x.row for x in labelled]
    if losses.needs_reference:
        examples = [e for row in data for e in row.examples]
        starts = [x.tail_start for x in labelled for _ in x.labels] if losses.ld_alpha != 1 else None
        logps = iter(score_in_order(reference or model, examples, tail_starts=starts, tail_weight=losses.ld_alpha))
        data = [dataclasses.replace(row, reference=tuple(next(logps) for _ in row.examples)) for row in data]
    settings = _settings(model, len(data), learning_rate, final_learning_rate, epochs, batch_size, dropout, lora)
    told = {name: value for name, value in vars(losses).items() if value != getattr(LossSettings(), name)}
    return _train(model, data, make_objective(losses), settings, seed, "DPO", epochs=epochs, beta=beta, **told)


def _settings(model, rows, learning_rate, final_learning_rate, epochs, batch_size, dropout, lora) -> TrainSettings:
    steps = steps_per_epoch(rows, batch_size) * epochs
    return TrainSettings(
        optimizer=OptimizerSettings(learning_rate, final_learning_rate, 0, steps),
        forward=ForwardSettings(model.dtype, 512, "block", dropout, rules=model.rules, lora=lora),
        batch_size=batch_size,
        layout=Layout(batch_size, 128),
        checkpoint_every=steps,
        checkpoint_keep=1,
        tensorboard=False,
    )


def _train(
    model: Model,
    rows: Sequence[TrainRow],
    objective: Objective,
    settings: TrainSettings,
    seed: int,
    title: str,
    **told: Any,
) -> tuple[Model, list[Row]]:
    # Training gives its weights up step by step, so it works on a copy.
    start = dataclasses.replace(model, params=jax.tree.map(jnp.copy, model.params))
    trained, _, log = train(
        start, rows, objective, settings, seed=seed, folder=None, title=title, interrupt=Interrupt()
    )
    step = {"method": title, "rows": len(rows), "steps": settings.optimizer.steps, "batch_size": settings.batch_size}
    step |= {
        "learning_rate": settings.optimizer.learning_rate,
        "dropout": settings.forward.dropout,
        "seed": seed,
    } | told
    step |= {"lora_rank": settings.forward.lora.rank} if settings.forward.lora else {}
    return dataclasses.replace(trained, name=f"{model.name} + {title}", steps=(*model.steps, step)), log


def run(config: ConfigDict, workdir: str, *, resume: str = "") -> list[Row]:
    """The whole algorithm in a folder; goes on where it was. Returns the summary, a row per model.

    Its report lies in the folder, as `report.html`.
    """
    check(config)
    keep_compiled_programs()
    with held(local_path(workdir), interrupt := Interrupt()):
        work = Run(workdir, config, resume=resume, interrupt=interrupt)
        self_reward(work)
        rows = summary.summarise(work)
        work.check_rest()
        report_on(work.root)
        if work.tracker:
            work.tracker.close()
    return rows


def table(rows: Sequence[Row]):
    """The summary of a run as a `rich` table."""
    return summary.table(rows)


def export(model: Model, folder: str, *, dtype: str | None = None, adapter_only: bool = False) -> None:
    """Writes a Hugging Face folder that `transformers` opens: weights, configuration, tokenizer, chat template, card.

    A model of a run carries the run's `respond` settings, others the paper's, as `generation_config.json`.

    Args:
      adapter_only: writes instead what `sft` or `dpo` with `lora` added to the model it began with, for PEFT.
    """
    if adapter_only and model.adapter is None:
        raise UserError(f"export: {model.name} has no adapter; train it with lora=LoraSettings(...).")
    date = {"date": model.chat.date} if model.chat.date else {}
    try:
        if adapter_only and model.adapter:
            card = model_card(model.source, steps=model.steps, adapter_of=model.source, date=model.chat.date)
            return save_adapter(folder, model.config, model.adapter, card)
        hf_save.save_pretrained(
            epath.Path(folder),
            # All that ends a text here, the template's end of a turn too, ends it for every reader.
            dataclasses.replace(model.config, eos_token_ids=model.chat.eos_ids),
            model.params,
            model.chat.tokenizer,
            dtype=None if dtype is None else jnp.dtype(dtype),
            provenance={"model": model.name, "hash": model.hash, **model.chat.hashes, **date},
            sampling=sampling_of(model.source),
            card=model_card(model.source, hash=model.hash, steps=model.steps, date=model.chat.date),
        )
    except safetensors.SafetensorError as error:
        raise UserError(f"{folder}: can't be written ({error}).") from error


def sample_rows(rows: Sequence[Any], n: int, seed: int = 0) -> list[Any]:
    """`n` of the rows, chosen by the seed: to read what came out."""
    return random.Random(seed).sample(list(rows), min(n, len(rows)))
