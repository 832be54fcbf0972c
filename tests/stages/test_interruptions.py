"""However often and whenever a run is stopped, it ends as if it had never been."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.core.interrupt import ASKED
from selfreward_jax.core.metrics import MetricsLog
from tests import tiny
from tests.drills.kills import assert_same_run, files

pytestmark = pytest.mark.slow

# Few steps lie between checkpoints, so training goes on in its midst, and repeats what it had done since.
CHANGES = {"checkpoint.every_steps": 3, "sft.epochs": 4}


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

    def wait_for(self, *titles: str) -> None:
        """Returns when work has begun on one of these, or at the end."""

        def begun() -> bool:
            return any(not line or (line.startswith(titles) and "done already" not in line) for line in self.lines)

        with self._changed:
            assert self._changed.wait_for(begun, timeout=120), f"{titles} have not begun: {self.lines}"

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error) -> None:
        """A test that fails leaves no process behind."""
        if self._process.poll() is None:
            self._process.kill()
            self.end()

    def send(self, number: signal.Signals) -> int:
        """Sends a signal and returns the exit status."""
        self._process.send_signal(number)
        return self.end()

    def end(self) -> int:
        status = self._process.wait(timeout=120)
        self._reader.join(timeout=10)
        return status


def test_a_run_asked_to_stop_saves_its_step_and_goes_on_from_it(data, cache, uninterrupted, tmp_path):
    run = tmp_path / "run"
    # No checkpoint is due, so the one that is there afterwards was made for the signal.
    words = tiny.arguments("run", run, data, CHANGES | {"checkpoint.every_steps": 1000})
    log = run / "m1" / "metrics.jsonl"
    with Process(words, cache) as process:
        process.wait_for("M1 SFT")
        until = time.monotonic() + 120
        while not log.exists() or not log.read_text():
            assert time.monotonic() < until, process.lines
            time.sleep(0.01)
        assert_stops(process, signal.SIGTERM)
    steps = len(tiny.read_jsonl(log))
    assert 0 < steps < 16
    assert [p.name for p in (run / "m1" / "checkpoints").iterdir()] == [str(steps)]

    with Process(words, cache) as process:
        process.wait_for("M1 judgements")
        assert_stops(process, signal.SIGINT)
    assert f"M1 SFT: {steps}/16 steps, going on\n" in process.lines
    assert not (run / "m2" / "model.json").exists()

    ended = tiny.run_command(*words, cache=cache)
    assert ended.returncode == 0, ended.stderr
    # The same but for the field that was changed, the hash of the file that holds it, and the page that shows it.
    found, wanted = files(run), files(uninterrupted)
    changed = {"config.json", "manifest.jsonl", "report.html"}
    assert {name for name in wanted if found[name] != wanted[name]} == changed
    for name in changed:
        shutil.copy(uninterrupted / name, run / name)
    assert_same_run(run, uninterrupted)


def assert_stops(process: Process, number: signal.Signals) -> None:
    """The process ends after the signal with status 130; it says that it was heard, and that it can go on."""
    assert process.send(number) == 130, process.lines
    assert process.lines.count(ASKED) == 1
    assert re.fullmatch(r"selfreward: stopped, \d+\.\d s after the signal; the same .* goes on.*\n", process.lines[-2])
    assert not any("Traceback" in line for line in process.lines)


def test_metrics_after_the_last_checkpoint_are_dropped_when_training_goes_on(tmp_path):
    log = MetricsLog(epath.Path(tmp_path), start_step=0, tensorboard=False)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # the process was killed here
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines()[:5]

    log = MetricsLog(epath.Path(tmp_path), start_step=3, tensorboard=False)
    assert log.rows == [json.loads(line) for line in whole[:3]]
    for step in (4, 5):
        log.write({"step": step, "loss": 1 / step})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == whole


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


def test_a_full_disk_is_one_line_and_with_space_again_the_run_goes_on(disk, data, finished, capfd):
    folder, leave = disk
    words = tiny.arguments("run", folder / "run", data)
    where = []
    for kibibytes in (4, 16, 24, 200):
        leave(kibibytes)
        where.append(assert_full(words, capfd))
    leave(8000)
    assert cli.main(tiny.arguments("sft", folder / "run", data)) == 0
    capfd.readouterr()
    for kibibytes in (4, 24, 40, 200):
        leave(kibibytes)
        where.append(assert_full(words, capfd))
    assert any("m1/checkpoints: the disk is full: a checkpoint needs" in line for line in where)
    assert len({line.split(": ")[1] for line in where}) > 3, f"the disk was full at few places: {where}"
    leave(8000)
    assert cli.main(words) == 0
    assert_same_run(folder / "run", finished)


def assert_full(words: list[str], capfd) -> str:
    """The command says in one line that the disk is full, and where."""
    assert cli.main(words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines[:-1] if not line.startswith(("M", "compil"))] == [], (
        "more than progress and one line"
    )
    assert lines[-1].startswith("selfreward: /")
    assert "the disk is full" in lines[-1]
    return lines[-1]


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
