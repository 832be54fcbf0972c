"""The same rows come out of every form in which people keep them; what is wrong is one line with its place."""

import gzip
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.hub_rows import Name, parse_name
from selfreward_jax.core.interrupt import Interrupt, Interrupted, on_signals
from selfreward_jax.core.json_rows import ArrayReader
from selfreward_jax.core.readers import fingerprint, is_data, iter_rows, read_rows, read_table, stem
from selfreward_jax.core.rows import present
from selfreward_jax.core.texts import read_text

ROWS = [
    {"prompt": "Why, \u2028 é?", "response": 'Because\nof "x", \U0001f600', "score": 4, "ratio": 0.5, "good": True},
    {"prompt": "12", "response": "7", "score": -1, "ratio": 1e-3, "good": False},
    {"prompt": "And?", "response": "So.", "score": 0},
]
BOM = "\ufeff"


def rows_of(spec) -> list[dict]:
    return read_rows(spec, lambda row: row, "rows")


def refusal(spec, parse=lambda row: row) -> str:
    with pytest.raises(UserError) as error:
        read_rows(spec, parse, "rows")
    assert "\n" not in str(error.value)
    return str(error.value)


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), out)
    return out.getvalue()


def table(rows, delimiter: str, end: str = "\n") -> bytes:
    """As pandas writes it: what holds a delimiter, a quote or an end of line stands in quotes, nothing is empty."""
    quoted = lambda x: '"' + str(x).replace('"', '""') + '"' if isinstance(x, str) else str(x)  # noqa: E731
    names = list(ROWS[0])
    lines = [names, *([quoted(row[n]) if n in row else "" for n in names] for row in rows)]
    return "".join(delimiter.join(line) + end for line in lines).encode()


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


SCHEMA = pyarrow.schema(
    [("prompt", "string"), ("response", "string"), ("score", "int64"), ("ratio", "float64"), ("good", "bool")]
)
FORMS = {
    "r.jsonl": jsonl(ROWS),
    "r.ndjson": jsonl(ROWS),
    "rows": jsonl(ROWS),
    "nulls.jsonl": jsonl([*ROWS[:2], ROWS[2] | {"ratio": None, "good": None}]),
    "crlf.jsonl": jsonl(ROWS).replace(b"\n", b"\r\n"),
    "lines.json": jsonl(ROWS),
    "r.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "r.parquet": parquet(ROWS),
    "r.csv": table(ROWS, ","),
    "crlf.csv": table(ROWS, ",", "\r\n"),
    "r.tsv": table(ROWS, "\t"),
}
FORMS |= {f"{name}.gz": gzip.compress(data) for name, data in FORMS.items() if not name.endswith(("parquet", "rows"))}
FORMS |= {f"{name}.zst": zstd(FORMS[name]) for name in ("r.jsonl", "r.json", "r.csv")}
FORMS |= {
    "two.jsonl.gz": gzip.compress(jsonl(ROWS[:1])) + gzip.compress(jsonl(ROWS[1:])),
    "two.jsonl.zst": zstd(jsonl(ROWS[:1])) + zstd(jsonl(ROWS[1:])),
}
TEXTS = ("r.jsonl", "r.json", "pretty.json", "lines.json", "r.csv", "r.tsv")


@pytest.mark.parametrize("name", FORMS)
def test_every_form_holds_the_same(name, tmp_path):
    (tmp_path / name).write_bytes(FORMS[name])
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_byte_order_mark_is_no_content(name, packed, tmp_path):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed]
    (tmp_path / (name + packed)).write_bytes(pack(BOM.encode() + FORMS[name]))
    assert rows_of(tmp_path / (name + packed)) == ROWS


def test_a_folder_holds_its_files_in_the_order_of_their_names_whatever_their_form(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.csv.gz").write_bytes(gzip.compress(BOM.encode() + table(ROWS[2:], ",")))
    (tmp_path / "data" / "a.jsonl").write_bytes(BOM.encode() + jsonl(ROWS[:2]))
    (tmp_path / "README.md").write_text("A card.")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".cache.jsonl").write_text("no row")
    assert rows_of(tmp_path) == ROWS


