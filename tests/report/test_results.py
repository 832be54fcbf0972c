"""What evaluations left in a run's folder, as the report reads it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.report.results import read_results
from selfreward_jax.report.tables import win_categories


def measured(value: float | None) -> dict[str, float | None]:
    return {
        "value": value,
        "low": None if value is None else value - 0.1,
        "high": None if value is None else value + 0.1,
    }


def judge(model: str) -> dict[str, Any]:
    metrics = {
        name: measured(0.6) for name in ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall_tau")
    }
    return {
        "kind": "judge", "model": model, "hash": "h", "data": "d.jsonl", "data_sha256": "s", "prompts": 9,
        "responses": 30, "judgements": 90, "parse_rate": 0.9, "metrics": metrics | {"five_best": measured(None)},
        "baselines": {"longer": {"pairwise_accuracy": measured(0.55)}}, "length_bias": {}, "score_hist": [15] * 6,
        "calibration": [{"score": 0, "n": 0, "mean_human": None}, {"score": 5, "n": 3, "mean_human": 0.75}],
    }  # fmt: skip


def win_rate(a: str, b: str) -> dict[str, Any]:
    return {
        "kind": "winrate", "a": {"name": a, "hash": "h"}, "b": {"name": b, "hash": "h"}, "judge": "models/judge",
        "prompts": "p.jsonl", "n": 20, "win": measured(0.5), "tie": measured(0.3), "lose": measured(0.2),
        "win_rate": measured(0.65), "lc_win_rate": measured(None), "sign_test_p": 0.03, "agreement": 0.8,
        "position": {"first": 0.5}, "by_category": {"a<b>": {"n": 20, "win": 10, "tie": 6, "lose": 4}},
        "length_a": 60.0, "length_b": 50.0,
    }  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def add_results(folder: Path) -> None:
    """What both evaluations leave of a run M0 to M3."""
    write(folder / "judge" / "ranked" / "summary.json", [judge(f"m{t}") for t in range(4)])
    for a, b in (("m2", "m1"), ("m3", "m2"), ("m3", "m1")):
        write(folder / "winrate" / "heldout" / f"{a}_{b}" / "result.json", win_rate(a, b))


def test_results_are_read_by_data_file_in_order(tmp_path):
    add_results(tmp_path)
    found = read_results(epath.Path(tmp_path))
    assert [r.model for r in found.judges["ranked"]] == ["M0", "M1", "M2", "M3"]
    assert found.judges["ranked"][0].calibration == ((5.0, 0.75),)
    assert [(w.a, w.b) for w in found.win_rates["heldout"]] == [("M2", "M1"), ("M3", "M1"), ("M3", "M2")]
    assert found.win_rates["heldout"][0].win_rate.low == pytest.approx(0.55)
    assert found.win_rates["heldout"][0].categories == {"a<b>": (10, 6, 4)}


def test_the_largest_categories_have_a_line(tmp_path):
    add_results(tmp_path)
    first, second, third = read_results(epath.Path(tmp_path)).win_rates["heldout"]
    many = {f"c{n}": (n, 1, 0) for n in range(20)}
    table = win_categories([dataclasses.replace(first, categories=many), second])
    assert table and table.columns == ["M2 vs M1", "M3 vs M1"]
    lines = table.groups[0].lines
    assert len(lines) == 12 and table.corner.startswith("the 12 largest of 21")
    cells = [[line.name, *(c.text for c in line.cells)] for line in lines[:2]]
    assert cells == [["a<b>", "–", "10 / 6 / 4"], ["c19", "19 / 1 / 0", "–"]]
    assert win_categories([dataclasses.replace(third, categories={})]) is None


def test_what_could_not_be_measured_is_nan(tmp_path):
    add_results(tmp_path)
    found = read_results(epath.Path(tmp_path))
    assert math.isnan(found.judges["ranked"][0].metrics["five_best"].value)
    assert math.isnan(found.win_rates["heldout"][0].lc_win_rate.value)


def test_where_nothing_was_evaluated_there_is_nothing(tmp_path):
    found = read_results(epath.Path(tmp_path / "eval"))
    assert (found.judges, found.win_rates) == ({}, {})


@pytest.mark.parametrize("content", ['{"kind": ', "[]", '{"kind": "winrate"}', '{"a": 3, "b": 4, "n": 1}'])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "winrate" / "p" / "m2_m1" / "result.json"
    write(path, 0)
    path.write_text(content)
    with pytest.raises(UserError, match="delete it and evaluate again") as error:
        read_results(epath.Path(tmp_path))
    assert str(path) in str(error.value)
