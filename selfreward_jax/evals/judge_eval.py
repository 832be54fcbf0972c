"""A judge measured against people: it scores answers that people have put in order.

Its judgements come from the stage `judge`, as in the loop, with the same settings; or, with a reference, its scores
are implicit rewards and nothing is judged in words. Answers are shown to the judge one at a time, so where one stands
in the data has no influence; how its length has, is measured.
"""

import dataclasses
import json
import re
import statistics
from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import Judgement, Row, content_id, group_by, last_request, to_lines
from selfreward_jax.core.stored import read_json
from selfreward_jax.evals.desk import Desk
from selfreward_jax.evals.human import HumanData, RankedPrompt
from selfreward_jax.evals.implicit import answer_logps
from selfreward_jax.evals.judge_metrics import Judged, is_full, judge_metrics, to_json
from selfreward_jax.evals.subsets import subset_metrics
from selfreward_jax.methods.answer_metrics import answer_metrics
from selfreward_jax.methods.judging import JudgeTemplate, mean_score
from selfreward_jax.stages.judge import judge, scores_needed
from selfreward_jax.stages.work import ModelRef

RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model that is to be measured.

    Attributes:
      name: for people, M2 or a path.
      folder: of its rows and results, in the desk's.
      ref: where it is.
    """

    name: str
    folder: str
    ref: ModelRef


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a judge is measured on.

    Attributes:
      path, sha256: of the file.
      split, max_prompts: which of its rows; "" and 0 for all.
    """

    path: str
    sha256: str
    split: str = ""
    max_prompts: int = 0


def evaluate_judges(
    desk: Desk, judges: Sequence[Judge], asked: Asked, data: HumanData, reference: ModelRef | None = None
) -> list[Row]:
    """Measures each judge; its judgements, `rows.jsonl` and `result.json` lie in its folder, and all that the
    folder has, of this call and of others, in `summary.json`.

    Args:
      reference: scores are implicit rewards against it.

    Raises:
      UserError: the folder holds results of other settings or data; a judge never gives a score.
    """
    settings = _settings(desk, asked, reference)
    desk.claim(RESULT, settings)
    results = [_evaluate(desk, each, asked, data, settings, reference) for each in judges]
    made = [entry["artefact"] for entry in desk.manifest.artefacts() if entry["artefact"].endswith(f"/{RESULT}")]
    there = [read_json(desk.intact(artefact)) for artefact in sorted(made, key=_in_order)]
    desk.write("summary.json", {}, json.dumps(there, indent=2) + "\n")
    return results


def _in_order(name: str) -> tuple[str | int, ...]:
    """m2 before m10."""
    return tuple(int(part) if n % 2 else part for n, part in enumerate(re.split(r"(\d+)", name)))


def _settings(desk: Desk, asked: Asked, reference: ModelRef | None) -> dict[str, Any]:
    """All that results depend on, beside the model."""
    c = desk.config
    made = {"data": {"sha256": asked.sha256, "split": asked.split, "max_prompts": asked.max_prompts}, "seed": c.seed}
    made["model"] = {"dtype": c.model.dtype}
    if reference:
        return made | {"reference": reference.hash}
    judging = {"judge": c.judge.to_dict() | {"template_id": content_id(JudgeTemplate(c.judge.template).text)}}
    return made | judging | {"generation": c.generation.to_dict()}


