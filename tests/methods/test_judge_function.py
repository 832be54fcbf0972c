"""A Python function as the judge."""

import sys

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.methods.judge_function import checked_score, load_function, source_hash

PROMPT = ({"role": "user", "content": "How long?"},)


def length(prompt, response):
    return min(5, len(response))


@pytest.mark.parametrize(
    "name, says",
    [
        ("length", "write module:name"),
        ("tests.nothing:length", "can't be imported"),
        ("nowhere/judge.py:length", "can't be imported"),
        ("tests.methods.test_judge_function:nothing", "has no nothing"),
        ("tests.methods.test_judge_function:PROMPT", "is no function"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(name, says):
    with pytest.raises(UserError, match=says):
        load_function(name)


def test_a_function_is_found_by_its_name_and_known_by_its_text():
    found = load_function("tests.methods.test_judge_function:length")
    assert checked_score(found, PROMPT, "abc") == 3.0
    assert len(source_hash(found)) == 64 and source_hash(found) != source_hash(load_function("math:floor"))


def test_a_function_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "judge_of_mine.py").write_text("def score(prompt, response):\n    return 2\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as in an installed command
    monkeypatch.chdir(tmp_path)
    assert checked_score(load_function("judge_of_mine:score"), PROMPT, "abc") == 2.0
    assert str(tmp_path) not in sys.path


def test_a_function_is_found_in_a_file_and_read_again_when_the_file_has_changed(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "a judge.py"
    file.write_text("def score(prompt, response):\n    return 2\n")
    first = load_function(f"{file}:score")
    hashed = source_hash(first)
    assert checked_score(first, PROMPT, "abc") == 2.0
    monkeypatch.chdir(tmp_path)
    assert source_hash(load_function("folder/a judge.py:score")) == hashed
    file.write_text("def score(prompt, response):\n    return 4.5\n")
    again = load_function(f"{file}:score")
    assert checked_score(again, PROMPT, "abc") == 4.5 and source_hash(again) != hashed
    file.write_text("def score(prompt, response)\n")
    with pytest.raises(UserError, match="can't be imported"):
        load_function(f"{file}:score")


@pytest.mark.parametrize("score", [-1, 5.5, float("nan"), "good", [3]])
def test_what_is_no_score_is_refused(score):
    with pytest.raises(UserError, match="must give 0 to 5 or None"):
        checked_score(lambda prompt, response: score, PROMPT, "abc")


def test_none_is_missing_and_not_zero():
    assert checked_score(lambda prompt, response: None, PROMPT, "abc") is None
