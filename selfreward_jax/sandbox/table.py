"""What a study in the made world came to, for people."""

from rich.table import Table

from selfreward_jax.evals.statistics import Interval
from selfreward_jax.sandbox.study import Study

# Number: what it is called, and its digits.
SHOWN = {
    "true_score": ("true score, 0-5", 2),
    "judged_score": ("score it gives itself", 2),
    "hacking": ("  too high by", 2),
    "judge_accuracy": ("judge: pairwise accuracy", 3),
    "judge_correlation": ("judge: Spearman with truth", 3),
    "parse_rate": ("judge: parsed", 3),
    "flourishes": ("flourishes an answer", 2),
}


def table(found: Study, reward: str) -> Table:
    """Models side by side, and the gain of the last on the first; intervals of 95 % over the seeds."""
    n = len(found.seeds)
    shown = Table(title=f"Sandbox, reward: {reward}, {n} seed{'s' if n > 1 else ''}", title_justify="left")
    shown.add_column("", no_wrap=True)
    for row in found.rows:
        shown.add_column(row["model"].upper(), justify="right")
    last, first = found.rows[-1]["model"].upper(), found.rows[0]["model"].upper()
    shown.add_column(f"{last} - {first}", justify="right")
    for name, (title, digits) in SHOWN.items():
        cells = [_text(row[name], digits) for row in found.rows]
        shown.add_row(title, *cells, _text(found.gain[name], digits, sign="+"))
    for kind in found.seeds[0][0].by_kind:
        means = [sum(models[i].by_kind[kind] for models in found.seeds) / n for i in range(len(found.rows))]
        shown.add_row(f"  true score, {kind}", *(f"{m:.2f}" for m in means), f"{means[-1] - means[0]:+.2f}")
    return shown


def verdicts(found: Study) -> list[str]:
    """In words, what the intervals allow to say and what they do not."""
    last, first = found.rows[-1]["model"].upper(), found.rows[0]["model"].upper()
    gain, judge = found.gain["true_score"], found.gain["judge_accuracy"]
    if gain.low != gain.low:  # NaN: one seed has no interval
        return ["One seed says nothing about the next; give --seeds=5 for intervals."]
    if gain.low > 0:
        answer = f"{last} answers better than {first}"
    else:
        answer = f"{last} answers worse than {first}" if gain.high < 0 else f"{last} and {first} can't be told apart"
    if judge.high < 0:
        judging = "its judgement has fallen"
    else:
        judging = "its judgement has risen" if judge.low > 0 else "its judgement has neither risen nor fallen for sure"
    return [
        f"By the truth {answer} ({_text(gain, 2, sign='+')});",
        f"{judging} (pairwise accuracy {_text(judge, 3, sign='+')}).",
    ]


def _text(x: Interval, digits: int, sign: str = "") -> str:
    if x.value != x.value:
        return "-"
    value = f"{x.value:{sign}.{digits}f}"
    return value if x.low != x.low else f"{value} [{x.low:{sign}.{digits}f}, {x.high:{sign}.{digits}f}]"
