"""Human rankings: three forms become one, and every wrong row is named with its line."""

import json

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.ranked import load_ranked
from selfreward_jax.evals.human import load_human, parse_ranked
from tests import tiny


def ranked(*ranks, **fields):
    return {"prompt": "p", "responses": [{"text": f"t{n}", "rank": r} for n, r in enumerate(ranks)]} | fields


def test_ranks_are_taken_as_they_are_and_scores_turned_round():
    assert parse_ranked(ranked(0, 2, 2)).ranks == (0, 2, 2)
    scored = {"prompt": "p", "responses": [{"text": "a", "score": 0.2}, {"text": "b", "score": 0.9}]}
    assert parse_ranked(scored).ranks == (-0.2, -0.9)


def test_ranks_count_before_scores():
    both = {"prompt": "p", "responses": [{"text": "a", "rank": 0, "score": 0.1}, {"text": "b", "rank": 1, "score": 1}]}
    assert parse_ranked(both).ranks == (0, 1)


@pytest.mark.parametrize(
    ("chosen", "rejected", "answers", "ranks"),
    [
        ("good", "bad", ("good", "bad"), (0, 1)),
        (["good"], ["bad", "worse"], ("good", "bad", "worse"), (0, 1, 1)),
        ([{"role": "assistant", "content": "good"}], "bad", ("good", "bad"), (0, 1)),
    ],
)
def test_chosen_and_rejected(chosen, rejected, answers, ranks):
    row = parse_ranked({"prompt": "p", "chosen": chosen, "rejected": rejected, "subset": "s"})
    assert (row.answers, row.ranks, row.subset) == (answers, ranks, "s")


@pytest.mark.parametrize(("label", "ranks"), [("a", (0, 1)), ("B", (1, 0)), ("A > B", (0, 1)), ("tie", (0, 0))])
def test_two_answers_and_a_label(label, ranks):
    assert parse_ranked({"prompt": "p", "response_a": "x", "response_b": "y", "label": label}).ranks == ranks


def test_an_answer_that_stands_in_several_rows_is_judged_once(tmp_path):
    rows = [{"prompt": "p", "chosen": "x", "rejected": y} for y in ("y", "z")]
    data = load_human(tiny.write_jsonl(tmp_path / "d.jsonl", rows))
    assert (len(data.rows), len(data.prompts)) == (2, 1)
    assert [r.text for r in data.responses] == ["x", "y", "z"]


def test_rows_of_one_answer_each_are_one_prompt(tmp_path):
    scores = [("p", "x", 4), ("q", "y", 2), ("p", "z", 0), ("q", "x", 2), ("p", "z", 1)]
    rows = [{"prompt": p, "response": text, "helpfulness": score} for p, text, score in scores]
    data = load_human(tiny.write_jsonl(tmp_path / "d.jsonl", rows))
    assert [(row.answers, row.ranks) for row in data.rows] == [(("x", "z"), (-4, -1))]
    assert (data.equal_ranks, data.single_answer) == (1, 0)


def test_preferences_of_every_form_are_answers_of_two_ranks(tmp_path):
    asked, say = [{"role": "user", "content": "p"}], lambda text: [{"role": "assistant", "content": text}]
    rows = [
        {"prompt": "p", "chosen": asked + say("x"), "rejected": asked + say("y"), "messages": asked + say("x")},
        {"chosen": "\n\nHuman: p\n\nAssistant: x", "rejected": "\n\nHuman: p\n\nAssistant: y", "split": None},
        {"instruction": "p", "completions": [{"response": t, "overall_score": s} for t, s in (("x", 8), ("y", 3))]},
    ]
    data = load_human(tiny.write_jsonl(tmp_path / "d.jsonl", rows))
    assert len(data.prompts) == 1 and {row.answers for row in data.rows} == {("x", "y")}
    assert all(row.ranks[0] < row.ranks[1] for row in data.rows)


def test_prompts_that_tell_no_order_are_counted_and_left_out(tmp_path):
    path = tiny.write_jsonl(tmp_path / "d.jsonl", [ranked(0, 1), ranked(3, 3), ranked(0), ranked(1, 1, 1)])
    data = load_human(path)
    assert (len(data.rows), data.equal_ranks, data.single_answer) == (1, 2, 1)


