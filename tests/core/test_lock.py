"""One process at a time works in a folder, however the one before ended."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from selfreward_jax.core import lock
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.lock import NAME, held

HOLD = """
import sys, time
from etils import epath
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.lock import held
with held(epath.Path(sys.argv[1]), Interrupt()):
    print("held", flush=True)
    {then}
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path) -> epath.Path:
    return epath.Path(tmp_path / "run")


@pytest.fixture
def quick(monkeypatch):
    """Seconds as tenths."""
    for name, seconds in {"BEAT": 0.05, "GIVEN_UP": 0.6, "SETTLE": 0.1}.items():
        monkeypatch.setattr(lock, name, seconds)


class Holder:
    """A process that holds a folder."""

    def __init__(self, folder: Path, then: str = ""):
        words = [sys.executable, "-c", textwrap.dedent(HOLD).replace("{then}", then), str(folder)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "held\n"

    def __enter__(self) -> subprocess.Popen:
        return self.process

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()


def take(folder: epath.Path, interrupt: Interrupt | None = None) -> None:
    with held(folder, interrupt or Interrupt()):
        pass


def record(folder: epath.Path, **fields) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    other = {"host": "far", "machine": "another", "pid": 7, "born": "1", "since": "2026-01-01", "id": "x", "beats": 0}
    (folder / NAME).write_text(json.dumps(other | fields))


def test_nothing_is_left_of_a_folder_that_was_made_for_it(folder):
    take(folder / "deep")
    assert not folder.exists()
    with held(folder, Interrupt()):
        assert lock.is_empty(folder)
        (folder / "a").write_text("")
        assert not lock.is_empty(folder)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_second_process_is_told_who_holds_it_and_a_killed_one_holds_it_no_longer(folder):
    with Holder(folder) as process:
        with pytest.raises(UserError, match=rf"process {process.pid} on \S+, since 20\d\d-.* UTC, works on it"):
            take(folder)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (folder / NAME).exists()
        take(folder)
    assert not (folder / NAME).exists()


def test_two_in_one_process_exclude_each_other_too(folder):
    with held(folder, Interrupt()), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        take(folder)


def test_a_child_that_outlives_a_killed_holder_does_not_keep_it(folder, quick):
    with Holder(folder, "import os; os.fork() or (time.sleep(5), os._exit(0))") as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        take(folder)


def test_a_holder_elsewhere_that_gives_no_sign_of_life_is_waited_for_and_then_dead(folder, quick):
    record(folder)
    begun = time.monotonic()
    take(folder)
    assert time.monotonic() - begun > lock.GIVEN_UP


def test_one_of_long_ago_is_not_waited_for(folder, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE", 0.1)
    record(folder)
    os.utime(folder / NAME, (0, 0))
    take(folder)


def test_a_holder_elsewhere_that_lives_is_named(folder, quick):
    record(folder)
    timer = threading.Timer(0.2, record, [folder], {"beats": 1})
    timer.start()
    with pytest.raises(UserError, match="process 7 on far, since 2026-01-01, works on it"):
        take(folder)
    timer.join()
    assert json.loads((folder / NAME).read_text())["id"] == "x"  # it is still that one's


def test_the_wait_for_one_elsewhere_can_be_ended(folder, quick):
    record(folder)
    interrupt = Interrupt()
    interrupt.request()
    with pytest.raises(Interrupted):
        take(folder, interrupt)


def test_signs_of_life_are_given_and_who_has_lost_it_stops(folder, quick):
    interrupt = Interrupt()
    with held(folder, interrupt):
        time.sleep(0.3)
        assert json.loads((folder / NAME).read_text())["beats"] > 1 and not interrupt.requested
        record(folder)
        time.sleep(0.3)
        assert interrupt.requested
    assert json.loads((folder / NAME).read_text())["id"] == "x"


@pytest.mark.parametrize("left", ["", "{", '{"pid": 3}'])
def test_what_a_kill_left_half_written_holds_nothing(left, folder):
    folder.mkdir()
    (folder / NAME).write_text(left)
    take(folder)


def test_many_who_take_over_at_once_are_never_two(folder):
    """Threads, each with a file of its own, which is what the kernel locks."""
    record(folder, machine=lock._machine(), pid=2**22 + 1)
    inside, most, taken = [0], [0], [0]

    def work() -> None:
        for _ in range(50):
            try:
                with held(folder, Interrupt()):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.001)
                    inside[0] -= 1
                    taken[0] += 1
            except UserError:
                time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and taken[0] >= 4
