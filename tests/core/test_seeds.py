"""Seed data of every form become the same demonstrations, and a wrong row is named with its place and reason."""

import collections
import importlib
import json
import re
import sys
from importlib import resources

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import read_jsonl
from selfreward_jax.core.seeds import Demonstration, load_eft, load_ift

USER = {"role": "user", "content": "Why?"}
EARLIER = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "So?"}]
EARLIER += [{"role": "assistant", "content": "So."}, USER]
ANSWER = {"role": "assistant", "content": "Because."}


def judge_prompt(messages, response):
    return ({"role": "user", "content": f"{messages[-1]['content']} | {response}"},)


def parse_score(text: str) -> float | None:
    match = re.search(r"^Score: ([0-5])$", text, re.MULTILINE)
    return float(match[1]) if match else None


def eft(spec) -> list[Demonstration]:
    return load_eft(str(spec), judge_prompt, parse_score)


def ift(spec) -> list[Demonstration]:
    return load_ift(str(spec))


def write(tmp_path, *rows):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# The forms of rows


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Why?", "response": "Because."}, [USER]),
        ({"prompt": EARLIER, "response": "Because.", "category": "x"}, EARLIER),
        ({"messages": [*EARLIER, ANSWER]}, EARLIER),
        ({"prompt": "not this", "messages": [USER, ANSWER]}, [USER]),
        ({"instruction": "Why?", "output": "Because."}, [USER]),
        ({"instruction": "Why?", "input": "", "output": "Because."}, [USER]),
        ({"instruction": "Why?", "input": None, "output": "Because."}, [USER]),
        ({"instruction": "Why", "input": "so?", "output": "Because."}, [{**USER, "content": "Why\n\nso?"}]),
    ],
)
def test_every_form_of_an_ift_row_gives_its_conversation_and_answer(row, messages, tmp_path):
    assert ift(write(tmp_path, row)) == [Demonstration(tuple(messages), "Because.")]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Why?", "response": "So.", "judgement": "Score: 2"}, judge_prompt([USER], "So.")),
        ({"prompt": EARLIER, "response": "So.", "judgement": "Score: 2", "score": 2}, judge_prompt(EARLIER, "So.")),
        ({"messages": [USER, {**ANSWER, "content": "Score: 2"}]}, (USER,)),
    ],
)
def test_every_form_of_an_eft_row_gives_the_judges_prompt_and_judgement(row, messages, tmp_path):
    assert eft(write(tmp_path, row)) == [Demonstration(messages, "Score: 2")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?"}, "the field 'response' is missing"),
        ({"prompt": "Why?", "response": " \n"}, "response must be text that is not empty"),
        ({"prompt": "Why?", "response": None}, "the field 'response' is missing"),
        ({"prompt": "Why?", "response": 3}, "response must be text"),
        ({"prompt": "", "response": "x"}, "user message that is not empty"),
        ({"prompt": [ANSWER], "response": "x"}, "end with a user message"),
        ({"prompt": [{"role": "wizard", "content": "x"}], "response": "x"}, "has the role 'wizard'"),
        ({"prompt": {"role": ["user"], "content": ["a", "b"]}, "response": "x"}, "zip"),
        ({"messages": []}, "ends with an assistant's message"),
        ({"messages": "Why?"}, "ends with an assistant's message"),
        ({"messages": [USER]}, "ends with an assistant's message"),
        ({"messages": [ANSWER]}, "a user's message before"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages: message 2 must have the fields role and content"),
        ({"messages": [USER, {**ANSWER, "content": ""}]}, "content must be text that is not empty"),
        ({"instruction": "Why?", "output": ""}, "output must be text"),
        ({"instruction": "Why?", "input": 3, "output": "x"}, "input must be text"),
        ({"question": "Why?", "answer": "x"}, "the field 'response' is missing"),
        ({"ask": "Why?", "answer": "x"}, "needs prompt and response, .*; found ask, answer"),
        ({}, "found nothing"),
    ],
)
def test_a_wrong_ift_row_is_named_with_file_and_line(row, reason, tmp_path):
    path = write(tmp_path, {"prompt": "Why?", "response": "Because."}, row)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:2: .*{reason}") as error:
        ift(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "response": "x"}, "the field 'judgement' is missing"),
        ({"prompt": "Why?", "response": "", "judgement": "Score: 1"}, "response must be text"),
        ({"prompt": "Why?", "response": "Score: 3", "judgement": "Good."}, "the judgement has no score"),
        ({"prompt": "Why?", "response": "x", "judgement": "Score: 9"}, "the judgement has no score"),
        ({"messages": [USER, ANSWER]}, "the judgement has no score"),
        ({"instruction": "Why?", "output": "x"}, "found instruction, output"),
    ],
)
def test_a_wrong_eft_row_is_named_with_file_and_line(row, reason, tmp_path):
    path = write(tmp_path, {"prompt": "Why?", "response": "x", "judgement": "Score: 0"}, row)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:2: .*{reason}"):
        eft(path)


