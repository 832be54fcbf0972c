"""Rows survive files, ids depend on content alone, and a wrong line is named with its file, number and reason."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import (
    Judgement,
    Pair,
    Prompt,
    Response,
    as_messages,
    content_id,
    from_dict,
    group_by,
    last_request,
    load_rows,
    parse_row,
    read_jsonl,
    to_line,
)

ASKED = ({"role": "user", "content": "Why?"},)
ANSWERED = ({"role": "assistant", "content": 'Because \u2028 of {"x"}\n'},)
ROWS = [
    Prompt("p", ASKED, "file"),
    Response("r", "p", 0, (5, 6), "é\u0085\U0001f600", "eos", -0.1 - 0.2),
    Judgement("j", "r", 2, "no score", None, "length"),
    Pair("q", "p", ASKED, ANSWERED, ANSWERED, 4.0, 1 / 3, 11 / 3, (1,), (2, 3), (), {"model": "m1"}),
]


def write(path, *lines: str):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def assert_refused(path, number: int, reason: str, parse=lambda row: row) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:{number}: .*{reason}") as error:
        read_jsonl(path, parse)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_comes_back_from_a_file_as_it_was(row, tmp_path):
    write(tmp_path / "rows.jsonl", to_line(row))
    assert load_rows(tmp_path / "rows.jsonl", type(row)) == [row]


@given(text=st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_fits_on_one_line(text):
    line = to_line({"text": text})
    assert line.count("\n") == 1 and line.endswith("\n")


def test_people_can_read_every_script_in_a_line():
    assert to_line({"text": "é \u4f60"}) == '{"text": "é \u4f60"}\n'


def test_rows_keep_their_order_and_blank_lines_do_not_count(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"n": 1}', "", "  ", '{"n": 2}\r', "")
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    assert read_jsonl(write(tmp_path / "rows.jsonl", '\ufeff{"n": 1}')) == [{"n": 1}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"n": 1', "not valid JSON .* at column 8"),
        ("[1]", "expected a JSON object, found list"),
        ('{"text": "\\ud83d"}', "surrogate"),
        ("{}", "the field 'n' is missing"),
        ('{"n": "two"}', "invalid literal"),
        ('{"n": null}', "int"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(line, reason, tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"n": 1}', "", line)
    assert_refused(path, 3, reason, lambda row: int(row["n"]))


def test_both_halves_of_a_surrogate_pair_are_a_character(tmp_path):
    assert read_jsonl(write(tmp_path / "rows.jsonl", '{"text": "\\ud83d\\ude00"}')) == [{"text": "\U0001f600"}]


def test_an_unknown_column_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"id": "p", "messages": [], "source": "x", "colour": 1}')
    assert_refused(path, 1, "colour", lambda row: from_dict(Prompt, row))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nope.jsonl: no such file; it should hold prompts"):
        read_jsonl(tmp_path / "nope.jsonl", what="prompts")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(content, tmp_path):
    with pytest.raises(UserError, match="the file is empty; it should hold prompts"):
        read_jsonl(write(tmp_path / "rows.jsonl", content), what="prompts")


def test_another_encoding_is_named_with_its_byte(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes('{"n": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 at byte 7"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_a_row_that_is_in_no_file_is_named_by_its_place():
    with pytest.raises(UserError, match="^tfds:x/train: row 7: the field 'prompt' is missing"):
        parse_row({}, lambda row: row["prompt"], "tfds:x/train: row 7")


def test_ids_are_the_same_in_every_run():
    assert content_id("prompt", 1, ["é"]) == "8550f2f123c41cdd"


def test_ids_tell_different_parts_apart():
    ids = [content_id(*parts) for parts in (("ab",), ("a", "b"), ("b", "a"), (1,), ("1",), (None,), ())]
    assert len(set(ids)) == len(ids)


def test_text_is_a_users_message():
    assert as_messages("Why?") == ASKED


def test_messages_keep_their_roles_and_lose_other_fields():
    messages = [{"role": "system", "content": "Be kind.", "id": 3}, *ASKED]
    assert as_messages(messages) == ({"role": "system", "content": "Be kind."}, *ASKED)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "text or a list"),
        ([], "text or a list"),
        (["Why?"], "role and content"),
        ([{"role": "user", "content": None}], "role and content"),
        ([{"role": "wizard", "content": "x"}], "has the role 'wizard'"),
        ([{"content": "x"}], "has the role None"),
        ([*ASKED, *ANSWERED], "end with a user message"),
        (" \n", "not empty"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, reason):
    with pytest.raises(ValueError, match=reason):
        as_messages(prompt)


def test_a_single_turn_is_the_request_itself():
    assert last_request([{"role": "system", "content": "Be kind."}, *ASKED]) == "Why?"


def test_a_judge_reads_earlier_turns_by_name():
    messages = [*ASKED, {"role": "assistant", "content": "So."}, {"role": "user", "content": "But?"}]
    assert last_request(messages) == "User: Why?\n\nAssistant: So.\n\nUser: But?"


def test_groups_keep_the_order_of_first_appearance():
    assert group_by(["b1", "a1", "b2"], lambda row: row[0]) == {"b": ["b1", "b2"], "a": ["a1"]}


def test_rows_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROWS[0].id = "other"