def test_files_joined_by_cat_hold_the_rows_of_both_without_the_marks_between(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(BOM.encode() + jsonl(ROWS[:1]) + BOM.encode() + jsonl(ROWS[1:]))
    assert rows_of(tmp_path / "r.jsonl") == ROWS


def test_nulls_are_absent_at_any_depth_and_keep_their_place_in_a_list(tmp_path):
    user = {"role": "user", "content": "x", "name": None, "tool_calls": None}
    (tmp_path / "r.jsonl").write_bytes(jsonl([{"messages": [user], "input": None, "list": [1, None]}]))
    messages = [{"role": "user", "content": "x"}]
    assert rows_of(tmp_path / "r.jsonl") == [{"messages": messages, "list": [1, None]}]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": [user | {"name": "a"}], "x": float("nan")}, {"messages": [user]}]),
        tmp_path / "r.parquet",
    )
    assert rows_of(tmp_path / "r.parquet")[1] == {"messages": messages}
    assert "x" not in rows_of(tmp_path / "r.parquet")[0]


def test_columns_of_a_table_are_numbers_only_where_every_cell_is_one(tmp_path):
    (tmp_path / "r.csv").write_text("prompt,rank,label,zip,flag\n1,1,1,007,true\n2,2.5,a,008,\n3,,b,009,False\n")
    assert rows_of(tmp_path / "r.csv") == [
        {"prompt": "1", "rank": 1, "label": "1", "zip": "007", "flag": True},
        {"prompt": "2", "rank": 2.5, "label": "a", "zip": "008"},
        {"prompt": "3", "label": "b", "zip": "009", "flag": False},
    ]


