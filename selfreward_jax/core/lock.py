"""One process at a time works in a folder; the processes of one job count as one. Who it is stands in a file there.

On a disk the kernel holds the lock, so that it goes with its process however that ends. Where it can't tell (object
stores, a file system that other machines lock differently), the holder gives signs of life, and one that gives none
for `GIVEN_UP` seconds, watched by the clock of whoever waits, is dead.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.progress import say

NAME = ".lock"
BEAT, GIVEN_UP = 15.0, 90.0  # seconds between signs of life, and without one
SETTLE = 1.0  # so long a taker waits where no kernel decides, and looks whether another took it too
LONG_AGO = 3600.0  # older than any difference of clocks
# A folder that can't be written needs no lock, and on a full disk there is nothing to be spoilt.
_NOT_NEEDED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENOENT}


def is_empty(folder: epath.Path) -> bool:
    """Whether there is nothing yet in a folder, but for its lock."""
    return folder.is_dir() and all(path.name == NAME for path in folder.iterdir())


def alone(folder_of: Callable[[Any], epath.PathLike]) -> Callable:
    """A decorator of verbs: while one runs, no other process works in the folder that its options name, if any."""

    def decorate(verb: Callable) -> Callable:
        @functools.wraps(verb)
        def locked(options: Any, overrides: Any, interrupt: Interrupt) -> Any:
            folder = folder_of(options)
            with held(local_path(folder), interrupt) if folder else contextlib.nullcontext():
                return verb(options, overrides, interrupt)

        return locked

    return decorate


@contextlib.contextmanager
def held(folder: epath.Path, interrupt: Interrupt) -> Iterator[None]:
    """Keeps other processes from working in a folder, which is made if it isn't there; of several hosts, one does.

    Args:
      interrupt: ends the wait for a holder that may be dead; asked to stop where the lock is lost all the same.

    Raises:
      UserError: another process works there; it is named.
    """
    if not is_writer():
        yield
        return
    with _made(folder) if is_local(folder) else contextlib.nullcontext():
        lock = _lock(folder / NAME)
        if lock is None:
            yield
            return
        own = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}
        own |= {"since": _now(), "id": uuid.uuid4().hex, "beats": 0}
        try:
            _take(folder, lock, own, interrupt)
            done = threading.Event()
            thread = threading.Thread(target=_live, args=(folder, lock, own, done, interrupt), daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()
                if lock.read().get("id", own["id"]) == own["id"]:
                    lock.remove()
        finally:
            lock.close()


def _take(folder: epath.Path, lock: "_Disk | _Objects", own: dict, interrupt: Interrupt) -> None:
    """Raises `UserError` if somebody else holds it."""
    other = lock.read()
    if lock.blocked and (not other or _is_dead(other, own)):
        time.sleep(SETTLE)  # its holder may be about to write
        other = lock.read()
        if not other:
            raise _refusal(folder, other)
    if other and not lock.exclusive and other["machine"] == own["machine"] and not _is_dead(other, own):
        raise _refusal(folder, other)
    elsewhere = bool(other) and other["machine"] != own["machine"]
    if elsewhere:
        _watch(folder, lock, other, interrupt)
    with contextlib.suppress(OSError):  # of a full disk, where the kernel's lock must do
        lock.write(own)
    if elsewhere or not lock.exclusive:
        time.sleep(SETTLE)
        if (winner := lock.read()).get("id") != own["id"]:
            raise _refusal(folder, winner)
    if not lock.in_place():
        raise UserError(f"{folder}: {_who(other)} has just ended its work on it; run the same command again.")


def _is_dead(other: dict, own: dict) -> bool:
    return other["machine"] == own["machine"] and _born(other["pid"]) != other["born"]


def _watch(folder: epath.Path, lock: "_Disk | _Objects", other: dict, interrupt: Interrupt) -> None:
    """Returns once a holder on another machine has given no sign of life for long enough.

    Raises:
      UserError: it has given one.
    """
    if time.time() - lock.written() > LONG_AGO:
        return
    say(f"{folder}: held by {_who(other)} unless that gives no sign of life for {GIVEN_UP:.0f} s; waiting for it")
    until = time.monotonic() + GIVEN_UP
    while time.monotonic() < until:
        time.sleep(min(1.0, GIVEN_UP / 10))
        if interrupt.requested:
            raise Interrupted
        if (now := lock.read()) and now != other:
            raise _refusal(folder, now)
        if not lock.in_place():
            return


def _live(folder: epath.Path, lock: "_Disk | _Objects", own: dict, done: threading.Event, interrupt: Interrupt) -> None:
    """Signs of life, until all is done or somebody else holds it, who has taken this process for dead."""
    while not done.wait(BEAT):
        with contextlib.suppress(Exception):  # a network that is gone for a while; whoever waits may take over then
            other = lock.read()
            if other and other["id"] != own["id"]:
                say(f"{folder}: {_who(other)} has taken over, since this process gave no sign of life; it stops")
                interrupt.request()
                return
            own["beats"] += 1
            lock.write(own)


def _refusal(folder: epath.Path, other: dict) -> UserError:
    return UserError(f"{folder}: {_who(other)} works on it; wait until it ends, or stop it.")


def _who(other: dict) -> str:
    if not other:
        return "another process"
    return f"process {other['pid']} on {other['host']}, since {other['since']},"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _machine() -> str:
    """The same for all that this kernel can tell of."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _born(pid: int) -> str:
    """When a process of this machine began, "" if there is none: numbers are used again."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"


def _parsed(data: bytes) -> dict:
    """A record; none of a file that is empty or no record, as a holder leaves that was killed while it wrote."""
    with contextlib.suppress(ValueError, TypeError):
        found = json.loads(data)
        if {"host", "machine", "pid", "born", "since", "id"} <= found.keys():
            return found
    return {}


@contextlib.contextmanager
def _made(folder: epath.Path) -> Iterator[None]:
    """The folder exists meanwhile; what is empty of what was made for that is gone afterwards."""
    made, missing = [], Path(folder)
    while not missing.exists():
        made.append(missing)
        missing = missing.parent
    with contextlib.suppress(OSError):  # who writes there says what is wrong
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _lock(path: epath.Path) -> "_Disk | _Objects | None":
    """None where no lock is needed, or the folder can't be made, which whoever writes there will say."""
    if not is_local(path):
        return _Objects(path)
    try:
        return _Disk(path)
    except OSError as error:
        if error.errno not in _NOT_NEEDED:
            raise
        return None


