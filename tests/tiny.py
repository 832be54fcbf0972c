"""A Llama of a hundred thousand weights, data for it, and a configuration with which a whole run takes seconds.

Nothing is mocked. The model begins random; SFT at a high rate teaches it to answer with a word or two and to judge
with one line `Score: n`, so that judgements can be read and answers differ in score.

What it learns and samples depends on how the processor rounds, as much as on the seed. So tests hold for every seed,
and SELFREWARD_TEST_SEED gives another one to try.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from selfreward_jax import cli
from selfreward_jax.core.config import load_config
from selfreward_jax.llama import hf_save
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import init_params
from tests.core.small_tokenizers import chatml

ROOT = Path(__file__).parents[1]
BASE = str(ROOT / "configs" / "base.py")
# Real data, too large for the repository, where whoever runs the tests has them: ranked.jsonl (Open Assistant),
# prompts_heldout.jsonl with heldout_baselines.jsonl.gz, ifeval.jsonl. Tests of them are skipped elsewhere.
REAL_DATA = Path(os.environ.get("SELFREWARD_TEST_DATA", "no-real-data"))

ANSWERS = ("yes", "no", "bread", "the north", "a note", "one thing", "such a price", "weather")
QUESTIONS = ("What is it?", "Is it so?", "Where is it?", "Say a word.", "Name one.", "And now?")
SCORES = (1, 5, 3, 5, 0, 4, 5, 2)
JUDGE = "Mark the answer to the request.\n{{prompt}}\n{{response}}\nSay `Score: n`."

SEED = int(os.environ.get("SELFREWARD_TEST_SEED", 0))

SETTINGS: dict[str, Any] = {
    "seed": SEED,
    "model.dtype": "float32",
    "mesh.fsdp": 1,
    "sft.learning_rate": 1e-2,
    "sft.final_learning_rate": 1e-3,
    "sft.batch_size": 16,
    "sft.epochs": 8,
    "sft.dropout": 0.0,
    "prompts.count": 4,
    "respond.n": 3,  # as many as judgements, and as long, so that one program serves both
    "respond.max_new_tokens": 16,
    "respond.temperature": 1.6,  # answers to a prompt all differ, in text and score, so every prompt makes a pair
    "respond.top_p": 1.0,
    "judge.max_new_tokens": 16,
    "judge.temperature": 1.0,
    "judge.top_p": 1.0,
    "dpo.learning_rate": 1e-4,
    "dpo.final_learning_rate": 1e-5,
    "dpo.batch_size": 1,
    "dpo.dropout": 0.0,
    "training.length_bucket": 128,
    "training.head_chunk": 64,
    "generation.slots": 12,
    "generation.length_bucket": 128,
    "generation.score_rows": 4,
    "checkpoint.every_steps": 4,
}


def make_model(folder: Path, *, seed: int = SEED, tokenizer: Any = None, **fields: Any) -> Path:
    """A random model as a Hugging Face folder, by default with a byte-level ChatML tokenizer of some 300 entries."""
    tokenizer = tokenizer or chatml()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 3,  # larger than the tokenizer, as in many real models
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_ids": (tokenizer.eos_token_id,),
    }
    config = LlamaConfig(**shape | fields)
    hf_save.save_pretrained(folder, config, init_params(config, jax.random.key(seed), scale=0.1), tokenizer)
    return folder


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_manifest(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Some lines of a manifest alone, as version 0.1 wrote them."""
    write_jsonl(folder / "manifest.jsonl", ({k: v for k, v in row.items() if k != "chain"} for row in rows))


def forget(folder: Path, *artefacts: str) -> None:
    """Takes artefacts off record, so that they count as they are."""
    rows = read_jsonl(folder / "manifest.jsonl")
    assert set(artefacts) <= {row["artefact"] for row in rows}
    write_manifest(folder, (row for row in rows if row["artefact"] not in artefacts))


def make_data(folder: Path) -> Path:
    """`model/`, `ift.jsonl`, `eft.jsonl`, `prompts.jsonl` and `judge.txt` in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model")
    pairs = [(QUESTIONS[i % 6], ANSWERS[(i + i // 6) % 8]) for i in range(32)]
    write_jsonl(folder / "ift.jsonl", ({"prompt": q, "response": a} for q, a in pairs))
    judged = ({"prompt": q, "response": a, "judgement": f"Score: {SCORES[i % 8]}"} for i, (q, a) in enumerate(pairs))
    write_jsonl(folder / "eft.jsonl", judged)
    write_jsonl(folder / "prompts.jsonl", ({"prompt": f"{q} {n}"} for n in (1, 2) for q in QUESTIONS))
    (folder / "judge.txt").write_text(JUDGE + "\n")
    return folder


def settings(data: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Dotted fields of the tiny run on the data of `make_data`, with some of them changed."""
    files = {
        "model.path": str(data / "model"),
        "seeds.ift": str(data / "ift.jsonl"),
        "seeds.eft": str(data / "eft.jsonl"),
        "prompts.source": str(data / "prompts.jsonl"),
        "judge.template": str(data / "judge.txt"),
    }
    return SETTINGS | files | (changes or {})


def overrides(data: Path, changes: dict[str, Any] | None = None) -> list[str]:
    """The same as arguments of the command line."""
    return [f"--config.{name}={value}" for name, value in settings(data, changes).items()]


def make_config(data: Path, changes: dict[str, Any] | None = None) -> ConfigDict:
    return load_config(BASE, overrides(data, changes))


def arguments(verb: str, workdir: Path, data: Path, changes: dict[str, Any] | None = None) -> list[str]:
    """Of the command line, for a verb of a run."""
    return [verb, f"--config={BASE}", f"--workdir={workdir}", *overrides(data, changes)]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "selfreward_jax", *words]


def environment(cache: Path | None = None) -> dict[str, str]:
    """Of a process of its own: one CPU device, and compiled programs kept in `cache` from one process to the next."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    if cache:
        env |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return env


def run_command(*words: str, cache: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=ROOT, env=environment(cache), capture_output=True, text=True, timeout=300, **options
    )


@functools.cache
def shared_data(base: Path) -> Path:
    """`make_data`, once for all test modules; `base` is pytest's folder of this session. Only to be read."""
    return make_data(base / "tiny-data")


@functools.cache
def shared_run(base: Path) -> Path:
    """A finished run M0 to M3 on `shared_data`, once for all test modules. Only to be read, or copied."""
    workdir = base / "tiny-run"
    assert cli.main(arguments("run", workdir, shared_data(base))) == 0
    return workdir


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file by its path in the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
