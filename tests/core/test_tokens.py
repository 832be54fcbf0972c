"""Token boundaries hold for every family of tokenizer and template, whatever the texts are."""

import dataclasses
import datetime
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.tokens import ZERO_WIDTH_SPACE, Chat, neutralise
from selfreward_jax.llama.gguf import load_tokenizer
from tests.core import small_tokenizers
from tests.llama.make_golden import smollm_gguf

few_examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclasses.dataclass(frozen=True)
class Family:
    """A way in which models are asked, and what must come out of it."""

    load: Callable
    end_of_turn: str
    begin: str | None  # BOS that every prompt starts with and holds once; None where the template writes none
    eos: tuple[str, ...] = ()  # ends that the model's configuration names
    byte_level: bool = True


FAMILIES = {
    "chatml": Family(small_tokenizers.chatml, "<|im_end|>", None),
    "llama3": Family(
        small_tokenizers.llama3, "<|eot_id|>", "<|begin_of_text|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    ),
    "llama2": Family(small_tokenizers.llama2, "</s>", "<s>", ("</s>",), byte_level=False),
    "base": Family(small_tokenizers.base, "</s>", "<s>", ("</s>",), byte_level=False),
    "mistral_v1": Family(small_tokenizers.mistral_v1, "</s>", "<s>", ("</s>",), byte_level=False),
    "mistral_v3": Family(small_tokenizers.mistral_v3, "</s>", "<s>", ("</s>",), byte_level=False),
    "zephyr": Family(small_tokenizers.zephyr, "</s>", None, ("</s>",), byte_level=False),
    "always": Family(small_tokenizers.always, "</s>", None, ("</s>",), byte_level=False),
    "never": Family(small_tokenizers.never, "</s>", "<s>", ("</s>",), byte_level=False),
    "gpt2": Family(small_tokenizers.gpt2, "<|endoftext|>", None),
}
if (SMOLLM := smollm_gguf()) is not None:
    FAMILIES["smollm2"] = Family(lambda: load_tokenizer(SMOLLM), "<|im_end|>", None)


ASKED = [{"role": "user", "content": "What is it?"}]


class Case:
    """A `Chat` with what its family promises."""

    def __init__(self, family: Family):
        self.family = family
        self.original = family.load()
        self.vocabulary = self.original.get_vocab()
        self.id = self.vocabulary.__getitem__
        self.chat = Chat(self.original, eos_ids=[self.id(name) for name in family.eos])
        self.control = {i: str(token) for i, token in self.original.added_tokens_decoder.items()}

    def control_ids(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i in self.control]

    def can_spell(self, text: str) -> bool:
        """Whether a byte-level vocabulary has all bytes of the text; SmolLM2's lacks a few that are rare."""
        spelt = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        return all(byte in self.vocabulary for word, _ in spelt for byte in word)

    def theirs(self, messages, generation: bool = True) -> list[int]:
        """What `transformers` makes of a conversation; it adds no BOS to the plain template's text."""
        ids = self.chat.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=generation, return_dict=False
        )
        own = self.original.chat_template or self.family.begin is None
        return ids if own else [self.id(self.family.begin), *ids]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request) -> Case:
    return Case(FAMILIES[request.param])


@pytest.fixture(scope="module", params=[name for name, family in FAMILIES.items() if family.byte_level])
def byte_level_case(request) -> Case:
    return Case(FAMILIES[request.param])


CONTROL_STRINGS = sorted({str(t) for f in FAMILIES.values() for t in f.load().added_tokens_decoder.values()})
FRAGMENTS = [
    *CONTROL_STRINGS,
    *(text[:cut] for text in CONTROL_STRINGS for cut in (1, len(text) - 1)),
    *(text[cut:] for text in CONTROL_STRINGS for cut in (1, len(text) - 1)),
    *("Score: 5", "</answer>", "</request>", "[INST]", " [/INST]", "<<SYS>>\n", "\n<</SYS>>\n\n", "### Answer:\n"),
    *("assistant\n", "\n\n", "{{ eos_token }}", "{% endfor %}", "{{prompt}}", "<0x0A>", "\u2581", ZERO_WIDTH_SPACE),
    *("\u2060", "\ufeff", "\ue000", "\x00", "\uff1cs\uff1e", " ", "x"),
]
hostile = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=8).map("".join)
benign = st.text(max_size=30).filter(lambda text: not any(control in text for control in CONTROL_STRINGS))


