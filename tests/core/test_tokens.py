"""Token boundaries hold for every family of tokenizer and template, whatever the texts are."""

import dataclasses
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
    begin: str | None  # BOS that every prompt starts with and holds once; None where the template's say is final
    eos: tuple[str, ...] = ()  # ends that the model's configuration names
    byte_level: bool = True


FAMILIES = {
    "chatml": Family(small_tokenizers.chatml, "<|im_end|>", None),
    "llama3": Family(
        small_tokenizers.llama3, "<|eot_id|>", "<|begin_of_text|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    ),
    "llama2": Family(small_tokenizers.llama2, "</s>", "<s>", ("</s>",), byte_level=False),
    "base": Family(small_tokenizers.base, "</s>", "<s>", ("</s>",), byte_level=False),
}
if (SMOLLM := smollm_gguf()) is not None:
    FAMILIES["smollm2"] = Family(lambda: load_tokenizer(SMOLLM), "<|im_end|>", None)


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
        return ids if self.original.chat_template else [self.id(self.family.begin), *ids]


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
        assert ids[:2].count(case.chat.bos_id) == 1, "the template's own first token must not be doubled"
    else:
        assert ids[0] == case.id(case.family.begin)
        assert ids.count(ids[0]) == 1


@given(text=hostile)
@few_examples
def test_a_response_ends_with_its_only_eos_which_is_the_end_of_turn(case, text):
    ids = case.chat.response_ids(text)
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


@given(question=benign, answer=benign.map(str.strip).filter(bool))
@few_examples
def test_prompt_and_response_together_are_what_the_template_writes(byte_level_case, question, answer):
    """What training sees of an answer is what the model reads of it in a later turn."""
    chat, asked = byte_level_case.chat, [{"role": "user", "content": question}]
    ours = chat.prompt_ids(asked) + chat.response_ids(answer)
    whole = byte_level_case.theirs([*asked, {"role": "assistant", "content": answer}], generation=False)
    assert whole[: len(ours)] == ours


@given(text=benign)
@few_examples
def test_byte_level_text_survives_a_round_trip(byte_level_case, text):
    assume(byte_level_case.can_spell(text))
    chat = byte_level_case.chat
    assert chat.decode(chat.response_ids(text)) == text


@given(text=hostile)
@few_examples
def test_hostile_byte_level_text_survives_but_for_zero_width_spaces(byte_level_case, text):
    assume(byte_level_case.can_spell(text))
    chat = byte_level_case.chat
    decoded = chat.decode(chat.response_ids(text))
    assert decoded.replace(ZERO_WIDTH_SPACE, "") == text.replace(ZERO_WIDTH_SPACE, "")


def test_sentencepiece_text_survives_a_round_trip():
    chat = Chat(small_tokenizers.llama2())
    for text in ("the weather", " two  spaces ", "é and \U0001f600", "line\nline"):
        assert chat.decode(chat.response_ids(text)) == text


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
