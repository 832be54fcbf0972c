"""Ranked answers of every form become the same prompts; what is left out is counted, and what is wrong is one line."""

import gzip
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.ranked import Answer, load_ranked, prompt_key


def message(id: str, parent: str | None, text: str, rank: int | None = None, **fields) -> dict:
    role = "assistant" if parent and len(parent) == 1 else "prompter"
    row = {"message_id": id, "parent_id": parent, "role": role, "lang": "en", "rank": rank, "text": text}
    hub = {"deleted": False, "synthetic": False, "review_result": True, "review_count": 3}
    return row | hub | fields


# Two English conversations and a German one; ids of first turns have one letter, those of answers two.
MESSAGES = [
    message("a", None, "Why?"),
    message("a1", "a", "Because.", 1),
    message("a2", "a", "Since it is so.", 0),
    message("a3", "a", "No.", 4),
    message("a4", "a", "Spam.", 2, deleted=True),
    message("a5", "a", "Written by a program.", 3, synthetic=True),
    message("a6", "a", "Rude.", 5, review_result=False),
    message("a7", "a", "Weil.", 6, lang="de"),
    message("a8", "a", "Not ranked."),
    message("a11", "a1", "And why that?"),
    message("b", None, "How?"),
    message("b1", "b", "So.", 0),
    message("c", None, "Warum?", lang="de"),
    message("c1", "c", "Darum.", 0, lang="de"),
    message("d", None, "Asked in vain?"),
    message("e", None, "Deleted?", deleted=True),
    message("e1", "e", "Lost.", 0),
    message("f", None, "Never seen?", review_result=None, review_count=0),
    message("g", None, " why? "),
    message("g1", "g", "The prompt is the same.", 0),
]
WHY = ((Answer("Since it is so.", 0.0), Answer("Because.", 1.0), Answer("No.", 4.0)), "Why?")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(*specs, lang="en"):
    return load_ranked([str(s) for s in specs], lang)


def texts(ranked) -> list[tuple]:
    return [(r.answers, r.prompt[0]["content"]) for r in ranked]


def refusal(*specs, lang="en") -> str:
    with pytest.raises(UserError) as error:
        load(*specs, lang=lang)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Open Assistant


def test_first_turns_keep_their_direct_human_answers_in_the_order_of_rank(tmp_path):
    ranked, _ = load(write(tmp_path / "m.jsonl", MESSAGES))
    assert texts(ranked) == [WHY, ((Answer("So.", 0.0),), "How?")]


def test_every_filter_counts_what_it_left_out(tmp_path):
    _, steps = load(write(tmp_path / "m.jsonl", MESSAGES))
    assert [(s.what, s.unit, s.left_out, s.left) for s in steps] == [
        ("read", "messages", 0, 20),
        ("later turns", "first turns", 1, 7),
        ("deleted", "first turns", 1, 6),
        ("unreviewed", "first turns", 1, 5),
        ("deleted, rejected, synthetic or in another language", "answers", 4, 7),
        ("read", "prompts", 0, 5),
        ("in other languages", "prompts", 1, 4),
        ("the same as another", "prompts", 1, 3),
        ("without an answer", "prompts", 1, 2),
        ("without a rank", "answers", 1, 4),
    ]


def test_a_null_column_is_an_absent_one(tmp_path):
    bare = [{name: value for name, value in row.items() if value is not None} for row in MESSAGES]
    expected = load(write(tmp_path / "m.jsonl", MESSAGES))
    assert load(write(tmp_path / "bare.jsonl", bare)) == expected


def test_another_language_is_another_set(tmp_path):
    ranked, _ = load(write(tmp_path / "m.jsonl", MESSAGES), lang="de")
    assert texts(ranked) == [((Answer("Darum.", 0.0),), "Warum?")]


def test_messages_need_only_the_fields_of_the_format(tmp_path):
    fields = ("message_id", "parent_id", "role", "lang", "rank", "text")
    bare = [{name: row[name] for name in fields} for row in MESSAGES[:4]]
    assert texts(load(write(tmp_path / "m.jsonl", bare))[0]) == [WHY]


