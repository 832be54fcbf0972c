"""Which judgements become rows, on judgements written by hand."""

import pytest

from selfreward_jax.core.ranked import Answer, Ranked
from selfreward_jax.core.rows import Judgement
from selfreward_jax.methods.judging import parse_score
from selfreward_jax.methods.score_forms import Scale
from selfreward_jax.stages.eft import EftRules, build_eft, ranked_rows

RULES = EftRules(min_gap=0.5, min_words=3, max_share=1.0)
TWO = Ranked("why", ({"role": "user", "content": "Why?"},), (Answer("Because.", 0), Answer("No.", 1)), False)
THREE = Ranked("how", ({"role": "user", "content": "How?"},), (Answer("a", 0), Answer("b", 1), Answer("c", 4)), False)
READ = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def judged(ranked: Ranked, *texts: list, stop: str = "eos", probs=None) -> list[Judgement]:
    """For each answer its judgements, as score and text; a text alone has three words before it."""
    _, responses = ranked_rows([ranked])
    return [
        Judgement(f"{r.id}{n}", r.id, n, text, score, stop, probs)
        for r, own in zip(responses, texts, strict=True)
        for n, (score, text) in enumerate(own)
    ]


def said(score: int | None, reasons: str = "Just these reasons.") -> tuple:
    return score, reasons if score is None else f"{reasons}\nScore: {score}"


def steps(made) -> dict[str, int]:
    return {s.what: s.left_out for s in made.steps}


def test_a_row_holds_what_is_learnt_and_nothing_that_followed_it():
    made = build_eft([TWO], judged(TWO, [(4, "Right and *short*.\n**Score: 4/5**\nBye!")], [said(1)]), RULES, 9, 0)
    row = next(row for row in made.rows if row["rank"] == 0)
    assert {k: v for k, v in row.items() if k != "id"} == {
        "prompt_id": "why", "prompt": "Why?", "response": "Because.",
        "judgement": "Right and *short*.\nScore: 4", "score": 4, "rank": 0,
    }  # fmt: skip


def test_a_row_of_another_scale_is_written_on_it():
    ten = Scale(0, 10)
    judgements = judged(TWO, [(4, "Right and short.\nScore: 8/10")], [(1, "Wrong, and too short.\nScore: 2")])
    made = build_eft([TWO], judgements, RULES, 9, 0, ten)
    assert sorted((row["judgement"][-8:], row["score"]) for row in made.rows) == [("Score: 2", 1), ("Score: 8", 4)]
    assert all(parse_score(row["judgement"], ten) == row["score"] for row in made.rows)


def test_a_prompt_whose_scores_disagree_gives_no_row_and_is_told():
    made = build_eft(
        [TWO, THREE], judged(TWO, [said(1)], [said(4)]) + judged(THREE, [said(5)], [said(3)], [said(2)]), RULES, 9, 0
    )
    assert {row["prompt_id"] for row in made.rows} == {"how"} and len(made.rows) == 3
    assert made.dropped == [
        {"prompt_id": "why", "reason": "order_disagrees", "prompt": "Why?",
         "judged": [{"rank": 0, "scores": [1]}, {"rank": 1, "scores": [4]}]},
    ]  # fmt: skip
    assert made.facts["agreement"] == 1 / 2
    assert made.facts["agreement_by_chance"] == pytest.approx((1 / 2 + 1 / 6) / 2)


def test_an_answer_without_a_score_is_left_out_and_the_others_count():
    made = build_eft([THREE], judged(THREE, [said(5)], [said(None)], [said(2)]), RULES, 9, 0)
    assert sorted((row["rank"], row["score"]) for row in made.rows) == [(0, 5), (4, 2)]
    assert steps(made)["without a judgement to learn from"] == 1


@pytest.mark.parametrize(
    ("second", "options", "why"),
    [
        (said(None), {}, "without a score"),
        (said(1, "Bad."), {}, "with too few reasons"),
        (said(1, "S S S S S S"), {}, "with too few reasons"),
        (said(1), {"stop": "length", "probs": READ}, "cut by the limit before the score"),
    ],
)
def test_what_can_not_be_learnt_from_is_left_out(second, options, why):
    judgements = judged(TWO, [said(4)], [said(1)])[:1] + judged(TWO, [said(4)], [second], **options)[1:]
    made = build_eft([TWO], judgements, RULES, 9, 0)
    assert not made.rows and steps(made)[why] == 1
    assert made.dropped[0]["reason"] == "too_few_judged"


def test_a_sampled_score_has_all_its_reasons_though_what_followed_was_cut():
    made = build_eft([TWO], judged(TWO, [said(4)], [said(1)], stop="length"), RULES, 9, 0)
    assert len(made.rows) == 2


def test_rows_left_out_for_balance_are_told():
    many = [
        Ranked(f"p{n}", ({"role": "user", "content": f"p{n}"},), (Answer("a", 0), Answer("b", 1)), False)
        for n in range(6)
    ]
    judgements = [j for n, r in enumerate(many) for j in judged(r, [said(4)], [said(n % 3)])]
    made = build_eft(many, judgements, EftRules(0.5, 3, 0.25), 99, 0)
    assert made.facts["score_hist_agreeing"] == [2, 2, 2, 0, 6, 0]
    assert made.facts["score_hist"] == [2, 2, 2, 0, 2, 0]
    assert [row["reason"] for row in made.dropped] == ["score_too_frequent"] * 4
    assert steps(made)["of scores too frequent"] == 4
