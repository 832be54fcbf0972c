"""What a run came to: one row per model, as a table for people and as `summary.json`."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from selfreward_jax.core.console import Terminal
from selfreward_jax.core.errors import ReadOnly
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.metrics import SPEED_FILE
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Judgement, Response, load_rows
from selfreward_jax.core.store import is_local, write_changed
from selfreward_jax.llama.load import MODEL_FILE
from selfreward_jax.methods.answer_metrics import answer_metrics
from selfreward_jax.stages.choice import WIN_RATE
from selfreward_jax.stages.dpo import OWN
from selfreward_jax.stages.judge import scores_needed
from selfreward_jax.stages.run import Run

NONE, SUMMARY = "-", "summary.json"
OF_ANSWERS = ("truncated", "not_judged", "too_few_scores")
ROWS = ("prompts", "responses", "judgements", "pairs", "dropped")


def learns_from_given(fields: Mapping[str, Any]) -> bool:
    """Whether a run's pairs come from a file, so that no model is asked. Args: fields: by their dotted names."""
    return fields.get("dpo.data", OWN[0]) not in OWN


def used(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run's configuration, without those that only serve to make pairs where the pairs are given."""
    idle: tuple[str, ...] = ()
    if learns_from_given(fields):
        idle = ("prompts.",) if fields.get("checkpoint.choose") == WIN_RATE else ("prompts.", "respond.", "judge.")
    # The judge's template is also what EFT seeds are rendered with.
    return {name: x for name, x in fields.items() if name == "judge.template" or not name.startswith(idle)}


def judged_by(fields: Mapping[str, Any]) -> str:
    """Whose scores the answers of a run's models have, for people."""
    if fields.get("judge.method") == "function":
        return "a function"
    by = fields.get("judge.by", "current")
    return "the model itself" if by == "current" else by.upper()


def summarise(run: Run) -> list[dict[str, Any]]:
    """One dict per model M1 to M_T as far as they exist; written to `summary.json`."""
    T, own = run.config.loop.iterations, run.config.dpo.data in OWN
    rows = []
    for t in range(1, T + 1):
        entry = run.manifest.entry(f"m{t}/{MODEL_FILE}")
        if entry is None:
            break
        row: dict[str, Any] = {"model": f"M{t}", "hash": entry["hash"], "stage": entry["inputs"]["stage"]}
        row["train"] = entry["metrics"]
        row["data"] = entry.get("data", {})
        rows.append(row)
        if not own:  # what may lie there is of another configuration
            continue
        folder = f"m{t + 1}" if t < T else f"m{t}/eval"
        if all(run.manifest.entry(f"{folder}/{name}.jsonl") for name in ("responses", "judgements")):
            responses = load_rows(run.intact(f"{folder}/responses.jsonl"), Response, texts=False)
            judgements = load_rows(run.intact(f"{folder}/judgements.jsonl"), Judgement, texts=False)
            row |= answer_metrics(responses, judgements, min_parsed=scores_needed(run.config.judge))
        for name in ("prompts", "pairs"):
            made = run.manifest.entry(f"m{t}/{name}.jsonl")
            row |= made.get("metrics", {}) if made else {}
    if changed := run.manifest.changed(SUMMARY):
        say(f"{changed}; made again")
    with contextlib.suppress(ReadOnly):  # it is printed as well
        write_changed(run.root / SUMMARY, json.dumps(rows, indent=2) + "\n")
        if run.manifest.changed(SUMMARY):  # what it tells of was made since, and stands before it
            run.manifest.forget(SUMMARY)
        run.record(SUMMARY, {})
    return rows


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f}%"


