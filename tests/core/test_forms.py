"""The same demonstration, preference, label or ranking, however other people's data write it down."""

import copy
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.core.forms import (
    Candidate,
    Demonstration,
    Preference,
    Ranked,
    Unpaired,
    demonstration,
    preference,
    prompt_of,
    ranked,
    unpaired,
)
from selfreward_jax.core.rows import as_messages, as_turns


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = (user("Which colour?"),)
GOOD, BAD = (assistant("Blue."),), (assistant("A horse."),)
CALLED = (assistant("<call>"), {"role": "tool", "content": "7"})
LONG = (user("Hi."), assistant("Hello."), *ASKED)
SKY = Preference((user("The sky is"),), (assistant(" blue."),), (assistant(" green."),))


# ---------------------------------------------------------------------------------------------------------------------
# One preference, every form

words = st.text(alphabet=st.characters(codec="utf-8"), max_size=20).filter(
    lambda text: text.strip() and not any(mark in text for mark in ("Human:", "Assistant:", "<extra_id_1>"))
)
conversations = st.builds(
    lambda system, turns, last: (
        *([SYSTEM] if system else []),
        *(message for said, answered in turns for message in (user(said), assistant(answered))),
        user(last),
    ),
    st.booleans(),
    st.lists(st.tuples(words, words), max_size=2),
    words,
)


def sharegpt(turns):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in turns]


def in_parts(turns):
    """As templates of models that also see take it, with the empty fields that `datasets` fills in."""
    halves = [
        (m["role"], m["content"][: len(m["content"]) // 2], m["content"][len(m["content"]) // 2 :]) for m in turns
    ]
    return [
        {"role": role, "content": [{"type": "text", "text": t, "image": None} for t in (a, b)], "tool_calls": None}
        for role, a, b in halves
    ]


def in_columns(turns):
    return {name: [m[name] for m in turns] for name in ("role", "content")}


def transcript(turns):
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in turns)


def forms_of(prompt, chosen, rejected):
    """The preference in each form that can hold it; answers are texts."""
    good, bad = [assistant(chosen)], [assistant(rejected)]
    explicit = {"prompt": [*prompt], "chosen": good, "rejected": bad}
    implicit = {"chosen": [*prompt, *good], "rejected": [*prompt, *bad]}
    made = {
        "explicit": explicit,
        "answers as text": explicit | {"chosen": chosen, "rejected": rejected},
        "one message each": explicit | {"chosen": good[0], "rejected": bad[0]},
        "implicit": implicit,
        "implicit, prompt null": implicit | {"prompt": None, "label": None, "system": None},
        "both": implicit | {"prompt": [*prompt]},
        "UltraFeedback, binarized": implicit | {"prompt": prompt[-1]["content"], "messages": implicit["chosen"]},
        "ShareGPT": {name: sharegpt(turns) for name, turns in implicit.items()},
        "ShareGPT, conversations": {
            "conversations": sharegpt(prompt), "chosen": sharegpt(good)[0], "rejected": sharegpt(bad)[0]
        },
        "parts": {name: in_parts(turns) for name, turns in explicit.items()},
        "columns": {name: in_columns(turns) for name, turns in explicit.items()},
        "tuples": {name: tuple(turns) for name, turns in implicit.items()},
    }  # fmt: skip
    if prompt[0]["role"] != "system":
        made["HH-RLHF"] = {name: transcript(turns) for name, turns in implicit.items()}
        asked = transcript([*prompt, assistant("")])
        made["HH-RLHF with a prompt"] = {"prompt": asked, "chosen": chosen, "rejected": rejected}
    if len(prompt) == 1:
        made["standard"] = {"prompt": prompt[0]["content"], "chosen": chosen, "rejected": rejected}
    return made


@given(conversations, words, words)
@settings(max_examples=60, deadline=None)
def test_a_preference_is_the_same_in_every_form(prompt, chosen, rejected):
    for form, row in forms_of(prompt, chosen, rejected).items():
        before = copy.deepcopy(row)
        made = preference(row)
        assert (made.prompt, made.chosen, made.rejected) == (prompt, (assistant(chosen),), (assistant(rejected),)), form
        assert row == before, form


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # The rows of TRL's own documentation of its formats, and what its `extract_prompt` makes of them.
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, SKY),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, SKY),
        (
            {"chosen": "The sky is blue", "rejected": "The sky is black"},
            Preference((user("The sky is bl"),), (assistant("ue"),), (assistant("ack"),)),
        ),
        (
            {"chosen": "Sun and moon", "rejected": "Sun and moon and stars"},
            Preference((user("Sun and moo"),), (assistant("n"),), (assistant("n and stars"),)),
        ),
        ({"chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]}, Preference(ASKED, GOOD, BAD)),
        # The shorter conversation keeps its last turn; the longer one is learnt from to its end.
        (
            {"chosen": [*LONG, *GOOD], "rejected": [*LONG[:1], LONG[1]]},
            Preference(LONG[:1], (LONG[1], *ASKED, *GOOD), (LONG[1],)),
        ),
        (
            {"chosen": [*LONG, *GOOD], "rejected": [LONG[0], assistant("Go."), *ASKED, *BAD]},
            Preference(LONG[:1], (LONG[1], *ASKED, *GOOD), (assistant("Go."), *ASKED, *BAD)),
        ),
        (
            {"prompt": "Which?", "chosen": "a", "rejected": "", "score_chosen": 4, "score_rejected": 1.5, "weight": 2},
            Preference((user("Which?"),), (assistant("a"),), (assistant(""),), (4.0, 1.5), 2.0),
        ),
        (
            {"instruction": "Which", "input": "now?", "chosen": "a", "rejected": "b", "score_chosen": None},
            Preference((user("Which\n\nnow?"),), (assistant("a"),), (assistant("b"),)),
        ),
        (
            {"prompt": [SYSTEM, *ASKED, *CALLED], "chosen": "a", "rejected": "b"},
            Preference((SYSTEM, *ASKED, *CALLED), (assistant("a"),), (assistant("b"),)),
        ),
    ],
)  # fmt: skip
def test_preferences_by_example(row, expected):
    assert preference(row) == expected


