"""Pairs are made of answers whose scores could be read and differ; everything else is dropped with its reason."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.core.config import CHOICES
from selfreward_jax.core.rows import Judgement, Response
from selfreward_jax.methods.pairing import PAIR_RULES, Drop, best_worst, judgement_facts, positives, rank


def response(name: str, *, ids: tuple[int, ...] | None = None, stop="eos") -> Response:
    return Response(name, "p", 0, ids or tuple(map(ord, name)), name, stop, -1.0)


def judged(scores: dict[str, list]) -> dict[str, list[Judgement]]:
    return {
        name: [Judgement(f"{name}{n}", name, n, "", score, "eos") for n, score in enumerate(own)]
        for name, own in scores.items()
    }


def ranked(scores: dict[str, list], responses=None, *, min_parsed=1, keep_truncated=False):
    responses = responses or [response(name) for name in scores]
    return rank(responses, judged(scores), min_parsed=min_parsed, keep_truncated=keep_truncated)


def pair(scores: dict[str, list], min_margin=0.0, responses=None, **settings):
    picked = best_worst(ranked(scores, responses, **settings)[0], min_margin)
    return picked if isinstance(picked, str) else tuple(s.response.id for s in picked)


def test_highest_is_chosen_and_lowest_rejected():
    assert pair({"a": [3, 4, 3], "b": [5, 5, 4], "c": [0, 0, 1], "d": [2, 2, 2]}) == ("b", "c")


def test_the_mean_counts_and_not_a_single_score():
    assert pair({"a": [5, 0, 0], "b": [3, 3, 3]}) == ("b", "a")


def test_of_equal_scores_the_answer_sampled_first_is_taken():
    assert pair({"a": [1], "b": [4], "c": [4], "d": [1]}) == ("b", "a")


@pytest.mark.parametrize("scores", [{"a": [3], "b": [3]}, {"a": [0], "b": [0]}, {"a": [5, 3], "b": [4, 4]}])
def test_equal_scores_make_no_pair(scores):
    assert pair(scores) == "tie"


def test_scores_in_another_order_are_a_tie():
    assert pair({"a": [4.1, 4.2, 4.3], "b": [4.3, 4.2, 4.1]}) == "tie"


@pytest.mark.parametrize(("margin", "found"), [(0.5, ("a", "b")), (1.0, "margin_too_small"), (2.0, "margin_too_small")])
def test_scores_must_differ_by_more_than_the_margin(margin, found):
    assert pair({"a": [4], "b": [3]}, margin) == found


@pytest.mark.parametrize("scores", [{}, {"a": [5]}])
def test_one_answer_alone_makes_no_pair(scores):
    assert pair(scores) == "fewer_than_two_ranked"


def test_the_same_answer_twice_makes_no_pair():
    twins = [dataclasses.replace(response("a"), text="yes"), dataclasses.replace(response("b"), text="yes")]
    assert pair({"a": [5], "b": [1]}, responses=twins) == "identical_answers"


def test_where_best_and_worst_are_the_same_text_a_third_is_paired():
    same = [dataclasses.replace(response(name), text="yes") for name in "ab"]
    assert pair({"a": [5], "b": [1], "c": [2]}, responses=[*same, response("c")]) == ("a", "c")
    assert pair({"a": [5], "b": [1], "c": [4]}, responses=[*same, response("c")]) == ("c", "b")
    assert pair({"a": [5], "b": [1], "c": [3]}, responses=[*same, response("c")]) == ("a", "c")  # a was sampled first
    assert pair({"a": [5], "b": [1], "c": [3]}, 2.0, responses=[*same, response("c")]) == "margin_too_small"
    assert pair({"a": [5], "b": [5], "c": [5]}, responses=[*same, response("c")]) == "tie"
    assert pair({"a": [5], "b": [4]}, 1.0, responses=same) == "identical_answers"  # no margin would make it a pair


def test_the_rule_is_that_of_a_search_over_all_pairs():
    """Every choice of three scores and three texts for up to four answers, with and without a margin."""
    for n, margin in itertools.product(range(5), (0.0, 1.0)):
        for scores, texts in itertools.product(
            itertools.product((1, 2, 4), repeat=n), itertools.product("xyz", repeat=n)
        ):
            answers = [dataclasses.replace(response(chr(97 + i)), text=t) for i, t in enumerate(texts)]
            found = pair({a.id: [s] for a, s in zip(answers, scores, strict=True)}, margin, responses=answers)
            best, wanted = 0, None
            for i, j in itertools.permutations(range(n), 2):  # in the order of sampling
                if texts[i] != texts[j] and scores[i] - scores[j] > best:
                    best, wanted = scores[i] - scores[j], (answers[i].id, answers[j].id)
            if n < 2:
                wanted = "fewer_than_two_ranked"
            elif len(set(scores)) == 1:
                wanted = "tie"
            elif len(set(texts)) == 1:
                wanted = "identical_answers"
            elif best <= margin:
                wanted = "margin_too_small"
            assert found == wanted, (scores, texts, margin)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=2, max_size=6))
def test_different_answers_are_paired_as_the_paper_pairs_them(scores):
    """The first of the highest mean against the first of the lowest."""
    kept = ranked({chr(97 + n): own for n, own in enumerate(scores)})[0]
    best, worst = (pick(kept, key=lambda s: s.score or 0.0) for pick in (max, min))
    assert best_worst(kept, 0.0) == ((best, worst) if best.score != worst.score else "tie")


@pytest.mark.parametrize("missing", [[], [None], [None, None, 1]])
def test_an_answer_whose_scores_cannot_be_read_is_never_rejected(missing):
    """A missing score is no 0 and no -1: it says nothing about the answer."""
    assert pair({"a": [4, 4], "b": missing, "c": [2, 2]}, min_parsed=2) == ("a", "c")
    assert pair({"a": [4, 4], "b": missing}, min_parsed=2) == "fewer_than_two_ranked"


def test_a_missing_score_does_not_lower_the_mean():
    (a, b), _ = ranked({"a": [4, None, 4], "b": [3, 3, 4]}, min_parsed=2)
    assert (a.score, b.score) == (4, 10 / 3)


def test_every_answer_is_ranked_or_dropped_with_its_reason():
    responses = [response("a"), response("b"), response("c"), response("d", stop="length")]
    kept, drops = ranked({"a": [4, 4], "b": [None, 3], "d": [5, 5]}, responses, min_parsed=2)
    assert [s.response.id for s in kept] == ["a"]
    assert drops == [Drop("p", "b", "too_few_scores"), Drop("p", "c", "not_judged"), Drop("p", "d", "truncated")]


@pytest.mark.parametrize(("keep", "found"), [(False, ("a", "b")), (True, ("c", "b"))])
def test_an_answer_cut_by_the_length_limit_is_used_only_if_asked_for(keep, found):
    responses = [response("a"), response("b"), response("c", stop="length")]
    assert pair({"a": [4], "b": [1], "c": [5]}, responses=responses, keep_truncated=keep) == found


@given(st.lists(st.lists(st.none() | st.integers(0, 5), max_size=3), max_size=6), st.integers(1, 3))
def test_a_pair_is_one_of_readable_answers_and_no_other_has_a_wider_margin(scores, min_parsed):
    named = {chr(97 + n): own for n, own in enumerate(scores)}
    parsed = {name: [s for s in own if s is not None] for name, own in named.items()}
    means = {name: sum(own) / len(own) for name, own in parsed.items() if len(own) >= min_parsed}
    found = pair(named, min_parsed=min_parsed)
    if isinstance(found, str):
        assert len(set(means.values())) < 2
    else:
        assert means[found[0]] - means[found[1]] == max(means.values()) - min(means.values()) > 0


def test_positives_are_the_answers_that_every_judgement_gave_the_full_score():
    kept, _ = ranked({"a": [5, 5, 5], "b": [5, 5, 4], "c": [5, None, 5]}, min_parsed=2)
    assert [s.response.id for s in positives(kept)] == ["a", "c"]


def test_a_pair_tells_the_judgements_behind_it_in_their_order():
    judgements = {"a": judged({"a": [1, None, 3]})["a"][::-1]}
    (scored,), _ = rank([response("a")], judgements, min_parsed=1, keep_truncated=False)
    assert judgement_facts(scored) == {"response": "a", "judgements": ["a0", "a1", "a2"], "scores": [1, None, 3]}


def test_the_configuration_knows_each_rule():
    assert CHOICES["pairs.rule"] == tuple(PAIR_RULES)


def test_ten_thousand_answers_to_one_prompt_are_no_hundred_million_pairs():
    scored, _ = ranked({str(n): [n % 50 / 10] for n in range(10_000)})
    assert [s.response.id for s in best_worst(scored, 0.0)] == ["49", "0"]  # type: ignore[union-attr]