class _Disk:
    """The file on a disk, locked by the kernel.

    Attributes:
      exclusive: whether the kernel has made sure that no other process of this machine holds it.
      blocked: whether another does, or a child that outlives it. Neither: this file system has no locks.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        while True:
            self.exclusive, self.blocked = True, False
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.exclusive, self.blocked = False, isinstance(error, BlockingIOError)
            if self.in_place():
                return
            os.close(self._file)  # its holder has removed it in between

    def in_place(self) -> bool:
        """Whether this file, and no other, is the lock of the folder."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self._path).st_ino == os.fstat(self._file).st_ino
        return False

    def read(self) -> dict:
        return _parsed(os.pread(self._file, 4096, 0))

    def write(self, record: dict) -> None:
        os.pwrite(self._file, json.dumps(record).encode().ljust(1024), 0)  # over all of what another wrote

    def written(self) -> float:
        return os.fstat(self._file).st_mtime

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._file)


class _Objects:
    """The file on an object store, where the last who writes it holds it."""

    exclusive = blocked = False

    def __init__(self, path: epath.Path):
        self._path = path

    def in_place(self) -> bool:
        return True

    def read(self) -> dict:
        return _parsed(self._path.read_bytes()) if self._path.exists() else {}

    def write(self, record: dict) -> None:
        self._path.write_bytes(json.dumps(record).encode())

    def written(self) -> float:
        return float(self._path.stat().mtime)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        pass