HH = {
    "chosen": "\n\nHuman: Hi, a\nquestion.\n\nAssistant:  Yes? \n\nHuman: Why?\n\nAssistant: So.\n\n1. One\n",
    "rejected": "\n\nHuman: Hi, a\nquestion.\n\nAssistant:  Yes? \n\nHuman: Why?\n\nAssistant:",
}


def test_a_transcript_of_hh_rlhf_by_example():
    made = preference(HH)
    assert made.prompt == (user("Hi, a\nquestion."), assistant(" Yes? "), user("Why?"))
    assert (made.chosen, made.rejected) == ((assistant("So.\n\n1. One\n"),), (assistant(""),))


@given(st.lists(st.tuples(words, words), max_size=2), words, words, words)
@settings(max_examples=60, deadline=None)
def test_a_transcript_of_hh_rlhf_is_what_its_readers_make_of_its_text(turns, last, chosen, rejected):
    """The usual way on the text: what both have in common, back to the last place where the assistant begins."""
    start = "".join(f"\n\nHuman: {said}\n\nAssistant: {answered}" for said, answered in turns) + f"\n\nHuman: {last}"
    row = {"chosen": f"{start}\n\nAssistant: {chosen}", "rejected": f"{start}\n\nAssistant: {rejected}"}
    common = os.path.commonprefix([*row.values()])
    cut = common.rindex("\n\nAssistant: ") + len("\n\nAssistant: ")
    made = preference(row)
    assert (made.chosen[0]["content"], made.rejected[0]["content"]) == (row["chosen"][cut:], row["rejected"][cut:])
    assert transcript(made.prompt) + "\n\nAssistant: " == row["chosen"][:cut]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "chosen"),
        ({"chosen": "a"}, "rejected"),
        ({"chosen": "a", "rejected": None}, "rejected"),
        ({"chosen": [*GOOD], "rejected": [*BAD]}, "prompt"),
        ({"prompt": None, "chosen": [*GOOD], "rejected": "b"}, "prompt"),
        ({"chosen": "Yes.", "rejected": "No."}, "begin differently, so there is no prompt in them"),
        ({"chosen": "", "rejected": ""}, "begin differently"),
        ({"chosen": [*ASKED, *GOOD], "rejected": [user("Why?"), *BAD]}, "must begin with the same turns"),
        ({"chosen": [*ASKED, *GOOD], "rejected": "A horse."}, "must begin with the same turns"),
        ({"chosen": [*ASKED], "rejected": [*ASKED, *BAD]}, "one of them has no answer"),
        ({"chosen": [*LONG, *GOOD], "rejected": [*LONG[:2], user("Why?"), *BAD]}, "not the assistant's"),
        (
            {"prompt": [SYSTEM, *ASKED], "chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]},
            "don't begin with prompt",
        ),
        ({"prompt": "a", "chosen": [], "rejected": "b"}, "chosen must be text or a list of messages"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected must be text or a list of messages"),
        ({"prompt": "a", "chosen": [*GOOD, user("x")], "rejected": "b"}, "chosen must be text or messages that begin"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt must end with a user message"),
        ({"prompt": [*ASKED, *GOOD], "chosen": "a", "rejected": "b"}, "prompt must end with a user message"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1}, "must both be there"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": "1"}, "score_chosen must be a finite number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": True}, "weight must be a finite number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{"type": "function"}]}, "tools can't be shown"),
        (
            {"prompt": "a", "chosen": [{"role": "assistant", "tool_calls": [{"id": 1}]}], "rejected": "c"},
            "chosen: message 1 has tool_calls",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "b", "rejected": "c"},
            "prompt: message 1 has a list as content, which must hold parts of type text alone",
        ),
    ],
)
def test_what_is_no_preference_names_the_column(row, reason):
    with pytest.raises((KeyError, ValueError), match=reason) as error:
        preference(row)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# What stands before the prompt, and prompts of other names


