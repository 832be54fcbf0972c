"""Reads a run's folder into plain facts; how they look is not decided here.

A run in the making has fewer of them: what has been finished is read, what has not is None or empty.
"""

import collections
import contextlib
import dataclasses
import functools
import random
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from etils import epath

from selfreward_jax.core.config import leaves
from selfreward_jax.core.errors import UserError, shown
from selfreward_jax.core.rows import (
    Judgement,
    Prompt,
    Response,
    Row,
    from_dict,
    group_by,
    last_request,
    lines_of,
    load_rows,
    measures,
    parse_lines,
    read_jsonl,
)
from selfreward_jax.core.seeds import Messages, load_eft, load_ift
from selfreward_jax.core.store import Manifest
from selfreward_jax.core.stored import as_written, loads
from selfreward_jax.evals.statistics import Interval, bootstrap
from selfreward_jax.llama.load import MODEL_FILE
from selfreward_jax.methods.answer_metrics import answer_metrics
from selfreward_jax.methods.judging import mean_score
from selfreward_jax.report.results import Results, read_results
from selfreward_jax.report.samples import Judged, PairFacts, as_json, choose
from selfreward_jax.report.topics import SEEDS
from selfreward_jax.stages.judge import scores_needed
from selfreward_jax.stages.run import stored_config

T = TypeVar("T")
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model was trained.

    Attributes:
      curve: a row a step, as in `metrics.jsonl`; in the making it ends early.
      first, last: means over the first and last tenth of the steps; empty in the making.
      data: how many rows it learnt from.
      has_reference: whether rewards are measured against a frozen model.
    """

    stage: str
    steps: int
    curve: tuple[Row, ...]
    first: Row
    last: Row
    data: Row
    has_reference: bool


@dataclasses.dataclass(frozen=True)
class Answers:
    """How a model answered and judged itself.

    Attributes:
      metrics: of `answer_metrics`.
      mean_score: with its interval over prompts, in points.
      tokens: length of each answer, [N].
      scores: mean score of each answer, NaN where it has none, [N].
    """

    metrics: Row
    mean_score: Interval
    tokens: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
    """M_t with its training and its answers, as far as they exist."""

    name: str
    hash: str
    training: Training | None
    answers: Answers | None


@dataclasses.dataclass(frozen=True)
class Iteration:
    """What made M_t: prompts, and what became of them.

    Attributes:
      prompts: their texts.
      rejected: candidates that the filters threw out, by reason; None where prompts came from a file.
      ranked: prompts with at least two answers that have a score; None where it isn't known yet.
      pairs: None where they have not been made yet.
      dropped_prompts, dropped_answers: what was left out, by reason.
    """

    t: int
    prompts: tuple[str, ...]
    rejected: dict[str, int] | None
    ranked: int | None
    pairs: tuple[PairFacts, ...] | None
    dropped_prompts: dict[str, int]
    dropped_answers: dict[str, int]


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """All that the report tells.

    Attributes:
      models: M0 to the newest.
      seeds: texts of the prompts in the IFT and in the EFT seeds, each once.
      samples: prompts with their answers, for the browser.
      settings: fields of the configuration.
    """

    name: str
    finished: bool
    models: tuple[Model, ...]
    iterations: tuple[Iteration, ...]
    seeds: dict[str, tuple[str, ...]]
    samples: tuple[Row, ...]
    results: Results
    settings: dict[str, Any]
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Drop:
    """A prompt or an answer (of `response_id`) that became no pair, as `dropped.jsonl` has it."""

    prompt_id: str
    response_id: str | None
    reason: str


def collect(root: epath.Path, *, samples: int, seed: int = 0) -> RunFacts:
    """Reads a run's folder.

    Args:
      samples: how many prompts the browser may have, over all iterations.
      seed: of the choice.

    Raises:
      UserError: there is no run, or a file of it is damaged.
    """
    config = _Section(stored_config(root))
    manifest = Manifest(root)
    for entry in manifest.artefacts():  # what is read below; what was deleted, the report does without
        if entry["artefact"].endswith(".jsonl") and (root / entry["artefact"]).exists():
            manifest.intact(entry["artefact"], f"selfreward run --workdir={root} makes it again")
    try:
        T, min_parsed = config.loop.iterations, scores_needed(config.judge)
        seeds = _seeds(config.seeds.ift, config.seeds.eft)
    except AttributeError as error:
        raise UserError(f"{root / 'config.json'}: the field {error} is missing; restore it.") from None
    folders = {t: f"m{t + 1}" if t < T else f"m{T}/eval" for t in range(1, T + 1)}
    there = [folder for folder in folders.values() if (root / folder / "judgements.jsonl").exists()]
    share = {folder: samples // len(there) + (n < samples % len(there)) for n, folder in enumerate(there)}

    rng = random.Random(seed)
    models, iterations, told = [_base(root, manifest)], [], []
    for t, folder in folders.items():
        prompts = _prompts(root, T if t == T else t + 1)
        drops = [] if t == T else _rows(root / folder / "dropped.jsonl", _drop)
        made = None if t == T else _iteration(root, t + 1, prompts, drops)
        answers, ranked, chosen = _answers(
            root / folder,
            prompts,
            made,
            drops if made else [],
            min_parsed,
            functools.partial(choose, n=share.get(folder, 0), rng=rng),
        )
        if made:
            iterations.append(dataclasses.replace(made, ranked=ranked))
        where = f"M{t} → M{t + 1}" if t < T else f"M{T}, not trained on"
        told += [as_json(x, why, where, min_parsed) for x, why in chosen]
        training = _training(root, manifest, t)
        entry = manifest.entry(f"m{t}/{MODEL_FILE}")
        if training or answers:
            models.append(Model(f"M{t}", entry["hash"] if entry else "", training, answers))
    return RunFacts(
        name=PurePath(str(root)).name,
        finished=bool(manifest.entry(f"m{T}/{MODEL_FILE}")),
        models=tuple(models),
        iterations=tuple(iterations),
        seeds=seeds,
        samples=tuple(told),
        results=read_results(root / "eval"),
        settings=dict(leaves(stored_config(root))),
        versions=(manifest.entry("config.json") or {}).get("versions", {}),
    )


class _Section(dict):
    """The configuration of any version of the program; its sections' fields are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return _Section(value) if isinstance(value, dict) else value