def test_no_eft_data_are_asked_for_by_an_empty_name():
    assert eft("") == []


def test_ift_data_are_needed():
    with pytest.raises(UserError, match="no data is named; give builtin"):
        ift("")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nope.jsonl: no such file; it should hold demonstrations"):
        ift(tmp_path / "nope.jsonl")


# ---------------------------------------------------------------------------------------------------------------------
# The seed data that come with the package


def packaged(name: str) -> list[dict]:
    with resources.as_file(resources.files("selfreward_jax") / "seeds" / name) as path:
        return read_jsonl(path)


def test_the_packaged_ift_rows_are_many_and_varied():
    rows = packaged("ift.jsonl")
    assert len(rows) >= 48
    assert len({row["category"] for row in rows}) >= 10
    assert ift("builtin") == [Demonstration(({**USER, "content": r["prompt"]},), r["response"]) for r in rows]


def test_the_packaged_eft_rows_spread_over_all_scores():
    rows = packaged("eft.jsonl")
    counts = collections.Counter(row["score"] for row in rows)
    assert len(rows) >= 48
    assert counts.keys() == set(range(6))
    assert min(counts.values()) >= len(rows) / 12, "each score has at least half of its even share"
    assert [d.response for d in eft("builtin")] == [row["judgement"] for row in rows]


def test_the_packaged_judgements_say_the_score_of_their_row():
    assert all(parse_score(row["judgement"]) == row["score"] for row in packaged("eft.jsonl"))


def test_the_packaged_sets_are_disjoint():
    files = ("ift.jsonl", "eft.jsonl")
    asked, judged = ({" ".join(row["prompt"].lower().split()) for row in packaged(name)} for name in files)
    assert not asked & judged


def test_no_packaged_row_occurs_twice():
    for name, key in (("ift.jsonl", ("prompt",)), ("eft.jsonl", ("prompt", "response"))):
        rows = packaged(name)
        assert len({tuple(row[k] for k in key) for row in rows}) == len(rows)


# ---------------------------------------------------------------------------------------------------------------------
# TensorFlow Datasets, for real and without TensorFlow

TFDS_ROWS = {
    "flat": [{"prompt": f"Warum {n}? \u00e9\U0001f600", "response": "Darum.", "score": n} for n in range(3)],
    "columns": [{"messages": [*EARLIER, ANSWER]}, {"messages": [USER, ANSWER]}],  # kept as lists of roles and contents
    "nested": [{"messages": [*EARLIER, ANSWER]}, {"messages": [USER, ANSWER]}],  # kept as a data set of messages
    "judged": [{"prompt": [USER], "response": "So.", "judgement": "Score: 1"}],
    "wrong": [{"prompt": "Why?", "response": "Because."}, {"prompt": "Why?", "response": ""}],
}


def _features(tfds, name: str):
    text, message = tfds.features.Text(), {"role": tfds.features.Text(), "content": tfds.features.Text()}
    return {
        "flat": {"prompt": text, "response": text, "score": tfds.features.ClassLabel(num_classes=6)},
        "columns": {"messages": tfds.features.Sequence(message)},
        "nested": {"messages": tfds.features.Dataset(message)},
        "judged": {"prompt": tfds.features.Sequence(message), "response": text, "judgement": text},
        "wrong": {"prompt": text, "response": text},
    }[name]


