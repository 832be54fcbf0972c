"""What each verb of the command line does: flags in, files out."""

import argparse
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import api
from selfreward_jax.configs import base
from selfreward_jax.core.config import check, load_config
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.progress import meter, say
from selfreward_jax.core.rows import Judgement, Pair, Prompt, Response, Row, as_messages, load_rows, read_jsonl, to_line
from selfreward_jax.core.store import write_atomic
from selfreward_jax.engine.score import implicit_reward, score_in_order
from selfreward_jax.llama import hf
from selfreward_jax.llama.load import MODEL_FILE, Model, load_model
from selfreward_jax.llama.peft import save_adapter
from selfreward_jax.loop import score_last, self_reward
from selfreward_jax.stages import dpo as dpo_stage
from selfreward_jax.stages import dry_run, summary
from selfreward_jax.stages import judge as judge_stage
from selfreward_jax.stages import pairs as pairs_stage
from selfreward_jax.stages import prompts as prompts_stage
from selfreward_jax.stages import respond as respond_stage
from selfreward_jax.stages import sft as sft_stage
from selfreward_jax.stages.adapters import adapter_since_m0
from selfreward_jax.stages.run import Run, stored_config
from selfreward_jax.training.batches import Example

Overrides = Sequence[str]


def _config(options: argparse.Namespace, overrides: Overrides) -> ConfigDict:
    """The configuration file with its overrides, or the workdir's own."""
    if options.config:
        return load_config(options.config, overrides)
    path = epath.Path(options.workdir) / "config.json"
    if not path.exists():
        raise UserError(f"--workdir={options.workdir}: no run there yet; give --config=FILE to begin one.")
    if overrides:
        raise UserError(f"{overrides[0]}: give --config=FILE too; the configuration of a run is not changed in place.")
    config: Any = base.get_config()
    with config.ignore_type():
        config.update(stored_config(path.parent))
    config.prompts.keywords = tuple(config.prompts.keywords)
    config.respond.stop = tuple(config.respond.stop)
    config.lora.targets = tuple(config.lora.targets)
    check(config)
    return config