def test_the_index_that_pandas_writes_is_no_column(tmp_path):
    (tmp_path / "r.csv").write_text(",prompt\n0,a\n1,b\n")
    assert rows_of(tmp_path / "r.csv") == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_row_in_quotes_is_named_by_the_line_on_which_it_begins(tmp_path):
    (tmp_path / "r.csv").write_text('prompt,n\n"a\nb\nc",1\n\n"d\ne",2\n')
    assert refusal(tmp_path / "r.csv", lambda row: {}[row["n"]] if row["n"] == 2 else row).startswith(
        f"{tmp_path / 'r.csv'}:6: "
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(allow_nan=False, width=32)
    .filter(lambda x: abs(x) != float("inf")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


json_rows_of_any_kind = st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=5)


@given(rows=json_rows_of_any_kind, indent=st.sampled_from([None, 1]), step=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_an_array_is_read_the_same_however_it_is_cut_into_pieces(rows, indent, step):
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    reader = ArrayReader(epath.Path("r.json"), io.BufferedReader(io.BytesIO(b"")))
    reader._pieces = iter([text[i : i + step] for i in range(0, len(text), step)])
    found = []
    for value, source in reader:
        found.append(value)
        assert present(json.loads(source)) == value
        if indent:
            assert text.split("\n")[reader.line - 1].startswith(" {")
    assert found == [present(row) for row in rows]


def test_who_takes_few_rows_has_read_few(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(jsonl(ROWS[:2]) + b"no row")
    found = iter_rows(tmp_path / "r.jsonl", lambda row: row["prompt"], "rows")
    assert [next(found), next(found)] == [row["prompt"] for row in ROWS[:2]]
    assert ":3: not valid JSON" in refusal(tmp_path / "r.jsonl")


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong

UTF16 = jsonl(ROWS).decode().encode("utf-16")
WRONG = [
    ("a.jsonl", json.dumps(ROWS).encode(), "a.jsonl:1: expected JSON, but it looks like a JSON array; name it .json."),
    ("a.jsonl", json.dumps(ROWS, indent=1).encode(), "it looks like a JSON array"),
    ("a.jsonl", FORMS["r.csv"], "it looks like CSV; name it .csv"),
    ("a.jsonl", FORMS["r.tsv"], "it looks like TSV; name it .tsv"),
    ("a.jsonl", FORMS["r.parquet"], "it looks like Parquet; name it .parquet"),
    ("a.jsonl", gzip.compress(b"{}"), "it looks like gzip; name it .gz"),
    ("a.jsonl", zstd(b"{}"), "it looks like zstd; name it .zst"),
    ("a.jsonl", b"PK\x03\x04....", "a zip archive; unpack it"),
    ("a.jsonl", b"<!DOCTYPE html>\n<html>", "a web page; fetch the file itself"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git-lfs; .* git lfs pull"),
    ("a.jsonl", UTF16, "UTF-16; save it as UTF-8"),
    ("a.jsonl", UTF16[2:], "UTF-16; save it as UTF-8"),
    ("a.jsonl", pickle.dumps(ROWS), "a Python pickle; it could run code, so it is not opened"),
    ("a.jsonl", b"", "the file is empty; it should hold rows"),
    ("a.jsonl", b"\n \n", "the file is empty"),
    ("a.jsonl", BOM.encode(), "the file is empty"),
    ("a.jsonl", b'{"a": 1}\n{"b": "\xe9"}', "a.jsonl:2: not UTF-8 at byte 16 of the file, byte 7 of the line"),
    ("a.jsonl", b'{"a": 1}\n{"a": NaN}', "a.jsonl:2: NaN is no JSON; write null"),
    ("a.jsonl", b'{"a": -Infinity}', "a.jsonl:1: -Infinity is no JSON"),
    ("a.jsonl", b'{"a": 1e999}', "larger than any float"),
    ("a.jsonl", b'{"a": [{"b": 1, "b": 2}]}', "a.jsonl:1: the field 'b' comes twice"),
    ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "does not fit into 64 bits; write it as text"),
    ("a.jsonl", b'{"a": 18446744073709551616}', "does not fit into 64 bits"),
    ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "a.jsonl:1: nested too deeply"),
    ("a.jsonl", b"{1: 2}", r"a.jsonl:1: not valid JSON \(.* at column 2\)"),
    ("a.jsonl", b'{"a": 1} {"b": 2}', r"a.jsonl:1: not valid JSON \(Extra data at column 10\)"),
    ("a.jsonl", b'{"a": "\\udc00"}', "a.jsonl:1: half of a surrogate pair"),
    ("a.json", b'[{"a": 1},\n {"a": ]', r"a.json:2: not valid JSON \(Expecting value at column 8\)"),
    ("a.json", b'[{"a": 1}\n {"a": 2}]', r"a.json:2: not valid JSON \(expected ',' at column 2\)"),
    ("a.json", b'[{"a": 1}', r"a.json:1: not valid JSON \(expected ',' at column 10\)"),
    ("a.json", b'[{"a": 1}]\n[]', r"a.json:2: not valid JSON \(something follows the array at column 1\)"),
    ("a.json", b'[{"a": 1},\n{"a": Infinity}]', "a.json:2: item 2: Infinity is no JSON"),
    ("a.json", b'[{"a": 1},\n\n{"a": 1, "a": 2}]', "a.json:3: item 2: the field 'a' comes twice"),
    ("a.json", b"[" * 100_000, "a.json:1: item 1: nested too deeply"),
    ("a.json", b'[{"a": 1},\n{"b": "\xe9"}]', "a.json:2: not UTF-8 at byte 18"),
    ("a.json", b"[1]", "a.json:1: item 1: expected a JSON object, found int"),
    ("a.json", b"[]", "the file is empty"),
    ("a.json", b'{\n"data": []}', "a.json:1: not valid JSON .* A .json file holds an array of objects"),
    ("a.json", FORMS["r.csv"], "a.json:1: expected a JSON array, but it looks like CSV"),
    ("a.csv", jsonl(ROWS), "a.csv:1: expected CSV, but it looks like JSON; name it .jsonl if"),
    ("a.csv", FORMS["r.tsv"], "it looks like TSV"),
    ("a.csv", b"prompt;response\na;b\n", "separated by semicolons"),
    ("a.csv", b"a,b\n1,2\n3\n", "a.csv:3: 1 cells where the header has 2 columns"),
    ("a.csv", b'a,b\n1,"2\n', "a.csv:2: not valid CSV"),
    ("a.csv", b"a,a\n1,2\n", "a.csv:1: the column a comes twice"),
    ("a.csv", b"a,b\n", "the file is empty"),
    ("a.csv", b"a,b\n1,\xe9\n", "a.csv:2: not UTF-8 at byte 6"),
    ("a.parquet", jsonl(ROWS), r"not a Parquet file that can be read \(it looks like JSON"),
    ("a.parquet", FORMS["r.parquet"][:-20], "not a Parquet file that can be read"),
    ("a.parquet", b"", "not a Parquet file that can be read"),
    ("a.parquet.gz", gzip.compress(FORMS["r.parquet"]), "Parquet packs itself; unpack the file"),
    ("a.jsonl.gz", jsonl(ROWS), r"not a whole gzip file \(it looks like JSON\)"),
    ("a.jsonl.gz", FORMS["r.jsonl.gz"][:-9], "not a whole gzip file"),
    ("a.jsonl.gz", b"", "the file is empty"),
    ("a.jsonl.zst", jsonl(ROWS), r"not a whole zstd file \(it looks like JSON\)"),
    ("a.jsonl.zst", FORMS["r.jsonl.zst"][:-5], "not a whole zstd file"),
    ("a.jsonl.zst", FORMS["r.jsonl.gz"], r"not a whole zstd file \(it looks like gzip\)"),
    ("a.jsonl.gz", gzip.compress(FORMS["r.csv"]), "a.jsonl.gz:1: expected JSON, but it looks like CSV"),
    ("a.jsonl.gz", gzip.compress(UTF16), "UTF-16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "reason"), WRONG, ids=[f"{n}-{r[:40]}" for n, _, r in WRONG])
def test_a_wrong_file_is_one_line_that_says_what_it_is(name, data, reason, tmp_path):
    (tmp_path / name).write_bytes(data)
    message = refusal(tmp_path / name)
    assert message.startswith(str(tmp_path / name)) and re.search(reason, message), message


def test_a_pickle_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("a.jsonl", "a.json", "a.parquet", "a.csv", "a.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        assert "Python pickle" in refusal(tmp_path / name)
    assert not (tmp_path / "ran").exists()


BOMBS = [("a.jsonl.gz", False), ("a.json.gz", False), ("a.json.zst", False), ("a.csv.gz", False), ("a.csv.zst", True)]


@pytest.mark.parametrize(("name", "lines"), BOMBS)
def test_what_unpacks_to_more_than_the_memory_is_refused_before_it_does(name, lines, tmp_path, monkeypatch):
    for module in ("json_rows", "texts"):
        monkeypatch.setattr(f"selfreward_jax.core.{module}.MOST_BYTES", 1 << 20)
    start = {"json": b'[{"a": "', "csv": b'a,b\n1,"', "jsonl": b'{"a": "'}[name.split(".")[1]]
    data = start + (b"x\n" if lines else b"x") * (32 << 20)
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("gz") else zstd(data))
    del data
    tracemalloc.start()
    assert re.search("MiB, which is no row|field larger than", refusal(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def in_time(spec) -> str:
    begun = time.process_time()
    message = refusal(spec)
    assert time.process_time() - begun < 3
    return message


def test_a_name_that_comes_twice_is_found_among_many(tmp_path):
    names = [f"c{n}" for n in range(9_000)]
    (tmp_path / "a.csv").write_text(",".join([*names, "c8999"]) + "\n")
    assert "the column c8999 comes twice" in in_time(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(",".join(f"c{n}" for n in range(40_000)) + "\n")
    assert "40,000 columns; up to 10,000 are read" in in_time(tmp_path / "b.csv")
    fields = ",".join(f'"c{n}": 1' for n in [*range(20_000), 19_999])
    (tmp_path / "a.jsonl").write_text(f"{{{fields}}}\n")
    assert "the field 'c19999' comes twice" in in_time(tmp_path / "a.jsonl")


def test_a_row_longer_than_any_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "x": [' + "{}," * 6_000_000 + "{}]}\n")
    assert in_time(tmp_path / "a.jsonl").endswith("a.jsonl:1: a line of more than 16 MiB, which is no row.")
    cell = '"' + ("x" * 99 + "\n") * 50_000 + '"'
    (tmp_path / "a.csv").write_text("a,b,c,d\n1,2,3,4\n" + ",".join([cell] * 4) + "\n")
    assert in_time(tmp_path / "a.csv").endswith("a.csv:167775: longer than 16 MiB, which is no row.")


LARGE = {
    "in one row": (["a" * (40 << 20)], {}, "row 1 to 1: prompt unpacks to 40 MiB"),
    "in one of many": ([*["a"] * 999, "a" * (40 << 20)], {}, "row 1 to 1000: prompt unpacks to 40 MiB"),
    "as it is": (["a", "a" * (17 << 20)], {"compression": "none"}, "row 2: longer than 16 MiB, which is no row"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_cell_of_parquet_longer_than_any_is_refused(name, tmp_path):
    cells, options, expected = LARGE[name]
    table = pyarrow.table({"prompt": cells})
    pyarrow.parquet.write_table(
        table, tmp_path / "a.parquet", use_dictionary=False, **{"compression": "zstd"} | options
    )
    assert expected in refusal(tmp_path / "a.parquet")


def test_rows_of_parquet_that_are_many_mebibytes_together_are_read(tmp_path):
    cells = [os.urandom(1 << 14).hex() for _ in range(1100)]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": cells}), tmp_path / "a.parquet")
    assert [row["prompt"] for row in rows_of(tmp_path / "a.parquet")] == cells


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_signal_ends_the_reading_of_many_rows(name, tmp_path):
    line = '{"prompt": "what", "response": "it"}\n' if name == "a.jsonl" else "what,it\n"
    (tmp_path / name).write_text(("" if name == "a.jsonl" else "prompt,response\n") + line * 1_500_000)
    sent = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with on_signals(Interrupt()):
        threading.Timer(0.2, send).start()
        with pytest.raises(Interrupted):
            read_rows(tmp_path / name, lambda row: 1, "rows")
        assert time.monotonic() - sent[0] < 1
        with pytest.raises(Interrupted):
            fingerprint(tmp_path / name)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    for name in ("a.jsonl", "a.csv", "a.parquet", "a"):
        assert refusal(tmp_path / name) == f"{tmp_path / name}: no such file; it should hold rows."
    assert "file in this folder; it should hold rows" in refusal(tmp_path)


def test_rows_that_lie_twice_or_in_part_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "a.csv").write_bytes(FORMS["r.csv"])
    assert "a.csv lies beside it, with the same rows perhaps" in refusal(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "train-00001-of-00003-ab.jsonl").write_bytes(jsonl(ROWS))
    assert "train-00000-of-00003: missing; 1 of 3 parts are there" in refusal(tmp_path / "parts")


# ---------------------------------------------------------------------------------------------------------------------
# Splits, `datasets` and the hub


def split_folder(folder: Path, ending: str = ".jsonl") -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / f"train-00000-of-00001{ending}").write_bytes(jsonl(ROWS[:2]))
    (folder / "data" / f"test-00000-of-00001{ending}").write_bytes(jsonl(ROWS[2:]))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test asks the network, and none sees the caches of whoever runs it."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return datasets


def test_of_several_splits_one_is_read_and_ranked_data_take_all(tmp_path, capsys):
    folder = split_folder(tmp_path / "d")
    assert rows_of(folder) == rows_of(f"hf:{folder}") == rows_of(f"hf:{folder}:train") == ROWS[:2]
    assert "of the splits test, train, train is read" in capsys.readouterr().err
    assert rows_of(f"hf:{folder}:test") == ROWS[2:]
    for spec in (folder, f"hf:{folder}"):
        assert sorted(read_table(spec, lambda row, split: split, "rows")) == ["test", "train", "train"]
    assert "has no split tset; there are test, train. Did you mean test?" in refusal(f"hf:{folder}:tset")
    (folder / "data" / "train-00000-of-00001.jsonl").rename(folder / "data" / "validation.jsonl")
    assert "has the splits test, validation; name one" in refusal(folder)


def test_a_split_is_told_by_folders_within_the_data_set_alone(tmp_path):
    (tmp_path / "test" / "d" / "validation").mkdir(parents=True)
    (tmp_path / "test" / "d" / "validation" / "0000.jsonl").write_bytes(jsonl(ROWS[:1]))
    (tmp_path / "test" / "d" / "ranked.jsonl").write_bytes(jsonl(ROWS[1:2]))
    assert read_table(tmp_path / "test" / "d", lambda row, split: split, "rows") == ["ranked", "validation"]
    assert read_table(tmp_path / "test" / "d" / "ranked.jsonl", lambda row, split: split, "rows") == ["ranked"]


def test_a_span_of_a_split_is_read_without_the_rest(tmp_path):
    folder = split_folder(tmp_path / "d")
    with (folder / "data" / "train-00000-of-00001.jsonl").open("a") as file:
        file.write("no row")
    assert rows_of(f"hf:{folder}:train[:1]") == ROWS[:1] and rows_of(f"hf:{folder}:train[1:2]") == ROWS[1:2]
    assert "train-00000-of-00001.jsonl:3: not valid JSON" in refusal(f"hf:{folder}:train[1:]")


def test_a_configuration_is_named_behind_the_folder(tmp_path):
    card = "---\nconfigs:\n- config_name: one\n  data_files: a.jsonl\n- config_name: two\n  data_files: b.jsonl\n---\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS[:1]))
    (tmp_path / "b.jsonl").write_bytes(jsonl(ROWS[1:]))
    assert rows_of(f"hf:{tmp_path}/two") == rows_of(f"hf:{tmp_path}/two:train") == ROWS[1:]
    assert "has several configurations; name one of one, two" in refusal(f"hf:{tmp_path}")
    assert "BuilderConfig 'three' not found; name one of one, two" in refusal(f"hf:{tmp_path}/three")


def test_a_folder_that_is_missing_is_no_configuration(tmp_path, offline, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    offline.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("./nope", "./saved/nope", "./empty/nope"):
        assert refusal(f"hf:{name}") == f"hf:{name}: no such folder."


def test_a_name_of_the_hub_is_no_folder_that_lies_here(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "train.jsonl").write_bytes(jsonl(ROWS))
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "org/name@v1", "org"):
        assert f"a folder of this name lies here; write hf:./{name.split('@')[0]}" in refusal(f"hf:{name}")
    assert rows_of("hf:./org/name") == ROWS


def test_no_name_is_not_the_folder_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    monkeypatch.chdir(tmp_path)
    assert "no data set is named" in refusal("")
    with pytest.raises(UserError, match="a path is empty"):
        fingerprint("")


@pytest.mark.parametrize("names", [("my_train", "my_test"), ("a-test-v2", "b-train-v2"), ("x.Train.1", "x.Test.1")])
def test_a_split_may_be_named_anywhere_in_a_files_name(names, tmp_path):
    for name in names:
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([{"from": "train" if "rain" in name else "test"}]))
    assert rows_of(tmp_path) == [{"from": "train"}]
    found = read_table(tmp_path, lambda row, split: (row["from"], split), "rows")
    assert sorted(found) == [("test", "test"), ("train", "train")]


def test_a_column_of_parquet_that_comes_twice_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == f"{tmp_path / 'a.parquet'}: the column prompt comes twice."


def test_what_save_to_disk_wrote_is_read_and_its_nulls_are_absent(tmp_path, offline):
    whole = offline.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    offline.DatasetDict(train=whole, test=whole.select([2])).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == rows_of(f"hf:{tmp_path / 'one'}") == rows_of(tmp_path / "two") == ROWS
    assert rows_of(f"hf:{tmp_path / 'two'}:test") == ROWS[2:]
    assert rows_of(f"hf:{tmp_path / 'one'}:train[1:]") == ROWS[1:]
    message = refusal(tmp_path / "two", lambda row: row["ratio"])
    assert message.endswith(":train: row 3: the field 'ratio' is missing.")


def hub_cache(folder: Path) -> None:
    """A data set as `huggingface_hub` itself keeps it: blobs, and links to them in a snapshot."""
    repo, commit = folder / "hub" / "datasets--org--name", "0" * 40
    for name, data in (("train.jsonl", jsonl(ROWS[:2])), ("test.jsonl", jsonl(ROWS[2:]))):
        for place in (repo / "blobs", repo / "snapshots" / commit, repo / "refs"):
            place.mkdir(parents=True, exist_ok=True)
        (repo / "blobs" / f"{len(data):040x}").write_bytes(data)
        (repo / "snapshots" / commit / name).symlink_to(f"../../blobs/{len(data):040x}")
    (repo / "refs" / "main").write_text(commit)


def test_without_a_network_the_hubs_cache_is_read(tmp_path):
    hub_cache(tmp_path)
    assert rows_of("hf:org/name") == rows_of(f"hf:org/name@{'0' * 40}:train") == ROWS[:2]
    assert rows_of("hf:org/name:test") == ROWS[2:]
    snapshot = tmp_path / "hub/datasets--org--name/snapshots" / ("0" * 40)
    (snapshot / "test.jsonl").rename(snapshot / "test-00001-of-00002.jsonl")
    assert "test-00000-of-00002: missing; 1 of 2 parts are there" in refusal("hf:org/name:test")
    message = refusal("hf:org/other")
    assert message.startswith("hf:org/other: the hub can't be reached") and "--repo-type dataset org/other" in message


def test_a_data_set_that_datasets_has_prepared_is_read_without_a_network(tmp_path, offline, monkeypatch):
    """`datasets` itself lays its cache out, as it does after a download."""
    from datasets.packaged_modules.json.json import Json

    source = tmp_path / "r.jsonl"
    source.write_bytes(jsonl(ROWS))
    commit = "1" * 40
    builder = Json(
        cache_dir=str(tmp_path / "cache"), dataset_name="name", hash=commit, data_files={"train": [str(source)]},
        config_name="default", config_id="default",
    )  # fmt: skip
    builder.repo_id = "org/name"
    builder._cache_dir = builder._build_cache_dir()
    builder.download_and_prepare()
    assert rows_of("hf:org/name") == ROWS and rows_of("hf:org/name:train[1:2]") == ROWS[1:2]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("hf:", "not understood; write hf:NAME"),
        ("hf:a/b/c/d", "not understood"),
        ("hf:org/name:train[10%:]", "not understood"),
        ("hf:json", "json is a kind of file to `datasets`, and no data set"),
        ("hf:pandas:train", "pandas is a kind of file"),
        ("hf:./nowhere/at/all", "no such folder"),
    ],
)
def test_a_name_that_means_nothing_is_one_line(spec, reason):
    assert reason in refusal(spec)


def test_a_hub_name_has_its_parts():
    whole = Name("org/name", False, "refs/convert/parquet", "config", "train", (5, None))
    assert parse_name("hf:org/name@refs/convert/parquet/config:train[5:]") == whole
    assert parse_name("hf:squad") == Name("squad", False) and parse_name("hf:org/name/c").config == "c"
    assert parse_name("hf:~/d/x:test") == Name("~/d/x", True, split="test")


def test_what_the_hub_says_is_one_line_with_what_to_do():
    from datasets.exceptions import DatasetNotFoundError

    from selfreward_jax.core.hub_rows import _reason

    gone = DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub or cannot be accessed.")
    assert "the hub has no such data set, or it is private" in _reason(gone, "org/name")
    gated = DatasetNotFoundError("Dataset 'org/name' is a gated dataset on the Hub. Visit the page to ask for access.")
    mend = "accept its terms at https://huggingface.co/datasets/org/name, then run hf auth login"
    assert mend in _reason(gated, "org/name")


def test_a_data_sets_own_program_is_never_run(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "a program of its own, which is never run" in refusal(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()


def test_a_data_set_has_a_fingerprint_that_follows_its_rows_and_a_name_for_files(tmp_path):
    folder = split_folder(tmp_path / "d")
    before = fingerprint(folder)
    assert before == fingerprint(folder)
    (folder / "data" / "test-00000-of-00001.jsonl").write_bytes(jsonl(ROWS[1:]))
    assert fingerprint(folder) != before
    names = {"x/ranked.jsonl.gz": "ranked", "d/a.b.csv": "a.b", "hf:org/name:test": "org-name-test", "rows": "rows"}
    assert {spec: stem(spec) for spec in names} == names
    assert all(map(is_data, ["a.csv.gz", "hf:x/y", "tfds:x", "a.json"])) and not any(map(is_data, ["x.gguf", "m2"]))


# ---------------------------------------------------------------------------------------------------------------------
# Speed and size; templates


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of a process's memory is Linux's to tell")
def test_a_hundred_thousand_rows_take_three_seconds_and_a_gibibyte(tmp_path):
    row = {"prompt": "What is it? " * 20, "chosen": "It is so. " * 60, "rejected": "It isn't. " * 60, "score": 4.5}
    (tmp_path / "r.jsonl").write_bytes(jsonl([row | {"id": n, "tool": None} for n in range(100_000)]))
    code = (
        "import re, sys, time; from selfreward_jax.core.readers import read_rows; start = time.process_time();"
        " rows = read_rows(sys.argv[1], lambda row: row, 'rows'); assert len(rows) == 100_000;"
        " peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read());"
        " print(time.process_time() - start, int(peak[1]) / 2**20)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.jsonl")], capture_output=True, check=True)
    seconds, gib = map(float, out.stdout.split())
    assert seconds <= 3 and gib <= 1, (seconds, gib)


def test_a_template_has_no_mark_and_names_what_it_can_not_read(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes((BOM + "a\r\n{{prompt}}").encode())
    assert read_text(path, "f") == "a\n{{prompt}}"
    for data, reason in ((b"a\n\xe9", ":2: not UTF-8 at byte 2"), ("ab".encode("utf-16"), "UTF-16"), (b" ", "empty")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"^f: .*{reason}"):
            read_text(path, "f")
