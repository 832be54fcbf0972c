"""What is done with one model: `score`, `export`, `chat`."""

import argparse
from collections.abc import Sequence

from selfreward_jax import api
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.forms import SYSTEMS, demonstration
from selfreward_jax.core.interrupt import Interrupt, end_at_once
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import meter, say
from selfreward_jax.core.readers import iter_rows, read_rows
from selfreward_jax.core.rows import Row, present, to_lines
from selfreward_jax.core.store import write_atomic
from selfreward_jax.engine.score import implicit_reward, score_in_order
from selfreward_jax.llama import hf
from selfreward_jax.llama.load import Model, load_chat, load_model, recorded_date
from selfreward_jax.llama.peft import save_adapter
from selfreward_jax.report.card import model_card
from selfreward_jax.stages.adapters import adapter_since_m0
from selfreward_jax.stages.run import models_of, stored_config
from selfreward_jax.training.batches import Example
from selfreward_jax.verbs.runs import Overrides


def score(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    output = local_path(options.output)
    if not output.parent.exists():
        raise UserError(f"--output={options.output}: the folder {output.parent} does not exist.")
    if output.is_dir():
        raise UserError(f"--output={options.output}: a folder; name a file.")

    what = "rows with prompt and response"
    next(iter_rows(options.input, lambda row: row, what))  # before a model is fetched
    config, words = load_chat(options.model, options.chat_template)
    reference_chat = load_chat(options.reference, options.chat_template) if options.reference else None
    if reference_chat and reference_chat[1].hashes != words.hashes:
        raise UserError(f"--reference={options.reference}: another tokenizer or chat template than {options.model}'s.")

    def parse(row: Row) -> Example:
        if not options.raw:
            given = demonstration(row, empty=True)
            return _example(*words.answer_ids(given.messages, given.response))
        row = present(row)
        if apart := [name for name in SYSTEMS if row.get(name)]:
            raise ValueError(f"with --raw, {apart[0]} would not be read; write it into prompt")
        answer = "completion" if "completion" in row and "response" not in row else "response"
        for name in ("prompt", answer):
            if not isinstance(row[name], str):
                raise ValueError(f"with --raw, {name} must be text")
        return _example(*words.raw_ids(row["prompt"], row[answer]))

    def checked(row: Row) -> Example:
        example = parse(row)
        if len(example) > (most := config.max_position_embeddings):
            raise ValueError(f"it has {len(example)} tokens, more than the model's context of {most}")
        return example

    examples = read_rows(options.input, checked, what)
    how = {"dtype": options.dtype, "chat_template": options.chat_template}
    model = load_model(options.model, adapter=options.adapter, chat=(config, words), **how)
    made = [
        {"logp": logp, "tokens": len(e.response_ids)}
        for logp, e in zip(_score(model, examples, "log-probabilities", options, interrupt), examples, strict=True)
    ]
    if options.reference:
        del model  # one model in memory at a time
        reference = load_model(options.reference, chat=reference_chat, **how)
        for row, logp in zip(made, _score(reference, examples, "of the reference", options, interrupt), strict=True):
            row |= {"reference_logp": logp, "reward": implicit_reward(row["logp"], logp, options.beta)}
    write_atomic(output, to_lines(made))
    say(f"{len(made)} rows lie in {output}")


def _score(model: Model, examples: Sequence[Example], title: str, options, interrupt: Interrupt) -> list[float]:
    with meter(title, len(examples)) as progress:

        def advance(rows: int, tokens: int) -> None:
            progress.advance(rows, tokens)
            interrupt.check()

        return score_in_order(model, examples, rows=options.rows, advance=advance)


def _example(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Example:
    return Example(tuple(prompt_ids), tuple(response_ids))


def export(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if options.adapter_only:
        return _export_adapter(options)
    model = load_model(
        options.model, param_dtype=options.dtype, adapter=options.adapter, chat_template=options.chat_template
    )
    api.export(model, options.output)
    say(f"{options.model} lies in {options.output}, for transformers and everything that reads its format")


def _export_adapter(options: argparse.Namespace) -> None:
    if options.adapter:
        raise UserError("export: give either --adapter=DIR or --adapter_only.")
    model = local_path(options.model)
    config = hf.read_config(model)
    learnt = adapter_since_m0(model, config)
    card = model_card(str(model), adapter_of=learnt.base, date=recorded_date(model))
    save_adapter(options.output, config, learnt, card)
    say(f"what {options.model} learnt lies in {options.output}, an adapter of {learnt.base} for PEFT")


def chat(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    from selfreward_jax.chat import converse

    if bool(options.workdir) == bool(options.model):
        raise UserError("chat: give either --workdir=DIR or --model=DIR.")
    if options.workdir and options.adapter:
        raise UserError("chat: --adapter=DIR goes with --model=DIR.")
    path, adapter = (options.model, options.adapter) if options.model else newest_model(options.workdir)
    end_at_once()
    converse(
        load_model(path, dtype=options.dtype, adapter=adapter, chat_template=options.chat_template),
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
    root = local_path(workdir)
    config = stored_config(root)
    if made := models_of(root):
        return str(root / made[-1]), ""
    return config["model"]["path"], config["model"].get("adapter", "")
