"""How judges were measured, as a table for people: one column a model, the baseline beside what it is measured by."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from selfreward_jax.core.rows import Row

Value = dict[str, float | None]


def judge_table(results: Sequence[Row]) -> Table:
    """From `result.json` of each model. Brackets hold 95% intervals."""
    shown = Table(title="Judges against people", title_justify="left")
    shown.add_column("", no_wrap=True)
    for row in results:
        shown.add_column(Text(row["model"]), justify="right")

    def line(name: str, value: Callable[[Row], str]) -> None:
        shown.add_row(Text(name), *(Text(value(row)) for row in results))

    def share(name: str, *path: str) -> None:
        line(name, lambda r: percent(_at(r, path)))

    def number(name: str, *path: str) -> None:
        line(name, lambda r: decimal(_at(r, path)))

    longer = "  the longer one wins"
    line("prompts, answers, pairs", lambda r: f"{r['prompts']}, {r['responses']}, {r['pairs']}")
    line("judgements with a score", lambda r: _percent(r["parse_rate"]))
    line("pairs that could be measured", lambda r: _percent(r["coverage"]["pairs"]))
    share("pairwise accuracy", "metrics", "pairwise_accuracy")
    share(longer, "baselines", "longer", "pairwise_accuracy")
    line("  better than that by, points", lambda r: _points(r["over_longer"]))
    share("  pairs of the same score (half right)", "ties", "tie_rate")
    share("  accuracy with those as wrong", "ties", "pairwise_accuracy_ties_wrong")
    share("exact match", "metrics", "exact_match")
    share(longer, "baselines", "longer", "exact_match")
    number("Spearman", "metrics", "spearman")
    number(longer, "baselines", "longer", "spearman")
    number("Kendall tau", "metrics", "kendall_tau")
    number(longer, "baselines", "longer", "kendall_tau")
    share("answers of full score that are the best", "metrics", "five_best")
    line("  answers of full score", lambda r: str(r["full_scores"]))
    share("prefers the longer answer", "length_bias", "judge_prefers_longer")
    share("  people do", "length_bias", "people_prefer_longer")
    share("  accuracy where the longer is better", "length_bias", "accuracy_where_longer_is_better")
    share("  accuracy where the shorter is better", "length_bias", "accuracy_where_shorter_is_better")
    number("  correlation beyond length", "length_bias", "partial_correlation")
    line("scores 0/1/2/3/4/5", lambda r: "/".join(map(str, r["score_hist"])) if r["score_hist"] else "-")
    line("  mean, standard deviation", _spread)
    line("  people's mean place (1 best, 0 worst)", _calibration)
    _parts(share, results)
    return shown


def _parts(share: Callable[..., None], results: Sequence[Row]) -> None:
    """Accuracy by section and subset, where there are any."""
    if "section_mean" in results[0]:
        share("mean of sections", "section_mean")
        for name in results[0]["sections"]:
            share(f"  {name}", "sections", name)
    if "subsets" in results[0]:
        for name, part in results[0]["subsets"].items():
            share(f"{name} ({part['n']})", "subsets", name, "pairwise_accuracy")


def _at(row: Any, path: Sequence[str]) -> Value:
    for name in path:
        row = row[name]
    return row


def percent(x: Value) -> str:
    """`71% [65, 77]`"""
    return _with_interval(x, lambda v: f"{100 * v:.0f}", "%")


def decimal(x: Value) -> str:
    """`0.31 [0.20, 0.42]`"""
    return _with_interval(x, lambda v: f"{v:.2f}", "")


def _points(x: Value) -> str:
    return _with_interval(x, lambda v: f"{100 * v:+.0f}", "")


def _with_interval(x: Value, write: Callable[[float], str], unit: str) -> str:
    value, low, high = x["value"], x["low"], x["high"]
    if value is None:
        return "-"
    between = "" if low is None or high is None else f" [{write(low)}, {write(high)}]"
    return f"{write(value)}{unit}{between}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _spread(row: Row) -> str:
    mean, std = row["score_mean"], row["score_std"]
    return "-" if mean is None else f"{mean:.2f}, {std:.2f}"


def _calibration(row: Row) -> str:
    found = {part["score"]: part["mean_human"] for part in row["calibration"]}
    return "/".join(f"{found[s]:.2f}" if s in found else "-" for s in range(6)) if found else "-"
