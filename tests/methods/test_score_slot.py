"""Scores read from the distribution: always there, from 0 to 5, and the tokens are those the tokenizer writes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.tokens import Chat
from selfreward_jax.methods.score_slot import ScoreSlot, distribution, expected_score, likeliest_score
from tests.core import small_tokenizers
from tests.core.small_tokenizers import chatml


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(chatml())


@pytest.fixture(scope="module")
def slot(chat) -> ScoreSlot:
    return ScoreSlot.of(chat)


def test_what_is_fed_and_each_candidate_write_the_line_of_the_score(chat, slot):
    for n, candidate in enumerate(slot.candidates):
        assert chat.decode([*slot.after_text, candidate]) == f"\nScore: {n}"
        assert chat.decode([*slot.after_line, candidate]) == f"Score: {n}"
    assert len(set(slot.candidates)) == 6
    assert slot.longest > len(slot.after_text)


@pytest.mark.parametrize(("text", "place"), [("", "prompt"), ("Good.\n", "line"), ("Good.", "text")])
def test_the_score_stands_on_a_line_of_its_own(slot, text, place):
    assert slot.feed(text) == getattr(slot, f"after_{place}")


@pytest.mark.parametrize(
    "name", ["chatml", "llama3", "llama2", "mistral_v1", "mistral_v3", "zephyr", "always", "never", "gpt2"]
)
def test_a_score_has_the_ids_that_it_has_in_the_whole_text(name):
    chat = Chat(getattr(small_tokenizers, name)())
    asked, slot = [{"role": "user", "content": "Mark it."}], ScoreSlot.of(chat)
    for n, candidate in enumerate(slot.candidates):
        prompt, answer = chat.answer_ids(asked, f"Score: {n}")
        assert prompt == chat.prompt_ids(asked)
        assert [*slot.after_prompt, candidate] == answer[: len(slot.after_prompt) + 1]
        for before, feed in (("x", slot.after_text), ("x\n", slot.after_line)):
            text = f"{before}Score: {n}" if before.endswith("\n") else f"{before}\nScore: {n}"
            assert chat.text_ids(text) == [*chat.text_ids(before), *feed, candidate]


def test_a_tokenizer_that_writes_scores_with_several_tokens_is_one_line(chat):
    class Spelling:
        def ids_behind(self, before, text: str) -> list[int]:
            return [ord(c) for c in text.replace("4", "44")]

        begin_ids = ids_behind

    with pytest.raises(UserError, match="writes the scores after 'Score:' not as one token each"):
        ScoreSlot.of(Spelling())  # type: ignore[arg-type]


LOGPS = st.lists(st.floats(-700, 0), min_size=6, max_size=6)


@given(LOGPS)
def test_the_distribution_is_that_of_the_candidates_among_themselves(logps):
    probs = distribution(logps)
    assert math.fsum(probs) == pytest.approx(1.0)
    assert 0.0 <= expected_score(probs) <= 5.0 + 1e-9
    assert probs[int(likeliest_score(probs))] == max(probs)


def test_the_expected_score_is_the_mean():
    assert expected_score(distribution([math.log(x) for x in (0.1, 0.1, 0.1, 0.1, 0.3, 0.3)])) == pytest.approx(3.3)
    assert likeliest_score((0.1, 0.1, 0.1, 0.1, 0.3, 0.3)) == 4.0
