"""Rows survive files, ids depend on content alone, and a wrong line is named with its file, number and reason."""

import dataclasses
import json
import math
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
    to_lines,
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


@pytest.mark.parametrize("texts", [True, False])
@pytest.mark.parametrize(
    "ids", [[1, True], [False], [1.5], [5.0], ["5"], [-1], [2**32], [math.inf], [None], True, "5", {}]
)
def test_ids_that_are_no_ids_are_refused(ids, texts, tmp_path):
    row = {"id": "r", "prompt_id": "p", "index": 0, "token_ids": ids, "text": "", "stop_reason": "eos", "logp": 0.0}
    path = write(tmp_path / "rows.jsonl", json.dumps(row))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:1: token_ids must be a list of token ids, not "):
        load_rows(path, Response, texts=texts)


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


# ---------------------------------------------------------------------------------------------------------------------
# Many rows


def answer(n: int, ids) -> Response:
    return Response(f"r{n}", f"p{n // 4}", n % 4, tuple(ids), f'Ünd "so"\n{n}', "eos", -1.5)


def test_a_line_is_that_of_the_row_as_plain_json():
    pair = Pair(
        "i",
        "p",
        ({"role": "user", "content": "é\u2028"},),
        (),
        (),
        1.0,
        0.5,
        0.5,
        (1, 2),
        (3,),
        (),
        {"m": {"s": [None, 4]}},
    )
    for row in (answer(3, [1, 70_000]), pair, {"a": (1.0, math.inf), "b": None}):
        plain = dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row
        assert to_line(row) == json.dumps(plain, ensure_ascii=False) + "\n"
    assert b"".join(to_lines([pair, pair])) == 2 * to_line(pair).encode()


def test_rows_come_back_as_they_were_wherever_the_file_s_pieces_end(tmp_path):
    rows = [answer(n, range(n, 300_000, 997)) for n in range(600)]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf\n" + b"".join(to_lines(rows)))
    assert load_rows(tmp_path / "rows.jsonl", Response) == rows
    assert [to_line(row) for row in load_rows(tmp_path / "rows.jsonl", Response)] == [to_line(row) for row in rows]


def test_a_byte_that_is_no_text_is_told_by_its_place_in_the_file(tmp_path):
    data = b"".join(to_lines([answer(n, [n]) for n in range(9000)]))
    (tmp_path / "rows.jsonl").write_bytes(data + b'{"text": "\xff"}\n')
    with pytest.raises(UserError, match=f"not UTF-8 at byte {len(data) + 10};"):
        load_rows(tmp_path / "rows.jsonl", Response)


@pytest.mark.parametrize("ids", [[1.0, 2.0], [-1], [2**40], ["1"], [None], "12", 7])
def test_ids_that_are_none_are_left_for_whoever_checks_them(tmp_path, ids):
    """Nothing of the table of ids may take their place."""
    row = {**dataclasses.asdict(answer(0, [])), "token_ids": ids}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    try:
        (found,) = load_rows(tmp_path / "rows.jsonl", Response)
    except UserError:
        return
    assert json.dumps(found.token_ids) == json.dumps(ids)


def test_without_texts_their_place_is_empty_and_the_ids_are_as_many(tmp_path):
    rows = [answer(n, range(n % 7)) for n in range(50)]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(to_lines(rows)))
    light = [dataclasses.replace(row, text="", token_ids=(0,) * len(row.token_ids)) for row in rows]
    assert load_rows(tmp_path / "rows.jsonl", Response, texts=False) == light


def test_rows_share_their_ids_of_which_a_million_rows_own_would_fill_the_memory(tmp_path):
    rows = [answer(n, [40_000, 300, 40_000 + n]) for n in range(4)]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(to_lines(rows)))
    first, *others = load_rows(tmp_path / "rows.jsonl", Response)
    for row in others:
        assert row.prompt_id is first.prompt_id and row.token_ids[0] is first.token_ids[0]
    first, *others = load_rows(tmp_path / "rows.jsonl", Response, texts=False)
    assert all(row.token_ids is first.token_ids for row in others)
    assert not hasattr(first, "__dict__")
