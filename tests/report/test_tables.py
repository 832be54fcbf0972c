"""The report's tables and words, where a run isn't the usual one."""

import pytest

from selfreward_jax.report import tables
from selfreward_jax.report.collect import Model
from selfreward_jax.report.page import render
from tests.report.facts import answers, iteration, run, training

GIVEN = {"dpo.data": "pairs.jsonl", "judge.samples": 9, "judge.template": "judge.txt"}


def test_where_pairs_are_given_the_report_says_nothing_of_answers():
    facts = run((Model("M1", "1" * 16, training("sft"), None), Model("M2", "2" * 16, training(), None)), settings=GIVEN)
    assert [(tile.name, tile.number) for tile in tables.tiles(facts)] == [
        ("newest model", "M2"),
        ("given pairs", "300"),
    ]
    told = {line.name for group in tables.models(facts).groups for line in group.lines}
    assert {"made by", "pairs learnt from"} <= told and not {"answers", "prompts tied", "new prompts"} & told
    assert [line.name for group in tables.settings(facts).groups for line in group.lines] == [
        "dpo.data",
        "judge.template",
    ]
    page = render(facts)
    assert "learns from preferences that were" in page and "no model was asked" in page
    for wrong in ("judges its answers", "scores them", "judged yet", "made yet"):
        assert wrong not in page


@pytest.mark.parametrize(
    ("fields", "who"),
    [({}, "the model itself"), ({"judge.by": "m1"}, "M1"), ({"judge.method": "function"}, "a function")],
)
def test_the_report_says_whose_the_scores_are(fields, who):
    models = tuple(Model(f"M{t}", str(t) * 16, training(), answers()) for t in (1, 2))
    facts = run(models, (iteration(2),), settings=fields)
    assert f"Its answers, judged by {who}" in [group.title for group in tables.models(facts).groups]
    assert tables.tiles(facts)[-1].name == f"mean score by {who}"
    page = render(facts)
    assert f"{who} judges its answers" in page and f"{who} scores them" in page and "its own judge" not in page
