"""New prompts x for an iteration: self-instruct with filters, or a file."""

import random

from selfreward_jax.core import hosts
from selfreward_jax.core.errors import UserError, about
from selfreward_jax.core.forms import prompt_of
from selfreward_jax.core.progress import meter, say
from selfreward_jax.core.readers import fingerprint, iter_rows, read_rows
from selfreward_jax.core.rows import Messages, Prompt, Row, as_messages, content_id, load_rows, to_lines
from selfreward_jax.core.seeds import load_ift
from selfreward_jax.core.texts import read_text
from selfreward_jax.core.tokens import renderable
from selfreward_jax.engine.generate import Completion, Engine, Request, check_requests
from selfreward_jax.methods.self_instruct import (
    FilterSettings,
    PromptFilter,
    few_shot_list,
    first_item,
    pick_demonstrations,
)
from selfreward_jax.methods.template_files import packaged
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.stages.sampling import sampling_settings


def create_prompts(run: Run, t: int, model: ModelRef) -> list[Prompt]:
    """The prompts from which M_t learns, different from those of all earlier iterations.

    Args:
      model: M_{t-1}; writes the prompts only if `prompts.generator` is "current" (paper: the fixed M0 does).
    """
    c = run.config.prompts
    artefact = f"m{t}/prompts.jsonl"
    earlier = [f"m{i}/prompts.jsonl" for i in range(2, t)]
    inputs = {
        "stage": "prompts",
        "settings": c.to_dict(),
        "seed": run.config.seed,
        "earlier": [run.hash_of(path) for path in earlier],
    }
    if c.source != "self_instruct":
        rows = _from_file(run, t)
        inputs["file"] = fingerprint(c.source)
        if not run.is_made(artefact, inputs):
            run.write(artefact, inputs, to_lines(rows), metrics={"prompts/kept": len(rows)})
        return load_rows(run.root / artefact, Prompt)

    generator = run.base() if c.generator == "base" else model
    ift = run.config.seeds.ift
    inputs |= {
        "model": generator.hash,
        "ift": ift if ift == "builtin" else fingerprint(ift),
        "template": content_id(_template(c.template)),
        "rows": run.config.generation.slots,
    }
    if c.seeds:
        inputs["seeds"] = fingerprint(c.seeds)
    if run.is_made(artefact, inputs, f"m{t}/rejected_prompts.jsonl"):
        run.skip(f"M{t} prompts")
    else:
        _self_instruct(run, t, generator, artefact, inputs, earlier)
    return load_rows(run.root / artefact, Prompt)


def wanted(section, t: int) -> int:
    """How many prompts M_t learns from, of the configuration's `prompts` section."""
    return round(section.count * section.growth ** (t - 2))


def check_prompt_file(run: Run) -> None:
    """Finds what is wrong with a prompt file before hours of training, instead of after.

    Raises:
      UserError: no such file, a wrong row, too few prompts for all iterations, or one that is too long.
    """
    c = run.config
    if c.prompts.source == "self_instruct":
        _seeds(c.prompts.seeds, c.seeds.ift)
        _template(c.prompts.template)
        return
    prompts = [p for t in range(2, c.loop.iterations + 1) for p in _from_file(run, t)]
    asked = run.chat.prompts_ids([p.messages for p in prompts])
    requests = [
        Request(repr(p.messages[-1]["content"][:60]), tuple(ids)) for p, ids in zip(prompts, asked, strict=True)
    ]
    where = f"config.prompts.source: {c.prompts.source}: prompt"
    check_requests(requests, c.respond.n, sampling_settings(c.respond), run.context, where)


def _from_file(run: Run, t: int) -> list[Prompt]:
    """The iteration's share of a prompt file, in the file's order."""
    c = run.config.prompts
    start = sum(wanted(c, i) for i in range(2, t))
    found: dict[str, Messages] = {}
    check = renderable(run.chat)

    def parse(row: Row) -> Messages:
        messages = prompt_of(row)
        check(messages)
        return messages

    with about("config.prompts.source"):
        for messages in iter_rows(c.source, parse, "rows with a prompt"):
            found.setdefault(content_id(messages), messages)
            if len(found) == start + wanted(c, t):
                break
    prompts = list(found.values())
    share = prompts[start:]
    if not share:
        raise UserError(
            f"config.prompts.source: {c.source} has {len(prompts)} prompts, none left for M{t};"
            f" lower prompts.count (M2 has {c.count}) or add prompts."
        )
    return [Prompt(content_id(messages), messages, "file") for messages in share]


