"""The figures of the report: from facts to panels, one function a figure."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.spatial import ConvexHull, QhullError

from selfreward_jax.core.rows import Row
from selfreward_jax.evals.statistics import Interval
from selfreward_jax.report.collect import Iteration, Model
from selfreward_jax.report.plots import (
    INK,
    LOSE,
    MUTED,
    SERIES,
    SURFACE,
    TIE,
    WIDTH,
    WIN,
    color,
    legend,
    panel,
    with_titles,
)
from selfreward_jax.report.results import JudgeResult, WinRate
from selfreward_jax.report.text import shorten, visible
from selfreward_jax.report.topics import SEEDS, PromptMap

MOST_POINTS = 80  # of a curve; longer ones are drawn as means over as many stretches
JUDGE_METRICS = {
    "pairwise_accuracy": ("Pairwise accuracy", True),
    "five_best": ("5-best", True),
    "exact_match": ("Exact match", True),
    "spearman": ("Spearman's ρ", False),
    "kendall_tau": ("Kendall's τ", False),
}


def score_histograms(models: Sequence[Model]) -> list[Markup]:
    """Share of each score among a model's judgements, a panel a model, all to one scale."""
    counts = {m.name: np.array(m.answers.metrics["judge/score_hist"], float) for m in models if m.answers}
    shares = {name: 100 * x / x.sum() for name, x in counts.items() if x.sum()}
    top = max((x.max() for x in shares.values()), default=0)

    def draw(name: str) -> Callable[[Axes], None]:
        def on(ax: Axes) -> None:
            bars = ax.bar(range(6), shares[name], color=color(name), width=0.8)
            ax.bar_label(bars, [f"{x:.0f}" for x in shares[name]], padding=1.5, fontsize=8.5, color=INK)
            ax.set(title=name, xlabel="score", ylabel="judgements, %", ylim=(0, 1.12 * top), xticks=range(6))

        return on

    return [panel(f"Scores of {name}'s answers", draw(name)) for name in shares]


def lengths(models: Sequence[Model], iterations: Sequence[Iteration]) -> list[Markup]:
    """How long answers are, how long those that are learnt from, and whether long ones score higher."""
    answered = [(m.name, m.answers) for m in models if m.answers and len(m.answers.tokens)]
    paired = [(f"M{i.t}", i.pairs) for i in iterations if i.pairs]
    panels = []
    if answered:

        def boxes(ax: Axes) -> None:
            for x, (name, answers) in enumerate(answered):
                low, q1, middle, q3, high = np.percentile(answers.tokens, [5, 25, 50, 75, 95])
                box = {"med": middle, "q1": q1, "q3": q3, "whislo": low, "whishi": high, "mean": answers.tokens.mean()}
                line = {"color": color(name), "linewidth": 1.4}
                dot = {"marker": "o", "markersize": 5, "markerfacecolor": color(name), "markeredgecolor": SURFACE}
                ax.bxp(
                    [box], positions=[x], widths=0.45, showfliers=False, showmeans=True, patch_artist=True,
                    boxprops={"facecolor": SURFACE, "edgecolor": color(name), "linewidth": 1.4},
                    medianprops=line, whiskerprops=line, capprops=line, meanprops=dot,
                )  # fmt: skip
            ax.set_xticks(range(len(answered)), [name for name, _ in answered])
            ax.set(title="Answers by model", ylabel="tokens")
            ax.set_ylim(bottom=0)

        panels.append(panel("Length of answers by model", boxes))
    if paired:

        def sides(ax: Axes) -> None:
            for side, style, offset in (("chosen", WIN, -0.17), ("rejected", LOSE, 0.17)):
                means = [np.mean([getattr(p, f"tokens_{side}") for p in pairs]) for _, pairs in paired]
                bars = ax.bar(np.arange(len(paired)) + offset, means, 0.32, color=style, label=side)
                ax.bar_label(bars, [f"{x:.0f}" for x in means], padding=1.5, fontsize=8.5, color=INK)
            ax.set_xticks(range(len(paired)), [f"pairs for {name}" for name, _ in paired])
            ax.set(title="Chosen and rejected", ylabel="mean tokens", xlim=(-0.6, len(paired) - 0.4))
            ax.margins(y=0.12)
            legend(ax)

        panels.append(panel("Length of chosen and rejected answers", sides))
    if answered:

        def by_score(ax: Axes) -> None:
            for name, answers in answered:
                marks = np.floor(answers.scores + 0.5)
                found = [(s, answers.tokens[marks == s].mean()) for s in range(6) if (marks == s).any()]
                ax.plot(*np.array(found).reshape(-1, 2).T, marker="o", color=color(name), label=name)
            ax.set(title="Length by score", xlabel="mean score of an answer, rounded", ylabel="mean tokens")
            ax.set(xticks=range(6), xlim=(-0.3, 5.3))
            ax.set_ylim(bottom=0)
            legend(ax)

        panels.append(panel("Mean length of answers by their score", by_score))
    return panels


