"""Facts of a run by hand: one model that answers, one iteration of pairs, all in order; tests change what they need."""

import dataclasses
from typing import Any

import numpy as np

from selfreward_jax.evals.statistics import Interval
from selfreward_jax.report.collect import Answers, Iteration, Model, RunFacts, Training
from selfreward_jax.report.results import Results
from selfreward_jax.report.samples import PairFacts


def answers(**metrics: Any) -> Answers:
    """A hundred answers of 50 tokens each, with scores of all kinds."""
    told = {
        "gen/responses": 100, "gen/len_mean": 50.0, "gen/truncated_frac": 0.0, "judge/judgements": 300,
        "judge/parse_rate": 1.0, "judge/score_mean": 2.5, "judge/score_hist": [50] * 6, "judge/tie_rate": 0.0,
    }  # fmt: skip
    return Answers(told | metrics, Interval(2.5, 2.4, 2.6), np.full(100, 50), np.arange(100) % 6 / 1.0)


def pair(n: int, margin: float = 2.0, tokens: tuple[int, int] = (50, 50)) -> PairFacts:
    return PairFacts(f"p{n}", f"a{n}", f"b{n}", 1 + margin, 1.0, *tokens)


def iteration(t: int, n: int = 300, **changes: Any) -> Iteration:
    """`n` prompts, of which each gave a pair."""
    prompts = tuple(f"Prompt {i} of M{t}" for i in range(n))
    made = Iteration(t, prompts, {}, n, tuple(pair(i) for i in range(n)), {}, {})
    return dataclasses.replace(made, **changes)


def training(stage: str = "dpo", **last: Any) -> Training:
    told = {"loss": 0.5, "rewards/accuracies": 0.8, "rewards/chosen": 0.1, "rewards/margins": 0.4} | last
    curve = tuple({"step": s, "skipped_updates": 0, **told} for s in (1, 2))
    return Training(stage, 2, curve, told, told, {"pairs": 300}, True)


def run(models: tuple[Model, ...] = (), iterations: tuple[Iteration, ...] = (), **changes: Any) -> RunFacts:
    base = Model("M0", "0" * 16, None, None)
    facts = RunFacts("r", True, (base, *models), iterations, {}, (), Results({}, {}), {"dpo.beta": 0.1}, {})
    return dataclasses.replace(facts, **changes)
