"""IFEval: each kind of instruction is told followed from not followed, and the four accuracies are counted by hand."""

import inspect
import json
import random
from types import SimpleNamespace

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.evals import instructions
from selfreward_jax.evals.ifeval import (
    Task,
    accuracies,
    by_kind,
    check_responses,
    match_responses,
    parse_task,
    variants,
    verdict_row,
    verdicts,
)
from selfreward_jax.evals.instructions import VERIFIERS, check_instruction, follows
from tests import tiny

DATA = tiny.REAL_DATA / "ifeval.jsonl"
ENGLISH = "the weather in the north of the country is cold and wet for most of the year"
GERMAN = "Das Wetter im Norden des Landes ist die meiste Zeit des Jahres kalt und nass."

# Kind, arguments, what follows it, what doesn't.
CASES = [
    ("keywords:existence", {"keywords": ["bread", "Price"]}, "The PRICE of breads.", "The price of a roll."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "A Cat, alas."),
    ("keywords:frequency", {"keyword": "go", "relation": "at least", "frequency": 2}, "Gone, and gone.", "Go on."),
    ("keywords:frequency", {"keyword": "go", "relation": "less than", "frequency": 2}, "Go on.", "Go, go."),
    ("keywords:letter_frequency", {"letter": "Q", "let_relation": "at least", "let_frequency": 2}, "Qq", "q"),
    ("keywords:letter_frequency", {"letter": "!", "let_relation": "less than", "let_frequency": 2}, "a!", "!!"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_capital", {}, ENGLISH.upper(), GERMAN.upper()),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 3},
        "I saw a WELL-KNOWN MAN.",
        "I saw a well-KNOWN MAN.",
    ),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, "A man.", "A B."),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "He came. She went?",
        "Dr. Smith, e.g. the one with 3.5 cats, came.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        "Mr. Lee came.",
        "He came. She went.",
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "It's so", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one, two", "one two-three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one *** two", "one\n***\n***\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "one", "one\n***\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Next"},
        'one\n\n"next, two',
        "Next one\n\ntwo",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "one"},
        "one's\n\ntwo\n\n",
        "one\n\ntwo\n\nthree",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [place]", "[name] of (place)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yours.\n\np. s. One more.", "Yours. PS one more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Yours.\nP.P.S one", "Yours.\nP.S. one"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n  - two\nthree", "* one\n- two\n* three"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* one", "**bold**"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", "*one* and * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\na\nPart 2",
        "Part 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": [1]} or so'),
    ("detectable_format:title", {}, "<<North>>\nIt is cold.", "<< >>\n<North>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******\none\n******\ntwo", "one\n******\n\n******\ntwo"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, " say IT. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So it goes. the end."', "The end. Or so."),
    ("startend:quotation", {}, ' "It is."\n', '"It" is.'),
    ("punctuation:no_comma", {}, "One; two.", "One, two."),
]


def asks_langdetect(case: tuple) -> bool:
    return VERIFIERS[case[0]] in instructions.NEED_LANGDETECT


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), [case for case in CASES if not asks_langdetect(case)])
def test_what_follows_is_told_from_what_does_not(kind, arguments, good, bad):
    check_instruction(kind, arguments)
    assert follows(kind, arguments, good)
    assert not follows(kind, arguments, bad)


@pytest.mark.torch("langdetect")
@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), filter(asks_langdetect, CASES))
def test_what_follows_is_told_from_what_does_not_by_its_language(kind, arguments, good, bad):
    test_what_follows_is_told_from_what_does_not(kind, arguments, good, bad)


def test_every_kind_has_a_case():
    assert {kind for kind, *_ in CASES} == VERIFIERS.keys()
    assert len(VERIFIERS) == 25


@pytest.mark.parametrize("kind", ["punctuation:no_comma", "keywords:forbidden_words"])
def test_an_empty_response_follows_nothing(kind):
    assert not follows(kind, {"forbidden_words": ["x"]} if "words" in kind else {}, " \n")