def _self_instruct(run: Run, t: int, ref: ModelRef, artefact: str, inputs: dict, earlier: list[str]) -> None:
    """Rounds of one batch each: write candidates from fresh demonstrations, filter them one after another."""
    c = run.config.prompts
    count = wanted(c, t)
    seeds = _seeds(c.seeds, run.config.seeds.ift)
    pool = [p.messages[-1]["content"] for path in earlier for p in load_rows(run.root / path, Prompt)]
    limits = FilterSettings(c.rouge_threshold, c.min_words, c.max_words, tuple(c.keywords))
    accept = PromptFilter(limits, [*seeds, *pool])
    journal = run.journal(artefact, inputs)
    kept: list[Row] = []
    rejected: list[Row] = []
    shown = [*pool]
    batch_rows = min(run.config.generation.slots, max(8, 2 * count))
    with meter(f"M{t} prompts", count, unit="prompts") as progress:
        for number in range(c.max_rounds):
            if not journal.has(number):
                engine = run.engine(ref)
                shown += [row["text"] for row in kept[len(shown) - len(pool) :]]
                journal.write(number, _candidates(run, engine, t, number, seeds, shown, batch_rows))
            hosts.wait(f"round {number} of {artefact} is written")
            tokens = 0
            for row in journal.rows(number):
                tokens += row["tokens"]
                reason = row.get("reason") or accept.reject_reason(row["text"])
                if len(kept) >= count:
                    break
                (rejected if reason else kept).append({**row, "reason": reason})
            progress.advance(min(len(kept), count) - progress.done, tokens)
            if len(kept) >= count:
                break
            run.interrupt.check()
    if not kept:
        raise UserError(f"M{t} prompts: none of {len(rejected)} candidates passed the filters; see config.prompts.")
    if len(kept) < count:
        say(f"M{t} prompts: only {len(kept)} of {count} after {c.max_rounds} rounds (prompts.max_rounds)")
    prompts = []
    for row in kept:
        messages = as_messages(row["text"])
        prompts.append(Prompt(content_id(messages), messages, f"self_instruct:{ref.name}:{ref.hash}"))
    reasons: dict[str, int] = {}
    for row in rejected:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    run.write(f"m{t}/rejected_prompts.jsonl", inputs, to_lines(rejected))
    counts = {"prompts/kept": len(kept), **{f"prompts/rejected_{k}": v for k, v in sorted(reasons.items())}}
    run.write(artefact, inputs, to_lines(prompts), metrics=counts)
    journal.discard()


def _seeds(path: str, ift: str) -> list[str]:
    """The demonstrations that prompts are written after."""
    if not path:
        return [d.messages[-1]["content"] for d in load_ift(ift)]
    return read_rows(path, lambda row: prompt_of(row)[-1]["content"], "rows with a prompt")


def _template(path: str) -> str:
    """What asks for a list of tasks."""
    return (read_text(path, "config.prompts.template") if path else packaged("self_instruct.txt")).strip()


def _candidates(
    run: Run, engine: Engine, t: int, number: int, seeds: list[str], pool: list[str], rows: int
) -> list[Row]:
    """One round's raw candidates, each from its own demonstrations."""
    c, model = run.config.prompts, engine.model
    asked = [{"role": "user", "content": _template(c.template)}]
    requests = []
    for n in range(rows):
        rng = random.Random(f"{run.config.seed}/{t}/{number}/{n}")
        shown = pick_demonstrations(seeds, pool, n_seed=c.demos_seed, n_generated=c.demos_generated, rng=rng)
        requests.append(Request(f"{number}/{n}", tuple(model.chat.begun_ids(asked, few_shot_list(shown)))))
    # Tasks stand one on a line, so the end of the line is the end of the task.
    settings = sampling_settings(c, stop=("\n",))
    purpose = f"m{t}/prompts\0{run.ref('m0').hash if c.generator == 'base' else model.hash}"
    made = engine.run(requests, 1, settings, seed=run.config.seed, purpose=purpose, what="prompt round")
    by_id = {x.request.id: x for x in made}
    return [_candidate(by_id[r.id]) for r in requests]


def _candidate(x: Completion) -> Row:
    """A prompt as it was written; with a `reason` if nothing was, or it goes on to where the limit cut it."""
    text = first_item(x.up_to_stop)
    cut = x.stop_reason == "length" and text == x.up_to_stop.strip()
    reason = "empty" if not text else "truncated" if cut else None
    return {"text": text, "tokens": x.drawn, "raw": x.up_to_stop, "reason": reason}
