"""Rows that people bring, in every format and form."""

import functools
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from selfreward_jax.core import forms, ranked, readers, seeds
from selfreward_jax.core.rows import load_rows
from tests.fuzz.mutate import as_json, as_lines, mutated

PREFERENCES = [
    {"prompt": "What is it?", "chosen": "bread", "rejected": "yes"},
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Where?"}],
        "chosen": [{"role": "assistant", "content": "the north"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    },
]


def jsonl(rng: random.Random, folder: Path) -> Callable[[], object]:
    path = folder / rng.choice(("rows.jsonl", "rows.ndjson", "rows.json", "rows.txt"))
    path.write_bytes(as_lines(rng, PREFERENCES))
    return functools.partial(readers.read_rows, path, dict, "rows")


TARGETS = {"jsonl": jsonl}