def _curve(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric; of long trainings means over stretches of equal length."""
    found = np.array([(r["step"], r[name]) for r in rows if r.get(name) is not None], float).reshape(-1, 2)
    stretches = np.array_split(found, min(len(found), MOST_POINTS)) if len(found) else []
    x, y = np.array([s.mean(0) for s in stretches]).reshape(-1, 2).T
    return x, y


def training_curves(models: Sequence[Model], stage: str) -> list[Markup]:
    """Metrics over the steps of all trainings of one stage, `sft` or `dpo`."""
    trained = [(m.name, m.training.curve) for m in models if m.training and m.training.stage == stage]
    trained = [(name, curve) for name, curve in trained if curve]
    kinds: dict[str, tuple[tuple[str, ...], str]] = {
        "Loss": (("loss",), "loss, nats"),
        "Accuracy": (("rewards/accuracies",), "chosen above rejected, %"),
        "Margin": (("rewards/margins",), "reward difference"),
        "Rewards": (("rewards/chosen", "rewards/rejected"), "implicit reward"),
        "Log-probabilities": (("logps/chosen", "logps/rejected"), "nats an answer"),
        "Gradient norm": (("grad_norm",), "before clipping"),
        "KL estimate": (("kl",), "nats"),
    }
    panels = []
    for title, (metrics, unit) in kinds.items():
        if any(row.get(metric) is not None for _, curve in trained for row in curve for metric in metrics):
            draw = lambda ax, a=title, b=metrics, c=unit: _draw_curves(ax, trained, a, b, c)  # noqa: E731
            panels.append(panel(f"{stage.upper()}: {title.lower()} by step", draw))
    return panels


def _draw_curves(ax: Axes, trained, title: str, metrics: tuple[str, ...], unit: str) -> None:
    scale = 100 if "%" in unit else 1
    for name, curve in trained:
        for metric, style in zip(metrics, ("-", (0, (3, 2))), strict=False):
            x, y = _curve(curve, metric)
            marker = "o" if len(x) < 12 else ""
            ax.plot(x, scale * y, color=color(name), linestyle=style, marker=marker, markersize=3)
        x, y = _curve(curve, f"eval/{metrics[0]}")
        if len(x):
            ax.plot(x, scale * y, color=color(name), linestyle="", marker="D", markersize=4, markeredgecolor=SURFACE)
    if title == "Accuracy":
        ax.set_ylim(-4, 104)
        ax.axhline(50, color=MUTED, linewidth=0.8, linestyle=":")
    if title in ("Margin", "Rewards"):
        ax.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
    ax.set(title=title, xlabel="step", ylabel=unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    handles = [Line2D([], [], color=color(name), label=name) for name, _ in trained] if len(trained) > 1 else []
    if len(metrics) > 1:
        handles += [
            Line2D([], [], color=MUTED, linestyle=style, label=metric.rpartition("/")[2])
            for metric, style in zip(metrics, ("-", (0, (3, 2))), strict=True)
        ]
    legend(ax, handles)


def funnel_steps(i: Iteration, learnt: int | None) -> list[tuple[str, int]]:
    """From candidates to what is trained on, as far as it is known."""
    n = len(i.prompts)
    steps = [] if i.rejected is None else [("prompts written", n + sum(i.rejected.values()))]
    steps.append(("prompts kept", n))
    if i.ranked is not None:
        steps.append(("two scored answers", i.ranked))
    if i.pairs is not None:
        steps.append(("pairs", len(i.pairs)))
    if learnt is not None:
        steps.append(("pairs learnt from", learnt))
    return steps


def funnels(iterations: Sequence[Iteration], learnt: dict[int, int | None]) -> list[Markup]:
    """A panel an iteration; each bar says how many, and what share of the bar above."""

    def draw(i: Iteration) -> Callable[[Axes], None]:
        def on(ax: Axes) -> None:
            steps = funnel_steps(i, learnt.get(i.t))
            counts = [count for _, count in steps]
            bars = ax.barh([name for name, _ in steps], counts, color=color(f"M{i.t}"), height=0.62)
            labels = [f"{counts[0]:,}"]
            labels += [
                f"{b:,} ({100 * b / a:.0f}%)" if a else f"{b:,}" for a, b in zip(counts, counts[1:], strict=False)
            ]
            ax.bar_label(bars, labels, padding=3, fontsize=8.5, color=INK)
            ax.invert_yaxis()
            ax.set(title=f"To M{i.t}", xlim=(0, 1.4 * max(counts) or 1))
            ax.tick_params(axis="y", labelcolor=INK)
            ax.xaxis.set_visible(False)
            ax.grid(False)
            ax.spines[["bottom"]].set_visible(False)

        return on

    return [panel(f"From prompts to pairs for M{i.t}", draw(i), height=2.2) for i in iterations]


def _bars(found: Sequence[Interval], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Values, and how far their intervals reach below and above; no reach where there is no interval."""
    value = np.array([x.value for x in found]) * scale
    reach = np.array([(x.value - x.low, x.high - x.value) for x in found]).T * scale
    return value, np.clip(np.nan_to_num(reach), 0, None)


def judge_accuracy(found: Sequence[JudgeResult]) -> list[Markup]:
    """A panel a metric: each model's value with its interval, and the baselines as lines."""

    def draw(metric: str, title: str, is_share: bool) -> Callable[[Axes], None]:
        def on(ax: Axes) -> None:
            scale = 100 if is_share else 1
            value, reach = _bars([r.metrics[metric] for r in found], scale)
            for x, r in enumerate(found):
                ax.errorbar(x, value[x], reach[:, x : x + 1], fmt="o", color=color(r.model), capsize=4, markersize=6)
            for name, metrics in found[-1].baselines.items():
                if metric in metrics and not math.isnan(metrics[metric].value):
                    level = scale * metrics[metric].value
                    ax.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"{name} answer")
                    legend(ax)
            ax.set_xticks(range(len(found)), [r.model for r in found])
            ax.set(title=title, ylabel="%" if is_share else "correlation", xlim=(-0.5, len(found) - 0.5))
            ax.margins(y=0.2)

        return on

    there = {m: told for m, told in JUDGE_METRICS.items() if all(m in r.metrics for r in found)}
    panels = [panel(f"Judge: {told[0]}", draw(m, *told)) for m, told in there.items()]
    if any(r.calibration for r in found):

        def calibration(ax: Axes) -> None:
            for r in found:
                if r.calibration:
                    ax.plot(*np.array(r.calibration).T, marker="o", color=color(r.model), label=r.model)
            ax.set(title="People's order by score", xlabel="the judge's score", ylabel="mean place, 1 is best")
            ax.set(xticks=range(6))
            legend(ax)

        panels.append(panel("People's mean place for each score of the judge", calibration))
    return panels


