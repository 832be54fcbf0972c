"""How long one iteration of the algorithm takes: M_t answers, judges, and becomes M_{t+1} (paper, section 2.4)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward_jax.plan.compiled import Result
from selfreward_jax.plan.machines import Machine

# Share of the roofline's speed that a program is expected to reach. Training: what one published figure leaves, see
# docs/tpu.md; decoding: what ours reaches on a CPU (docs/engine.md).
TRAINING, SAMPLING = 0.8, 0.6


@dataclasses.dataclass(frozen=True)
class Means:
    """What a run's texts are like on average, in tokens, and how many prompts end as a pair."""

    prompt: int
    answer: int
    judgement: int
    pairs: float


@dataclasses.dataclass(frozen=True)
class Part:
    """A stage of an iteration.

    Attributes:
      work: in words.
      calls: of each program: its name and how often it is called.
      seconds: expected; None where a program of it wasn't compiled or doesn't fit.
    """

    stage: str
    work: str
    calls: Mapping[str, float]
    seconds: float | None


def iteration(config: Any, results: Sequence[Result], means: Means, machine: Machine) -> list[Part]:
    """The stages of M1 to M2, as far as their programs are among the results.

    A stage's time follows from its tokens: rows are taken to be as full as packing makes them, and a decode step to
    have `means` of its slots in use.
    """
    found = {r.planned.name: r for r in results}
    c = config
    prompts, answers = c.prompts.count, c.prompts.count * c.respond.n
    pairs = math.floor(prompts * means.pairs)
    judged = answers * c.judge.samples
    parts = []

    def part(stage: str, work: str, calls: dict[str, float], share: float) -> None:
        known = [found.get(name) for name in calls]
        usable = all(r is not None and not r.too_big for r in known)
        seconds = sum(n * r.roofline for n, r in zip(calls.values(), known, strict=True) if r) / share
        parts.append(Part(stage, work, calls, seconds if usable else None))

    def calls_for(name: str, tokens: float) -> float:
        return tokens / found[name].planned.tokens if name in found else 0.0

    for stage, what, requests, new, tokens in (
        ("respond", "answers", prompts, answers, means.answer),
        ("judge", "judgements", answers, judged, means.judgement),
    ):
        prompt = means.prompt + (means.answer if stage == "judge" else 0)
        calls = {
            f"prefill, {what}": calls_for(f"prefill, {what}", requests * prompt),
            f"decode, {what}": calls_for(f"decode, {what}", new * tokens),
        }
        part(stage, f"{new:,} {what} of {tokens} tokens", calls, SAMPLING)
    row = means.prompt + means.answer
    if "reference scores" in found:
        calls = {"reference scores": calls_for("reference scores", 2 * pairs * row)}
        part("reference", f"{2 * pairs:,} answers scored", calls, TRAINING)
    steps = math.ceil(pairs / c.dpo.batch_size) * c.dpo.epochs
    calls = {"dpo gradients": calls_for("dpo gradients", 2.0 * pairs * row * c.dpo.epochs), "dpo update": steps}
    if "dpo sum" in found:
        calls["dpo sum"] = calls["dpo gradients"]
    part("dpo", f"{pairs:,} pairs, {steps:,} steps", calls, TRAINING)
    return parts
