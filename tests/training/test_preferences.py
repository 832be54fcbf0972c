"""Preferences as token ids: what follows the prompt is learnt from, all of it, as in TRL."""

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.losses import LossSettings
from selfreward_jax.core.rows import Pair, parse_row
from selfreward_jax.core.tokens import Chat
from selfreward_jax.training.preferences import Single, completions_ids, given, preference_rows
from tests.core.small_tokenizers import CHATML, chatml, llama2, llama3, mistral_v1, mistral_v3, zephyr

KTO = LossSettings(loss_type=("kto",))


def turns(*texts: str) -> tuple[dict[str, str], ...]:
    """The user's and the assistant's in turn, the assistant's last."""
    roles = ["user", "assistant"] * len(texts)
    return tuple({"role": role, "content": text} for role, text in zip(roles[len(texts) % 2 :], texts, strict=False))


@pytest.mark.parametrize("make", [chatml, llama3, llama2, zephyr, mistral_v1, mistral_v3])
@pytest.mark.parametrize("answer", [turns("So."), turns("Why?", "Is it?", "So."), turns("a", "b", "c", "d", "e")])
def test_the_ids_are_those_of_the_whole_conversation(make, answer):
    """By the tokenizer's own rendering of it, which may end in white space behind the end of the last turn."""
    tokenizer, prompt = make(), turns("What is it?", "A cat.", "And now?", "")[:3]
    start, (ids,) = completions_ids(Chat(tokenizer), prompt, [answer])
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=True, return_dict=False)
    asked = tokenizer.apply_chat_template([*prompt], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert [*start] == asked[: len(start)] and len(start) >= len(asked) - 1
    assert [*start, *ids] == whole[: len(start) + len(ids)]
    assert not tokenizer.decode(whole[len(start) + len(ids) :]).strip()


def test_a_template_that_changes_what_was_said_before_is_refused():
    """As templates do that leave the thoughts of earlier turns out."""
    template = CHATML.replace("message['content']", "(message['content'] if loop.length < 3 else '')")
    with pytest.raises(ValueError, match="renders the prompt otherwise when several turns follow it"):
        completions_ids(Chat(chatml(), template=template), turns("b", "c")[:1], [turns("d", "e", "f")])


def test_a_row_that_the_template_can_not_render_is_named_by_its_place():
    chat, row = Chat(llama2()), {"chosen": [*turns("a", "b")], "rejected": [*turns("a", "c")]}
    assert isinstance(given(row, chat, 400), Pair)
    wrong = {"prompt": [*turns("a", "b")[:1] * 2], "chosen": "c", "rejected": "d"}
    with pytest.raises(UserError, match="^file:7: chat template: can't render .*roles must alternate"):
        parse_row(wrong, lambda row: given(row, chat, 400), "file:7")


def single(prompt: str, completion: str, label: bool) -> Single:
    made = given({"prompt": prompt, "completion": completion, "label": label}, Chat(chatml()), 400)
    assert isinstance(made, Single)
    return made


def test_single_answers_are_rows_of_kto_with_an_answer_to_another_prompt():
    answers = [single("a", "1", True), single("a", "2", False), single("b", "3", False)]
    rows = preference_rows(answers, KTO, 100, "here").rows
    assert [x.row.desirable for x in rows] == [True, False, False]
    assert [x.row.examples[0].response_ids for x in rows] == [a.completion_token_ids for a in answers]
    borrowed = [x.row.examples[1] for x in rows]
    assert [e.prompt_ids for e in borrowed] == [a.prompt_token_ids for a in answers]
    assert [e.response_ids for e in borrowed] == [answers[n].completion_token_ids for n in (2, 2, 1)]
    assert [x.labels for x in rows[:2]] == [
        ((a.id, side), (a.id, f"{side}_kl")) for a, side in zip(answers, ("chosen", "rejected"), strict=False)
    ]


def test_what_is_too_long_or_equal_is_counted():
    rows = [{"prompt": "a", "chosen": "b", "rejected": text} for text in ("c", "b", "c" * 99, "d")]
    prepared = preference_rows([given(row, Chat(chatml()), 400) for row in rows], LossSettings(), 60, "here")
    assert (len(prepared.rows), prepared.too_long, prepared.equal) == (2, 1, 1)
    assert prepared.left_out(60) == "1 with the same answer on both sides and 1 of more than 60 tokens"
