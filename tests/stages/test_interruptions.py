"""However often and whenever a run is stopped, it ends as if it had never been."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from selfreward_jax import cli
from selfreward_jax.llama.load import load_model
from tests import tiny

pytestmark = pytest.mark.slow

# Every step is a checkpoint, so that training goes on in its midst; TensorBoard writes beside it.
CHANGES = {"checkpoint.every_steps": 1, "log.tensorboard": True, "sft.epochs": 4}

# Where a run is killed: once the stage has begun, at a random moment of so many seconds.
KILLS = [
    ("", 4.0),  # while it starts
    ("M1 SFT", 2.0),
    ("M1 SFT", 4.0),
    ("M1 answers", 1.5),
    ("M1 judgements", 1.0),
    ("M1 reference", 1.0),
    ("M2 DPO", 2.0),
    ("M2 answers", 1.5),
    ("M2 judgements", 1.0),
    ("M3 DPO", 2.0),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.shared_data(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Compiled programs, so that a process that goes on is quick."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def uninterrupted(data, cache, tmp_path_factory) -> Path:
    """A run by one process of the same kind. Only to be read."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = tiny.run_command(*tiny.arguments("run", run, data, CHANGES), cache=cache)
    assert ended.returncode == 0, ended.stderr
    return run


def exempt(name: str) -> bool:
    """Files that may differ: Orbax names its files at random, and TensorBoard's carry the time."""
    folders = Path(name).parts[:-1]
    return "checkpoints" in folders or "tb" in folders


def files(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in tiny.snapshot(run).items() if not exempt(name)}


def assert_same_run(run: Path, expected: Path) -> None:
    """Every file byte for byte, and every weight bit for bit."""
    found, wanted = files(run), files(expected)
    assert found.keys() == wanted.keys()  # so no part, journal or temporary file is left either
    assert [name for name in found if found[name] != wanted[name]] == []
    assert not list(run.rglob("*.partial"))
    assert not list(run.rglob("*orbax-checkpoint-tmp*"))
    for t in (1, 2, 3):
        one, other = (load_model(str(folder / f"m{t}")) for folder in (run, expected))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one.params, other.params)
        assert one.hash == other.hash


