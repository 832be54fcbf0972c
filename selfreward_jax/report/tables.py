"""The tables of the report: what stands in which cell."""

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from selfreward_jax.configs import base
from selfreward_jax.core.config import leaves
from selfreward_jax.evals.statistics import Interval
from selfreward_jax.report.checks import Finding, percent
from selfreward_jax.report.collect import Model, RunFacts
from selfreward_jax.report.results import JudgeResult, WinRate
from selfreward_jax.report.text import shorten, visible
from selfreward_jax.report.topics import PromptMap
from selfreward_jax.stages.summary import judged_by, learns_from_given, used

NONE = "–"
CATEGORIES = 12  # shown


@dataclasses.dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    words: bool = False  # to the left, and broken where it is long


@dataclasses.dataclass(frozen=True)
class Line:
    name: str
    cells: Sequence[Cell]


@dataclasses.dataclass(frozen=True)
class Group:
    title: str
    lines: Sequence[Line]


@dataclasses.dataclass(frozen=True)
class Table:
    corner: str
    columns: Sequence[str]
    groups: Sequence[Group]


@dataclasses.dataclass(frozen=True)
class Tile:
    name: str
    number: str


def number(value: Any, digits: int = 2) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def with_interval(x: Interval, digits: int = 2, scale: float = 1, unit: str = "") -> Cell:
    """A value and, below it, its interval."""
    told = "" if math.isnan(x.low) else f"{number(scale * x.low, digits)} to {number(scale * x.high, digits)}"
    value = number(scale * x.value, digits)
    return Cell(value if value == NONE else value + unit, told)


def learnt(model: Model) -> int | None:
    """Pairs that a model was trained on."""
    return model.training.data.get("pairs") if model.training else None


def tiles(run: RunFacts) -> list[Tile]:
    """The run in a few numbers."""
    answered = [m.answers for m in run.models if m.answers]
    made = [Tile("newest model", run.models[-1].name)]
    made.append(Tile("new prompts", f"{sum(len(i.prompts) for i in run.iterations):,}"))
    made.append(Tile("answers", f"{sum(a.metrics['gen/responses'] for a in answered):,}"))
    made.append(Tile("judgements", f"{sum(a.metrics['judge/judgements'] for a in answered):,}"))
    made.append(Tile("preference pairs", f"{sum(len(i.pairs or ()) for i in run.iterations):,}"))
    if learns_from_given(run.settings):
        given = max((learnt(m) or 0 for m in run.models), default=0)
        return [made[0], Tile("given pairs", f"{given:,}")]
    if len(answered) > 1:
        first, last = (number(a.mean_score.value) for a in (answered[0], answered[-1]))
        made.append(Tile(f"mean score by {judged_by(run.settings)}", f"{first} → {last}"))
    return made


def models(run: RunFacts) -> Table:
    """A column a model: how it was trained, on what, how it answers and judges; without lines that tell nothing."""

    def line(name: str, of: Callable[[Model], Cell | str]) -> Line:
        cells = [of(m) for m in run.models]
        return Line(name, [c if isinstance(c, Cell) else Cell(c) for c in cells])

    def train(of: Callable[[Any], str]) -> Callable[[Model], str]:
        return lambda m: of(m.training) if m.training else NONE

    def answers(of: Callable[[Any], Cell | str]) -> Callable[[Model], Cell | str]:
        return lambda m: of(m.answers) if m.answers else NONE

    def share(metric: str) -> Callable[[Model], Cell | str]:
        return answers(lambda a: NONE if (x := a.metrics[metric]) is None else percent(x))

    by_t = {f"M{i.t}": i for i in run.iterations}
    training = [
        line("made by", lambda m: m.training.stage.upper() if m.training else ("given" if m.name == "M0" else NONE)),
        line("steps", train(lambda t: f"{t.steps:,}")),
        line("loss, first → last", train(lambda t: _change(t, "loss", 3))),
        line("accuracy, last", train(lambda t: _last(t, "rewards/accuracies", percent))),
        line("margin, last", train(lambda t: _last(t, "rewards/margins", lambda x: number(x, 4)))),
    ]
    data = [
        line("new prompts", lambda m: f"{len(by_t[m.name].prompts):,}" if m.name in by_t else NONE),
        line("pairs learnt from", lambda m: NONE if (n := learnt(m)) is None else f"{n:,}"),
        line("mean margin of the pairs, points", lambda m: _margin(by_t.get(m.name))),
    ]
    own = [
        line("answers", answers(lambda a: f"{a.metrics['gen/responses']:,}")),
        line("mean length, tokens", answers(lambda a: number(a.metrics["gen/len_mean"], 0))),
        line("cut by the limit", share("gen/truncated_frac")),
        line("mean score, 0 to 5", answers(lambda a: with_interval(a.mean_score))),
        line("judgements with a score", share("judge/parse_rate")),
        line("prompts tied", share("judge/tie_rate")),
    ]
    groups = [
        Group("Training", training),
        Group("What it learnt from", data),
        Group(f"Its answers, judged by {judged_by(run.settings)}", own),
    ]
    for name, found in run.results.judges.items():
        by_model = {r.model: r for r in found}
        accuracy = line("pairwise accuracy", lambda m, b=by_model: _accuracy(b.get(m.name)))
        groups.append(Group(f"As a judge of {name}", [accuracy]))
    told = [Group(g.title, [x for x in g.lines if any(cell.text != NONE for cell in x.cells)]) for g in groups]
    return Table("", [m.name for m in run.models], [group for group in told if group.lines])


