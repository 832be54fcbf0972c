"""A run's own files, as a disk, another version or a person may have left them."""

import functools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from etils import epath

from selfreward_jax.core.rows import Judgement, Pair, Prompt, Response, load_rows, read_jsonl
from selfreward_jax.core.store import Manifest
from selfreward_jax.report.collect import collect
from selfreward_jax.report.page import render
from selfreward_jax.report.results import read_results
from selfreward_jax.stages.run import stored_config
from selfreward_jax.verbs.runs import config_of_run
from tests import tiny
from tests.fuzz.harness import command, data
from tests.fuzz.mutate import as_json, as_lines, mutated

Thunk = Callable[[], object]
KINDS = {"prompts": Prompt, "responses": Response, "judgements": Judgement, "pairs": Pair}
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
JUDGED = [
    {
        "kind": "judge", "model": "M1", "prompts": 5, "judgements": 15, "parse_rate": 0.9,
        "metrics": {"pairwise_accuracy": INTERVAL, "spearman": INTERVAL},
        "baselines": {"length": {"pairwise_accuracy": INTERVAL}},
        "calibration": [{"score": 1, "mean_human": 0.5}, {"score": 4, "mean_human": 0.2}],
    }
]  # fmt: skip
COMPARED = {
    "a": {"name": "m2"}, "b": {"name": "m1"}, "judge": "M3", "n": 6, "sign_test_p": 0.5, "agreement": 0.7,
    "length_a": 5.0, "length_b": 6.0, "by_category": {"x": {"win": 1, "tie": 0, "lose": 2}},
    **dict.fromkeys(("win", "tie", "lose", "win_rate", "lc_win_rate"), INTERVAL),
}  # fmt: skip


@functools.cache
def template(whole: bool) -> dict[str, bytes]:
    """The files of a finished run, with its models or without."""
    run = data() / "tiny-run"
    files = [p for p in sorted(run.rglob("*")) if p.is_file()]
    kept = [p for p in files if whole or (p.suffix in (".json", ".jsonl") and p.name != "tokenizer.json")]
    return {str(p.relative_to(run)): p.read_bytes() for p in kept if p.name != "report.html" and "tb" not in p.parts}


def a_run(folder: Path, whole: bool = False) -> Path:
    for name, content in template(whole).items():
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if not whole:
        for name, value in (("judge/people/summary.json", JUDGED), ("winrate/people/m2_m1/result.json", COMPARED)):
            path = folder / "run" / "eval" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(tiny.json.dumps(value))
    return folder / "run"


def damaged(rng: random.Random, path: Path) -> None:
    """Changes a file: a value in a line, its bytes; or what it is."""
    what, before = rng.random(), path.read_bytes()
    if what < 0.08:
        path.unlink()
        if what < 0.02:
            path.mkdir()
        elif what < 0.03:
            path.symlink_to(path)
        elif what < 0.04:
            os.mkfifo(path)
    elif what < 0.2 or path.suffix not in (".json", ".jsonl"):
        path.write_bytes(mutated(rng, before))
    elif path.suffix == ".json":
        path.write_bytes(as_json(rng, tiny.json.loads(before)))
    else:
        rows = [tiny.json.loads(line) for line in before.splitlines()]
        path.write_bytes(as_lines(rng, rows) if rows else mutated(rng, before))


def rows_of(kind: str) -> Callable[[random.Random, Path], Thunk]:
    def target(rng: random.Random, folder: Path) -> Thunk:
        rows = [tiny.json.loads(line) for line in template(False)[f"m2/{kind}.jsonl"].splitlines()][:3]
        (folder / "rows.jsonl").write_bytes(as_lines(rng, rows))
        return lambda: load_rows(folder / "rows.jsonl", KINDS[kind])

    return target


def untyped_rows(rng: random.Random, folder: Path) -> Thunk:
    (folder / "metrics.jsonl").write_bytes(as_lines(rng, [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]))
    return lambda: read_jsonl(folder / "metrics.jsonl")


def manifest(rng: random.Random, folder: Path) -> Thunk:
    (folder / "manifest.jsonl").write_bytes(template(False)["manifest.jsonl"])
    damaged(rng, folder / "manifest.jsonl")
    return lambda: Manifest(epath.Path(folder)).artefacts()


def config(rng: random.Random, folder: Path) -> Thunk:
    (folder / "config.json").write_bytes(template(False)["config.json"])
    damaged(rng, folder / "config.json")
    return functools.partial(rng.choice((stored_config, config_of_run)), epath.Path(folder))


def collected(rng: random.Random, folder: Path) -> Thunk:
    """A report's facts; now and then the whole page, which takes a second."""
    run = a_run(folder)
    files = sorted(p for p in run.rglob("*") if p.is_file())
    for path in rng.sample(files, rng.choice((1, 1, 2))):
        damaged(rng, path)
    if (
        rng.random() < 0.5 and (run / "manifest.jsonl").is_file()
    ):  # else most changes are noticed before anything is read
        (run / "manifest.jsonl").unlink()
    whole = rng.random() < 0.1
    facts = functools.partial(collect, epath.Path(run), samples=3)
    return (lambda: render(facts())) if whole else facts


def results(rng: random.Random, folder: Path) -> Thunk:
    for name, value in (("judge/people/summary.json", JUDGED), ("winrate/people/m2_m1/result.json", COMPARED)):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(as_json(rng, value))
    return lambda: read_results(epath.Path(folder))


def finished(rng: random.Random, folder: Path) -> Thunk:
    """Verbs that only look at a run that is done, after something in it has changed."""
    run = a_run(folder, whole=True)
    shutil.rmtree(run / "m1" / "checkpoints")  # so that nothing long can begin anew
    files = sorted(p for p in run.rglob("*") if p.suffix in (".json", ".jsonl", ".sha256", ".jinja"))
    damaged(rng, rng.choice(files))
    verb = rng.choice(("pairs", "prompts", "respond", "judge"))
    words = ([verb], tiny.arguments(verb, run, data() / "tiny-data"))[rng.random() < 0.5]
    return command([*words, f"--workdir={run}", f"--iteration={rng.choice((2, 3))}"])


TARGETS = {
    **{kind: rows_of(kind) for kind in KINDS},
    "untyped_rows": untyped_rows,
    "manifest": manifest,
    "config": config,
    "collected": collected,
    "collected_too": collected,
    "results": results,
    "finished": finished,
}
