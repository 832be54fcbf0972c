"""Evaluations: `eval judge`."""

import argparse
import re
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.configs import base
from selfreward_jax.core import hosts
from selfreward_jax.core.config import load_config, override
from selfreward_jax.core.console import Terminal
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.lock import alone
from selfreward_jax.core.paths import local_path, matching
from selfreward_jax.core.progress import say
from selfreward_jax.core.readers import fingerprint, stem
from selfreward_jax.evals.desk import Desk
from selfreward_jax.evals.human import HumanData, load_human
from selfreward_jax.evals.judge_eval import Asked, Judge, evaluate_judges
from selfreward_jax.evals.judge_table import judge_table
from selfreward_jax.llama.load import MODEL_FILE
from selfreward_jax.stages.run import models_of
from selfreward_jax.verbs.runs import Overrides, config_of_run


@alone(lambda options: options.output or (options.workdir and _own_folder(options.workdir, options.data)))
def judge(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if not options.workdir and not (options.model and options.output):
        raise UserError("eval judge: give --workdir=RUN, or --model=DIR and --output=DIR.")
    if bool(options.reference) != (options.reward == "implicit"):
        raise UserError("eval judge: --reward=implicit and --reference=DIR go together.")
    config: Any = _config(options, overrides)
    data = load_human(options.data, split=options.split, max_prompts=options.max_prompts, seed=config.seed)
    _tell(data)
    places = _places(options)  # before a folder is made
    root = local_path(options.output) if options.output else _own_folder(options.workdir, options.data)
    desk = Desk(root, config, interrupt)
    reference = desk.ref(_place_of(options, options.reference)) if options.reference else None
    judges = [Judge(name, folder, desk.ref(path)) for name, folder, path in places]
    asked = Asked(options.data, fingerprint(options.data), options.split, options.max_prompts)
    results = evaluate_judges(desk, judges, asked, data, reference)
    if hosts.is_writer():
        console = Terminal(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = 160
        console.print(judge_table(results))
        say(f"results lie in {desk.root / 'summary.json'}; rows, judgements and result of each model beside it")


def _config(options: argparse.Namespace, overrides: Overrides) -> ConfigDict:
    """The given file's, the run's, or every default; with overrides."""
    if options.workdir and not options.config:
        return override(config_of_run(local_path(options.workdir)), overrides)
    return load_config(options.config or str(base.__file__), overrides)


def _own_folder(workdir: str, data: str) -> epath.Path:
    return local_path(workdir) / "eval" / "judge" / stem(data)


def _places(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Name, folder and path of each model that is asked for."""
    if not options.workdir:
        return [(path, safe_name(path), path) for path in dict.fromkeys(options.model)]
    root = local_path(options.workdir)
    if not (names := dict.fromkeys(options.model) or models_of(root)):
        raise UserError(f"{root}: has no model yet; run it first, or give --model=m0.")
    return [(name.upper(), name, _place_of(options, name)) for name in names]


def _place_of(options: argparse.Namespace, name: str) -> str:
    """A path, or in a run the name of one of its models."""
    if not options.workdir:
        return name
    root = local_path(options.workdir)
    if (root / name / MODEL_FILE).exists():
        return str(root / name)
    known = [p.name for p in matching(root, "m*") if (p / MODEL_FILE).exists()]
    raise UserError(f"{root}: has no model {name}; it has {', '.join(sorted(known)) or 'none yet'}.")


def safe_name(path: str) -> str:
    """A model's path as the name of one folder."""
    return re.sub(r"[^\w.-]+", "-", path).strip("-.") or "model"


def _tell(data: HumanData) -> None:
    """A line on what is left out."""
    left = [f"{data.equal_ranks} prompts whose answers all have the same rank"] * bool(data.equal_ranks)
    left += [f"{data.single_answer} prompts with one answer"] * bool(data.single_answer)
    left += [f"{data.no_answer} prompts without a ranked answer"] * bool(data.no_answer)
    left += [f"{data.unranked} answers without a rank or a score"] * bool(data.unranked)
    if left:
        say(f"eval judge: {' and '.join(left)} can't be measured and are left out")