@given(conversations, words, words)
@settings(max_examples=40, deadline=None)
def test_a_column_system_is_the_first_turn_in_every_form(prompt, chosen, rejected):
    told = (SYSTEM, *(m for m in prompt if m["role"] != "system"))
    for name in ("system", "system_prompt"):
        said = {name: SYSTEM["content"]}
        for form, row in forms_of(prompt, chosen, rejected).items():
            made = preference(row | said)
            assert (made.prompt, made.chosen) == (told, (assistant(chosen),)), form
        for row in ({"messages": [*prompt, assistant(chosen)]}, {"prompt": [*prompt], "response": chosen}):
            assert demonstration(row | said) == Demonstration(told, chosen)
            assert unpaired(row | said | {"label": True}).prompt == told
        assert prompt_of({"conversations": sharegpt(prompt)} | said) == told
        assert prompt_of({"prompt": [*prompt], name: " \n"}) == prompt


def test_what_says_otherwise_than_the_systems_turn_is_refused():
    for row in (
        {"prompt": [SYSTEM, *ASKED], "system": "Be rude."},
        {"prompt": "a", "system": "b", "system_prompt": "c"},
    ):
        with pytest.raises(ValueError, match=r"says something else than the system's turn"):
            prompt_of(row)
    with pytest.raises(ValueError, match="system must be text, not list"):
        prompt_of({"prompt": "a", "system": ["b"]})
    with pytest.raises(ValueError, match="history can't be shown"):
        prompt_of({"instruction": "a", "history": [["b", "c"]]})


