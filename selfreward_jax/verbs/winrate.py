"""`eval winrate`: two sides on the same prompts, or the models of a run among themselves."""

import argparse
from collections.abc import Mapping, Sequence
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
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.readers import fingerprint, is_data, stem
from selfreward_jax.core.rows import Row, content_id, draw
from selfreward_jax.evals.answer_files import (
    Answer,
    Question,
    check_same,
    load_answers,
    load_questions,
    match,
    questions_of,
)
from selfreward_jax.evals.desk import Desk, model_name
from selfreward_jax.evals.head_to_head import RESULT, ROWS, Asked, Referee, Side, answered, given, head_to_head
from selfreward_jax.evals.winrate_table import category_table, winrate_table
from selfreward_jax.llama.load import MODEL_FILE, locate, read_config
from selfreward_jax.methods.judging import JudgeTemplate
from selfreward_jax.methods.pairwise import PairwiseTemplate
from selfreward_jax.stages.judge import needs_sampling
from selfreward_jax.stages.run import models_of
from selfreward_jax.verbs.runs import Overrides, config_of_run


@alone(lambda options: _place(options))
def winrate(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if bool(options.workdir) == bool(options.sides) or len(options.sides) not in (0, 2):
        raise UserError("eval winrate: give two sides, A and B, or --workdir=RUN.")
    config = _config(options, overrides)
    template = PairwiseTemplate(options.template)
    if options.workdir:
        results, desk = _of_run(options, config, template, interrupt)
    else:
        results, desk = _of_two(options, config, template, interrupt)
    _show(results, desk)


def _place(options: argparse.Namespace) -> epath.PathLike:
    """The evaluation's folder; "" where options are missing, of which more is said."""
    if options.output or not (options.workdir and options.prompts):
        return options.output
    return local_path(options.workdir) / "eval" / "winrate" / stem(options.prompts)


def _of_two(
    options: argparse.Namespace, config: Any, template: PairwiseTemplate, interrupt: Interrupt
) -> tuple[list[Row], Desk]:
    if not options.judge or not options.output:
        raise UserError("eval winrate A B: give --judge=MODEL and --output=DIR.")
    files = {path: load_answers(path) for path in options.sides if is_data(path)}
    asked = _asked(options, files, config.seed)
    texts = {path: match(path, answers, asked.questions) for path, answers in files.items()}
    for name, path in (("A", options.sides[0]), ("B", options.sides[1]), ("--judge", options.judge)):
        if name == "--judge" or path not in files:
            check_model(name, path)
    desk = Desk(options.output, config, interrupt)
    sides_by = {"a": options.sides[0], "b": options.sides[1]}
    settings = _settings(options, config, template, asked, options.judge) | sides_by
    settings |= {"files": {path: fingerprint(path) for path in files}}
    desk.claim(RESULT, settings)
    names = dict(zip(options.sides, _names(options.sides), strict=True))

    def side(path: str) -> Side:
        name = names[path]
        if path in files:
            return given(name, path, asked.questions, texts[path])
        return answered(desk, name, path, desk.ref(path), asked.questions)

    a, b = map(side, options.sides)
    referee = Referee(options.judge, desk.ref(options.judge), options.score, _samples(options, config), template)
    return [head_to_head(desk, "", asked, a, b, referee, settings)], desk


def _of_run(
    options: argparse.Namespace, config: Any, template: PairwiseTemplate, interrupt: Interrupt
) -> tuple[list[Row], Desk]:
    if not options.prompts:
        raise UserError("eval winrate --workdir=RUN: give --prompts=FILE.")
    root = local_path(options.workdir)
    names = models_of(root)
    if len(names) < 2:
        raise UserError(f"--workdir={root}: has {len(names)} of its models M1 to MT; two are needed to compare.")
    pairs = [(names[t], names[t - 1]) for t in range(1, len(names))]
    pairs += [(name, names[0]) for name in names[2:]]
    asked = _asked(options, {}, config.seed)
    judge, judge_path = _judge_of_run(options, root, names)
    desk = Desk(_place(options), config, interrupt)
    settings = _settings(options, config, template, asked, judge)
    desk.claim(RESULT, settings)
    if not options.judge:
        say(f"{judge} judges its own answers too; --judge=MODEL asks another")
    sides = {}
    for n in names:
        sides[n] = answered(desk, n.upper(), str(root / n), desk.ref(str(root / n)), asked.questions, n)
    referee = Referee(judge, desk.ref(judge_path), options.score, _samples(options, config), template)
    return [head_to_head(desk, f"{a}_{b}", asked, sides[a], sides[b], referee, settings) for a, b in pairs], desk


def _names(sides: Sequence[str]) -> list[str]:
    """The sides for people: m2 and m1 of one run; else the run's name with it; whole paths where those are the same."""
    folders, last = zip(*(p.rstrip("/").rpartition("/")[::2] for p in sides), strict=True)
    if len(set(folders)) == 1 and len(set(last)) == len(last):
        return list(last)
    names = [model_name(p) for p in sides]
    return names if len(set(names)) == len(names) else list(sides)


def _config(options: argparse.Namespace, overrides: Overrides) -> ConfigDict:
    """The given file's, the run's, or every default; with overrides, and one answer a prompt."""
    if options.workdir and not options.config:
        config: Any = override(config_of_run(local_path(options.workdir)), overrides)
    else:
        config = load_config(options.config or str(base.__file__), overrides)
    config.respond.n = 1
    if options.score == "absolute":
        config.judge.samples = options.samples or config.judge.samples
        config.judge.min_parsed = min(config.judge.min_parsed, config.judge.samples)
    return config


def _samples(options: argparse.Namespace, config: Any) -> int:
    """Verdicts in each order, or scores an answer; a reading without sampling gives one."""
    if not needs_sampling(config.judge.method, config.judge.rationale):
        return 1
    return config.judge.samples if options.score == "absolute" else options.samples or 1


def _asked(options: argparse.Namespace, files: Mapping[str, Sequence[Answer]], seed: int) -> Asked:
    """The prompts: of `--prompts`, else those that the files of answers bring."""
    if options.prompts:
        data, questions = options.prompts, load_questions(options.prompts)
    elif files:
        data = next(iter(files))
        sides = {path: questions_of(path, answers) for path, answers in files.items()}
        questions: list[Question] = sides[data]
        if len(sides) == 2:
            first, second = sides
            check_same((first, second), (sides[first], sides[second]))
    else:
        raise UserError("eval winrate A B: give --prompts=FILE for the models to answer.")
    return Asked(data, fingerprint(data), tuple(draw(questions, options.max_prompts, seed)))


def _settings(
    options: argparse.Namespace, config: Any, template: PairwiseTemplate, asked: Asked, judge: str
) -> dict[str, Any]:
    """What all results of this call share."""
    text = template.text if options.score == "pairwise" else JudgeTemplate(config.judge.template).text
    return {
        "judge": judge,
        "score": options.score,
        "samples": _samples(options, config),
        "template": content_id(text),
        "prompts": content_id([[q.prompt.id, q.category] for q in asked.questions]),
        "judging": config.judge.to_dict(),
        "answering": config.respond.to_dict(),
        "generation": config.generation.to_dict(),
        "dtype": config.model.dtype,
        "seed": config.seed,
    }


def check_model(what: str, path: str) -> None:
    """Raises `UserError` if there is no model at a path, before any other has begun to answer."""
    try:
        location = locate(path, "config")
        if not (location.is_dir() and (location / MODEL_FILE).exists()):
            read_config(path)
    except UserError as error:
        raise UserError(f"eval winrate: {what}: {str(error).removeprefix('model.path: ')}") from None


def _judge_of_run(options: argparse.Namespace, root: epath.Path, names: Sequence[str]) -> tuple[str, str]:
    """Name and path: the run's last model, another of its models by name, or any by path."""
    name = options.judge or names[-1]
    if (root / name / MODEL_FILE).exists():
        return name.upper(), str(root / name)
    check_model("--judge", name)
    return name, name


def _show(results: Sequence[Row], desk: Desk) -> None:
    """The tables, and where everything lies; of several processes, one prints them."""
    if not hosts.is_writer():
        return
    console = Terminal(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 160
    for shown in (winrate_table(results), category_table(results)):
        if shown:
            console.print(shown)
    for r in results:
        if r["agreement"] is not None and r["agreement"] < 0.5:
            console.print(
                f"{r['judge']} contradicts itself on {1 - r['agreement']:.0%} of the prompts when the answers change"
                " places: such ties say little. A stronger judge, --samples, or --score=absolute may say more"
            )
        for name in ("a", "b"):
            if r["n"] > 1 and r[f"distinct_{name}"] < 0.5:
                console.print(
                    f"{r[name]['name']}: most of its answers are the same text; read them before you trust this"
                )
    console.print(f"Results      {desk.root}, result.json; to read, {ROWS}: both answers and the verdicts")
