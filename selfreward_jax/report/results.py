"""What evaluations of a run's models found: the results that `selfreward eval` left in the run's folder."""

import dataclasses
import math
from typing import Any, TypeVar

from etils import epath

from selfreward_jax.core.rows import Row
from selfreward_jax.core.store import Manifest
from selfreward_jax.core.stored import as_written, read_json
from selfreward_jax.evals.statistics import Interval

T = TypeVar("T")
AGAIN = "delete it and evaluate again"
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class JudgeResult:
    """How well a model judges, on one file of answers that people ranked."""

    model: str
    prompts: int
    judgements: int
    parse_rate: float
    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, Interval]]
    calibration: tuple[
        tuple[float, float], ...
    ]  # score, mean place among the answers by people's order: 1 best, 0 worst


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Two models' answers compared; shares of prompts, lengths as the evaluation measured them.

    Attributes:
      categories: prompts of each that A won, tied and lost; empty where prompts have none.
    """

    a: str
    b: str
    judge: str
    n: int
    win: Interval
    tie: Interval
    lose: Interval
    win_rate: Interval
    lc_win_rate: Interval
    p: float
    agreement: float
    length_a: float
    length_b: float
    categories: dict[str, tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class Results:
    """By data file's name: judges in the models' order, comparisons by name."""

    judges: dict[str, tuple[JudgeResult, ...]]
    win_rates: dict[str, tuple[WinRate, ...]]


def read_results(folder: epath.Path) -> Results:
    """What lies in `folder`/judge and `folder`/winrate; empty where there is nothing.

    Raises:
      UserError: a file that is not what an evaluation writes.
    """
    judges = {
        path.parent.name: tuple(_parsed(path, row, _judge) for row in _load(path, list, path.parent))
        for path in _files(folder / "judge", 1, "summary.json")
    }
    win_rates: dict[str, list[WinRate]] = {}
    for path in _files(folder / "winrate", 2, "result.json"):
        win_rates.setdefault(path.parents[1].name, []).append(
            _parsed(path, _load(path, dict, path.parents[1]), _win_rate)
        )
    return Results(judges, {name: tuple(found) for name, found in win_rates.items()})


def _files(folder: epath.Path, depth: int, name: str) -> list[epath.Path]:
    """Files of a name so many folders below; without `glob`, to which a run's folder may be named like a pattern."""
    folders = [folder]
    for _ in range(depth):
        folders = [below for above in folders if above.is_dir() for below in above.iterdir()]
    return sorted(below / name for below in folders if (below / name).exists())


def _load(path: epath.Path, kind: type[T], root: epath.Path) -> T:
    """A result, as the evaluation in `root` has it on record."""
    Manifest(root).intact(path.relative_to(root).as_posix(), "evaluate again")
    return read_json(path, kind, AGAIN)


def _parsed(path: epath.Path, row: Row, parse):
    with as_written(path, AGAIN):
        return parse(row)


def interval(value: Any) -> Interval:
    """From a result file, where what could not be measured is null or absent."""
    if value is None:
        return NOTHING
    if not isinstance(value, dict):
        return Interval(float(value), math.nan, math.nan)
    return Interval(*(_number(value.get(name)) for name in ("value", "low", "high")))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def title(name: str) -> str:
    """A model of a run by its name in the algorithm: M2; any other by its folder's name."""
    last = name.rstrip("/").rpartition("/")[2]
    return last.upper() if last[:1] in ("m", "M") and last[1:].isdigit() else last


def _judge(row: Row) -> JudgeResult:
    return JudgeResult(
        model=title(row["model"]),
        prompts=int(row["prompts"]),
        judgements=int(row["judgements"]),
        parse_rate=_number(row.get("parse_rate")),
        metrics={name: interval(x) for name, x in row["metrics"].items()},
        baselines={
            name: {metric: interval(x) for metric, x in found.items()}
            for name, found in row.get("baselines", {}).items()
        },
        calibration=tuple(
            (float(x["score"]), float(x["mean_human"]))
            for x in row.get("calibration", [])
            if x.get("mean_human") is not None
        ),
    )


def _win_rate(row: Row) -> WinRate:
    return WinRate(
        a=title(row["a"]["name"]),
        b=title(row["b"]["name"]),
        judge=title(str(row.get("judge", ""))),
        n=int(row["n"]),
        **{name: interval(row.get(name)) for name in ("win", "tie", "lose", "win_rate", "lc_win_rate")},
        p=_number(row.get("sign_test_p")),
        agreement=_number(row.get("agreement")),
        length_a=_number(row.get("length_a")),
        length_b=_number(row.get("length_b")),
        categories={
            name: (int(x["win"]), int(x["tie"]), int(x["lose"])) for name, x in row.get("by_category", {}).items()
        },
    )
