"""`seeds`: the seed sets of the paper from answers that people ranked."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from etils import epath
from rich.table import Table

from selfreward_jax.configs import base
from selfreward_jax.core.config import load_config
from selfreward_jax.core.console import Terminal
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.lock import alone
from selfreward_jax.core.progress import say
from selfreward_jax.core.ranked import Ranked, Step, load_ranked, prompt_key
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Row, as_messages, content_id, to_lines
from selfreward_jax.core.seeds import load_ift
from selfreward_jax.core.stored import read_json
from selfreward_jax.evals.desk import Desk
from selfreward_jax.methods.judging import JudgeTemplate
from selfreward_jax.methods.seed_split import SeedSplit, split_prompts
from selfreward_jax.stages.eft import EftRules, EftSet, build_eft, judge_ranked, plain_prompt
from selfreward_jax.stages.folder import Folder
from selfreward_jax.stages.work import ModelRef
from selfreward_jax.verbs.runs import Overrides

REQUEST = "request.json"  # in the folder: which sets were asked for, and who judged


@alone(lambda options: options.output)
def seeds(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    config: Any = load_config(options.config or base.__file__, overrides)
    if config.judge.method == "expected":
        raise UserError(
            "config.judge.method: expected gives means and no scores that a judgement could say; use sampled or"
            " completion."
        )
    template = JudgeTemplate(config.judge.template)
    template.check_method(config.judge.method)
    if options.ift and options.ift_rows:
        raise UserError("--ift_rows: with --ift the demonstrations are given, and none are made; leave one out.")
    ift_rows = 0 if options.ift else 3200 if options.ift_rows is None else options.ift_rows
    ranked, steps = load_ranked(options.data, options.lang)
    taken = {prompt_key(d.messages) for spec in options.ift for d in load_ift(spec)}
    taken |= {key for path in options.exclude for key in read_rows(path, _key_of, "rows with prompt")}
    split = split_prompts(ranked, taken, ift_rows, options.eft_rows, options.eft_validation_rows, config.seed)
    _check_split(split, ranked, taken, options, ift_rows)

    desk = Desk(options.output, config, interrupt)
    ref = desk.ref(options.model) if options.model else None
    # The sets follow from these alone, so nothing here is about models.
    asked = {
        "prompts": content_id([[r.key, r.held_out, [[a.text, a.rank] for a in r.answers]] for r in ranked]),
        "taken": content_id(sorted(taken)),
        "ift_rows": ift_rows,
        "eft_rows": options.eft_rows,
        "eft_validation_rows": options.eft_validation_rows,
        "seed": config.seed,
    }
    judging = _judging(options, config, ref)
    _claim(desk, {"sets": asked, "judging": judging})

    if ift_rows:
        rows = [_demonstration(r) for r in split.ift]
        desk.write("ift.jsonl", {"stage": "seeds", **asked}, to_lines(rows))
    for name, part in (("train", split.eft), ("validation", split.held_out)):
        desk.write(f"ranked_{name}.jsonl", {"stage": "seeds", **asked}, to_lines([_ranked(r, name) for r in part]))
    if others := sum(r.key in taken for r in ranked):
        steps.append(Step("in --ift or --exclude", "prompts", others, len(ranked) - others))
    counts: dict[str, Any] = {"read": _as_rows(steps), "sets": _sizes(split)}
    made: dict[str, EftSet] = {}
    if ref:
        rules = EftRules(options.min_gap, options.min_words, options.max_share)
        wanted = {"train": options.eft_rows, "validation": options.eft_validation_rows}
        parts = _limited(split, options.eft_prompts, wanted)
        for name, part in parts.items():
            judgements = judge_ranked(desk, f"judged_{name}", ref, part)
            made[name] = build_eft(part, judgements, rules, wanted[name], config.seed, template.scale)
            _write_eft(desk, name, made[name], {"stage": "eft", **asked, **judging, **vars(rules)})
        counts["eft"] = {name: {"steps": _as_rows(x.steps), **x.facts} for name, x in made.items()}
    desk.write("counts.json", {"stage": "seeds", **asked, **judging}, json.dumps(counts, indent=2) + "\n")
    if is_writer():
        _show(desk.root, options, config, steps, split, ift_rows, made)
    if "train" in made and not made["train"].rows:
        raise UserError(
            f"{options.model}: none of its judgements agrees with the people's order, so {desk.root / 'eft.jsonl'} is"
            " empty; judge more often (--config.judge.samples), or use a better judge."
        )


# ---------------------------------------------------------------------------------------------------------------------
# What was asked for


def _key_of(row: Row) -> str:
    return prompt_key(as_messages(row["prompt"]))


def _judging(options: argparse.Namespace, config: Any, ref: ModelRef | None) -> dict[str, Any]:
    """All that the judgements follow from."""
    if ref is None:
        return {}
    settings = {"judge": config.judge.to_dict(), "generation": config.generation.to_dict(), "dtype": config.model.dtype}
    template = content_id(JudgeTemplate(config.judge.template).text)
    return {"model": ref.hash, "template": template, "eft_prompts": options.eft_prompts, **settings}


def _claim(desk: Desk, asked: dict[str, Any]) -> None:
    """Refuses a folder with other sets in it, or judgements by another judge, since these would be lost.

    Raises:
      UserError: so it is; it says what differs.
    """
    path = desk.root / REQUEST
    asked = json.loads(json.dumps(asked))
    if path.exists():
        before = read_json(path, needs={"sets": dict, "judging": dict})
        for part, what in (("sets", "sets of another request"), ("judging", "judgements of another judge")):
            old, new = before[part], asked[part]
            if old and new and old != new:
                fields = ", ".join(sorted(name for name in {*old, *new} if old.get(name) != new.get(name)))
                raise UserError(
                    f"--output={desk.root}: holds {what} (another {fields}); choose a new folder, or repeat what this"
                    " one was made with."
                )
        asked = {part: asked[part] or before[part] for part in asked}
    desk.write(REQUEST, {}, json.dumps(asked, indent=2) + "\n")


def _check_split(
    split: SeedSplit, ranked: Sequence[Ranked], taken: set[str], options: argparse.Namespace, ift_rows: int
) -> None:
    where = ", ".join(options.data)
    left = [r for r in ranked if r.key not in taken]
    if not left:
        raise UserError(f"{where}: all {len(ranked)} prompts are in --ift or --exclude too; nothing is left.")
    if ift_rows and not split.ift:
        raise UserError(
            f"{where}: no prompt for training has one best answer (rank 0), so there is none for ift.jsonl."
        )
    comparable = sum(r.comparable for r in left)
    if not comparable:
        raise UserError(
            f"{where}: no prompt has answers of different rank ({len(left)} prompts, all ranks equal or only one), so"
            " there is nothing to judge."
        )
    if options.eft_rows and not split.eft:
        why = "belong to a split for testing" if any(r.held_out for r in left) else "are needed for the other sets"
        raise UserError(f"{where}: all {comparable} prompts with ranked answers {why}; none is left to judge.")
    short = ift_rows - len(split.ift)
    if short > 0:
        say(f"IFT: {len(split.ift)} of {ift_rows} rows; EFT needs the other prompts, or they have no best answer")


def _limited(split: SeedSplit, most: int, wanted: dict[str, int]) -> dict[str, Sequence[Ranked]]:
    """The prompts to judge: all, or `most` for training and as many for validation as its rows are in proportion."""
    held_out = round(most * wanted["validation"] / max(wanted["train"], 1))
    return {
        "train": split.eft[: most or None],
        **({"validation": split.held_out[: held_out or None]} if wanted["validation"] and split.held_out else {}),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _demonstration(r: Ranked) -> Row:
    assert r.best
    return {"id": r.key, "prompt": plain_prompt(r.prompt), "response": r.best.text}


def _ranked(r: Ranked, split: str) -> Row:
    responses = [{"text": a.text, "rank": a.rank} for a in r.answers]
    return {"id": r.key, "split": split, "prompt": plain_prompt(r.prompt), "responses": responses}


def _write_eft(folder: Folder, name: str, made: EftSet, inputs: dict[str, Any]) -> None:
    stem = "eft" if name == "train" else "eft_validation"
    folder.write(f"{stem}.jsonl", inputs, to_lines(made.rows))
    folder.write(f"{stem}_dropped.jsonl", inputs, to_lines(made.dropped))


def _sizes(split: SeedSplit) -> dict[str, dict[str, int]]:
    parts = {"ift": split.ift, "eft": split.eft, "held_out": split.held_out}
    return {name: {"prompts": len(p), "answers": sum(len(r.answers) for r in p)} for name, p in parts.items()}


def _as_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [vars(step) for step in steps]


# ---------------------------------------------------------------------------------------------------------------------
# For people


def _show(
    root: epath.Path,
    options: argparse.Namespace,
    config: Any,
    steps: Sequence[Step],
    split: SeedSplit,
    ift_rows: int,
    made: dict[str, EftSet],
) -> None:
    console = Terminal(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    table = Table(title="Seeds", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("left out", justify="right")
    table.add_column("left", justify="right")
    table.add_column("")
    _lines(table, "the data", steps)
    sizes = _sizes(split)
    table.add_section()
    table.add_row("[bold]the sets[/bold]", "", "", "")
    for name, what in (("ift", "IFT"), ("eft", "EFT"), ("held_out", "held out")):
        table.add_row(f"  {what}", "", str(sizes[name]["prompts"]), "prompts")
    for name, x in made.items():
        _lines(table, "EFT" if name == "train" else "EFT, validation", x.steps)
    console.print(table)
    for name, x in made.items():
        rate, chance = x.facts["agreement"], x.facts["agreement_by_chance"]
        if rate is not None:
            title = "EFT" if name == "train" else "EFT, validation"
            share = f"{x.facts['agreeing']} of {x.facts['comparable']} prompts ({rate:.0%})"
            console.print(f"{title}: {share} agree with people; by chance {chance:.0%} would")
            hists = (x.facts[key] for key in ("score_hist_judged", "score_hist_agreeing", "score_hist"))
            shown = " → ".join("/".join(map(str, h)) for h in hists)
            console.print(f"  scores 0/1/2/3/4/5, judged → agreeing → kept: {shown}")
    files: list[tuple[str, str]] = []
    if ift_rows:
        files.append(("ift.jsonl", f"{sizes['ift']['prompts']} demonstrations"))
    for name, stem in (("train", "eft"), ("validation", "eft_validation")):
        if name in made:
            files.append((f"{stem}.jsonl", f"{len(made[name].rows)} judgements; left out: {stem}_dropped.jsonl"))
    for name, part in (("ranked_train.jsonl", "eft"), ("ranked_validation.jsonl", "held_out")):
        files.append((name, "{prompts} prompts, {answers} ranked answers".format(**sizes[part])))
    files.append(("counts.json", "the table"))
    if "train" in made and (short := options.eft_rows - len(made["train"].rows)) > 0:
        console.print(f"{short} of {options.eft_rows} EFT rows are missing; {_more(made['train'], config)}")
    for name, what in files:
        console.print(f"  {root / name}: {what}")
    console.print("\n".join(_next(root, options, ift_rows, bool(made))))


def _more(made: EftSet, config: Any) -> str:
    """What would help where there are too few rows."""
    if made.facts["with_score"] < 0.5 and config.judge.method != "completion":
        return "few judgements have a score: --config.judge.method=completion gives each one, in a new folder"
    samples = config.judge.samples
    return f"more judgements, such as --config.judge.samples={2 * samples}, in a new folder, or more prompts give more"


def _lines(table: Table, title: str, steps: Sequence[Step]) -> None:
    table.add_section()
    table.add_row(f"[bold]{title}[/bold]", "", "", "")
    for step in steps:
        table.add_row(f"  {step.what}", str(step.left_out) if step.left_out else "-", str(step.left), step.unit)


def _next(root: epath.Path, options: argparse.Namespace, ift_rows: int, judged: bool) -> list[str]:
    ift = root / "ift.jsonl" if ift_rows else options.ift[0] if options.ift else "IFT.jsonl"
    config = f"--config={options.config or 'CONFIG.py'}"
    if judged:
        seeds = f"--config.seeds.ift={ift} --config.seeds.eft={root / 'eft.jsonl'}"
        return [
            f"Learn from them:    selfreward run {config} --workdir=RUN {seeds}",
            f"How well it judges: selfreward eval judge --workdir=RUN --data={root / 'ranked_validation.jsonl'}",
        ]
    return [
        f"The judge for EFT:  selfreward sft {config} --workdir=SFT --config.seeds.ift={ift} --config.seeds.eft=",
        "Then:               the same command again with --model=SFT/m1",
    ]
