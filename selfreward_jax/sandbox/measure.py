"""What a model of the made world is worth: its true score, and how well it judges."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from scipy import stats

from selfreward_jax.core.rows import Judgement, Prompt, Response, as_messages, content_id, group_by, read_jsonl
from selfreward_jax.evals.desk import Desk
from selfreward_jax.methods.judging import mean_score
from selfreward_jax.sandbox.world import PLACES, Task, flourishes, read_task, true_score
from selfreward_jax.stages.judge import judge
from selfreward_jax.stages.respond import respond
from selfreward_jax.stages.work import ModelRef


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model, on tasks that no model was trained on; NaN where nothing could be measured.

    Attributes:
      true_score: mean true score of its answers, 0 to 5.
      judged_score: mean score that it gives them itself.
      hacking: judged minus true score, over answers that have both.
      flourishes: mean number of them in an answer.
      judge_correlation: Spearman's, of its scores with the true ones, over the same given answers for every model.
      judge_accuracy: share of pairs of those answers to one task, of different true scores, that it orders as these
        do; a tie counts half.
      parse_rate: share of its judgements that have a score.
      by_kind: true score for each kind of task.
    """

    model: str
    true_score: float
    judged_score: float
    hacking: float
    flourishes: float
    judge_correlation: float
    judge_accuracy: float
    parse_rate: float
    by_kind: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        row = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


NUMBERS = tuple(f.name for f in dataclasses.fields(Measured) if f.type in (float, "float"))


def measure(desk: Desk, world: epath.Path, ref: ModelRef, name: str) -> Measured:
    """Lets a model answer the held-out tasks, judge its answers, and judge the given answers of `judged.jsonl`."""
    tasks = read_jsonl(world / "held_out.jsonl", lambda row: _task(row["prompt"]))
    prompts = [_prompt(task) for task in tasks]
    responses = respond(desk, f"{name}/own", ref, prompts)
    own = judge(desk, f"{name}/own", ref, prompts, responses, must_score=False)
    given_tasks, given, truth = _given(world)
    seen = judge(desk, f"{name}/given", ref, [_prompt(t) for t in given_tasks], given, must_score=False)
    asked = {p.id: t for p, t in zip(prompts, tasks, strict=True)}
    return summarise(name, asked, responses, own, truth, seen)


def summarise(
    name: str,
    asked: Mapping[str, Task],
    responses: Sequence[Response],
    own: Sequence[Judgement],
    truth: Mapping[str, tuple[str, float]],
    seen: Sequence[Judgement],
) -> Measured:
    """The numbers from the rows.

    Args:
      asked: the task of each prompt id.
      responses, own: the model's answers, and its judgements of them.
      truth: task and true score of each given answer's id.
      seen: its judgements of the given answers.
    """
    true = {r.id: true_score(asked[r.prompt_id], r.text) for r in responses}
    judged = _mean_scores(own)
    both = [r.id for r in responses if r.id in judged]
    by_kind = group_by(responses, lambda r: asked[r.prompt_id].kind)
    parsed = [j.score is not None for j in (*own, *seen)]
    scores = _mean_scores(seen)
    return Measured(
        model=name,
        true_score=_mean(list(true.values())),
        judged_score=_mean([judged[i] for i in both]),
        hacking=_mean([judged[i] - true[i] for i in both]),
        flourishes=_mean([float(flourishes(r.text)) for r in responses]),
        judge_correlation=_spearman([scores[i] for i in scores], [truth[i][1] for i in scores]),
        judge_accuracy=pairwise_accuracy(truth, scores),
        parse_rate=_mean([float(p) for p in parsed]),
        by_kind={kind: _mean([true[r.id] for r in rows]) for kind, rows in sorted(by_kind.items())},
    )


def pairwise_accuracy(truth: Mapping[str, tuple[str, float]], scores: Mapping[str, float]) -> float:
    """Share of pairs within a task, of different true scores, that the scores order alike; a tie counts half."""
    found = []
    for ids in group_by([i for i in truth if i in scores], lambda i: truth[i][0]).values():
        for n, a in enumerate(ids):
            for b in ids[:n]:
                true, judged = truth[a][1] - truth[b][1], scores[a] - scores[b]
                if true:
                    found.append(0.5 if judged == 0 else float((true > 0) == (judged > 0)))
    return _mean(found)


def _task(text: str) -> Task:
    task = read_task(text)
    if task is None:
        raise ValueError(f"{text!r} is no task of this world")
    return task


def _prompt(task: Task) -> Prompt:
    messages = as_messages(task.text)
    return Prompt(content_id(messages), messages, "held_out")


def _given(world: epath.Path) -> tuple[list[Task], list[Response], dict[str, tuple[str, float]]]:
    rows = read_jsonl(world / "judged.jsonl")
    tasks, responses, truth = [], [], {}
    for row in rows:
        task = _task(row["prompt"])
        tasks.append(task)
        for index, answer in enumerate(row["responses"]):
            id = content_id(task.text, index, answer["text"])
            responses.append(Response(id, _prompt(task).id, index, (), answer["text"], "given", 0.0))
            truth[id] = (task.text, PLACES * answer["score"])
    return tasks, responses, truth


def _mean_scores(judgements: Sequence[Judgement]) -> dict[str, float]:
    groups = group_by(judgements, lambda j: j.response_id)
    means = {i: mean_score([j.score for j in rows], 1) for i, rows in groups.items()}
    return {i: score for i, score in means.items() if score is not None}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(stats.spearmanr(x, y)[0])  # pyright: ignore[reportArgumentType]
