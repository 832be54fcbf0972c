"""Two processes train as one; none goes on alone; what was lost with one of them is made again bit for bit."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.interrupt import ASKED
from selfreward_jax.llama.load import abstract_params, load_model
from tests import tiny
from tests.engine.small_llama import GQA, small_model
from tests.training.test_gradients import OBJECTIVES
from tests.training.test_meshes import assert_close, on_one_device

pytestmark = pytest.mark.slow

POD = ["bash", str(tiny.ROOT / "launch" / "local_pod.sh")]
# Each process writes down its number, so that a test can end it.
NUMBERED = ["bash", "-c", 'echo $$ > "$0.$JAX_PROCESS_ID"; exec "$@"']


def pod(words: list[str], cache: Path | None = None, processes=2, devices=1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*POD, str(processes), "--devices", str(devices), *words],
        cwd=tiny.ROOT, env=tiny.environment(cache), capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_two_processes_compute_the_gradients_of_one_and_read_the_checkpoints_of_eight_devices(tmp_path):
    params = small_model(fsdp=4, tensor=2, seed=7).params
    with Checkpoints(epath.Path(tmp_path / "from_eight")) as checkpoints:
        checkpoints.save(1, {"params": params})
    ended = pod([sys.executable, "-m", "tests.training.on_hosts", str(tmp_path)])
    assert ended.returncode == 0, ended.stderr[-3000:]

    expected = {kind: on_one_device(kind) for kind in OBJECTIVES}
    leaves = [x for _, x in sorted(np.load(tmp_path / "found.npz").items(), key=lambda kv: int(kv[0].split("_")[1]))]
    found, restored = jax.tree.unflatten(jax.tree.structure((expected, params)), leaves)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(params))
    for kind in OBJECTIVES:
        assert_close(found[kind], expected[kind])

    for mesh in ({}, {"fsdp": 4}):
        target = abstract_params(GQA, small_model(**mesh).mesh, jnp.dtype("float32"))
        with Checkpoints(epath.Path(tmp_path / "from_two")) as checkpoints:
            back = checkpoints.restore(1, {"params": target})["params"]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), back, params)


CHANGES = {"mesh.fsdp": -1, "sft.epochs": 6, "checkpoint.every_steps": 5, "sft.dropout": 0.1, "log.tensorboard": False}
STEPS = 24


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Compiled programs, so that processes that go on are quick."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def uninterrupted(data, cache, tmp_path_factory) -> Path:
    """M1 by two processes. Only to be read."""
    run = tmp_path_factory.mktemp("pod") / "run"
    ended = pod(tiny.command(*tiny.arguments("sft", run, data, CHANGES)), cache)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return run


class Started:
    """A pod at work, of which a test can end one process."""

    def __init__(self, run: Path, words: list[str], cache: Path, scratch: Path):
        self.log, self._numbers = run / "m1" / "metrics.jsonl", scratch / "number"
        self._process = subprocess.Popen(
            [*POD, "2", *NUMBERED, str(self._numbers), *words], cwd=tiny.ROOT, env=tiny.environment(cache), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *error) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=60)

    def wait_for_step(self, step: int) -> None:
        until = time.monotonic() + 120
        while not self.log.exists() or len(self.log.read_text().splitlines()) < step:
            assert self._process.poll() is None and time.monotonic() < until
            time.sleep(0.01)

    def signal(self, process: int, number: signal.Signals) -> None:
        os.kill(int(Path(f"{self._numbers}.{process}").read_text()), number)

    def end(self, timeout: float) -> tuple[int, str]:
        _, err = self._process.communicate(timeout=timeout)
        return self._process.returncode, err


def test_one_process_asked_to_stop_stops_both_at_one_step_and_one_killed_ends_the_other(
    data, cache, uninterrupted, tmp_path
):
    run = tmp_path / "run"
    words = tiny.command(*tiny.arguments("sft", run, data, CHANGES))
    with Started(run, words, cache, tmp_path) as pod_:
        pod_.wait_for_step(2)
        pod_.signal(1, signal.SIGTERM)
        status, err = pod_.end(60)
    assert status == 130, err
    assert "[0] selfreward: stopped; the same command goes on from here." in err
    assert re.search(
        r"\[1\] selfreward: stopped, \d+\.\d s after the signal; the same command goes on from here\.", err
    )
    assert [f"[{n}] {ASKED}" in err for n in (0, 1)] == [False, True]
    steps = len(tiny.read_jsonl(run / "m1" / "metrics.jsonl"))
    assert [path.name for path in (run / "m1" / "checkpoints").iterdir()] == [str(steps)]

    alone = tmp_path / "alone" / "run"
    shutil.copytree(run, alone)
    ended = pod(tiny.command(*tiny.arguments("sft", alone, data, CHANGES)), cache, processes=1, devices=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert_same_model(alone, uninterrupted)

    with Started(run, words, cache, tmp_path) as pod_:
        pod_.wait_for_step(max(7, steps + 2))
        pod_.signal(1, signal.SIGKILL)
        killed = time.monotonic()
        status, err = pod_.end(60)
    print(f"the other process ended {time.monotonic() - killed:.1f} s after")
    assert status == 128 + signal.SIGKILL
    assert "local_pod: process 1 ended first, with status 137" in err
    said = [line for line in err.splitlines() if line.startswith("[0] ") and "M1 SFT: " not in line]
    assert len(said) == 1, err
    assert said[0].startswith("[0] selfreward: process 1 is lost")
    assert said[0].endswith("start all processes again to go on from the last checkpoint.")
    assert len(tiny.read_jsonl(run / "m1" / "metrics.jsonl")) < STEPS

    ended = pod(words, cache)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert_same_model(run, uninterrupted)


def assert_same_model(run: Path, expected: Path) -> None:
    for name in ("metrics.jsonl", "model.json", "training.json", "config.json"):
        assert (run / "m1" / name).read_bytes() == (expected / "m1" / name).read_bytes()
    one, other = (load_model(str(folder / "m1")).params for folder in (run, expected))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def test_two_processes_learn_what_one_learns(data, uninterrupted, tmp_path):
    """Not bit for bit: sums over devices have another order."""
    one = tmp_path / "run"
    assert cli.main(tiny.arguments("sft", one, data, CHANGES | {"mesh.fsdp": 1})) == 0
    losses = [[row["loss"] for row in tiny.read_jsonl(run / "m1" / "metrics.jsonl")] for run in (one, uninterrupted)]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