class Process:
    """A run in a process of its own, whose progress can be followed."""

    def __init__(self, words: list[str], cache: Path):
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            tiny.command(*words), cwd=tiny.ROOT, env=tiny.environment(cache), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self.lines.append("")  # the end
            self._changed.notify_all()

    def wait_for(self, title: str) -> None:
        """Returns when a line that begins with the title has been said, or at the end."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(line.startswith(title) or not line for line in self.lines), timeout=120
            ), f"{title!r} was never said: {self.lines}"

    def send(self, number: signal.Signals) -> int:
        """Sends a signal and returns the exit status."""
        self._process.send_signal(number)
        return self.end()

    def end(self) -> int:
        status = self._process.wait(timeout=120)
        self._reader.join(timeout=10)
        return status


def test_a_run_killed_ten_times_ends_like_one_that_never_was(data, cache, uninterrupted, tmp_path):
    run = tmp_path / "run"
    words = tiny.arguments("run", run, data, CHANGES)
    rng = random.Random(0)
    for title, seconds in KILLS:
        process = Process(words, cache)
        if title:
            process.wait_for(title)
        time.sleep(rng.uniform(0, seconds))
        assert process.send(signal.SIGKILL) == -signal.SIGKILL, f"it ended before the kill: {process.lines}"
        print(f"killed in: {''.join(process.lines[-2:]).strip() or 'the start'}")
    ended = tiny.run_command(*words, cache=cache)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_run_asked_to_stop_saves_its_step_and_goes_on_from_it(number, data, cache, uninterrupted, tmp_path):
    run = tmp_path / "run"
    # No checkpoint is due, so the one that is there afterwards was made for the signal.
    words = tiny.arguments("run", run, data, CHANGES | {"checkpoint.every_steps": 1000})
    process = Process(words, cache)
    process.wait_for("M1 SFT: 0/16")
    while not (run / "m1" / "metrics.jsonl").exists() or not (run / "m1" / "metrics.jsonl").read_text():
        time.sleep(0.01)
    assert process.send(number) == 130
    assert process.lines[-2] == "selfreward: stopped; the same command goes on from here.\n"
    assert not any("Traceback" in line for line in process.lines)
    steps = len(tiny.read_jsonl(run / "m1" / "metrics.jsonl"))
    assert 0 < steps < 16
    assert [p.name for p in (run / "m1" / "checkpoints").iterdir()] == [str(steps)]

    if number == signal.SIGINT:
        return  # the rest is the same
    again = Process(words, cache)
    again.wait_for("M1 judgements")
    assert again.send(number) == 130
    assert f"M1 SFT: {steps}/16 steps, going on\n" in again.lines
    ended = tiny.run_command(*words, cache=cache)
    assert ended.returncode == 0, ended.stderr
    # The same but for the one field that was changed.
    for name in ("config.json", "manifest.jsonl"):
        text = (run / name).read_text().replace('"every_steps": 1000', '"every_steps": 1')
        (run / name).write_text(text)
    first, expected = (tiny.read_jsonl(folder / "manifest.jsonl") for folder in (run, uninterrupted))
    assert first[0].pop("sha256") != expected[0]["sha256"]
    tiny.write_jsonl(run / "manifest.jsonl", [first[0] | {"sha256": expected[0]["sha256"]}, *first[1:]])
    assert [row["artefact"] for row in first] == [row["artefact"] for row in expected]
    shutil.copy(uninterrupted / "manifest.jsonl", run / "manifest.jsonl")
    assert_same_run(run, uninterrupted)


# ---------------------------------------------------------------------------------------------------------------------
# A full disk


@pytest.fixture
def disk(tmp_path):
    """A function that gives a small disk so many kibibytes more than are used, and the disk's folder."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")

    def leave(kibibytes: int) -> None:
        usage = shutil.disk_usage(folder)
        size = usage.used // 1024 + kibibytes
        subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)

    yield folder, leave
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_one_line_and_with_space_again_the_run_goes_on(disk, data, cache, uninterrupted):
    folder, leave = disk
    run = folder / "run"
    words = tiny.arguments("run", run, data, CHANGES)
    where = []
    for kibibytes in (4, 16, 200):
        leave(kibibytes)
        where.append(assert_full(words, cache))
    leave(8000)
    assert tiny.run_command(*tiny.arguments("sft", run, data, CHANGES), cache=cache).returncode == 0
    for kibibytes in (4, 24):
        leave(kibibytes)
        where.append(assert_full(words, cache))
    assert len(set(where)) >= 4, "the disk was full at the same place each time"
    leave(8000)
    ended = tiny.run_command(*words, cache=cache)
    assert ended.returncode == 0, ended.stderr
    assert_same_run(run, uninterrupted)


def assert_full(words: list[str], cache: Path) -> str:
    """The command says in one line that the disk is full, and where."""
    ended = tiny.run_command(*words, cache=cache)
    assert ended.returncode == 2, ended.stderr
    lines = ended.stderr.splitlines()
    assert [line for line in lines[:-1] if not line.startswith("M")] == [], "more than progress and one line"
    assert lines[-1].startswith("selfreward: /")
    assert "the disk is full" in lines[-1]
    return lines[-1].split(": ")[1]


def test_an_export_on_a_full_disk_is_one_line_and_leaves_nothing(disk, data, capsys):
    folder, leave = disk
    leave(40)
    words = ["export", f"--model={data / 'model'}", f"--output={folder / 'out'}"]
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("selfreward: ")
    assert "No space left" in lines[0] or "the disk is full" in lines[0]
    assert not list(folder.iterdir())
    leave(4000)
    assert cli.main(words) == 0
    assert json.loads((folder / "out" / "config.json").read_text())["model_type"] == "llama"
