"""How long one iteration of the algorithm takes: M_t answers, judges, and becomes M_{t+1} (paper, section 2.4)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward_jax.core.losses import loss_settings
from selfreward_jax.plan.compiled import Result
from selfreward_jax.plan.machines import Machine
from selfreward_jax.stages.judge import needs_sampling

# Share of the roofline's speed that a program is expected to reach. Training: what published figures leave, by the
# generation of the chip (docs/tpu.md); decoding: what ours reaches on a CPU (docs/engine.md).
TRAINING, SAMPLING = {"v6e": 0.5}, 0.6
TRAINING_ELSEWHERE = 0.8


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
      seconds: expected; None where a program of it is missing.
      missing: why that is, "" if none is.
    """

    stage: str
    work: str
    calls: Mapping[str, float]
    seconds: float | None
    missing: str = ""


def total(parts: Sequence[Part]) -> Part:
    """All of them together, as far as they are known; its name tells which are left out."""
    known = [p.seconds for p in parts if p.seconds is not None]
    left_out = ", ".join(p.stage for p in parts if p.seconds is None)
    return Part(f"all but {left_out}" if left_out else "all", "", {}, sum(known))


def iteration(config: Any, layers: int, results: Sequence[Result], means: Means, machine: Machine) -> list[Part]:
    """The stages of M1 to M2; those whose programs are not all among the results have no time.

    Sampling's time follows from its tokens. So does training's where rows are packed, and then they are taken to be
    full; else every call is one of texts as long as they may be.

    Args:
      layers: of the model.
    """
    found = {r.planned.name: r for r in results}
    c = config
    prompts, answers = c.prompts.count, c.prompts.count * c.respond.n
    pairs = math.floor(prompts * means.pairs)
    judged = answers * c.judge.samples
    parts = []
    training = TRAINING.get(machine.generation, TRAINING_ELSEWHERE)

    def part(stage: str, work: str, calls: dict[str, float], share: float) -> None:
        known = [found.get(name) for name in calls]
        refused = any(r.too_big for r in known if r)
        missing = "does not fit" if refused else "" if all(known) else "not compiled"
        seconds = sum(n * r.roofline for n, r in zip(calls.values(), known, strict=True) if r) if not missing else None
        parts.append(Part(stage, work, calls, None if seconds is None else seconds / share, missing))

    def calls_for(name: str, tokens: float) -> float:
        done = found[name].planned.tokens if name in found else 0
        return tokens / done if done else 0.0

    part("reshard", "weights for sampling", {"reshard, embeddings": 1.0, "reshard, a layer": float(layers)}, training)
    for stage, what, requests, new, tokens in (
        ("respond", "answers", prompts, answers, means.answer),
        ("judge", "judgements", answers, judged, means.judgement),
    ):
        if stage == "judge" and c.judge.method == "function":
            continue
        prompt = means.prompt + (means.answer if stage == "judge" else 0)
        calls = {f"prefill, {what}": calls_for(f"prefill, {what}", requests * prompt)}
        if stage == "judge" and not needs_sampling(c.judge.method, c.judge.rationale):
            part(stage, f"{requests:,} scores read", calls, SAMPLING)
            continue
        calls[f"decode, {what}"] = calls_for(f"decode, {what}", new * tokens)
        part(stage, f"{new:,} {what} of {tokens} tokens", calls, SAMPLING)
    row = means.prompt + means.answer
    losses, positives = loss_settings(c.dpo), c.dpo.data == "positives"
    section, examples = (c.sft, 1) if positives else (c.dpo, 2)
    # KTO's rows are single answers, each with a borrowed one.
    rows = 2 * pairs if losses.unpaired and not positives else pairs
    texts = {name: r.planned.texts for name, r in found.items()}
    if losses.needs_reference and not positives:
        calls = {"reference scores": float(math.ceil(2 * rows / texts.get("reference scores", 1)))}
        part("reference", f"{2 * rows:,} answers scored", calls, training)
    steps = math.ceil(rows / section.batch_size) * section.epochs
    if texts.get("dpo gradients"):
        gradients = steps * math.ceil(examples * section.batch_size / texts["dpo gradients"])
    else:
        gradients = max(steps, calls_for("dpo gradients", examples * rows * row * section.epochs))
    calls = {"dpo gradients": gradients, "dpo update": steps}
    if "dpo sum" in found:
        calls["dpo sum"] = gradients - steps
    work = f"{pairs:,} positives, were there one a pair" if positives else f"{pairs:,} pairs"
    part("dpo", f"{work}, {steps:,} steps", calls, training)
    return parts