def win_rates(found: Sequence[WinRate]) -> list[Markup]:
    """Won, tied and lost shares; and win rates with their intervals, raw and at equal length."""
    names = [f"{w.a} vs {w.b}" for w in found]
    height = 1.1 + 0.36 * len(found)

    def shares(ax: Axes) -> None:
        left = np.zeros(len(found))
        for kind, style in (("win", WIN), ("tie", TIE), ("lose", LOSE)):
            x = 100 * np.nan_to_num(np.array([getattr(w, kind).value for w in found]))
            bars = ax.barh(names, x, left=left, color=style, height=0.6, label=kind, edgecolor=SURFACE, linewidth=1)
            ax.bar_label(bars, [f"{v:.0f}" if v >= 8 else "" for v in x], label_type="center", fontsize=8.5, color=INK)
            left += x
        ax.invert_yaxis()
        ax.set(title="Won, tied, lost", xlim=(0, 100), xlabel="% of prompts")
        ax.tick_params(axis="y", labelcolor=INK)
        ax.grid(False)
        legend(ax)

    def rates(ax: Axes) -> None:
        for kind, marker, label, offset in (
            ("win_rate", "o", "raw", -0.13),
            ("lc_win_rate", "s", "equal length", 0.13),
        ):
            value, reach = _bars([getattr(w, kind) for w in found], 100)
            y = np.arange(len(found)) + offset
            hue = SERIES[1] if kind == "win_rate" else SERIES[2]
            ax.errorbar(value, y, xerr=reach, fmt=marker, color=hue, capsize=3, markersize=5, label=label)
        ax.axvline(50, color=MUTED, linewidth=0.8, linestyle=":")
        ax.set_yticks(range(len(found)), names)
        ax.set(title="Win rate", xlim=(0, 100), ylim=(len(found) - 0.5, -0.5), xlabel="%")
        ax.tick_params(axis="y", labelcolor=INK)
        ax.grid(False)
        legend(ax)

    return [
        panel("Shares of prompts won, tied and lost", shares, width=1.25 * WIDTH, height=height),
        panel("Win rates with intervals", rates, width=1.25 * WIDTH, height=height),
    ]