def _change(train: dict[str, Any], name: str) -> str:
    first, last = train["first"].get(name), train["last"].get(name)
    return NONE if first is None or last is None else f"{first:.3f} → {last:.3f}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One column per model. "Answers" are the model's own; lines that tell nothing are left out."""
    shown = Table(title="Self-rewarding run", title_justify="left", show_lines=False)
    shown.add_column("", no_wrap=True)
    for row in rows:
        shown.add_column(row["model"], justify="right")

    def line(name: str, value) -> None:
        cells = [value(row) for row in rows]
        if any(cell != NONE for cell in cells):
            shown.add_row(name, *cells)

    line("trained by", lambda r: f"{r['stage'].upper()}, {r['train'].get('steps', 0)} steps")
    line("loss, first → last", lambda r: _change(r["train"], "loss"))
    line("DPO accuracy, last", lambda r: _percent(r["train"]["last"].get("rewards/accuracies")))
    line("DPO margin, last", lambda r: _number(r["train"]["last"].get("rewards/margins"), 4))
    line("prompts kept", lambda r: str(r.get("prompts/kept", NONE)))
    line("pairs learnt from", lambda r: str(_pairs(r).get("pairs/kept", NONE)))
    reasons = sorted({name for r in rows for name, n in _pairs(r).items() if name.startswith("pairs/dropped_") and n})
    for reason in reasons:
        line(f"  {_reason(reason)}", lambda r, k=reason: str(_pairs(r).get(k, 0)) if r["stage"] == "dpo" else NONE)
    line("its answers", lambda r: str(r.get("gen/responses", NONE)))
    line("  mean length, tokens", lambda r: _number(r.get("gen/len_mean"), 0))
    line("  cut by the limit", lambda r: _percent(r.get("gen/truncated_frac")))
    line("  mean score, 0-5", lambda r: _number(r.get("judge/score_mean")))
    line(
        "  scores 0/1/2/3/4/5", lambda r: "/".join(map(str, r["judge/score_hist"])) if "judge/score_hist" in r else NONE
    )
    line("  judgements parsed", lambda r: _percent(r.get("judge/parse_rate")))
    line("  prompts tied", lambda r: _percent(r.get("judge/tie_rate")))
    return shown


def _pairs(row: Mapping[str, Any]) -> dict[str, Any]:
    """How many pairs a model learnt from, whoever made them, and what was left out on the way there."""
    made = {name: n for name, n in row.items() if name.startswith("pairs/")}
    learnt = row.get("data", {}) if row["stage"] == "dpo" else {}
    kept = {"pairs/kept": learnt["pairs"]} if "pairs" in learnt else {}
    return made | kept | {f"pairs/{name}": n for name, n in learnt.items() if name.startswith("dropped_")}


def _reason(key: str) -> str:
    what = key.removeprefix("pairs/dropped_")
    units = {"too_long": "pairs", "equal": "pairs"} | dict.fromkeys(OF_ANSWERS, "answers")
    unit = units.get(what, "prompts")
    return f"{unit} left out: {what.replace('_', ' ')}"


def show(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """The table and where everything lies, on standard output; of several processes, one prints it."""
    if not is_writer():
        return
    console = Terminal(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    console.print(table(rows))
    console.print(f"Run          {run.root}")
    for row in rows:
        console.print(f"  {row['model']}         {run.root / row['model'].lower()}")
    there = [name for name in ROWS if any((run.root / r["model"].lower() / f"{name}.jsonl").exists() for r in rows)]
    if there:
        console.print(f"  rows       {run.root}/m*/{', '.join(there)} (.jsonl)")
    board = ", m*/tb (TensorBoard)" if run.config.log.tensorboard and is_local(run.root) else ""
    console.print(f"  training   {run.root}/m*/metrics.jsonl, m*/{SPEED_FILE}{board}")
    console.print(f"  summary    {run.root / 'summary.json'}; what made what: {run.root / 'manifest.jsonl'}")
    newest = run.root / rows[-1]["model"].lower() if rows else run.root
    if (run.root / "report.html").exists():
        console.print(f"Look at it:  {run.root / 'report.html'} in a browser")
    console.print(f"Talk to it:  selfreward chat --workdir={run.root}")
    console.print(f"Take it out: selfreward export --model={newest} --output=DIR")
