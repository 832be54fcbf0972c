"""A sample's end is that of a loop over its tokens, one by one, whatever the tokenizer and however often one looks."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.engine.stopping import End, find_end
from tests.core import small_tokenizers

CHATS = {name: Chat(getattr(small_tokenizers, name)()) for name in ("chatml", "llama3", "llama2")}
LETTERS = "ab\n. é😀\ufffd"


def naive_end(chat: Chat, ids: list[int], settings: SamplingSettings) -> End | None:
    for n in range(1, len(ids) + 1):
        if ids[n - 1] in chat.eos_ids:
            return End("eos", n, n)
        text = chat.decode(ids[:n])
        for at in range(len(text)):
            if any(text[at:].startswith(stop) for stop in settings.stop):
                before = {k: chat.decode(ids[:k]) for k in range(settings.min_new_tokens, n)}
                whole = [k for k, own in before.items() if text[:at].startswith(own)]
                if whole:
                    return End("stop", n, max(whole), text[len(before[max(whole)]) : at])
        if n == settings.max_new_tokens:
            return End("length", n, n)
    return None


@st.composite
def samples(draw) -> tuple[Chat, list[int], SamplingSettings, list[int]]:
    """Tokens of texts, of single bytes and of control, in any order; and after how many of them one looks."""
    chat = CHATS[draw(st.sampled_from(sorted(CHATS)))]
    control = [i for i in chat.tokenizer.added_tokens_decoder if i not in chat.eos_ids]
    single = chat.text_ids("é😀ab\n. ")
    pieces = st.one_of(
        st.text(LETTERS, max_size=8).map(chat.text_ids),
        st.lists(st.sampled_from([*single, *control]), max_size=6),
        st.sampled_from([[chat.eos_ids[0]], 12 * control[:1], 9 * chat.text_ids("😀"), chat.text_ids(" the bread")]),
    )
    ids = [i for piece in draw(st.lists(pieces, max_size=6)) for i in piece]
    at, size = draw(st.integers(0, 40)), draw(st.integers(1, 4))
    said = chat.decode(ids)[at : at + size]  # which the text does hold
    stop = draw(st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=not said, max_size=2)) + [said] * bool(said)
    least = draw(st.integers(0, 12))
    most = draw(st.integers(max(least, 1), 60))
    looks = draw(st.lists(st.integers(1, 9), min_size=1, max_size=60))
    return chat, ids, SamplingSettings(1.0, 1.0, most, min_new_tokens=least, stop=tuple(stop)), looks


@given(samples())
def test_the_end_is_that_of_a_naive_loop_wherever_one_looks(sample):
    chat, ids, settings, looks = sample
    expected = naive_end(chat, ids, settings)
    assert find_end(chat, ids, settings) == expected
    found, before = None, 0
    while not found and before < len(ids):
        after = before + looks[before % len(looks)]
        found, before = find_end(chat, ids[:after], settings, before), after
    assert found == expected


@given(samples())
def test_what_is_kept_is_the_text_before_the_stop_string_and_no_fewer_tokens_than_asked_for(sample):
    chat, ids, settings, _ = sample
    end = find_end(chat, ids, settings)
    if end and end.reason == "stop":
        text, whole = chat.decode(ids[: end.kept]) + end.rest, chat.decode(ids[: end.drawn])
        assert any(whole.startswith(text + stop) for stop in settings.stop)
        assert settings.min_new_tokens <= end.kept < end.drawn
        # Nothing is lost but what shares a token with the stop string.
        assert len(chat.decode(ids[: end.kept + 1])) > len(text) or not whole.startswith(
            chat.decode(ids[: end.kept + 1])
        )


SETTINGS = SamplingSettings(1.0, 1.0, 40, stop=("\n",))


def one_by_one(chat: Chat, *texts: str) -> list[int]:
    return [i for text in texts for i in chat.text_ids(text)]


def test_a_stop_string_that_begins_within_a_token_takes_the_token_along_and_its_rest_is_told():
    chat = CHATS["chatml"]
    (the,) = chat.text_ids(" the")
    ids = [*chat.text_ids("a"), the, *chat.text_ids(" b")]
    end = find_end(chat, ids, dataclasses.replace(SETTINGS, stop=("he b",)))
    assert end == End("stop", len(ids), 1, " t")


def test_a_stop_string_among_the_fewest_tokens_is_text_like_any_other():
    """Also one that begins there: it would leave fewer tokens."""
    chat = CHATS["chatml"]
    ids = one_by_one(chat, "a", "\n", "b", "\n", "c", "\n", "d")
    assert find_end(chat, ids, dataclasses.replace(SETTINGS, min_new_tokens=3)) == End("stop", 4, 3)
    assert find_end(chat, ids, dataclasses.replace(SETTINGS, min_new_tokens=4)) == End("stop", 6, 5)
    crossing = dataclasses.replace(SETTINGS, stop=("\nc",), min_new_tokens=4)
    assert find_end(chat, ids, crossing) is None


@pytest.mark.parametrize("name", CHATS)
def test_a_stop_string_at_the_very_beginning_leaves_nothing(name):
    chat = CHATS[name]
    ids = chat.text_ids("\n")
    end = find_end(chat, ids, SETTINGS)
    assert end and end.reason == "stop" and end.rest == chat.decode(ids[: end.kept]) == ""


def test_a_character_of_several_tokens_ends_a_sample_with_the_last_of_them_and_is_taken_away_whole():
    stopping = dataclasses.replace(SETTINGS, stop=("😀",))
    for chat in CHATS.values():
        ids = chat.text_ids("a😀b")
        end = find_end(chat, ids, stopping)
        assert end and end.rest == "" and chat.decode(ids[: end.kept]) == "a"
        assert chat.decode(ids[: end.drawn]) == "a😀"
        assert find_end(chat, ids[: end.drawn - 1], stopping) is None


LLAMA2 = CHATS["llama2"]
SMILE, ACCENT = ([LLAMA2.tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in x.encode()] for x in "😀é")


@pytest.mark.parametrize(
    ("ids", "stop"),
    [
        ([*ACCENT, SMILE[0], *LLAMA2.text_ids("b")], "é"),  # broken again by the byte that follows
        ([*SMILE * 9, *ACCENT, SMILE[0]], "😀é"),  # at the end of more bytes than one looks back at
        (one_by_one(LLAMA2, "a") + 30 * [LLAMA2.bos_id] + one_by_one(LLAMA2, "b"), "b"),  # tokens without text
        (one_by_one(LLAMA2, "a") + 30 * [LLAMA2.bos_id] + LLAMA2.text_ids("xb")[-1:], "ab"),
        ([*ACCENT, *ACCENT[:1], *ACCENT], "\ufffd"),
    ],
)
def test_what_decoders_do_with_bytes_and_control_tokens_does_not_depend_on_where_one_looks(ids, stop):
    settings = dataclasses.replace(SETTINGS, stop=(stop,), max_new_tokens=80)
    expected = naive_end(LLAMA2, ids, settings)
    assert expected and expected.reason == "stop"
    for size in range(1, len(ids) + 1):
        ends = (find_end(LLAMA2, ids[: at + size], settings, at) for at in range(0, len(ids), size))
        assert next(end for end in ends if end) == expected
