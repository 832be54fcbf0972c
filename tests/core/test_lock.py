"""One process at a time works in a folder, however the one before ended."""

import errno
import fcntl
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


def no_locks(monkeypatch) -> None:
    """As on a file system that has none."""

    def flock(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def taken_after(folder: epath.Path) -> float:
    begun = time.monotonic()
    take(folder)
    return time.monotonic() - begun


def test_clocks_decide_nothing(folder, quick):
    """That of the machine which takes may be an hour ahead."""
    record(folder)
    os.utime(folder / NAME, (0, 0))
    assert taken_after(folder) > lock.GIVEN_UP


def test_whoever_the_kernel_says_holds_it_is_never_taken_for_dead(folder, quick):
    record(folder)  # on another machine, which gives no sign of life
    os.utime(folder / NAME, (0, 0))
    with open(folder / NAME) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="process 7 on far, .* works on it.*delete .lock there"):
            take(folder)
    assert json.loads((folder / NAME).read_text())["id"] == "x"


def test_a_holder_in_another_container_lives_though_nothing_here_has_its_number(folder):
    with held(folder, interrupt := Interrupt()):
        own = json.loads((folder / NAME).read_text())
        (folder / NAME).write_text(json.dumps(own | {"pid": 2**22 + 1, "born": "1", "pids": "pid:[1]"}))
        with pytest.raises(UserError, match="works on it"):
            take(folder)
    assert not interrupt.requested


@pytest.mark.parametrize("locks", [True, False])
def test_one_of_a_container_with_its_own_disk_or_of_a_disk_without_locks_is_watched(locks, folder, quick, monkeypatch):
    record(folder, machine=lock._machine(), pid=2**22 + 1, pids="pid:[1]", disk="another")
    if not locks:
        no_locks(monkeypatch)
    assert taken_after(folder) > lock.GIVEN_UP


def test_without_locks_a_number_of_this_machine_tells(folder, quick, monkeypatch):
    no_locks(monkeypatch)
    own = {"machine": lock._machine(), "pids": lock._pids(), "pid": os.getpid()}
    record(folder, **own, born=lock._born(os.getpid()))
    with pytest.raises(UserError, match=f"process {os.getpid()} on far"):
        take(folder)
    record(folder, **own, born="another")
    assert taken_after(folder) < lock.GIVEN_UP


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


def test_a_lock_removed_by_hand_stops_its_holder_which_leaves_that_of_another(folder, quick):
    with held(folder, lost := Interrupt()):
        (folder / NAME).unlink()
        with held(folder, Interrupt()):
            deadline = time.monotonic() + 5
            while not lost.requested and time.monotonic() < deadline:
                time.sleep(0.02)
    assert lost.requested and not (folder / NAME).exists()
    first = held(folder, Interrupt())
    first.__enter__()
    (folder / NAME).unlink()
    with held(folder, Interrupt()):
        first.__exit__(None, None, None)
        assert (folder / NAME).exists()
        with pytest.raises(UserError, match="works on it"):
            take(folder)


def test_a_file_that_its_server_forgot_is_lost(folder, monkeypatch):
    folder.mkdir()
    disk = lock._Disk(folder / NAME)

    def fstat(_):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        assert not disk.in_place()
    disk.close()


NO_RECORDS = ["", "{", '{"pid": 3}', "1234", "[]", "null", '"x"', "[" * 4000, "\udcff"]


@pytest.mark.parametrize("left", NO_RECORDS)
def test_what_a_kill_left_half_written_holds_nothing(left, folder):
    folder.mkdir()
    (folder / NAME).write_bytes(left.encode(errors="surrogateescape"))
    take(folder)


@pytest.mark.parametrize("fields", [{"pid": "x"}, {"pid": None}, {"pid": 10**30}, {"pid": -1}, {"machine": 3}])
def test_a_record_of_wrong_types_neither(fields, folder):
    record(folder, **{"machine": lock._machine(), "disk": str(os.stat(folder.parent).st_dev)} | fields)
    take(folder)