def test_jsonl_gzip_parquet_and_a_hub_folder_hold_the_same(tmp_path):
    expected = load(write(tmp_path / "m.jsonl", MESSAGES))
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress((tmp_path / "m.jsonl").read_bytes()))
    table = pyarrow.Table.from_pylist(MESSAGES)
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(table.slice(0, 11), folder / "train-00000-of-00002-0123.parquet")
    pyarrow.parquet.write_table(table.slice(11), folder / "train-00001-of-00002-4567.parquet")
    (tmp_path / "hub" / "README.md").write_text("A card.")
    for name in ("m.jsonl.gz", "m.parquet", "hub"):
        assert load(tmp_path / name) == expected


def test_tfds_holds_the_same(tmp_path):
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    row = {"prompt": text, "responses": tfds.features.Dataset({"text": text, "rank": tfds.features.Scalar(np.int32)})}

    class Author(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "__main__"
        name = "ranks"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(row))

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"prompt": "Why?", "responses": [{"text": a.text, "rank": int(a.rank)} for a in WHY[0]]}

    Author(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    ranked, _ = load(f"tfds:ranks/test?data_dir={tmp_path}")
    assert texts(ranked) == [WHY] and ranked[0].held_out


def test_the_split_is_the_rows_own_or_its_files(tmp_path):
    rows = [{"prompt": q, "responses": [{"text": "x", "rank": 0}]} for q in ("One?", "Two?")]
    write(tmp_path / "train.jsonl", [rows[0]])
    write(tmp_path / "validation-00000-of-00001.jsonl", [rows[1]])
    assert [r.held_out for r in load(tmp_path)[0]] == [False, True]
    own = write(tmp_path / "own.jsonl", [rows[0] | {"split": "test"}, rows[1] | {"split": "train"}])
    assert [r.held_out for r in load(own)[0]] == [True, False]


def test_a_prompt_that_is_in_a_test_split_too_is_held_out(tmp_path):
    row = {"prompt": "Why?", "responses": [{"text": "x", "rank": 0}]}
    path = write(tmp_path / "m.jsonl", [row, row | {"prompt": "WHY?", "split": "test"}])
    ranked, _ = load(path)
    assert [r.held_out for r in ranked] == [True]


def test_answers_in_one_file_find_their_prompts_in_another(tmp_path):
    asked = write(tmp_path / "asked.jsonl", MESSAGES[:1])
    answered = write(tmp_path / "answered.jsonl", MESSAGES[1:4])
    assert texts(load(answered, asked)[0]) == [WHY]


# ---------------------------------------------------------------------------------------------------------------------
# Rows with responses


def responses(*answers) -> dict:
    return {"prompt": "Why?", "responses": [dict(zip(("text", "rank", "score"), a, strict=False)) for a in answers]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (responses(("b", 3), ("a", 0)), [("a", 0), ("b", 3)]),
        (responses(("b", None, 0.2), ("a", None, 0.9), ("c", None, 0.2)), [("a", 0), ("b", 1), ("c", 1)]),
        (responses(("b", 1, 0.9), ("a", 0, 0.1)), [("a", 0), ("b", 1)]),
        (responses(("a", 0), ("b", None), ("", 1)), [("a", 0)]),
        (responses(("a", 2), ("a", 0), ("b", 1)), [("a", 0), ("b", 1)]),
        (responses(("a", 0), ("b", 0)), [("a", 0), ("b", 0)]),
    ],
)
def test_ranks_come_before_scores_and_answers_without_either_are_left_out(row, expected, tmp_path):
    ranked, _ = load(write(tmp_path / "m.jsonl", [row]))
    assert ranked[0].answers == tuple(Answer(text, rank) for text, rank in expected)


@pytest.mark.parametrize(
    "rows",
    [
        # HelpSteer's rows of one prompt need not stand together, and one answer may have two rows.
        [
            {"prompt": "Why?", "response": "b", "helpfulness": 1, "verbosity": 2},
            {"prompt": "How?", "response": "x", "helpfulness": 4, "verbosity": 2},
            {"prompt": "why?", "response": "a", "helpfulness": 3, "verbosity": 2},
            {"prompt": "Why?", "response": "c", "helpfulness": 1, "verbosity": 2},
            {"prompt": "Why?", "response": "c", "helpfulness": 0, "verbosity": 2},
        ],
        [
            {"instruction": "Why?", "completions": [
                {"response": text, "overall_score": score} for text, score in (("b", 5), ("a", 9.5), ("c", 5))
            ]},
            {"instruction": "How?", "completions": [{"response": "x", "fine-grained_score": 2.5}]},
        ],
    ],
)  # fmt: skip
def test_raw_rows_of_helpsteer_and_ultrafeedback_are_ranked_by_their_scores(rows, tmp_path):
    ranked, _ = load(write(tmp_path / "m.jsonl", rows))
    assert [r.answers for r in ranked] == [(Answer("a", 0), Answer("b", 1), Answer("c", 1)), (Answer("x", 0),)]


