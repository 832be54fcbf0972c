"""Rows that people bring: every format, every form, every kind of path."""

import csv
import functools
import gzip
import io
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from selfreward_jax.core import forms, ranked, readers, seeds
from selfreward_jax.core.rows import as_messages
from selfreward_jax.evals import alpaca, answer_files, human, ifeval, mt_bench
from selfreward_jax.methods.judging import JudgeTemplate, parse_score
from selfreward_jax.methods.pairwise import PairwiseTemplate
from tests.fuzz.mutate import WORDS, as_json, as_lines, changed, mutated

Thunk = Callable[[], object]

TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "the north"},
]
PREFERENCES: list[Any] = [
    {"prompt": "What is it?", "chosen": "bread", "rejected": "yes", "score_chosen": 4, "score_rejected": 1.5},
    {"prompt": TURNS[:2], "chosen": TURNS[2:], "rejected": [{"role": "assistant", "content": "no"}], "weight": 2},
    {"chosen": TURNS, "rejected": [*TURNS[:2], {"role": "assistant", "content": "south"}]},
    {"prompt": "Is it?", "completion": "yes", "label": True},
    {"messages": TURNS, "label": 0, "system": None},
]
DEMONSTRATIONS: list[Any] = [
    {"prompt": "What?", "response": "bread"},
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "Do.", "input": "", "output": "done", "category": "x", "id": 1},
    {"prompt": TURNS[:2], "completion": TURNS[2:], "tools": []},
]
JUDGED: list[Any] = [
    {"prompt": "What?", "response": "bread", "judgement": "Good.\nScore: 4"},
    {"messages": [*TURNS[:2], {"role": "assistant", "content": "Score: 3"}]},
]
RANKED: list[Any] = [
    {"prompt": "p", "responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}], "split": "train", "lang": "en"},
    {"prompt": "q", "completions": [{"response": "a", "overall_score": 7}, {"response": "b", "overall_score": 2}]},
    {"prompt": "r", "response": "a", "helpfulness": 3, "subset": "s"},
    {"prompt": "r", "response": "b", "helpfulness": 1},
    {"prompt": "t", "response_a": "x", "response_b": "y", "label": "A > B"},
    {"prompt": "u", "chosen": ["x"], "rejected": ["y", "z"], "scale": [0, 1]},
]
MESSAGES: list[Any] = [
    {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Hi?", "lang": "en", "review_result": True},
    {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "Yes", "lang": "en", "rank": 0},
    {
        "message_id": "3",
        "parent_id": "1",
        "role": "assistant",
        "text": "No",
        "lang": "en",
        "rank": 1.0,
        "deleted": False,
    },
]
IFEVAL: list[Any] = [
    {"prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "prompt": "b",
        "instruction_id_list": ["length_constraints:number_words", "keywords:existence"],
        "kwargs": [{"relation": "at least", "num_words": 5}, {"keywords": ["x", "y"]}],
    },
]
QUESTIONS: list[Any] = [
    {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
    {"question_id": 82, "category": "math", "turns": ["c", "d"], "reference": ["1", "2"]},
]
ALPACA: list[Any] = [{"instruction": "Do it.", "dataset": "koala", "output": "x"}, {"prompt": "Say it."}]


def _exhausted(rows: Any) -> int:
    return sum(1 for _ in rows)


def written(rng: random.Random, folder: Path, rows: list[Any]) -> Path:
    """The rows in one of the formats, with something changed in them or in its bytes."""
    what = rng.randrange(10)
    if what < 4:
        path, data = folder / rng.choice(("rows.jsonl", "rows.ndjson", "rows.json", "rows")), as_lines(rng, rows)
    elif what < 6:
        path, data = folder / "rows.json", as_json(rng, rows)
    elif what < 8:
        delimiter, name = rng.choice(((",", "rows.csv"), ("\t", "rows.tsv")))
        text = io.StringIO()
        flat = [changed(rng, row) if rng.random() < 0.5 else row for row in rows]
        flat = [row for row in flat if isinstance(row, dict)]
        table = csv.writer(text, delimiter=delimiter)
        names = list(dict.fromkeys(str(name) for row in flat for name in row))
        table.writerow(names)
        table.writerows([[row.get(name, "") for name in names] for row in flat])
        path, data = folder / name, text.getvalue().encode(errors="surrogateescape" if rng.random() < 0 else "replace")
        data = data if rng.random() < 0.3 else mutated(rng, data)
    else:
        path = folder / "rows.parquet"
        row = rng.choice(rows)
        try:
            table = pyarrow.Table.from_pylist([changed(rng, row)] * rng.choice((1, 3)))
        except (pyarrow.ArrowException, OverflowError, TypeError, UnicodeError, AttributeError, ValueError):
            table = pyarrow.Table.from_pylist([row])
        file = io.BytesIO()
        try:
            pyarrow.parquet.write_table(table, file)
            data = file.getvalue()
        except pyarrow.ArrowException:
            data = b"PAR1"
        data = data if rng.random() < 0.3 else mutated(rng, data)
    if rng.random() < 0.15 and path.suffix != ".parquet":
        packed = gzip.compress(data, 1, mtime=0) if rng.random() < 0.5 else pyarrow.compress(data, "zstd", asbytes=True)
        path = path.with_name(path.name + rng.choice((".gz", ".zst")))
        data = packed if rng.random() < 0.4 else mutated(rng, packed)
    path.write_bytes(data)
    return path


def reads(rows: list[Any], read: Callable[[Path], object]) -> Callable[[random.Random, Path], Thunk]:
    def target(rng: random.Random, folder: Path) -> Thunk:
        path = written(rng, folder, rows)
        return lambda: read(path)

    return target


def strange_path(rng: random.Random, folder: Path) -> Thunk:
    """What is no file of rows at all, or one that must not be read to its end."""
    made = folder / rng.choice(("rows.jsonl", "rows.parquet", "rows.json", "rows.csv.gz", "rows"))
    what = rng.randrange(14)
    path: Any = made
    if what == 0:
        os.mkfifo(made)
    elif what == 1:
        made.symlink_to(made)
    elif what == 2:
        made.mkdir()
    elif what == 3:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(made.name)  # a whole path may be too long
    elif what == 4:
        made.write_bytes(b"")
    elif what == 5:
        path = rng.choice(("/dev/zero", "/dev/urandom", "/dev/full", "/dev/null", "/proc/self/mem", "/dev/stdin"))
    elif what == 6:
        path = folder / "bomb.jsonl.gz"
        path.write_bytes(gzip.compress(b"\0" * (256 << 20), 9, mtime=0) * rng.choice((1, 8)))
    elif what == 7:
        made.symlink_to("nowhere")
    elif what == 8:
        made.mkdir()
        for name in ("train.jsonl", "test-00000-of-00002.jsonl"):
            (made / name).write_bytes(as_lines(rng, PREFERENCES))
    elif what == 9:
        made.mkdir()
        (made / rng.choice(("state.json", "dataset_dict.json"))).write_bytes(as_json(rng, {"splits": ["train"]}))
        (made / "dataset_info.json").write_bytes(as_json(rng, {"features": {"x": {"dtype": "string"}}}))
    elif what == 10:
        made.mkdir(0o700)
        os.mkfifo(made / "rows.jsonl")
    else:
        path = rng.choice(WORDS) + rng.choice(("", "", ".jsonl", "/x.json", ".parquet"))
    read = rng.choice((readers.fingerprint, lambda p: _exhausted(readers.iter_rows(p, dict, "rows"))))
    return functools.partial(read, path)


def saved(rng: random.Random, folder: Path) -> Thunk:
    """A folder that `datasets` wrote, with one of its files changed."""
    import datasets

    made = datasets.Dataset.from_list(PREFERENCES[:1])
    made.save_to_disk(folder / "set", num_proc=None)
    path = rng.choice(sorted(p for p in (folder / "set").iterdir() if p.is_file()))
    path.write_bytes(mutated(rng, path.read_bytes()))
    return lambda: readers.read_rows(folder / "set", dict, "rows")


def template(rng: random.Random, folder: Path) -> Thunk:
    """A judge's or a pairwise template."""
    pairwise = rng.random() < 0.5
    text = "Mark.\n{{prompt}}\n" + ("{{first}}{{second}}" if pairwise else "{{scale: 1-10}}{{response}}\nScore: n")
    path = folder / "template.txt"
    path.write_bytes(mutated(rng, text.encode()))
    kind = PairwiseTemplate if pairwise else JudgeTemplate
    return lambda: kind(str(path))


def api_rows(rng: random.Random, folder: Path) -> Thunk:
    """Rows that a program hands over, which are of any type."""
    parse, rows = rng.choice(
        ((forms.preference, PREFERENCES[:3]), (forms.demonstration, DEMONSTRATIONS), (forms.ranked, RANKED),
         (forms.unpaired, PREFERENCES[3:]), (forms.prompt_of, DEMONSTRATIONS), (human.parse_ranked, RANKED))
    )  # fmt: skip
    row = changed(rng, rng.choice(rows), rng.choice((1, 2, 3)))
    return lambda: readers.parse_row(row, parse, "row 1")


def _eft(path: Path) -> object:
    return seeds.load_eft(str(path), lambda messages, response: as_messages("judge"), parse_score)


TARGETS = {
    "preferences": reads(PREFERENCES, lambda path: readers.read_rows(path, forms.preference, "preferences")),
    "demonstrations": reads(DEMONSTRATIONS, lambda path: seeds.load_ift(str(path))),
    "judged": reads(JUDGED, _eft),
    "ranked": reads(RANKED, lambda path: ranked.load_ranked([str(path)], "en")),
    "messages": reads(MESSAGES, lambda path: ranked.load_ranked([str(path)], "en")),
    "human": reads(RANKED, lambda path: human.load_human(path, split="", max_prompts=2)),
    "answers": reads(DEMONSTRATIONS, lambda path: answer_files.load_answers(str(path))),
    "questions": reads(DEMONSTRATIONS, lambda path: answer_files.load_questions(str(path))),
    "ifeval": reads(IFEVAL, lambda path: readers.read_rows(path, ifeval.parse_task, "tasks")),
    "mt_bench": reads(QUESTIONS, lambda path: readers.read_rows(path, mt_bench.parse_question, "questions")),
    "alpaca": reads(ALPACA, lambda path: alpaca.read_instructions(str(path))),
    "table": reads(RANKED, lambda path: readers.read_table(path, lambda row, split: (row, split), "rows")),
    "fingerprint": reads(PREFERENCES, lambda path: (readers.fingerprint(path), readers.stem(path))),
    "api_rows": api_rows,
    "strange_path": strange_path,
    "template": template,
    "saved": saved,
}