def prepare(tfds, data_set: str, folder) -> None:
    """Writes a data set as its author would; the class is not registered, so that only its files can be found."""

    class Author(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "__main__"  # of no package, whose resources TFDS would look for
        name = data_set
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(_features(tfds, data_set))
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(TFDS_ROWS[data_set])

    Author(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def tfds():
    import tensorflow_datasets

    return tensorflow_datasets


@pytest.fixture(scope="module")
def tfds_folder(tfds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for name in TFDS_ROWS:
        prepare(tfds, name, folder)
    return folder


def test_a_tfds_split_is_read_without_tensorflow(tfds_folder):
    assert ift(f"tfds:flat/train?data_dir={tfds_folder}") == [
        Demonstration(({"role": "user", "content": row["prompt"]},), row["response"]) for row in TFDS_ROWS["flat"]
    ]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["columns", "nested"])
def test_tfds_messages_are_read_however_they_are_nested(name, tfds_folder):
    expected = [Demonstration(tuple(EARLIER), "Because."), Demonstration((USER,), "Because.")]
    assert ift(f"tfds:{name}/train?data_dir={tfds_folder}") == expected


def test_tfds_judgements_are_read(tfds_folder):
    assert eft(f"tfds:judged/test?data_dir={tfds_folder}") == [Demonstration(judge_prompt([USER], "So."), "Score: 1")]


@pytest.mark.parametrize("name", ["flat", "flat:1.0.0/train", "flat/train[:100%]"])
def test_a_tfds_name_may_leave_out_the_split_or_give_a_version_or_slice(name, tfds_folder):
    assert len(ift(f"tfds:{name}?data_dir={tfds_folder}")) == 3


def test_a_slice_of_a_tfds_split_is_its_part(tfds_folder):
    assert ift(f"tfds:flat/train[1:2]?data_dir={tfds_folder}") == ift(f"tfds:flat?data_dir={tfds_folder}")[1:2]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("wrong/train", "row 2: response must be text that is not empty"),
        ("columns/train", "row 1: the judgement has no score"),
        ("nothing_like_it/train", "no data set nothing_like_it.*check the name, or give the folder"),
        ("flat/dev", "Unknown split 'dev'.*train.*test"),
        ("flat/train[:0]", "there is no row"),
        ("flat/train[9:]", "can't read it .*3 examples"),
        ("flat:9.9.9/train", "no data set flat:9.9.9"),
        ("not a name/train", "can't open it"),
        ("mnist/train", "is not in .* yet; prepare it: .*'mnist'.*file_format='array_record'"),
        ("/train", "not understood; write tfds:NAME/SPLIT"),
        ("flat/", "not understood; write tfds:NAME/SPLIT"),
    ],
)
def test_what_is_wrong_about_a_tfds_name_or_row_is_one_line(spec, reason, tfds_folder):
    spec = f"tfds:{spec}?data_dir={tfds_folder}"
    with pytest.raises(UserError, match=f"^{re.escape(spec)}: .*({reason})") as error:
        eft(spec) if "columns" in spec else ift(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["split=train", "data_dir=", "data_dir"])
def test_an_unknown_tfds_option_is_refused(option):
    with pytest.raises(UserError, match=f"{option} is not understood; only data_dir=PATH"):
        ift(f"tfds:flat/train?{option}")


def test_a_home_folder_is_understood(tfds_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tfds_folder.parent))
    assert len(ift(f"tfds:flat?data_dir=~/{tfds_folder.name}")) == 3


def test_a_tfds_data_set_in_tensorflows_format_is_refused_with_the_mend(tfds, tmp_path):
    prepare(tfds, "flat", tmp_path)
    info = tmp_path / "flat" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="stored as tfrecord, which only TensorFlow reads; .*'array_record'"):
        ift(f"tfds:flat/train?data_dir={tmp_path}")


def test_without_tfds_its_name_and_how_to_get_it_are_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="tensorflow_datasets is missing; pip install tensorflow-datasets"):
        ift("tfds:flat/train")


def test_without_array_record_its_name_and_how_to_get_it_are_said(tfds, tfds_folder, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'array_record'", name="array_record")

    # The module itself: TFDS holds a lazy stand-in, which would keep what it once was given.
    array_record = importlib.import_module("array_record.python.array_record_data_source")
    monkeypatch.setattr(array_record, "ArrayRecordDataSource", missing)
    with pytest.raises(UserError, match="array_record is missing; pip install array_record"):
        ift(f"tfds:flat/train?data_dir={tfds_folder}")
