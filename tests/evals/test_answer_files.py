"""Files of answers: their forms, what is refused, and how two are matched."""

import json

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import content_id, draw
from selfreward_jax.evals.answer_files import (
    check_same,
    load_answers,
    load_questions,
    match,
    questions_of,
)
from tests.tiny import write_jsonl


def asked(*texts: str) -> list[dict]:
    return [{"id": f"q{n}", "prompt": text, "category": "odd" if n % 2 else "even"} for n, text in enumerate(texts)]


@pytest.fixture
def prompts(tmp_path):
    return load_questions(str(write_jsonl(tmp_path / "prompts.jsonl", asked("One?", "Two?", "Three?"))))


FORMS = {
    "a.jsonl": [{"prompt": "Two?", "response": "2"}, {"prompt": "One?", "response": "1"}],
    "b.jsonl": [{"prompt": [{"role": "user", "content": w}], "response": r} for w, r in (("One?", "1"), ("Two?", "2"))],
    "c.jsonl": [{"id": "q1", "response": "2", "model": "m"}, {"id": "q0", "response": "1"}],
    "e.jsonl": [{"id": 1, "response": "2"}, {"id": 0, "response": "1"}],
    "d.json": [{"instruction": "One?", "output": "1", "generator": "m"}, {"instruction": "Two?", "output": "2"}],
}


@pytest.mark.parametrize("name", FORMS)
def test_answers_are_found_by_prompt_or_id_in_the_order_of_the_prompts(name, prompts, tmp_path):
    path = tmp_path / name
    if name == "e.jsonl":  # of prompts that count from zero
        rows = [{"id": n, "prompt": text} for n, text in enumerate(("One?", "Two?", "Three?"))]
        prompts = load_questions(str(write_jsonl(tmp_path / "counted.jsonl", rows)))
    if name.endswith(".json"):
        path.write_text(json.dumps(FORMS[name]))
    else:
        write_jsonl(path, FORMS[name])
    assert match(str(path), load_answers(str(path)), prompts[:2]) == ["1", "2"]


def test_an_instruction_with_its_input_is_one_prompt(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "1, 2", "output": "3", "dataset": "d"}])
    (question,) = questions_of(str(path), load_answers(str(path)))
    assert question.prompt.messages[0]["content"] == "Add.\n\n1, 2" and question.category == "d"
    assert question.prompt.id == content_id(question.prompt.messages)


def test_prompts_without_an_answer_are_counted_and_the_first_is_shown(prompts, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "One?", "response": "1"}, {"prompt": "Ten?", "response": "."}])
    with pytest.raises(UserError, match=r"a\.jsonl: no answer to 2 of 3 prompts; the first: 'Two\?'.*answers 2; its "):
        match(str(path), load_answers(str(path)), prompts)


def test_files_that_answer_different_prompts_are_told_apart_with_counts(tmp_path):
    def side(name: str, *words: str):
        path = str(write_jsonl(tmp_path / name, [{"prompt": w, "response": "."} for w in words]))
        return questions_of(path, load_answers(path))

    one, other = side("a.jsonl", "One?", "Two?", "Three?"), side("b.jsonl", "Two?", "Four?")
    with pytest.raises(UserError) as error:
        check_same(("a", "b"), (one, other))
    assert "different prompts: 3 and 2, 1 in both" in str(error.value)
    assert "2 only in a, the first in row 1: 'One?'; 1 only in b, the first in row 2: 'Four?'" in str(error.value)
    check_same(("a", "b"), (one, side("c.jsonl", "Three?", "One?", "Two?")))  # in another order


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "One?"}], r"a\.jsonl:1: the field 'response' is missing"),
        ([{"response": "1"}], r"a\.jsonl:1: needs prompt and response, .*; found response"),
        ([{"prompt": "One?", "response": None}], r"a\.jsonl:1: the field 'response' is missing"),
        ([{"prompt": "One?", "response": 1}], r"a\.jsonl:1: response must be text"),
        ([{"prompt": "One?", "response": "1", "category": 3}], "category must be text"),
        ([{"prompt": "One?", "response": x} for x in "12"], r"rows 1 and 2 answer the same prompt \('One\?'\)"),
        ([{"id": "q", "response": x} for x in "12"], r"rows 1 and 2 answer the same prompt \(id q\)"),
        ([], "the file is empty"),
    ],
)
def test_a_wrong_file_of_answers_is_one_line(rows, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        load_answers(str(write_jsonl(tmp_path / "a.jsonl", rows)))


def test_half_a_character_is_found_in_an_array_too(tmp_path):
    (tmp_path / "a.json").write_text('[{"prompt": "One?", "response": "x \\ud83d y"}]')
    with pytest.raises(UserError, match=r"a\.json:1: item 1: half of a surrogate pair"):
        load_answers(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "1: needs prompt and response, .*; found nothing"),
        ("[]", " the file is empty; it should hold answers"),
        ('{\n"prompt": "a"}', "1: not valid JSON .* an array of objects, or an object a line"),
        ("[1]", "1: item 1: expected a JSON object, found int"),
    ],
)
def test_json_that_is_no_array_of_objects_is_refused(text, reason, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json:{reason}"):
        load_answers(str(tmp_path / "a.json"))


def test_answers_named_by_id_alone_bring_no_prompts(tmp_path):
    path = str(write_jsonl(tmp_path / "a.jsonl", FORMS["c.jsonl"]))
    with pytest.raises(UserError, match="by id alone; give them with --prompts=FILE"):
        questions_of(path, load_answers(path))


def test_a_prompt_that_comes_again_is_asked_once(tmp_path):
    rows = [*asked("One?", "Two?"), {"prompt": "One?", "category": "late"}]
    made = load_questions(str(write_jsonl(tmp_path / "p.jsonl", rows)))
    assert [(q.key, q.category) for q in made] == [("q0", "even"), ("q1", "odd")]


def test_some_prompts_are_drawn_by_the_seed_and_keep_their_order(prompts):
    few = draw(prompts, 2, seed=1)
    assert few == draw(prompts, 2, seed=1) and len(few) == 2
    assert [q for q in prompts if q in few] == few
    assert draw(prompts, 0, seed=1) == draw(prompts, 9, seed=1) == prompts
