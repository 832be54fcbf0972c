"""No prompt teaches two things, and each set gets what it needs as far as there is enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.core.ranked import Answer, Ranked
from selfreward_jax.methods.seed_split import split_prompts


def prompt(name: str, *ranks: float, held_out: bool = False) -> Ranked:
    answers = tuple(Answer(f"{name}{n}", rank) for n, rank in enumerate(ranks))
    return Ranked(name, ({"role": "user", "content": name},), answers, held_out)


def many(n: int, *ranks: float, start: int = 0, held_out: bool = False) -> list[Ranked]:
    return [prompt(f"p{start + i}", *ranks, held_out=held_out) for i in range(n)]


def sizes(split) -> tuple[int, int, int]:
    return len(split.ift), len(split.eft), len(split.held_out)


@pytest.mark.parametrize(
    ("ranked", "wanted", "expected"),
    [
        (many(100, 0, 1), (10, 100, 50), (10, 60, 30)),  # a third of those left is held out
        (many(100, 0, 1), (90, 40, 0), (80, 20, 0)),  # judging 20 prompts could give 40 rows
        (many(100, 0, 1), (90, 1000, 0), (50, 50, 0)),  # too few for both: half each
        (many(60, 0) + many(40, 0, 1, start=60), (60, 1000, 0), (60, 40, 0)),  # answers alone are for IFT
        (many(60, 0) + many(40, 1, 2, start=60), (90, 10, 0), (60, 40, 0)),  # without a best one nothing is shown
        (many(60, 0, 1) + many(40, 0, 1, start=60, held_out=True), (0, 10, 10), (0, 60, 40)),  # the data's own split
        (many(60, 0) + many(40, 0, 0, start=60), (100, 10, 10), (60, 0, 0)),  # equal ranks are for nothing
        (many(10, 0, held_out=True), (10, 10, 10), (0, 0, 0)),  # what is held out is not learnt
    ],
)
def test_the_sets_have_the_sizes_that_were_worked_out_by_hand(ranked, wanted, expected):
    assert sizes(split_prompts(ranked, set(), *wanted, seed=0)) == expected


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans()), max_size=30),
    st.integers(0, 20),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sets(st.integers(0, 30)),
)
def test_no_prompt_is_in_two_sets_or_taken_from_others(shapes, ift, eft, held_out, others):
    ranked = [prompt(f"p{i}", *ranks, held_out=out) for i, (ranks, out) in enumerate(shapes)]
    taken = {f"p{i}" for i in others}
    split = split_prompts(ranked, taken, ift, eft, held_out, seed=1)
    keys = [r.key for part in (split.ift, split.eft, split.held_out) for r in part]
    assert len(keys) == len(set(keys))
    assert not taken & set(keys)
    assert all(r.best for r in split.ift)
    assert all(r.comparable for r in (*split.eft, *split.held_out))
    assert not any(r.held_out for r in (*split.ift, *split.eft))


def test_the_order_of_the_file_changes_nothing_and_the_seed_does():
    ranked = many(40, 0, 1)
    one = split_prompts(ranked, set(), 10, 20, 10, seed=0)
    assert split_prompts(ranked[::-1], set(), 10, 20, 10, seed=0) == one
    assert split_prompts(ranked, set(), 10, 20, 10, seed=1) != one