def _evaluate(
    desk: Desk, each: Judge, asked: Asked, data: HumanData, settings: dict[str, Any], reference: ModelRef | None
) -> Row:
    folder, ref = each.folder, each.ref
    c = desk.config.judge
    if reference:
        judgements = []
        if desk.chat_of(ref).hashes != desk.chat_of(reference).hashes:
            raise UserError(f"--reference: another tokenizer or chat template than that of {each.name}.")
        own = answer_logps(desk, f"{folder}/logps.jsonl", ref, data.prompts, data.responses)
        other = answer_logps(desk, "reference_logps.jsonl", reference, data.prompts, data.responses)
        scores = {id: [logp - other[id]] for id, logp in own.items() if id in other}
        needed, source = 1, "logps"
    else:
        judgements = judge(desk, folder, ref, data.prompts, data.responses)
        grouped = group_by(judgements, lambda j: j.response_id)
        scores = {id: [j.score for j in group] for id, group in grouped.items()}
        needed, source = scores_needed(c), "judgements"

    inputs = {
        "stage": "eval judge",
        "model": ref.hash,
        "settings": settings,
        source: desk.hash_of(f"{folder}/{source}.jsonl"),
    }
    artefact = f"{folder}/{RESULT}"
    if desk.is_made(artefact, inputs, f"{folder}/rows.jsonl"):
        return read_json(desk.root / artefact)
    rows = [row for n, ranked in enumerate(data.rows) for row in _answer_rows(n, ranked, scores, needed)]
    judged = judged_of(rows, full_scores=reference is None, read=c.method == "expected")
    seed = desk.config.seed
    result = {
        "kind": "judge",
        "model": each.name,
        "hash": ref.hash,
        "data": asked.path,
        "data_sha256": asked.sha256,
        "split": asked.split,
        "reward": "implicit" if reference else c.method,
        **({"reference": dataclasses.asdict(reference)} if reference else {}),
        "prompts": len(judged),
        "responses": len(rows),
        "left_out": {
            "equal_ranks": data.equal_ranks,
            "single_answer": data.single_answer,
            "no_answer": data.no_answer,
            "unranked_answers": data.unranked,
        },
        "judgements": len(judgements),
        **_judgement_facts(data, judgements, needed),
        **to_json(judge_metrics(judged, seed=seed)),
        **to_json(subset_metrics(judged, seed=seed)),
    }
    if reference:
        result["calibration"] = []  # rewards have no scale from 0 to 5
    desk.write(f"{folder}/rows.jsonl", inputs, to_lines(rows))
    desk.write(artefact, inputs, json.dumps(result, indent=2) + "\n")
    return result


def _judgement_facts(data: HumanData, judgements: Sequence[Judgement], needed: int) -> Row:
    if not judgements:
        return {"parse_rate": None, "score_hist": None, "score_mean": None, "score_std": None}
    found = answer_metrics(data.responses, judgements, min_parsed=needed)
    parsed = [j.score for j in judgements if j.score is not None]
    return {
        "parse_rate": found["judge/parse_rate"],
        "score_hist": found["judge/score_hist"],
        "score_mean": round(statistics.fmean(parsed), 6),
        "score_std": round(statistics.pstdev(parsed), 6),
    }


def _answer_rows(n: int, ranked: RankedPrompt, scores: dict[str, list], needed: int) -> list[Row]:
    """One row for each answer: what people and what the judge think of it."""
    return [
        {
            "row": n,
            "prompt_id": ranked.prompt.id,
            "response_id": r.id,
            "subset": ranked.subset,
            "prompt": last_request(ranked.prompt.messages),
            "response": r.text,
            "rank": rank,
            "score": mean_score(scores.get(r.id, []), needed),
            "scores": scores.get(r.id, []),
        }
        for r, rank in zip(ranked.responses, ranked.ranks, strict=True)
    ]


def judged_of(rows: Sequence[Row], full_scores: bool = True, read: bool = False) -> list[Judged]:
    """From rows of answers to what is measured: those with the same `row`, or where it is missing the same `prompt`.

    Args:
      rows: `prompt`, `response`, `rank`, `score` (may be None); `scores`, the single judgements, decides what a full
        score is, else `score` does.
      full_scores: whether scores are from 0 to 5, so that there is a full one.
      read: whether scores are means of distributions, see `is_full`.
    """
    made = []
    for group in group_by(rows, lambda row: str(row.get("row", row["prompt"]))).values():
        judged = Judged(
            str(group[0].get("prompt_id", group[0]["prompt"])),
            tuple(row["rank"] for row in group),
            tuple(row["score"] for row in group),
            tuple(len(row["response"]) for row in group),
            tuple(
                full_scores and row["score"] is not None and is_full(row.get("scores", [row["score"]]), read)
                for row in group
            ),
            group[0].get("subset", ""),
        )
        made += [judged] if len(set(judged.ranks)) > 1 else []
    return made
