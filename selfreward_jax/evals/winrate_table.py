"""Head-to-heads as tables for people."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from selfreward_jax.core.rows import Row

CATEGORIES = 12  # shown; all of them stand in result.json


def winrate_table(results: Sequence[Row]) -> Table:
    """A column for each comparison; shares with their 95 % intervals."""
    judges = ", ".join(dict.fromkeys(r["judge"] for r in results))
    how = "" if results[0]["score"] == "pairwise" else ", by the scores of each answer"
    shown = Table(title=Text(f"Head to head, judged by {judges}{how}"), title_justify="left")
    shown.add_column("", no_wrap=True)
    for r in results:
        shown.add_column(Text(f"A: {r['a']['name']}\nB: {r['b']['name']}"), justify="right")

    def line(name: str, value) -> None:
        shown.add_row(Text(name), *(value(r) for r in results))

    line("prompts compared", lambda r: f"{r['n']} of {r['prompts']}")
    for reason in sorted({reason for r in results for reason in r["missing"]}):
        line(f"  missing: {reason.replace('_', ' ')}", lambda r, k=reason: str(r["missing"].get(k, 0)))
    line("A wins", lambda r: _interval(r["win"]))
    line("tie", lambda r: _interval(r["tie"]))
    line("B wins", lambda r: _interval(r["lose"]))
    line("win rate of A, ties as half", lambda r: _interval(r["win_rate"]))
    line("  at equal length", lambda r: _interval(r["lc_win_rate"]))
    line("sign test, p", lambda r: f"{r['sign_test_p']:.2g}")
    line("mean length A, B, characters", lambda r: f"{_round(r['length_a'])}, {_round(r['length_b'])}")
    line("different answers A, B", lambda r: f"{_percent(r['distinct_a'])}, {_percent(r['distinct_b'])}")
    if any(r["score"] == "pairwise" for r in results):
        line("preference for A, orders averaged", lambda r: _interval(r["preference"]))
        line("same verdict in both orders", lambda r: _percent(r["agreement"]))
        line("won by the answer shown first", lambda r: _percent(r["position"]["first"]))
        line("verdicts read", lambda r: _percent(r["parse_rate"]))
    return shown


def category_table(results: Sequence[Row]) -> Table | None:
    """A wins / tie / B wins in the largest categories; None where there is none."""
    sizes: dict[str, int] = {}
    for r in results:
        for name, counts in r["by_category"].items():
            sizes[name] = max(sizes.get(name, 0), counts["n"])
    if not sizes:
        return None
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))
    rest = f", the {CATEGORIES} largest of {len(sizes)}" if len(sizes) > CATEGORIES else ""
    shown = Table(title=f"A wins / tie / B wins by category{rest}", title_justify="left")
    shown.add_column("")
    for r in results:
        shown.add_column(Text(f"A: {r['a']['name']}\nB: {r['b']['name']}"), justify="right")
    for name in largest[:CATEGORIES]:
        shown.add_row(Text(name), *(_counts(r["by_category"].get(name)) for r in results))
    return shown


def _counts(counts: dict[str, int] | None) -> str:
    return f"{counts['win']} / {counts['tie']} / {counts['lose']}" if counts else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _round(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _interval(interval: dict[str, Any]) -> str:
    if interval["value"] is None:
        return "-"
    within = "" if interval["low"] is None else f" ({100 * interval['low']:.0f} to {100 * interval['high']:.0f})"
    return f"{100 * interval['value']:.1f}%{within}"
