"""One process at a time works in a folder; the processes of one job count as one. Who it is stands in a file there.

On a disk the kernel holds the lock, so that it goes with its process however that ends. Where it can't tell (object
stores, a file system that other machines lock differently), the holder gives signs of life, and one that gives none
for `GIVEN_UP` seconds, watched by the clock of whoever waits, is dead. Whoever the kernel says has it locked is not.
"""

import contextlib
import errno
import fcntl
import functools
import inspect
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

import fsspec
from etils import epath

from selfreward_jax.core.errors import ReadOnly, UserError
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.store import disk_error
from selfreward_jax.core.stored import loads

NAME = ".lock"
BEAT, GIVEN_UP = 15.0, 90.0  # seconds between signs of life, and without one
SETTLE = 1.0  # so long a taker waits where no kernel decides, and looks whether another took it too
# A folder that can't be written needs no lock, and on a full disk there is nothing to be spoilt.
_NOT_NEEDED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENOENT}


def is_empty(folder: epath.Path) -> bool:
    """Whether there is nothing yet in a folder, but for its lock and what a kill left of a first write."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else None
    return names is not None and all(name == NAME or name[0] == "." and name.endswith(".tmp") for name in names)


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
        own = {"host": socket.gethostname(), "machine": _machine(), "disk": lock.disk, "pids": _pids()}
        own |= {"pid": os.getpid(), "born": _born(os.getpid()), "since": _now(), "id": uuid.uuid4().hex, "beats": 0}
        try:
            ids = _take(folder, lock, own, interrupt)
            if not ids:
                yield
                return
            done = threading.Event()
            thread = threading.Thread(target=_live, args=(folder, lock, own, ids, done, interrupt), daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()
                with contextlib.suppress(Exception):  # of a network; the work is done, and the next waits a while
                    if lock.in_place() and lock.read().get("id", own["id"]) in ids:
                        lock.remove()
        finally:
            lock.close()


def _take(folder: epath.Path, lock: "_Disk | _Objects", own: dict, interrupt: Interrupt) -> set[str]:
    """Returns the ids under which the lock is this process's; none where nothing may be written, nor spoilt.

    Raises:
      UserError: somebody else holds it.
    """
    other = lock.read()
    if lock.blocked and not other:
        time.sleep(SETTLE)  # its holder may be about to write
        other = lock.read()
    same_machine = other.get("machine", own["machine"]) == own["machine"]
    same_pids = "machine" in other and same_machine and other.get("pids") == own["pids"]
    # Containers of one machine may see one folder as two file systems, of which neither knows the other's locks.
    left = lock.exclusive and ("machine" not in other or same_machine and other.get("disk") == own["disk"])
    lives = same_pids and _born(other["pid"]) == other["born"]
    if (lock.blocked and same_machine) or (lives and not left):
        raise _refusal(folder, other)
    unsure = bool(other) and not left and (lock.blocked or not same_pids)
    if unsure:
        _watch(folder, lock, other, interrupt)
        if lock.blocked and not lock.try_again():
            raise _refusal(folder, other)
    failed = None
    try:
        lock.write(own, new=not other)
    except FileExistsError:  # somebody else was first; who it is will be read
        pass
    except OSError as error:
        failed = error
    if not left:
        time.sleep(SETTLE)
        if (winner := lock.read()).get("id") != own["id"]:
            if failed is None or winner and winner != other:
                raise _refusal(folder, winner)
            problem = disk_error(folder / NAME, failed)
            if not winner and not is_local(folder) and (isinstance(problem, ReadOnly) or "Forbidden" in str(failed)):
                return set()
            raise problem from failed
    if not lock.in_place():
        raise UserError(f"{folder}: {_who(other)} has just ended its work on it; run the same command again.")
    # On a full disk the record of before may stand there, and the kernel's lock must do.
    return {own["id"]} if failed is None else {own["id"], other.get("id", own["id"])}


def _watch(folder: epath.Path, lock: "_Disk | _Objects", other: dict, interrupt: Interrupt) -> None:
    """Returns once a holder that may live elsewhere has given no sign of life for long enough.

    Raises:
      UserError: it has given one.
    """
    say(
        f"{folder}: held by {_who(other)} unless that gives no sign of life for {GIVEN_UP:.0f} s; waiting for it"
        f" (if it is gone for sure, stop this, delete {NAME} there and go on at once)"
    )
    until = time.monotonic() + GIVEN_UP
    while time.monotonic() < until:
        time.sleep(min(1.0, GIVEN_UP / 10))
        if interrupt.requested:
            raise Interrupted
        if (now := lock.read()) and now != other:
            raise _refusal(folder, now)
        if not lock.in_place():
            return


def _live(
    folder: epath.Path,
    lock: "_Disk | _Objects",
    own: dict,
    ids: set[str],
    done: threading.Event,
    interrupt: Interrupt,
) -> None:
    """Signs of life, until all is done or the lock is lost: to one who took this process for dead, or by hand."""
    pause = SETTLE  # soon at first: a write of another may have been under way while this one took it
    while not done.wait(min(pause, BEAT)):
        pause *= 2
        with contextlib.suppress(Exception):  # a network that is gone for a while; whoever waits may take over then
            other = lock.read() if (here := lock.in_place()) else {}
            if not here:
                say(f"{folder / NAME}: not there any more, or another's, so another process may work here; this stops")
            elif other and other["id"] not in ids:
                say(f"{folder}: {_who(other)} has taken over, since this process gave no sign of life; it stops")
            else:
                own["beats"] += 1
                lock.write(own)
                continue
            interrupt.request()
            return


def _refusal(folder: epath.Path, other: dict) -> UserError:
    return UserError(
        f"{folder}: {_who(other)} works on it; wait until it ends, or stop it"
        f" (if it is gone for sure, delete {NAME} there)."
    )


def _who(other: dict) -> str:
    if "pid" not in other:
        return "another process"
    return f"process {other['pid']} on {other['host']}, since {other['since']},"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _machine() -> str:
    """The same for all that this kernel can tell of."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _pids() -> str:
    """The same for all to whom a process's number means the same process; containers count their own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


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
    """A record, {} of an empty file; of one that is no record, as a kill may leave, only an id."""
    if not data.strip(b" \0"):
        return {}
    with contextlib.suppress(ValueError):
        found = loads(data.decode())
        needed = dict.fromkeys(("host", "machine", "born", "since", "id"), str) | {"pid": int}
        if isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in needed.items()):
            return found
    return {"id": f"no record: {data[:64].hex()}"}


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
            raise disk_error(path, error) from error
        return None


class _Disk:
    """The file on a disk, locked by the kernel.

    Attributes:
      exclusive: whether the kernel has made sure that no other process that locks this file system here holds it.
      blocked: whether another does. Neither: this file system has no locks.
      disk: which file system it is, to this kernel.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        while True:
            self._file = self._open()
            self.try_again()
            if self.in_place():
                break
            os.close(self._file)  # its holder has removed it in between
        self.disk = str(os.fstat(self._file).st_dev)
        _open_files.add(self)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            if not os.path.exists(self._path):
                raise
        try:
            return os.open(self._path, os.O_RDONLY)  # another user's; it can be locked too
        except PermissionError:
            raise UserError(
                f"{self._path}: another user's, and can't be read; if nobody works there, delete it."
            ) from None

    def try_again(self) -> bool:
        """Whether the kernel gives the lock now."""
        self.exclusive, self.blocked = True, False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.exclusive, self.blocked = False, isinstance(error, BlockingIOError)
        return self.exclusive

    def in_place(self) -> bool:
        """Whether this file, and no other, is the lock of the folder."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def read(self) -> dict:
        return _parsed(os.pread(self._file, 4096, 0))

    def write(self, record: dict, new: bool = False) -> None:
        os.pwrite(self._file, json.dumps(record).encode().ljust(4096), 0)  # over all of what another wrote

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self in _open_files:
            _open_files.remove(self)
            os.close(self._file)


_open_files: set[_Disk] = set()


def _leave() -> None:
    """In a child: it may outlive its parent, and the lock is not to."""
    while _open_files:
        os.close(_open_files.pop()._file)


os.register_at_fork(after_in_child=_leave)


class _Objects:
    """The file on an object store, where the last who writes it holds it."""

    exclusive = blocked = False
    disk = ""

    def __init__(self, path: epath.Path):
        self._path = path

    def try_again(self) -> bool:
        return False

    def in_place(self) -> bool:
        return bool(self.read())

    def read(self) -> dict:
        try:
            return _parsed(self._path.read_bytes())
        except FileNotFoundError:
            return {}

    def write(self, record: dict, new: bool = False) -> None:
        """Raises `FileExistsError` of a new one that is there, if the store can tell, however late a write arrives."""
        data = json.dumps(record).encode()
        files, name = fsspec.url_to_fs(os.fspath(self._path))
        if new and "mode" in inspect.signature(getattr(files, "_pipe_file", files.pipe_file)).parameters:
            files.pipe_file(name, data, mode="create")
        else:
            self._path.write_bytes(data)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        pass
