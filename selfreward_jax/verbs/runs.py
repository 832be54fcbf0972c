"""`run`, and each stage of a run by itself."""

import argparse
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.configs import base
from selfreward_jax.core.config import check, load_config
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.lock import alone
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Judgement, Pair, Prompt, Response, load_rows
from selfreward_jax.core.stored import as_written
from selfreward_jax.loop import score_last, self_reward
from selfreward_jax.report.make import report_on
from selfreward_jax.stages import dpo as dpo_stage
from selfreward_jax.stages import dry_run, summary
from selfreward_jax.stages import judge as judge_stage
from selfreward_jax.stages import pairs as pairs_stage
from selfreward_jax.stages import prompts as prompts_stage
from selfreward_jax.stages import respond as respond_stage
from selfreward_jax.stages import sft as sft_stage
from selfreward_jax.stages.run import Run, stored_config

Overrides = Sequence[str]


def _config(options: argparse.Namespace, overrides: Overrides) -> ConfigDict:
    """The configuration file with its overrides, or the workdir's own."""
    if options.config:
        return load_config(options.config, overrides)
    path = local_path(options.workdir) / "config.json"
    if not path.exists() and not (path.parent / "manifest.jsonl").exists():
        raise UserError(f"--workdir={options.workdir}: no run there yet; give --config=FILE to begin one.")
    if overrides:
        raise UserError(f"{overrides[0]}: give --config=FILE too; the configuration of a run is not changed in place.")
    return config_of_run(path.parent)


def config_of_run(root: epath.Path) -> ConfigDict:
    """The configuration of the run in a folder. Raises `UserError` if there is none."""
    config: Any = base.get_config()
    with config.ignore_type(), as_written(root / "config.json"):
        config.update(stored_config(root))
    config.prompts.keywords = tuple(config.prompts.keywords)
    config.respond.stop = tuple(config.respond.stop)
    config.lora.targets = tuple(config.lora.targets)
    check(config)
    return config


def _workdir(options: argparse.Namespace) -> str:
    return "" if getattr(options, "dry_run", False) else options.workdir


def _open(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> Run:
    work = Run(options.workdir, _config(options, overrides), resume=options.resume, interrupt=interrupt)
    work.profile = getattr(options, "profile", None)
    return work


@alone(_workdir)
def run(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    before = list(work.manifest.artefacts())
    self_reward(work)
    done = before == list(work.manifest.artefacts())
    rows = summary.summarise(work)
    work.check_rest()
    if done:
        say("all is done already")
    report_on(work.root)
    summary.show(work, rows)


@alone(_workdir)
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
    artefact = f"m{t}/{name}.jsonl"
    path = work.intact(artefact) if work.manifest.entry(artefact) else work.root / artefact
    if not path.exists():
        raise UserError(f"{path}: not there yet; run the stage that makes it first.")
    return load_rows(path, kind) if path.stat().length else []  # no pair at all is a result too


@alone(_workdir)
def prompts(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    made = prompts_stage.create_prompts(work, t, work.ref(f"m{t - 1}" if t > 1 else "m0"))
    say(f"{len(made)} prompts lie in {work.root / f'm{t}' / 'prompts.jsonl'}")


@alone(_workdir)
def respond(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    made = respond_stage.respond(work, f"m{t}", work.ref(f"m{t - 1}"), _rows(work, t, "prompts", Prompt))
    say(f"{len(made)} answers lie in {work.root / f'm{t}' / 'responses.jsonl'}")


@alone(_workdir)
def judge(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    rows = _rows(work, t, "prompts", Prompt), _rows(work, t, "responses", Response)
    made = judge_stage.judge(work, f"m{t}", work.grader(work.ref(f"m{t - 1}")), *rows)
    say(f"{len(made)} judgements lie in {work.root / f'm{t}' / 'judgements.jsonl'}")


@alone(_workdir)
def pairs(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    kinds = {"prompts": Prompt, "responses": Response, "judgements": Judgement}
    rows = [_rows(work, t, name, kind) for name, kind in kinds.items()]
    made = pairs_stage.build_pairs(work, t, work.ref(f"m{t - 1}"), *rows)
    say(f"{len(made)} pairs lie in {work.root / f'm{t}' / 'pairs.jsonl'}, what was left out in dropped.jsonl beside it")


@alone(_workdir)
def dpo(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if options.dry_run:
        return dry_run.show(_config(options, overrides), "dpo")
    work = _open(options, overrides, interrupt)
    t = _iteration(options, work)
    given = dpo_stage.given_preferences(work)
    model = dpo_stage.preference_train(work, t, given or _rows(work, t, "pairs", Pair))
    if t == work.config.loop.iterations and work.config.loop.score_last and not given:
        score_last(work, model)
    if t == work.config.loop.iterations:
        report_on(work.root)
    summary.show(work, summary.summarise(work))
