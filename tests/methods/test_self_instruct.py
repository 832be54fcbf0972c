"""New prompts: shown by a numbered list, cut at the next item, and compared with every prompt known before."""

import collections
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from selfreward_jax.core.seeds import load_ift
from selfreward_jax.methods.self_instruct import (
    FilterSettings,
    PromptFilter,
    _rouge_words,
    few_shot_list,
    first_item,
    pick_demonstrations,
)

LIMITS = FilterSettings(rouge_threshold=0.7, min_words=3, max_words=8, keywords=("image", "go to"))
KNOWN = "Write a short poem about bread"


def reason(text: str, known=(KNOWN,)) -> str | None:
    return PromptFilter(LIMITS, known).reject_reason(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Name two rivers", None),
        ("Name rivers", "too_short"),
        ("Name one two three four five six seven", None),
        ("Name one two three four five six seven eight", "too_long"),
        ("\u00c9crivez une lettre ici", "starts_non_ascii"),
        ("- name two rivers", "starts_with_punctuation"),
        ('"Bread": what is it?', None),
        ("'Bread', what is it?", None),
        ("2 rivers in Asia", None),
        ("Write a program that sorts", "asks_for_a_program"),
        ("WRITE A PROGRAM that sorts", "asks_for_a_program"),
        ("Describe this image now", "keyword"),
        ("Describe this Image: now", "keyword"),
        ("Please go to the shop", "keyword"),
        ("Imagery in old poems", None),
        (KNOWN, "duplicate"),
        ("write a SHORT poem, about: bread!", "duplicate"),
        ("Write a short poem about rain", "similar"),
        ("Describe how bread is made", None),
    ],
)
def test_a_prompt_is_accepted_or_rejected_with_its_reason(text, why):
    assert reason(text) == why


def test_an_accepted_prompt_is_known_from_then_on():
    accept = PromptFilter(LIMITS, [])
    assert accept.reject_reason("Name two rivers in Asia") is None
    assert accept.reject_reason("Name two rivers in Asia") == "duplicate"
    assert accept.reject_reason("Name two rivers in Africa") == "similar"


def test_a_rejected_prompt_is_not_known():
    accept = PromptFilter(LIMITS, [KNOWN])
    assert accept.reject_reason("Write a short poem about image") == "keyword"
    assert accept.similarity("Write a short song about image") == 0


def test_without_keywords_none_is_rejected_for_one():
    limits = FilterSettings(rouge_threshold=0.7, min_words=1, max_words=9, keywords=())
    assert PromptFilter(limits, []).reject_reason("Describe this image") is None


def test_a_similarity_of_the_threshold_itself_is_allowed():
    """Self-Instruct keeps what is not above 0.7: here seven words of ten are common."""
    assert reason("a b c d e f g x", known=["a b c d e f g 1 2 3 4 5"]) is None
    assert reason("a b c d e f g x", known=["a b c d e f g 1 2 3 4"]) == "similar"


WORDS = ["a", "b", "c", "d", "e", "A-b", "c,d", "7", "é", "e."]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