def test_a_question_is_a_prompt_and_no_other_column_is_passed_over():
    """Rows of Orca's pairs; the answers begin alike, which is no prompt."""
    answers = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    expected = Preference((user("Which colour?"),), (assistant("The sky is blue."),), (assistant("The sky is green."),))
    assert preference({"question": "Which colour?", "system": "", "input": "x", **answers}) == expected
    assert preference({"question": "Which colour?", "system": "Be kind.", **answers}).prompt[0] == SYSTEM
    assert demonstration({"question": "Which colour?", "response": "Blue."}).messages == (user("Which colour?"),)
    for name in ("input", "query", "context", "system", "system_prompt"):
        with pytest.raises(ValueError, match=f"{name} would not be read; call the column prompt"):
            preference({name: "Which colour?", **answers})
    assert preference({"input": "", "query": None, **answers}) == SKY


def test_a_row_of_pandas_is_read_as_the_same_row_of_parquet():
    nan, messages = float("nan"), [*ASKED, *GOOD]
    row = {"messages": np.array([m | {"name": nan, "tool_calls": nan} for m in messages]), "prompt": nan}
    assert demonstration(row) == Demonstration(ASKED, "Blue.")
    assert unpaired(row | {"label": np.bool_(True)}).label is True


@pytest.mark.parametrize("row", ["x", None, ["x"], 3])
@pytest.mark.parametrize("read", [demonstration, prompt_of, preference, unpaired, ranked])
def test_what_is_no_row_is_refused(read, row):
    with pytest.raises(ValueError, match=f"a row has columns, and this is {type(row).__name__}"):
        read(row)


# ---------------------------------------------------------------------------------------------------------------------
# The same as TRL's own preparation


@pytest.fixture(scope="module")
def trl():
    import trl.data_utils

    return trl.data_utils


@pytest.mark.torch("trl")
@given(conversations, words, words)
@settings(max_examples=60, deadline=None)
def test_turns_are_divided_as_in_trl(trl, prompt, chosen, rejected):
    for form, row in forms_of(prompt, chosen, rejected).items():
        if "HH" in form or form in ("one message each", "columns", "tuples", "both", "answers as text"):
            continue  # no form of TRL's
        theirs = {name: value for name, value in copy.deepcopy(row).items() if value is not None}
        renamed = trl.maybe_convert_to_chatml(theirs | {n: [m] for n, m in theirs.items() if isinstance(m, dict)})
        if "chosen" in renamed and "messages" in renamed and "prompt" not in renamed:
            renamed["prompt"] = renamed.pop("messages")
        expected = trl.maybe_extract_prompt(renamed)
        made = preference(row)
        for name in ("prompt", "chosen", "rejected"):
            turns, told = getattr(made, name), expected[name]
            if isinstance(told, str):
                assert turns[0]["content"] == told and len(turns) == 1, form
            else:
                assert [*turns] == [*as_turns(told, name)], form


