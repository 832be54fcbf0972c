"""What goes to Weights & Biases, read back from the files of its offline mode."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from etils import epath
from wandb.proto import wandb_internal_pb2

from selfreward_jax import cli
from selfreward_jax.core.metrics import MetricsLog, Tracker
from tests import tiny


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def records(path: Path):
    """Of a `.wandb` file: LevelDB's log format, blocks of 32 KiB that hold whole or broken records."""
    data, place, parts = path.read_bytes(), 7, b""  # behind the file's own header
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # what is too short for a header is padding
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def whole(path: Path) -> list:
    """All records, once the package's own process has written the last one, which says how the session ended."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = list(records(path))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path}: has no end")


def read(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The ids of a run's sessions, and the rows of all, in their order."""
    ids, rows = [], []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in whole(path):
            if record.HasField("run"):
                ids.append(record.run.run_id)
            if record.HasField("history"):
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return ids, rows


def test_a_resumed_run_goes_on_with_the_same_id_and_repeats_no_step(tmp_path):
    root = epath.Path(tmp_path)
    (root / "m1").mkdir()
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # stopped after step 3, with a checkpoint of step 2
        tracker = Tracker(root, {"dpo": {"beta": 0.1}})
        log = MetricsLog(root / "m1", start_step=start, tensorboard=False, tracker=tracker)
        for step in steps:
            log.write({"step": step, "loss": 1 / step, "kl": None}, {"step": step, "seconds": 0.5})
        log.close()
        tracker.write("iterations", 2, {"judge/score_hist": [1, 0, 2]})
        tracker.close()
        time.sleep(1)  # the package names a session's folder by the second
    ids, rows = read(tmp_path)
    assert len(set(ids)) == 1
    assert [(r["m1/step"], r["m1/loss"]) for r in rows if "m1/loss" in r] == [(n, 1 / n) for n in (1, 2, 3, 4)]
    assert [r["m1/step"] for r in rows if "m1/throughput/seconds" in r] == [1, 2, 3, 4]
    assert not any("kl" in name for r in rows for name in r)
    drawn = next(r for r in rows if "iterations/step" in r)
    assert drawn["iterations/step"] == 2
    assert drawn["iterations/judge/score_hist/values"] == [1, 0, 2]


def test_another_run_has_another_id(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Tracker(epath.Path(tmp_path / name), {}).close()
    assert len({*read(tmp_path / "a")[0], *read(tmp_path / "b")[0]}) == 2


@pytest.mark.slow
def test_a_run_sends_what_its_metrics_hold(data, tmp_path):
    words = tiny.arguments("sft", tmp_path / "run", data, {"tracker": "wandb", "sft.epochs": 1})
    assert cli.main(words) == 0
    wandb.finish()  # as the end of the process does
    rows = [r for r in read(tmp_path / "run")[1] if "m1/loss" in r]
    expected = tiny.read_jsonl(tmp_path / "run" / "m1" / "metrics.jsonl")
    assert [{f"m1/{k}": v for k, v in row.items() if v is not None} for row in expected] == rows
    assert cli.main(words) == 0  # all is done already
    wandb.finish()
    assert len(set(read(tmp_path / "run")[0])) == 1


def test_without_the_package_a_run_ends_before_it_begins(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(tiny.arguments("run", tmp_path / "run", data, {"tracker": "wandb"})) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ['selfreward: config.tracker: wandb is not installed; pip install "selfreward_jax[wandb]".']
    assert not (tmp_path / "run" / "m0").exists()


def test_nobody_logged_in_is_one_line(data, tmp_path):
    """In a process of its own, since the package reads its environment once."""
    words = tiny.command(*tiny.arguments("run", tmp_path / "run", data, {"tracker": "wandb"}))
    env = tiny.environment() | {"WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_API_KEY": ""}
    done = subprocess.run(words, cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("selfreward: config.tracker: no wandb (") and said.endswith("or WANDB_MODE=offline.")
    assert "Traceback" not in done.stderr