def test_preferences_are_answers_of_two_ranks(tmp_path):
    asked = "\n\nHuman: How?\n\nAssistant:"
    rows = [{"prompt": "Why?", "chosen": "a", "rejected": "b"}, {"chosen": f"{asked} a", "rejected": f"{asked} b"}]
    ranked, _ = load(write(tmp_path / "m.jsonl", rows))
    assert [r.answers for r in ranked] == [(Answer("a", 0), Answer("b", 1))] * 2


def test_equal_ranks_make_no_best_answer_and_nothing_to_compare(tmp_path):
    ranked, _ = load(write(tmp_path / "m.jsonl", [responses(("a", 0), ("b", 0)), {**responses(("a", 0), ("b", 1))}]))
    assert ranked[0].best is None and not ranked[0].comparable


def test_prompts_are_the_same_however_they_are_cased_and_spaced():
    def key(text: str) -> str:
        return prompt_key([{"role": "user", "content": text}])

    assert key("Why  is\nit?") == key(" why is it? ") != key("Why is it")


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{**MESSAGES[0], "role": "user"}], "FILE:1: role 'user' is unknown; prompter and assistant are known"),
        ([{"message_id": "a", "role": "prompter"}], "FILE:1: the field 'text' is missing"),
        (
            [MESSAGES[0], {**MESSAGES[1], "rank": "first"}],
            "FILE:2: rank must be a finite number from 0 on, not 'first'",
        ),
        ([MESSAGES[0], {**MESSAGES[1], "rank": -1}], "FILE:2: rank must be a finite number from 0 on, not -1"),
        ([{"message_tree_id": "a", "prompt": {}}], "FILE:1: a whole tree; give Open Assistant's messages"),
        ([{"ask": "Why?"}], "FILE:1: needs prompt and responses, or message_id, .*; found ask"),
        ([{"question": "Why?"}], "FILE:1: a prompt without answers; .*; found question"),
        ([{"prompt": "Why?", "responses": "x"}], "FILE:1: responses must be a list of objects"),
        ([{"prompt": "Why?", "responses": [{"rank": 0}]}], "FILE:1: the field 'text' is missing"),
        ([{"prompt": "Why?", "responses": []}], "FILE: none of 1 prompts has an answer"),
        ([responses(("a", None), ("b", None))], "FILE: none of 2 answers has a rank or a score"),
        (MESSAGES[1:4], "FILE: none of 3 messages begins a conversation"),
        ([MESSAGES[0], MESSAGES[11]], "no assistant's parent_id is the message_id of any of the 1 first turns; give"),
        ([], "FILE: the file is empty; it should hold ranked answers"),
    ],
)
def test_what_can_not_be_used_is_one_line(rows, reason, tmp_path):
    path = write(tmp_path / "m.jsonl", rows)
    assert re.search(reason.replace("FILE", re.escape(path)), refusal(path))


def test_an_unknown_language_is_answered_with_those_there_are(tmp_path):
    path = write(tmp_path / "m.jsonl", MESSAGES)
    assert refusal(path, lang="eng") == f"--lang=eng: {path} has no prompt in it; there are en (4), de (1)."


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.parquet", b"{}", "not a Parquet file that can be read"),
        ("m.jsonl.gz", b"{}", "not a whole gzip file"),
        ("m.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], "not a whole gzip file"),
    ],
)
def test_a_broken_file_is_named(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: ") and reason in message


def test_a_missing_parquet_file_and_an_empty_folder_are_named(tmp_path):
    assert "m.parquet: no such file" in refusal(tmp_path / "m.parquet")
    assert "no .jsonl, .ndjson, .json, .parquet, .csv, .tsv file in this folder" in refusal(tmp_path)


def test_a_language_that_is_no_text_is_named_with_its_line(tmp_path):
    row = {"prompt": "a", "responses": [{"text": "b", "rank": 0}, {"text": "c", "rank": 1}], "lang": ["es"]}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"r\.jsonl:1: lang must be text"):
        load_ranked([str(tmp_path / "r.jsonl")], "en")