def _outline(places: np.ndarray) -> np.ndarray:
    """The smallest convex area that holds all places; the places themselves where they have no area."""
    try:
        return places[ConvexHull(places).vertices]
    except QhullError:
        return places


def prompt_map(topics: PromptMap) -> Markup:
    """Every prompt a point with its text under the pointer; clusters have their number at their middle."""
    names = list(dict.fromkeys(topics.origins))
    where = {o: [n for n, found in enumerate(topics.origins) if found == o] for o in names}

    def draw(ax: Axes) -> None:
        for cluster in range(len(topics.words)):
            corners = _outline(topics.places[topics.members(cluster)])
            ax.fill(*corners.T, color=MUTED, alpha=0.1, linewidth=8, joinstyle="round")
        for o in names:
            hue = SERIES[SEEDS.index(o)] if o in SEEDS else color(o)
            ax.scatter(*topics.places[where[o]].T, s=22, color=hue, alpha=0.8, linewidths=0, gid=f"keep-{o}", label=o)
        for cluster in range(len(topics.words)):
            x, y = np.median(topics.places[topics.members(cluster)], axis=0)
            box = {"boxstyle": "circle,pad=0.25", "facecolor": SURFACE, "edgecolor": MUTED, "linewidth": 0.8}
            ax.text(x, y, str(cluster + 1), ha="center", va="center", fontsize=9, fontweight="bold", bbox=box)
        ax.set(xticks=[], yticks=[])
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.grid(False)
        legend(ax)

    svg = panel("Map of prompts", draw, width=2 * WIDTH, height=3.9)
    for o in names:
        svg = with_titles(svg, f"keep-{o}", [f"{o}: {shorten(visible(topics.texts[n]), 140)}" for n in where[o]])
    return svg