def _change(training, name: str, digits: int) -> str:
    first, last = training.first.get(name), training.last.get(name)
    return NONE if first is None or last is None else f"{number(first, digits)} → {number(last, digits)}"


def _last(training, name: str, show: Callable[[float], str]) -> str:
    value = training.last.get(name)
    return NONE if value is None else show(value)


def _margin(iteration) -> str:
    pairs = iteration.pairs if iteration else None
    return number(sum(p.margin for p in pairs) / len(pairs)) if pairs else NONE


def _accuracy(result: JudgeResult | None) -> Cell:
    found = result.metrics.get("pairwise_accuracy") if result else None
    return with_interval(found, 1, 100, "%") if found else Cell(NONE)


def passed(found: Sequence[Finding]) -> Table:
    """The checks that need no look."""
    lines = [Line(f"{f.name}, {f.where}", [Cell(f.number), Cell(f.bound)]) for f in found]
    return Table("check", ["measured", "worth a look"], [Group("", lines)])


def drops(run: RunFacts) -> Table | None:
    """A line a reason, a column an iteration; None where nothing was left out."""
    kinds = (
        ("Candidates that the prompt filters threw out", lambda i: i.rejected or {}),
        ("Answers that were not ranked", lambda i: i.dropped_answers),
        ("Prompts without a pair", lambda i: i.dropped_prompts),
    )
    groups = []
    for title, of in kinds:
        reasons = list(dict.fromkeys(reason for i in run.iterations for reason in of(i)))
        lines = [
            Line(reason.replace("_", " "), [Cell(f"{of(i).get(reason, 0):,}") for i in run.iterations])
            for reason in reasons
        ]
        groups += [Group(title, lines)] if lines else []
    return Table("", [f"M{i.t}" for i in run.iterations], groups) if groups else None


def clusters(topics: PromptMap) -> Table:
    """A line a cluster: its words, a prompt of it, and how many came from where."""
    origins = list(dict.fromkeys(topics.origins))
    lines = []
    for n, words in enumerate(topics.words):
        members = topics.members(n)
        middle = topics.places[members].mean(0)
        nearest = min(members, key=lambda i: float(((topics.places[i] - middle) ** 2).sum()))
        counts = [sum(topics.origins[i] == o for i in members) for o in origins]
        told = (
            Cell(visible(", ".join(words)), words=True),
            Cell(visible(shorten(topics.texts[nearest], 90)), words=True),
        )
        lines.append(Line(str(n + 1), [*told, *(Cell(f"{c:,}") for c in counts)]))
    return Table("cluster", ["telling words", "a prompt near its middle", *origins], [Group("", lines)])


def win_rates(found: Sequence[WinRate]) -> Table:
    def line(w: WinRate) -> Line:
        lengths = NONE if math.isnan(w.length_a) else f"{number(w.length_a, 0)} / {number(w.length_b, 0)}"
        rates = [with_interval(x, 1, 100, "%") for x in (w.win_rate, w.lc_win_rate)]
        agreement = NONE if math.isnan(w.agreement) else percent(w.agreement)
        return Line(f"{w.a} vs {w.b}", [Cell(f"{w.n:,}"), *rates, Cell(_p(w.p)), Cell(agreement), Cell(lengths)])

    columns = ["prompts", "win rate", "at equal length", "p (sign test)", "both orders agree", "lengths"]
    return Table("", columns, [Group("", [line(w) for w in found])])


def win_categories(found: Sequence[WinRate]) -> Table | None:
    """Prompts won, tied and lost, a line for each of the largest categories; None where there are none."""
    sizes: collections.Counter[str] = collections.Counter()
    for w in found:
        sizes.update({name: sum(counts) for name, counts in w.categories.items()})
    if not sizes:
        return None

    def cell(counts: tuple[int, int, int] | None) -> Cell:
        return Cell(" / ".join(f"{n:,}" for n in counts) if counts else NONE)

    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:CATEGORIES]
    lines = [Line(visible(name), [cell(w.categories.get(name)) for w in found]) for name in largest]
    rest = f"the {CATEGORIES} largest of {len(sizes)} categories" if len(sizes) > CATEGORIES else "category"
    return Table(f"{rest}: won / tied / lost", [f"{w.a} vs {w.b}" for w in found], [Group("", lines)])


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else number(value, 3)


def settings(run: RunFacts) -> Table:
    """Fields whose values are not the defaults."""
    defaults = dict(leaves(json.loads(json.dumps(base.get_config().to_dict()))))
    shown = {name: value for name, value in used(run.settings).items() if defaults.get(name) != value}
    lines = [
        Line(name, [Cell(_setting(value), words=True), Cell(_setting(defaults.get(name)), words=True)])
        for name, value in sorted(shown.items())
    ]
    return Table("field", ["here", "default"], [Group("", lines)])


def _setting(value: Any) -> str:
    return NONE if value is None or value == "" else visible(value if isinstance(value, str) else json.dumps(value))