def _rows(path: epath.Path, parse: Callable[[Row], T]) -> list[T]:
    """Rows of a file; none where it is missing or empty."""
    return read_jsonl(path, parse) if path.exists() and path.stat().length else []


def _base(root: epath.Path, manifest: Manifest) -> Model:
    entry = manifest.entry(f"m0/{MODEL_FILE}")
    return Model("M0", entry["hash"] if entry else "", None, None)


def _seeds(ift: str, eft: str) -> dict[str, tuple[str, ...]]:
    """Texts by origin; without a file that is gone: the run stands without it, and so does its report."""
    answered: list[Messages] = []
    judged: list[Messages] = []

    def note(messages: Messages, _: str) -> Messages:
        judged.append(messages)
        return messages

    with contextlib.suppress(UserError):
        answered = [d.messages for d in load_ift(ift)]
    with contextlib.suppress(UserError):
        # Rows that hold all that the judge was asked don't say which part of it the user wrote; they are left out.
        load_eft(eft, note, lambda _: 0.0)
    texts = (tuple(dict.fromkeys(map(last_request, found))) for found in (answered, judged))
    return {name: own for name, own in zip(SEEDS, texts, strict=True) if own}


def _prompts(root: epath.Path, t: int) -> list[Prompt]:
    return _rows(root / f"m{t}" / "prompts.jsonl", lambda row: from_dict(Prompt, row))


def _training(root: epath.Path, manifest: Manifest, t: int) -> Training | None:
    curve = _curve(root / f"m{t}" / "metrics.jsonl")
    entry = manifest.entry(f"m{t}/{MODEL_FILE}") or {}
    if not curve and not entry:
        return None
    told, stage = entry.get("metrics", {}), entry.get("inputs", {}).get("stage", "sft" if t == 1 else "dpo")
    with as_written(manifest.path):
        return Training(
            stage=str(stage),
            steps=int(told.get("steps", curve[-1]["step"] if curve else 0)),
            curve=tuple(curve),
            first=measures(told.get("first", {})),
            last=measures(told.get("last", {})),
            data=measures(entry.get("data", {})),
            has_reference=bool(entry.get("reference")),
        )


def _curve(path: epath.Path) -> list[Row]:
    """A training's steps; the line that is being written at this moment is left out."""
    return list(parse_lines(path, _step, growing=True)) if path.exists() else []


def _step(row: Row) -> Row:
    row["step"]  # without which it has no place in a curve
    return measures(row)


def _iteration(root: epath.Path, t: int, prompts: Sequence[Prompt], drops: Sequence[_Drop]) -> Iteration | None:
    if not prompts:
        return None
    folder = root / f"m{t}"
    rejected = None
    if (folder / "rejected_prompts.jsonl").exists():
        rejected = _counts(_rows(folder / "rejected_prompts.jsonl", _reason))
    made = (folder / "pairs.jsonl").exists()
    return Iteration(
        t=t,
        prompts=tuple(last_request(p.messages) for p in prompts),
        rejected=rejected,
        ranked=None,
        pairs=tuple(_rows(folder / "pairs.jsonl", _pair)) if made else None,
        dropped_prompts=_counts([drop.reason for drop in drops if drop.response_id is None]),
        dropped_answers=_counts([drop.reason for drop in drops if drop.response_id is not None]),
    )


def _counts(reasons: Sequence[str]) -> dict[str, int]:
    return dict(collections.Counter(reasons).most_common())


def _reason(row: Row) -> str:
    if not isinstance(row["reason"], str):
        raise ValueError(f"reason must be text, not {shown(row['reason'])}")
    return row["reason"]