def _open(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> Run:
    return Run(options.workdir, _config(options, overrides), resume=options.resume, interrupt=interrupt)


def run(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    before = list(work.manifest.artefacts())
    self_reward(work)
    rows = summary.summarise(work)
    if before == list(work.manifest.artefacts()):
        say("all is done already")
    summary.show(work, rows)


def sft(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if options.dry_run:
        return dry_run.show(_config(options, overrides), "sft")
    work = _open(options, overrides, interrupt)
    work.base()
    model = sft_stage.supervised_fine_tune(work)
    say(f"M1 lies in {work.root / model.name}")


def _iteration(options: argparse.Namespace, work: Run) -> int:
    if not 2 <= options.iteration <= work.config.loop.iterations:
        raise UserError(
            f"--iteration={options.iteration}: must be from 2 to loop.iterations, {work.config.loop.iterations}."
        )
    work.base()
    return options.iteration


def _rows(work: Run, t: int, name: str, kind: type) -> list:
    path = work.root / f"m{t}" / f"{name}.jsonl"
    if not path.exists():
        raise UserError(f"{path}: not there yet; run the stage that makes it first.")
    return load_rows(path, kind) if path.read_text().strip() else []  # no pair at all is a result too


def prompts(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    made = prompts_stage.create_prompts(work, t, work.ref(f"m{t - 1}" if t > 1 else "m0"))
    say(f"{len(made)} prompts lie in {work.root / f'm{t}' / 'prompts.jsonl'}")


def respond(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    made = respond_stage.respond(work, f"m{t}", work.ref(f"m{t - 1}"), _rows(work, t, "prompts", Prompt))
    say(f"{len(made)} answers lie in {work.root / f'm{t}' / 'responses.jsonl'}")


def judge(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    rows = _rows(work, t, "prompts", Prompt), _rows(work, t, "responses", Response)
    made = judge_stage.judge(work, f"m{t}", work.ref(f"m{t - 1}"), *rows)
    say(f"{len(made)} judgements lie in {work.root / f'm{t}' / 'judgements.jsonl'}")


def pairs(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    kinds = {"prompts": Prompt, "responses": Response, "judgements": Judgement}
    rows = [_rows(work, t, name, kind) for name, kind in kinds.items()]
    made = pairs_stage.build_pairs(work, t, work.ref(f"m{t - 1}"), *rows)
    say(f"{len(made)} pairs lie in {work.root / f'm{t}' / 'pairs.jsonl'}, what was left out in dropped.jsonl beside it")


def dpo(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if options.dry_run:
        return dry_run.show(_config(options, overrides), "dpo")
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    model = dpo_stage.preference_train(work, t, _rows(work, t, "pairs", Pair))
    if t == work.config.loop.iterations and work.config.loop.score_last:
        score_last(work, model)
    summary.show(work, summary.summarise(work))


def score(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    output = epath.Path(options.output)
    if not output.parent.exists():
        raise UserError(f"--output={output}: the folder {output.parent} does not exist.")

    def parse(row: Row) -> tuple[str | tuple[dict[str, str], ...], str]:
        prompt, response = row["prompt"], row["response"]
        if not isinstance(response, str):
            raise ValueError("response must be text")
        if options.raw:
            if not isinstance(prompt, str):
                raise ValueError("with --raw, prompt must be text")
            return prompt, response
        return as_messages(prompt), response

    rows = read_jsonl(options.input, parse, "rows with prompt and response")
    model = load_model(options.model, dtype=options.dtype, adapter=options.adapter)
    examples = [_example(model.chat, prompt, response, options.raw) for prompt, response in rows]
    for n, example in enumerate(examples, 1):
        if len(example) > model.context:
            raise UserError(
                f"{options.input}: row {n} has {len(example)} tokens, more than the model's context of {model.context}."
            )
    made = [
        {"logp": logp, "tokens": len(e.response_ids)}
        for logp, e in zip(_score(model, examples, "log-probabilities", options, interrupt), examples, strict=True)
    ]
    if options.reference:
        words = model.chat.hashes
        del model  # one model in memory at a time
        reference = load_model(options.reference, dtype=options.dtype)
        if reference.chat.hashes != words:
            raise UserError(
                f"--reference={options.reference}: another tokenizer or chat template than {options.model}'s."
            )
        for row, logp in zip(made, _score(reference, examples, "of the reference", options, interrupt), strict=True):
            row |= {"reference_logp": logp, "reward": implicit_reward(row["logp"], logp, options.beta)}
    write_atomic(output, "".join(map(to_line, made)))
    say(f"{len(made)} rows lie in {output}")


def _score(model: Model, examples: Sequence[Example], title: str, options, interrupt: Interrupt) -> list[float]:
    with meter(title, len(examples)) as progress:

        def advance(rows: int, tokens: int) -> None:
            progress.advance(rows, tokens)
            interrupt.check()

        return score_in_order(model, examples, rows=options.rows, advance=advance)


def _example(chat, prompt, response: str, raw: bool) -> Example:
    if not raw:
        return Example(tuple(chat.prompt_ids(prompt)), tuple(chat.response_ids(response)))
    start = [] if chat.bos_id is None else [chat.bos_id]
    ids = (*start, *chat.text_ids(prompt))
    return Example(ids, (*chat.text_ids(response), chat.text_eos_id))


def export(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if options.adapter_only:
        return _export_adapter(options)
    model = load_model(options.model, param_dtype=options.dtype, adapter=options.adapter)
    api.export(model, options.output)
    say(f"{options.model} lies in {options.output}, for transformers and everything that reads its format")


def _export_adapter(options: argparse.Namespace) -> None:
    if options.adapter:
        raise UserError("export: give either --adapter=DIR or --adapter_only.")
    config = hf.read_config(options.model)
    learnt = adapter_since_m0(epath.Path(options.model), config)
    save_adapter(options.output, config, learnt)
    say(f"what {options.model} learnt lies in {options.output}, an adapter of {learnt.base} for PEFT")


def chat(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    from selfreward_jax.chat import converse

    if bool(options.workdir) == bool(options.model):
        raise UserError("chat: give either --workdir=DIR or --model=DIR.")
    if options.workdir and options.adapter:
        raise UserError("chat: --adapter=DIR goes with --model=DIR.")
    path, adapter = (options.model, options.adapter) if options.model else newest_model(options.workdir)
    converse(
        load_model(path, dtype=options.dtype, adapter=adapter),
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )


def newest_model(workdir: str) -> tuple[str, str]:
    """The highest M_t of a run, or its M0; and the adapter that belongs to it.

    Raises:
      UserError: there is no run.
    """
    root = epath.Path(workdir)
    config = stored_config(root)
    made = [p for p in root.glob("m*") if p.name[1:].isdigit() and p.name != "m0" and (p / MODEL_FILE).exists()]
    if made:
        return str(max(made, key=lambda p: int(p.name[1:]))), ""
    return config["model"]["path"], config["model"].get("adapter", "")