@pytest.mark.torch("trl")
@given(st.text("ab ", min_size=1, max_size=6), st.text("ab ", min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_texts_are_divided_as_in_trl(trl, chosen, rejected):
    row = {"chosen": f"x{chosen}", "rejected": f"x{rejected}"}
    made = preference(row)
    theirs = trl.extract_prompt(row)
    assert made == Preference(
        (user(theirs["prompt"]),), (assistant(theirs["chosen"]),), (assistant(theirs["rejected"]),)
    )


@pytest.mark.torch("trl")
def test_single_answers_are_those_that_trl_makes_of_pairs(trl):
    import datasets

    pairs = [
        {"prompt": [*LONG], "chosen": [*GOOD], "rejected": [*BAD]},
        {"prompt": [*ASKED], "chosen": [*BAD], "rejected": [*GOOD]},
    ]
    theirs = trl.unpair_preference_dataset(datasets.Dataset.from_list(pairs))
    ours = [(p.prompt, turns, label) for label in (True, False) for p in map(preference, pairs)
            for turns in ([p.chosen] if label else [p.rejected])]  # fmt: skip
    assert [(u.prompt, u.completion, u.label) for u in map(unpaired, theirs)] == ours


# ---------------------------------------------------------------------------------------------------------------------
# Single answers, demonstrations


@pytest.mark.parametrize("label", [True, False, 1, 0])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Which colour?", "completion": "Blue."},
        {"prompt": [*ASKED], "completion": [*GOOD]},
        {"prompt": "Which colour?", "response": "Blue.", "completion": None, "chosen": None},
        {"messages": [*ASKED, *GOOD]},
        {"conversations": sharegpt([*ASKED, *GOOD]), "prompt": None},
    ],
)
def test_a_single_answer_is_the_same_in_every_form(row, label):
    assert unpaired(row | {"label": label}) == Unpaired(ASKED, GOOD, bool(label))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": "a", "completion": "b"},
            "needs prompt, chosen and rejected, or prompt, completion and label; found",
        ),
        ({"prompt": "a", "completion": "b", "label": None}, "found prompt, completion"),
        ({"prompt": "a", "label": True}, "found prompt, label"),
        ({"prompt": "a", "completion": "b", "label": "true"}, "label must be true for a good answer .*, not 'true'"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label must be true"),
        ({"prompt": "a", "completion": "b", "label": 1.0}, "label must be true"),
        ({"completion": "b", "label": True}, "prompt"),
        ({"prompt": "a", "completion": [], "label": True}, "completion must be text or a list of messages"),
    ],
)
def test_what_is_no_single_answer_names_the_column(row, reason):
    with pytest.raises((KeyError, ValueError), match=reason):
        unpaired(row)


@given(conversations, words)
@settings(max_examples=40, deadline=None)
def test_a_demonstration_is_the_same_in_every_form(prompt, answer):
    whole, said = [*prompt, assistant(answer)], [assistant(answer)]
    rows = [
        {"messages": whole},
        {"messages": in_parts(whole), "prompt": None},
        {"messages": in_columns(whole)},
        {"conversations": sharegpt(whole)},
        {"prompt": [*prompt], "completion": said},
        {"prompt": [*prompt], "completion": answer, "response": None},
        {"prompt": sharegpt(prompt), "response": answer},
        {"conversations": None, "messages": whole, "chosen": whole, "rejected": whole, "prompt": "x"},
    ]
    for row in rows:
        assert demonstration(row) == Demonstration(prompt, answer)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "The sky is blue."}, "needs prompt and response, .*; found text"),
        ({"prompt": "a", "completion": [*GOOD, *ASKED, *BAD]}, "completion has several turns"),
        ({"prompt": "a", "completion": ""}, "completion must be text that is not empty"),
        ({"messages": None, "prompt": None}, "found nothing"),
        ({"conversations": sharegpt([*ASKED])}, "conversations must be a list that ends with an assistant's message"),
        ({"messages": [*ASKED, *GOOD], "tools": ["f"]}, "tools can't be shown"),
    ],
)
def test_what_is_no_demonstration_names_the_column(row, reason):
    with pytest.raises((KeyError, ValueError), match=reason):
        demonstration(row)


def test_a_conversation_that_helpsteer_writes_as_one_text_is_one():
    text = "Hi.\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhich colour?"
    assert prompt_of({"prompt": text}) == LONG
    assert prompt_of({"prompt": f"<extra_id_1>User\n{text}\n<extra_id_1>Assistant\n"}) == LONG


def test_text_that_only_mentions_a_transcript_stays_text():
    for text in (
        "Human: is it?",
        "Fill in <extra_id_1> here.\n",
        "Go on:\n\nHuman: Hi.\n\nAssistant: Hello.",
        "What does `\n\nAssistant:` mean?",
    ):
        assert prompt_of({"prompt": text}) == (user(text),)


def test_fields_of_a_message_that_say_nothing_are_ignored():
    message = {"role": "user", "content": "a", "id": 3, "tool_calls": [], "thinking": "", "name": None}
    assert as_messages([message]) == (user("a"),)
    assert prompt_of({"prompt": [message], "tools": "[]", "images": [], "chat_template_kwargs": {}}) == (user("a"),)


