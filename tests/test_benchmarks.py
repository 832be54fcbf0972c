"""The benchmarks run, small, and print what they are for; how fast anything is, is no test."""

import json
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
    lines = output("memory", "--counts=3").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["3", "12"]]


def test_growth_is_told_for_every_piece_and_step_of_size():
    lines = output("growth", "--answers=40,80", "--prompts=").splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]
    assert len(table) == 5
    for _, sizes, seconds, memory, exponents in table:
        assert sizes == "40 / 80" and re.fullmatch(r"-?[\d.]+", exponents)
        assert len(seconds.split(" / ")) == len(memory.split(" / ")) == 2


def test_a_training_step_is_told_beside_its_memory():
    out = output("train", "--random=tiny", "--pairs=1", "--length=64", "--head_chunk=64", "--repeats=1")
    assert re.search(r"^ours +[\d.]+ +\d+ +[\d.]+$", out, flags=re.MULTILINE)
    assert re.search(r"\d+% of it for the \d+ GFLOP done", out)


def test_a_hash_is_told_as_a_part_of_the_reading():
    assert re.search(r"GB of float32: read and checked in [\d.]+ s, [\d.]+% of it", output("checksum", "--shape=tiny"))


@pytest.mark.torch("trl")
def test_a_training_step_has_the_loss_of_trls(data):
    words = [f"--model={data / 'model'}", "--length=64", "--peer=trl", "--repeats=2"]
    steps = re.findall(r"loss ([\d.]+), trl .* loss ([\d.]+)$", output("train", *words), flags=re.MULTILINE)
    assert len(steps) == 3
    for ours, theirs in steps:
        assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
    assert len(set(steps)) == 3  # each side learns
    with pytest.raises(AssertionError, match="the losses are more than -1.0 apart"):
        output("train", *words, "--tolerance=-1")


def test_a_plan_that_is_there_is_a_line_of_the_table_of_layouts(tmp_path):
    def program(name: str, total: float, **facts) -> dict:
        return {"program": name, "total": total * 2**30, "fits": True, "seconds": {}, "mfu": None} | facts

    step = {"seconds": {"matrix": 0.056, "hbm": 0.013, "ici": 0.266}, "mfu": 0.17}
    plan = {
        "mesh": {"data": 1, "fsdp": 32, "tensor": 8},
        "config": {"generation": {"tensor": 8, "slots": 4096}},
        "hbm_gib": 16,
        "programs": [program("dpo gradients", 4, **step), program("reshard", 8), program("sft update", 2)],
        "total": {"hours": 0.0422, "chip_hours": 10.8},
    }
    (tmp_path / "llama3_8b-v5e-256.json").write_text(json.dumps(plan))
    words = [f"--output={tmp_path}", "--only=Llama-3.1-8B:v5e-256"]
    assert output("tpu_layouts", *words).splitlines()[2] == (
        "| Llama-3.1-8B | v5e-256 | 1 x 32 x 8 | 8 a replica, 4,096 rows | 4.0 (25%) | 8.0 (50%) | 56 / 13 / 266"
        " | 17% | 0.0422 | 10.8 |"
    )
    plan["programs"][1] |= {"fits": False}
    (tmp_path / "llama3_8b-v5e-256.json").write_text(json.dumps(plan))
    assert "| **reshard does not fit** |" in output("tpu_layouts", *words)