def one(kind: str, **arguments) -> dict:
    return {"instruction_id_list": [kind], "kwargs": [arguments]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"]}, "punctuation:no_coma.*Did you mean punctuation:no_comma"),
        ({"kwargs": [{"words": 3}]}, "punctuation:no_comma: .*words"),
        ({"kwargs": []}, "same length"),
        ({"kwargs": [None]}, "every item of kwargs must be an object"),
        (one("length_constraints:number_words", num_words=3, relation="more than"), "relation must be 'at least' or"),
        (one("length_constraints:number_words", num_words="3", relation="at least"), 'num_words must be .*it is "3"'),
        (one("keywords:existence", keywords=[5]), "keywords must be a list of texts"),
        ({"instruction_id_list": [["punctuation:no_comma"]]}, "no kind of instruction"),
        ({"prompt": " "}, "prompt must be text"),
    ],
)
def test_a_row_that_cannot_be_verified_is_refused(change, expected):
    with pytest.raises(ValueError, match=expected):
        parse_task({"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} | change)


WRONG = {
    int: ["2", "two", "", -2.0, 2.5, True, False, -1, [2], {}, float("nan"), float("inf"), 10**400 * -1],
    str: ["", " \n", 2, 2.5, True, ["x"], {"x": 1}, float("nan")],
    list: ["abc", "", [], [""], ["a", " "], ["a", None], ["a", 5], [["a"]], 5, True, {"a": 1}],
}
CHOSEN = {"letter": ["ab", "1a"], "language": ["deutsch", "DE", "xx"], "relation": ["more than", "At Least", "=="]}


@pytest.mark.parametrize("case", [c for c in CASES if not asks_langdetect(c) or c[1]], ids=lambda c: c[0])
def test_an_argument_of_another_type_is_refused_by_its_row(case, monkeypatch):
    """Nothing is guessed, and no response is judged by it."""
    monkeypatch.setattr(instructions.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(instructions, "_languages", lambda: frozenset({"de"}))
    kind, arguments = case[:2]
    assert parse_task({"prompt": "p", **one(kind, **arguments)}).instructions == ((kind, arguments),)
    for name, right in arguments.items():
        for wrong in [*WRONG[type(right)], *CHOSEN.get(name.split("_")[-1], [])]:
            with pytest.raises(ValueError, match=f"^{kind}: {name} must be ") as refused:
                parse_task({"prompt": "p", **one(kind, **{**arguments, name: wrong})})
            assert "\n" not in str(refused.value)
        for without in ({}, {name: None}):
            some = {n: v for n, v in arguments.items() if n != name} | without
            with pytest.raises(ValueError, match=f"^{kind}: missing a required argument: '{name}'"):
                parse_task({"prompt": "p", **one(kind, **some)})
    with pytest.raises(ValueError, match="nth_paragraph must be a whole number from 1"):
        case = next(c for c in CASES if "nth_paragraph" in c[1])
        parse_task({"prompt": "p", **one(case[0], **{**case[1], "nth_paragraph": 0})})


@pytest.mark.parametrize("case", [c for c in CASES if any(type(x) is int for x in c[1].values())], ids=lambda c: c[0])
def test_a_whole_number_written_as_a_float_is_that_number(case):
    """So pandas writes a column of whole numbers that holds nulls."""
    kind, arguments, good, bad = case
    floats = {name: float(x) if type(x) is int else x for name, x in arguments.items()}
    check_instruction(kind, floats)
    assert follows(kind, floats, good) and not follows(kind, floats, bad)


def test_every_argument_of_every_kind_has_a_type():
    named = {n for verifier in VERIFIERS.values() for n in list(inspect.signature(verifier).parameters)[1:]}
    assert named == instructions.ARGUMENTS.keys()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(instructions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'langdetect"):
        check_instruction("language:response_language", {"language": "de"})
    check_instruction("punctuation:no_comma", {})


def test_arguments_that_are_null_do_not_count():
    assert parse_task(
        {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
    ).instructions == (("punctuation:no_comma", {}),)


# ---------------------------------------------------------------------------------------------------------------------
# Strict, loose, and what is counted


def test_a_loose_verdict_reads_eight_texts():
    assert variants("Sure:\n**a**\nBye") == [
        "Sure:\n**a**\nBye", "Sure:\na\nBye", "**a**\nBye", "a\nBye", "Sure:\n**a**", "Sure:\na", "**a**", "a",
    ]  # fmt: skip


def task(*kinds: str):
    return parse_task({"prompt": f"Do {kinds}.", "instruction_id_list": list(kinds), "kwargs": [{}] * len(kinds)})


def test_the_four_accuracies_and_each_kinds_share():
    commas, quoted, both = task("punctuation:no_comma"), task("startend:quotation"), task(
        "punctuation:no_comma", "startend:quotation"
    )  # fmt: skip
    answers = [(commas, "One, two."), (quoted, 'Sure:\n"One"'), (both, '"One, two"')]
    rows = {mode: [verdict_row(t, a, verdicts(t, a, mode)) for t, a in answers] for mode in ("strict", "loose")}
    assert [row["follow_instruction_list"] for row in rows["strict"]] == [[False], [False], [False, True]]
    assert [row["follow_instruction_list"] for row in rows["loose"]] == [[False], [True], [False, True]]
    assert {name: x.value for name, x in accuracies(rows).items()} == {
        "prompt_level_strict_acc": 0.0,
        "inst_level_strict_acc": 1 / 4,
        "prompt_level_loose_acc": pytest.approx(1 / 3),
        "inst_level_loose_acc": 2 / 4,
    }
    assert by_kind(rows) == {
        "punctuation:no_comma": {"n": 2, "strict": 0.0, "loose": 0.0},
        "startend:quotation": {"n": 2, "strict": 0.5, "loose": 1.0},
    }


def test_responses_are_found_by_their_prompts():
    tasks = [task("startend:quotation"), task("punctuation:no_comma")]
    rows = [{"prompt": t.prompt, "response": str(n)} for n, t in enumerate(tasks)]
    assert match_responses(tasks, rows[::-1]) == ["0", "1"]
    with pytest.raises(ValueError, match="1 of 2 prompts have no response"):
        match_responses(tasks, rows[:1])
    with pytest.raises(ValueError, match="two responses"):
        match_responses(tasks, [*rows, {**rows[0], "response": "other"}])


# ---------------------------------------------------------------------------------------------------------------------
# Against lm-eval's verifiers


def disguises(prompt: str, arguments: list[dict], text: str) -> list[str]:
    """A text in forms that some instruction or other asks for."""
    wanted = " ".join(str(v) if not isinstance(v, list) else " ".join(v) for a in arguments for v in a.values())
    return [
        text, f'"{text}"', text.upper(), text.lower(), f"{prompt}\n\n{text}", f"{text} {wanted}",
        f"{text} P.S. [a] [b]",
        f"* a\n* b\n- c\n{text}\nSection 1 a\nSection 2 b ***c*** *d*\n<<t>>\nMy answer is no.",
        f"{text}\n******\n{text[::-1]}", f"```json\n{json.dumps({'a': text})}\n```",
        "\n\n".join(f"{x.get('first_word')}, {text}" for x in arguments for _ in range(x.get("num_paragraphs", 1))),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def lm_eval_verifiers():
    """Those of lm-eval, with our Punkt in the place of the trained one, which would have to be downloaded."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *names, **options: True)
        patch.setattr(
            nltk.tokenize, "sent_tokenize", lambda text, language="": instructions._sentences().tokenize(text)
        )
        from lm_eval.tasks.ifeval import instructions_util, utils

        patch.setattr(instructions_util, "_get_sentence_tokenizer", instructions._sentences)
        yield utils


def made_rows(rng: random.Random) -> list[dict]:
    """As the data's: each case's instruction, alone or beside another kind's, first with the case's own two texts."""
    rows = []
    for number, case in enumerate(CASES * 6):
        cases = [case, *rng.sample([c for c in CASES if c[0] != case[0] and "!" not in c[1].values()], number % 2)]
        rows.append(
            {
                "key": number,
                "prompt": f"Say a word about {rng.choice(('bread', 'the cat', 'the north'))}.",
                "instruction_id_list": [kind for kind, *_ in cases],
                "kwargs": [arguments for _, arguments, *_ in cases],
                "text": dict(enumerate(case[2:])).get(number // len(CASES)),
            }
        )
    return rows


@pytest.mark.slow
@pytest.mark.torch("lm_eval", "langdetect")
@pytest.mark.parametrize("source", ["made", *(["the data"] if DATA.exists() else [])])
def test_verdicts_are_those_of_lm_eval(source, lm_eval_verifiers):
    rng, met = random.Random(0), {True: set(), False: set()}
    for row in made_rows(rng) if source == "made" else tiny.read_jsonl(DATA):
        kinds = row["instruction_id_list"]
        if any(not a.get("letter", "a").isalpha() for a in row["kwargs"]):
            continue  # of another sign than a letter lm-eval draws a letter by chance
        text = rng.choice((ENGLISH, GERMAN, ENGLISH.title() * 9))
        text = row.get("text") or rng.choice(disguises(row["prompt"], row["kwargs"], text))
        inp = SimpleNamespace(key=row["key"], instruction_id_list=kinds, prompt=row["prompt"], kwargs=row["kwargs"])
        for mode in ("strict", "loose"):
            theirs = getattr(lm_eval_verifiers, f"test_instruction_following_{mode}")(inp, text)
            assert verdicts(parse_task(row), text, mode) == theirs.follow_instruction_list, (kinds, text)
            for kind, verdict in zip(kinds, theirs.follow_instruction_list, strict=True):
                met[verdict].add(kind)
    if source == "made":
        assert met[True] == met[False] == VERIFIERS.keys()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "x"), ("b", "y"), ("a", "x")], None),
        ([("b", "y"), ("a", "x"), ("a", "x")], "not those of the data"),
        ([("a", "x"), ("b", "y")], "not those of the data"),
        ([("a", "x"), ("b", None), ("a", "x")], "row 2 is no text"),
        ([("a", "x"), ("b", "y"), ("a", "z")], "row 3 answers a prompt once more"),
    ],
)
def test_responses_that_the_authors_script_would_mix_up_are_not_written(rows, expected):
    rows = [{"prompt": prompt, "response": response} for prompt, response in rows]
    tasks = [Task(prompt, ()) for prompt in "aba"]
    if expected is None:
        return check_responses(rows, tasks)
    with pytest.raises(UserError, match=expected):
        check_responses(rows, tasks)