@pytest.mark.parametrize("left", NO_RECORDS[1:4])
def test_without_locks_it_is_watched(left, folder, quick, monkeypatch):
    no_locks(monkeypatch)
    folder.mkdir()
    (folder / NAME).write_text(left)
    assert taken_after(folder) > lock.GIVEN_UP


def test_another_users_is_locked_too(folder, monkeypatch):
    opened = os.open

    def denied(path, flags, *args, **kwargs):
        if os.fspath(path).endswith(NAME) and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *args, **kwargs)

    with held(folder, Interrupt()):
        monkeypatch.setattr(os, "open", denied)
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* works on it"):
            take(folder)
    record(folder, machine=lock._machine(), disk=str(os.stat(folder.parent).st_dev))  # which that one's death left
    with held(folder, lost := Interrupt()), pytest.raises(UserError, match="works on it"):
        take(folder)
    assert not lost.requested
    take(folder / "none")  # a folder that isn't to be written needs none


def test_a_full_disk_without_locks_is_told(folder, quick, monkeypatch):
    def write(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock._Disk, "write", write)
    record(folder, machine=lock._machine(), disk=str(os.stat(folder.parent).st_dev))
    with held(folder, lost := Interrupt()):  # with the kernel's lock, whatever the file tells
        time.sleep(0.3)
        assert not lost.requested
    no_locks(monkeypatch)
    with pytest.raises(UserError, match=r"\.lock: the disk is full"):
        take(folder)


class Objects(lock._Objects):
    """An object store, on a disk."""

    late: dict[str, float] = {}  # by thread: seconds that its first write is under way

    def write(self, record, new=False) -> None:
        time.sleep(self.late.pop(threading.current_thread().name, 0))
        super().write(record, new)


@pytest.fixture
def objects(monkeypatch, quick) -> type[Objects]:
    monkeypatch.setattr(lock, "_lock", Objects)
    monkeypatch.setattr(lock, "is_local", lambda _: False)
    monkeypatch.setattr(lock, "BEAT", 15.0)
    return Objects


def test_a_bucket_is_taken_by_one_however_late_a_write_arrives(folder, objects):
    folder.mkdir()
    objects.late = {"late": 0.5}
    works, told = [], []

    def work() -> None:
        try:
            with held(folder, Interrupt()):
                works.append(threading.current_thread().name)
                time.sleep(1.0)
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=work, name=name) for name in ("late", "soon")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert works == ["soon"] and "works on it" in told[0]


@pytest.mark.parametrize("then", ["another's", "gone"])
def test_a_bucket_is_looked_at_again_soon_after_it_was_taken(then, folder, objects):
    folder.mkdir()
    with held(folder, lost := Interrupt()):
        if then == "gone":
            (folder / NAME).unlink()
        else:
            record(folder)
        time.sleep(0.5)
        assert lost.requested
    assert (folder / NAME).exists() == (then != "gone")


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Access Denied"), OSError("Forbidden: b/o")])
def test_a_bucket_that_cant_be_written_needs_none(error, folder, objects, monkeypatch):
    def write(*_, **__) -> None:
        raise error

    folder.mkdir()
    monkeypatch.setattr(objects, "write", write)
    take(folder)
    record(folder)
    with pytest.raises(UserError, match=r"\.lock: can't write"):
        take(folder)


def test_what_a_kill_left_of_a_first_write_is_nothing(folder):
    folder.mkdir()
    for name in (NAME, ".config.json.tmp", ".manifest.jsonl.tmp"):
        (folder / name).write_text("{")
    assert lock.is_empty(folder)
    (folder / "a.tmp").write_text("")
    assert not lock.is_empty(folder)


def test_many_who_take_over_at_once_are_never_two(folder):
    """Threads, each with a file of its own, which is what the kernel locks."""
    record(folder, machine=lock._machine(), disk=str(os.stat(folder.parent).st_dev), pid=2**22 + 1)
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