# ---------------------------------------------------------------------------------------------------------------------
# Ranked answers

SCORED = (Candidate("Blue.", None, 4.0), Candidate("A horse.", None, 1.0))
OVERALL, FINE = "overall_score", "fine-grained_score"
PLACED = (Candidate("Blue.", 0.0, None), Candidate("A horse.", 1.0, None))


def feedback(*scores, **fields):
    """A row of UltraFeedback."""
    texts = ("Blue.", "A horse.")
    return {"instruction": "Which colour?", "source": "flan", "models": [], "completions": [
        {"model": "m", "response": text, "annotations": {}, **score} for text, score in zip(texts, scores, strict=True)
    ]} | fields  # fmt: skip


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        (feedback({OVERALL: 4.0, FINE: 1}, {OVERALL: 1, FINE: 3}), SCORED),
        (feedback({OVERALL: None, FINE: 4}, {OVERALL: 9, FINE: 1}), SCORED),
        (feedback({"overall_score": 40}, {"overall_score": 10}, scale=[10, 100]),
         (Candidate("Blue.", None, 40.0), Candidate("A horse.", None, 10.0))),
        ({"prompt": "Which colour?", "chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD], "score_chosen": 9.0,
          "score_rejected": 2.0, "messages": [*ASKED, *GOOD]}, PLACED),
        ({"prompt": "Which colour?", "chosen": ["Blue."], "rejected": ["A horse."]}, PLACED),
        ({"chosen": transcript([*ASKED, *GOOD]), "rejected": transcript([*ASKED, *BAD])}, PLACED),
        ({"prompt": "Which colour?", "response_a": "Blue.", "response_b": "A horse.", "label": "A > B"}, PLACED),
        ({"prompt": "Which colour?", "responses": [{"text": "Blue.", "score": 4, "rank": None},
                                                   {"text": "A horse.", "score": 1, "rank": None}]}, SCORED),
    ],
)  # fmt: skip
def test_ranked_answers_of_every_form(row, answers):
    assert ranked(row) == Ranked(ASKED, answers)


def test_a_row_of_helpsteer_is_one_answer_of_several():
    row = {"prompt": "Which colour?", "response": "Blue.", "helpfulness": 4, "correctness": 4, "verbosity": 0}
    assert ranked(row) == Ranked(ASKED, SCORED[:1], partial=True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (feedback({"overall_score": 11}, {"overall_score": 1}), "overall_score 11 is outside of its scale, 1 to 10"),
        (feedback({"fine-grained_score": 0}, {"fine-grained_score": 1}), "outside of its scale, 1 to 5"),
        (feedback({"overall_score": "4"}, {"overall_score": 1}), "overall_score of answer 1 must be a finite number"),
        ({"prompt": "a", "response": "b", "helpfulness": 5}, "helpfulness 5 is outside of its scale, 0 to 4"),
        ({"prompt": "a", "responses": [{"text": "b", "score": 6}], "scale": [0, 5]}, "score 6 is outside"),
        (
            {"prompt": "a", "responses": [{"text": "b", "score": 6}], "scale": [5, 0]},
            "scale must be \\[lowest, highest",
        ),
        ({"prompt": "a", "responses": [{"text": "b", "score": 6}], "scale": "0-5"}, "scale must be \\[lowest, highest"),
        ({"prompt": "a", "response": "b"}, "a prompt without answers; .*; found prompt, response"),
        ({"prompt": "a", "completions": ["b", "c"]}, "completions must be a list of objects with the fields response"),
        ({"chosen": [*ASKED, *GOOD, *ASKED, *GOOD], "rejected": [*ASKED, *BAD]}, "chosen has several turns"),
        ({"prompt": "a", "chosen": ["b"], "rejected": [["c"]]}, "text or lists of texts"),
    ],
)
def test_what_is_no_ranking_names_the_column(row, reason):
    with pytest.raises((KeyError, ValueError), match=reason):
        ranked(row)