@given(st.lists(texts, max_size=6), texts, st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_the_similarity_is_rouge_l_over_the_whole_pool_wherever_it_is_above_the_threshold(known, text, threshold):
    settings = FilterSettings(rouge_threshold=threshold, min_words=1, max_words=99, keywords=())
    scorer = RougeScorer(["rougeL"])
    exact = max((scorer.score(other, text)["rougeL"].fmeasure for other in known), default=0.0)
    found = PromptFilter(settings, known).similarity(text)
    if exact > threshold + 1e-9:
        assert found == pytest.approx(exact)
    else:
        assert found <= threshold + 1e-9


def naive(texts: list[str], threshold: float) -> list[str | None]:
    """Every prompt with every one kept before it; a bound that needs no index spares the hopeless."""
    scorer, kept, reasons = RougeScorer(["rougeL"]), [], []
    for text in texts:
        words = collections.Counter(tokenize(text, None))
        near = [
            other
            for other, theirs in kept
            if 2 * (words & theirs).total() > threshold * (words.total() + theirs.total())
        ]
        similar = any(scorer.score(other, text)["rougeL"].fmeasure > threshold for other in near)
        reasons.append("similar" if similar else None)
        kept += [] if similar else [(text, words)]
    return reasons


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_decisions_about_real_prompts_are_those_of_comparing_with_every_one_kept(threshold):
    rng = random.Random(0)
    words = [d.messages[-1]["content"].split() for d in load_ift("builtin")]
    texts = []
    for a, b in (rng.sample(words, 2) for _ in range(700)):
        mixed = [*a[: len(a) // 2], *b[len(b) // 2 :]] if rng.random() < 0.7 else rng.sample(a, len(a))
        texts.append(" ".join(mixed))
    texts = list(dict.fromkeys(text for text in texts if re.match("[a-zA-Z]", text)))
    accept = PromptFilter(FilterSettings(threshold, 0, 10_000, ()), [])
    found = [accept.reject_reason(text) for text in texts]
    expected = naive(texts, threshold)
    pairs = [(f, e) for f, e in zip(found, expected, strict=True) if f not in ("duplicate", "asks_for_a_program")]
    assert len(pairs) > 400 and 20 < sum(e == "similar" for _, e in pairs) < len(pairs) - 100
    assert all(f == e for f, e in pairs)


def test_few_prompts_are_compared_with_each_other_however_many_are_known():
    """Words as common as in English (Zipf): of ten thousand prompts each is looked at beside a few."""
    words = np.exp(np.random.default_rng(0).uniform(0, np.log(50_000), (4000, 15))).astype(int)
    accept = PromptFilter(FilterSettings(0.7, 1, 99, ()), [])
    compared = []
    for part in np.split(words, [1000, 2000]):
        before = accept.overlaps.compared
        for row in part:
            accept.reject_reason(" ".join(f"w{n}" for n in row))
        compared.append((accept.overlaps.compared - before) / len(part))
    print(compared)
    assert compared[-1] < 20, compared


@given(st.text() | texts)
def test_words_are_those_that_rouge_score_compares(text):
    assert _rouge_words(text) == tokenize(text, None)


# ---------------------------------------------------------------------------------------------------------------------
# Showing and reading lists


def test_the_list_numbers_its_tasks_one_a_line_and_ends_where_the_next_begins():
    assert few_shot_list(["Name a\n  river.", "Why?"]) == "1. Name a river.\n2. Why?\n3."


@pytest.mark.parametrize(
    ("continuation", "item"),
    [
        (" Name a river.", "Name a river."),
        (" Name a river.\n11. Why?", "Name a river."),
        ("\n\nName a river.\nThe Elbe.", "Name a river."),
        (" Name a river. 11. Why?", "Name a river."),
        (" Name a river! 11) Why?", "Name a river!"),
        (" Name a river Task 11: Why?", "Name a river"),
        (" What is the sum of 15 and 27. Show how.", "What is the sum of 15 and 27. Show how."),
        (" Who won in 66? Name 3.5 reasons.", "Who won in 66? Name 3.5 reasons."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_an_item_ends_where_the_next_one_or_an_answer_begins(continuation, item):
    assert first_item(continuation) == item


@given(st.text())
def test_an_item_is_one_line_of_the_continuation(text):
    item = first_item(text)
    assert item in text and "\n" not in item and item == item.strip()


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 8), st.integers(0, 4), st.integers())
def test_demonstrations_are_as_many_of_each_kind_as_there_are_and_seeds_fill_up(
    n_seeds, n_generated, want_seed, want_generated, seed
):
    seeds, generated = [f"s{n}" for n in range(n_seeds)], [f"g{n}" for n in range(n_generated)]
    shown = pick_demonstrations(seeds, generated, n_seed=want_seed, n_generated=want_generated, rng=random.Random(seed))
    own = [x for x in shown if x in generated]
    assert len(set(shown)) == len(shown) and set(shown) <= {*seeds, *generated}
    assert len(own) == min(want_generated, n_generated)
    assert len(shown) - len(own) == min(want_seed + want_generated - len(own), n_seeds)


def test_demonstrations_come_in_an_order_that_mixes_both_kinds():
    pick = lambda n: pick_demonstrations(  # noqa: E731
        list("abcdef"), list("12"), n_seed=6, n_generated=2, rng=random.Random(n)
    )
    places = {re.search(r"\d", "".join(pick(n))).start() for n in range(30)}  # type: ignore[union-attr]
    assert len(places) > 3
    assert pick(1) == pick(1)