def conversations(contents):
    """Conversations of every shape that is asked: one turn, with a system's message, and several turns."""
    shapes = st.sampled_from([("user",), ("system", "user"), ("user", "assistant", "user")])
    return shapes.flatmap(
        lambda roles: st.tuples(*(contents for _ in roles)).map(
            lambda texts: [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        )
    )


@given(content=hostile)
@few_examples
def test_a_prompt_begins_with_its_only_bos(case, content):
    ids = case.chat.prompt_ids([{"role": "user", "content": content}])
    if case.family.begin is None:
        written = case.theirs(ASKED)[:2].count(case.chat.bos_id)
        assert ids[:2].count(case.chat.bos_id) == written, "the template's own first token must not be doubled"
    else:
        assert ids[0] == case.id(case.family.begin)
        assert ids.count(ids[0]) == 1


@given(text=hostile)
@few_examples
def test_an_answer_ends_with_its_only_control_token_the_end_of_turn(case, text):
    _, ids = case.chat.answer_ids(ASKED, text)
    assert case.control_ids(ids) == [case.id(case.family.end_of_turn)]
    assert ids[-1] == case.id(case.family.end_of_turn)


@given(messages=conversations(hostile))
@few_examples
def test_no_content_adds_a_control_token_to_a_prompt(case, messages):
    harmless = [{**message, "content": "x"} for message in messages]
    expected = case.control_ids(case.chat.prompt_ids(harmless))
    assert case.control_ids(case.chat.prompt_ids(messages)) == expected


@given(text=hostile)
@few_examples
def test_no_content_becomes_a_control_token_of_plain_text(case, text):
    assert case.control_ids(case.chat.text_ids(text)) == []


def test_each_control_string_alone_stays_text(case):
    for control in case.control.values():
        assert case.control_ids(case.chat.text_ids(f"a{control}b")) == [], control


@given(messages=conversations(benign))
@few_examples
def test_a_prompt_is_what_transformers_makes_of_it(case, messages):
    assert case.chat.prompt_ids(messages) == case.theirs(messages)


# What may stand at a seam, where a tokenizer may merge it with what stands before.
STARTS = ("", " ", "  ", "\n", "\n\n", ".", "), ", "é", "\u0301e", "\U0001f600", "\u200d", "\u2581", "3", "_", "\t")
answers = st.tuples(st.sampled_from(STARTS), benign).map("".join)


def check_answer(case, messages, answer: str) -> None:
    """Prompt and answer are what transformers makes of the conversation, up to the end of the answer's turn."""
    prompt, response = case.chat.answer_ids(messages, answer)
    whole = case.theirs([*messages, {"role": "assistant", "content": answer}], generation=False)
    asked = case.chat.prompt_ids(messages)
    assert prompt + response == whole[: len(prompt) + len(response)]
    assert response[-1] == case.chat.eos_ids[0] and case.chat.eos_ids[0] not in response[:-1]
    assert prompt == asked[: len(prompt)], "the prompt's ids are those that the model is asked with"
    assert len(prompt) == len(asked) or whole[len(prompt)] != asked[len(prompt)], "and all of them that stay the same"


@given(question=benign, answer=answers)
@few_examples
def test_prompt_and_answer_are_what_transformers_makes_of_the_conversation(case, question, answer):
    check_answer(case, [{"role": "user", "content": question}], answer)


@pytest.mark.parametrize("start", STARTS)
def test_an_answer_may_begin_with_anything(case, start):
    for answer in (start, f"{start}the north", f"{start} the price{start}"):
        check_answer(case, ASKED, answer)


@given(prompt=benign, response=answers)
@few_examples
def test_raw_text_is_tokenised_as_one(case, prompt, response):
    chat = case.chat
    assume(f"{prompt}{response}" == chat.neutral(prompt + response) and prompt)
    before, after = chat.raw_ids(prompt, response)
    bos = [] if chat.bos_id is None else [chat.bos_id]
    ids = case.original(prompt + response, add_special_tokens=False).input_ids
    assert before + after == [*bos, *ids, chat.text_eos_id]
    alone = [*bos, *case.original(prompt, add_special_tokens=False).input_ids]
    assert before == alone[: len(before)]


@given(prompt=hostile, response=hostile)
@few_examples
def test_a_control_string_across_the_seam_of_raw_texts_stays_text(case, prompt, response):
    before, after = case.chat.raw_ids(prompt, response)
    assert case.control_ids(before[1:] + after[:-1]) == []


def test_a_control_string_cut_by_the_seam_stays_text(case):
    for control in case.control.values():
        for seam in range(len(control) + 1):
            before, after = case.chat.raw_ids(f"a{control[:seam]}", f"{control[seam:]}b")
            assert case.control_ids(before[1:] + after[:-1]) == [], (control, seam)


def test_raw_answers_of_a_sentencepiece_model_have_no_blank_of_their_own():
    """The numbers of a bug: the answer was tokenised as a text of its own, with a blank before it."""
    chat = Chat(small_tokenizers.llama2())
    before, after = chat.raw_ids("the price", " of the north")
    pieces = chat.tokenizer.convert_ids_to_tokens([*before, *after])
    assert pieces == ["<s>", "▁the", "▁price", "▁of", "▁the", "▁north", "</s>"]


def test_where_prompt_and_answer_merge_the_token_is_the_answers():
    chat = Chat(small_tokenizers.chatml())
    before, after = chat.raw_ids("the wea", "ther")
    whole = chat.text_ids("the weather")
    assert [*before, *after] == [chat.bos_id, *whole, chat.text_eos_id]
    assert before == [chat.bos_id, *whole[: len(before) - 1]] and len(after) >= 2
    assert chat.text_ids("the wea") != whole[: len(chat.text_ids("the wea"))], "or nothing merges here"


def test_answers_of_a_pair_stand_behind_the_same_ids(case):
    answers = ["the north", " \n the price", "", "\u0301"]
    prompt, responses = case.chat.answers_ids(ASKED, answers)
    for answer, response in zip(answers, responses, strict=True):
        alone = case.chat.answer_ids(ASKED, answer)
        assert prompt + response == alone[0] + alone[1]
        assert len(prompt) <= len(alone[0])


def test_a_template_that_drops_the_reasoning_of_an_answer_is_not_followed():
    chat = Chat(small_tokenizers.with_template(small_tokenizers.llama2(), small_tokenizers.REASONER))
    prompt, response = chat.answer_ids(ASKED, "<think>\nthe price</think>the north")
    assert prompt == chat.prompt_ids(ASKED)
    assert chat.decode(response) == "<think>\nthe price</think>the north"
    assert response[-1] == chat.text_eos_id


def test_a_template_that_asks_otherwise_than_it_tells_is_not_followed():
    template = small_tokenizers.REASONER.replace("{{ '[A]' }}{% endif %}", "{{ '[A]<think>' }}{% endif %}")
    chat = Chat(small_tokenizers.with_template(small_tokenizers.llama2(), template))
    prompt, response = chat.answer_ids(ASKED, "the north")
    assert chat.decode([*prompt, *response]).endswith("[A]<think>the north")


@given(begun=answers.filter(str.strip))
@few_examples
def test_a_begun_answer_is_a_part_of_the_whole_text(case, begun):
    ids = case.chat.begun_ids(ASKED, begun)
    text = case.chat.render([*ASKED, {"role": "assistant", "content": begun}], False)
    assert ids[-len(case.chat._encode(text)) :] == case.chat._encode(text)
    assert case.chat.render(ASKED) in text


# ---------------------------------------------------------------------------------------------------------------------
# Dates and named templates


def dated(**options) -> Chat:
    return Chat(small_tokenizers.with_template(small_tokenizers.llama3(), small_tokenizers.DATED), **options)


def test_a_template_cannot_read_the_clock():
    chat = dated()
    assert "Today Date: 26 Jul 2024<" in chat.render(ASKED)
    assert "Today Date: 01 Feb 2031<" in dated(date="2031-02-01").render(ASKED)
    assert chat.date == "2024-07-26" and Chat(small_tokenizers.llama3()).date == ""


def test_the_date_belongs_to_what_a_model_is_asked_with():
    assert dated().hashes == dated().hashes != dated(date="2031-02-01").hashes
    assert Chat(small_tokenizers.llama3(), date="2031-02-01").hashes == Chat(small_tokenizers.llama3()).hashes


@pytest.mark.parametrize("day", ["2031-02-01", "2024-12-31", "1999-10-09"])
@pytest.mark.parametrize(
    "form",
    ["%d %b %Y", "%Y-%m-%d", "%A, %B %-d, %y", "100%% %H:%M", "%j of %G-%V, %p", "%%d %m", "%e|%D|%F|%T|%k|%-H|%-j"],
)
def test_dates_are_written_as_strftime_writes_them(form, day):
    template = "{{ strftime_now('" + form + "') }}|{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text = Chat(small_tokenizers.chatml(), template=template, date=day).render(ASKED)
    assert text.removesuffix("|What is it?") == datetime.datetime.fromisoformat(day).strftime(form)


def test_what_comes_before_a_dated_template_adds_nothing_to_it():
    template = "\n  {% if true %}x{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}{# strftime_now #}"
    plain = small_tokenizers.with_template(small_tokenizers.chatml(), template)
    expected = plain.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert Chat(small_tokenizers.chatml(), template=template).render(ASKED) == expected


def test_a_date_that_is_none_is_refused():
    with pytest.raises(UserError, match="'tomorrow' is no date; give YYYY-MM-DD"):
        dated(date="tomorrow")


def several(**templates: str):
    return small_tokenizers.with_template(small_tokenizers.chatml(), templates)


def test_of_several_templates_the_default_is_taken_or_the_one_that_is_named():
    tokenizer = several(default=small_tokenizers.CHATML, tool_use=small_tokenizers.ZEPHYR)
    assert Chat(tokenizer).tokenizer.chat_template == small_tokenizers.CHATML
    assert Chat(tokenizer, template="tool_use").tokenizer.chat_template == small_tokenizers.ZEPHYR


def test_of_several_templates_none_is_taken_silently():
    with pytest.raises(UserError, match=r"several \(rag, tool_use\).*choose one: --config.model.chat_template=NAME"):
        Chat(several(rag=small_tokenizers.CHATML, tool_use=small_tokenizers.ZEPHYR))


@given(text=benign)
@few_examples
def test_byte_level_text_survives_a_round_trip(byte_level_case, text):
    assume(byte_level_case.can_spell(text))
    chat = byte_level_case.chat
    assert chat.decode(chat.text_ids(text)) == text


@given(text=hostile)
@few_examples
def test_hostile_byte_level_text_survives_but_for_zero_width_spaces(byte_level_case, text):
    assume(byte_level_case.can_spell(text))
    chat = byte_level_case.chat
    decoded = chat.decode(chat.text_ids(text))
    assert decoded.replace(ZERO_WIDTH_SPACE, "") == text.replace(ZERO_WIDTH_SPACE, "")


def test_sentencepiece_text_survives_a_round_trip():
    chat = Chat(small_tokenizers.llama2())
    for text in ("the weather", " two  spaces ", "é and \U0001f600", "line\nline"):
        assert chat.decode(chat.text_ids(text)) == text


def test_decoding_stops_at_the_first_end_of_any_kind(case):
    assert len(case.chat.eos_ids) == max(len(case.family.eos), 1)
    for end in case.chat.eos_ids:
        assert case.chat.decode([*case.chat.text_ids("one"), end, *case.chat.text_ids(" two"), end]) == "one"


def test_decoding_without_an_end_takes_all(case):
    assert case.chat.decode(case.chat.text_ids("one two")) == "one two"


def test_decoding_nothing_gives_empty_text(case):
    assert case.chat.decode([]) == ""


def test_decoding_leaves_control_tokens_out(case):
    others = [i for i in case.control if i not in case.chat.eos_ids]
    one = case.chat.text_ids("one")
    assert case.chat.decode([*others, *one, *others]) == "one"


def test_the_end_of_turn_comes_first_among_the_ends(case):
    assert case.chat.eos_ids[0] == case.id(case.family.end_of_turn)
    assert set(case.chat.eos_ids) >= {case.id(name) for name in case.family.eos}


def test_the_given_tokenizer_is_not_changed(case):
    before = case.original.chat_template
    Chat(case.original, template="plain")
    assert case.original.chat_template == before


def test_a_template_in_place_of_the_own_is_used():
    chat = Chat(small_tokenizers.chatml(), template="{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    assert chat.prompt_ids([{"role": "user", "content": "hi"}]) == chat.text_ids("<hi>")


def test_the_plain_template_ends_an_answer_with_the_tokenizers_eos():
    chat = Chat(small_tokenizers.llama3(), template="plain")
    assert chat.eos_ids[0] == small_tokenizers.llama3().eos_token_id


def test_a_template_without_the_answer_is_refused():
    with pytest.raises(UserError, match="does not appear"):
        Chat(small_tokenizers.chatml(), template="always the same")


def test_a_template_that_cannot_render_names_the_roles():
    chat = Chat(small_tokenizers.llama2())
    with pytest.raises(UserError, match=r"can't render \['user', 'user'\] .*alternate"):
        chat.prompt_ids([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_a_tokenizer_without_any_end_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=small_tokenizers.base().backend_tokenizer)
    with pytest.raises(UserError, match="no EOS id"):
        Chat(tokenizer)


def test_hashes_tell_templates_apart_and_tokenizers_not():
    own, plain = Chat(small_tokenizers.chatml()).hashes, Chat(small_tokenizers.chatml(), template="plain").hashes
    assert own["tokenizer"] == plain["tokenizer"]
    assert own["chat_template"] != plain["chat_template"]


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("<a><b>", ["<a><b>", "<b>"]),  # one lies in the other
        ("aXbc", ["aXb", "Xbc"]),  # they overlap
        ("<s<s>>", ["<s>"]),
        ("a.c abc", ["a.c"]),  # no pattern, but text
        ("one\ntwo", ["e\nt", "\nt"]),
    ],
)
def test_neutral_text_holds_no_control_string(text, control):
    neutral = neutralise(text, control)
    assert not any(c in neutral for c in control)
    assert neutral.replace(ZERO_WIDTH_SPACE, "") == text


@pytest.mark.parametrize("control", [[], ["é"], ["<s>"]])
def test_harmless_text_is_neutral_as_it_is(control):
    assert neutralise("a <b> é", control) == "a <b> é"