def _drop(row: Row) -> _Drop:
    made = from_dict(_Drop, {field.name: row[field.name] for field in dataclasses.fields(_Drop)})
    return dataclasses.replace(made, reason=sys.intern(made.reason))  # one of a few, a million times


def _pair(row: Row) -> PairFacts:
    made = {name: row[name] for name in ("prompt_id", "score_chosen", "score_rejected")}
    for side in ("chosen", "rejected"):
        made |= {side: row["provenance"][side]["response"], f"tokens_{side}": len(row[f"{side}_token_ids"])}
    return from_dict(PairFacts, made)


def _light(path: epath.Path, kind: type[T]) -> list[T]:
    return load_rows(path, kind, texts=False) if path.exists() and path.stat().length else []


def _answers(
    folder: epath.Path,
    prompts: Sequence[Prompt],
    made: Iteration | None,
    dropped: Sequence[_Drop],
    min_parsed: int,
    choose: Callable[[Sequence[Judged]], list[tuple[Judged, str]]],
) -> tuple[Answers | None, int | None, list[tuple[Judged, str]]]:
    """A model's answers in numbers, and how many prompts have two that can be ranked; None until they are judged.

    Args:
      choose: which prompts are shown, and why; from all of them, without texts, since these would fill the memory.

    Returns:
      With them, what is shown.
    """
    responses = _light(folder / "responses.jsonl", Response)
    if not responses or not (folder / "judgements.jsonl").exists():
        return None, None, []
    judgements = _light(folder / "judgements.jsonl", Judgement)
    by_response = group_by(judgements, lambda j: j.response_id)
    by_prompt = group_by(responses, lambda r: r.prompt_id)
    pairs = {pair.prompt_id: pair for pair in (made.pairs or () if made else ())}
    reasons = {drop.prompt_id: drop.reason for drop in dropped if drop.response_id is None}
    drops = {drop.response_id: drop.reason for drop in dropped if drop.response_id is not None}
    judged = [
        Judged(
            p,
            own,
            {r.id: by_response.get(r.id, []) for r in own},
            pairs.get(p.id),
            reasons.get(p.id, ""),
            {r.id: drops[r.id] for r in own if r.id in drops},
        )
        for p in prompts
        if (own := by_prompt.get(p.id))
    ]
    score = {r.id: mean_score((j.score for j in by_response.get(r.id, [])), min_parsed) for r in responses}
    scores = np.array([np.nan if (s := score[r.id]) is None else s for r in responses])
    groups = [[s for r in x.answers if (s := score[r.id]) is not None] for x in judged]
    answers = Answers(
        metrics=answer_metrics(responses, judgements, min_parsed=min_parsed),
        mean_score=_mean_over_prompts(groups),
        tokens=np.array([len(r.token_ids) for r in responses]),
        scores=scores,
    )
    ranked = sum(_ranked(x, min_parsed) > 1 for x in judged) if judged else None
    chosen = choose(judged)
    whole = _with_texts(folder, responses, judgements, [x for x, _ in chosen])
    return answers, ranked, [(x, why) for x, (_, why) in zip(whole, chosen, strict=True)]


def _with_texts(
    folder: epath.Path, responses: Sequence[Response], judgements: Sequence[Judgement], chosen: Sequence[Judged]
) -> list[Judged]:
    """The chosen prompts with texts; `responses` and `judgements` are all that the files hold, in their order."""
    wanted = {r.id for x in chosen for r in x.answers}
    lines = {n for n, r in enumerate(responses) if r.id in wanted}
    whole = {r.id: r for r in _some(folder / "responses.jsonl", lines, Response)}
    lines = {n for n, j in enumerate(judgements) if j.response_id in wanted}
    said = group_by(_some(folder / "judgements.jsonl", lines, Judgement), lambda j: j.response_id)
    return [
        dataclasses.replace(
            x, answers=[whole[r.id] for r in x.answers], judgements={r.id: said.get(r.id, []) for r in x.answers}
        )
        for x in chosen
    ]


def _some(path: epath.Path, wanted: Container[int], kind: type[T]) -> Iterator[T]:
    """Rows of a file that was read before, by their numbers."""
    lines = (line for line in lines_of(path) if line.strip())
    return (from_dict(kind, loads(line.decode())) for n, line in enumerate(lines) if n in wanted)


def _mean_over_prompts(groups: Sequence[Sequence[float]]) -> Interval:
    """Mean of all scores; its interval draws prompts, whose answers belong together."""
    sums, counts = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    mean = lambda drawn: float(sums[drawn].sum() / n) if (n := counts[drawn].sum()) else float("nan")  # noqa: E731
    return bootstrap(len(groups), mean, resamples=RESAMPLES)


def _ranked(judged: Judged, min_parsed: int) -> int:
    """Answers of a prompt that could be ranked."""
    kept = [r for r in judged.answers if r.id not in judged.drops]
    return sum(mean_score((j.score for j in judged.judgements[r.id]), min_parsed) is not None for r in kept)