def test_answers_without_a_rank_are_counted_and_left_out_as_where_seeds_are_made(tmp_path):
    feedback = lambda *scores: {"instruction": "q", "completions": [  # noqa: E731
        {"response": f"t{n}", "overall_score": score} for n, score in enumerate(scores)
    ]}  # fmt: skip
    rows = [
        ranked(0, None, 1),
        ranked(0, None),
        ranked(None),
        feedback(4, None, 9),
        {"instruction": "r", "completions": []},
    ]
    rows += [{"prompt": "s", "responses": [{"text": "a", "rank": 0}, {"text": "b", "score": 1}]}]
    data = load_human(path := tiny.write_jsonl(tmp_path / "d.jsonl", rows))
    assert [(row.answers, row.ranks) for row in data.rows] == [(("t0", "t2"), (0, 1)), (("t0", "t2"), (-4, -9))]
    assert (data.equal_ranks, data.single_answer, data.no_answer, data.unranked) == (0, 2, 2, 5)
    made, _ = load_ranked([str(path)], "en")
    assert [[(a.text, a.rank) for a in r.answers] for r in made if r.comparable] == [
        [("t0", 0), ("t2", 1)],
        [("t2", 0), ("t0", 1)],
    ]


def test_a_part_is_drawn_by_the_seed_and_keeps_the_order(tmp_path):
    path = tiny.write_jsonl(tmp_path / "d.jsonl", [ranked(0, 1, prompt=f"p{n:02}") for n in range(30)])
    drawn = [[r.prompt.messages[0]["content"] for r in load_human(path, max_prompts=9, seed=s).rows] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert len(drawn[0]) == 9
    assert drawn[2] != drawn[0]


def test_a_split_is_chosen(tmp_path):
    rows = [ranked(0, 1, split="train"), ranked(1, 0, prompt="q", split="test")]
    data = load_human(tiny.write_jsonl(tmp_path / "d.jsonl", rows), split="test")
    assert [r.prompt.messages[0]["content"] for r in data.rows] == ["q"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"responses": []}, "the field 'prompt' is missing"),
        ({"prompt": "p"}, "a prompt without answers; give responses, completions, chosen and rejected"),
        ({"prompt": "p", "responses": ["x", "y"]}, "objects with the fields text and rank"),
        (ranked(0, "1"), "the rank of answer 2 must be a finite number from 0 on, not '1'"),
        (ranked(0, True), "answer 2 must be a finite number from 0 on, not True"),
        (ranked(0, float("nan")), "NaN is no JSON; write null"),
        ({"prompt": "p", "responses": [{"text": None, "rank": 0}]}, "the field 'text' is missing"),
        ({"prompt": "p", "responses": [{"text": 3, "rank": 0}]}, "the text of answer 1 must be text"),
        ({"prompt": "p", "chosen": "x"}, "the field 'rejected' is missing"),
        ({"prompt": "p", "chosen": 3, "rejected": "y"}, "chosen must be text"),
        ({"prompt": "p", "response_a": "x", "response_b": "y"}, "the field 'label' is missing"),
        ({"prompt": "p", "response_a": "x", "response_b": "y", "label": 1}, "label 1 is not one of a, b, tie"),
        (ranked(0, 1, subset=3), "subset must be text"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(row, expected, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ranked(0, 1)) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError) as error:
        load_human(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("rows", "split", "expected"),
    [
        (
            [ranked(0, 0), ranked(1)],
            "",
            "nothing to measure; no prompt has two answers of different ranks (1 with equal",
        ),
        ([ranked(0, 1, split="dev")], "test", "--split=test: "),
        ([ranked(0, 1)], "test", "no row has the field split"),
    ],
)
def test_data_that_can_not_be_measured(rows, split, expected, tmp_path):
    path = tiny.write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(UserError, match="d.jsonl") as error:
        load_human(path, split=split)
    assert expected in str(error.value)
