"""A stop string is found where it is completed, in whatever tokens it comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.stopping import cut_at_stop, has_stop
from tests.core.small_tokenizers import chatml

CHAT = Chat(chatml())


@given(st.text("ab\n.é😀", max_size=30), st.lists(st.text("ab\n.é😀", min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_cut_is_at_the_first_stop_string_and_keeps_the_fewest_tokens(text, stop):
    ids = CHAT.text_ids(text)
    whole = CHAT.decode(ids)
    cut = cut_at_stop(CHAT, ids, 1, stop)
    if not any(s in whole for s in stop):
        assert cut is None
        return
    assert cut is not None
    count, kept = cut
    assert not any(s in kept for s in stop)
    assert any(whole.startswith(kept + s) for s in stop)
    assert not any(s in CHAT.decode(ids[: count - 1]) for s in stop)
    assert has_stop(CHAT, ids, 0, stop)


def test_a_stop_string_across_two_looks_is_found():
    ids = CHAT.text_ids("one two END three")
    for before in range(len(ids)):
        grown = next(n for n in range(before + 1, len(ids) + 1) if "END" in CHAT.decode(ids[:n]) or n == len(ids))
        if "END" in CHAT.decode(ids[:grown]):
            assert has_stop(CHAT, ids[:grown], min(before, grown - 1), ["END"])


@pytest.mark.parametrize("least", [1, 5])
def test_nothing_is_cut_before_the_fewest_tokens(least):
    ids = CHAT.text_ids("a.b.c.d.e")
    count, _ = cut_at_stop(CHAT, ids, least, ["."]) or (0, "")
    assert count >= least
