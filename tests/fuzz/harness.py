"""Inputs that are nearly right, by the thousand: whatever reads them must read them or say in one line what is wrong.

    python -m tests.fuzz.harness --n 2000 [--first SEED] [--only WORD] [--workers 2]

A module of this folder that has `TARGETS` brings its own: by name, a function of a random generator and an empty
folder that writes an input there, a valid one with something changed, and returns what reads it through a public entry
of the package. That may return, or raise a `UserError` of one short printable line; a command line (`command`) may also
return 2 with such a line on stderr. Anything else is a finding: another exception, a traceback, ten seconds, two
gigabytes, a process that dies.

Seed i goes to target i mod n, and everything follows from the seed. Inputs run in forked processes, since some end
them. What is found is shown once a kind, with its seed and with all cut out of its files that it does not need.
"""

import argparse
import atexit
import contextlib
import dataclasses
import functools
import importlib
import io
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError

Target = Callable[[random.Random, Path], Callable[[], object]]
Files = dict[str, bytes]

SECONDS = 10.0  # of the processor; one that waits may wait three times as long, for the machine may be busy
BYTES = 2 << 30
LONGEST = 1000  # characters of a message
INPUTS_A_PROCESS = 40  # then a fresh one, so that none lives on what others left
FORK = multiprocessing.get_context("fork")


class Wrong(Exception):
    """An outcome that is none of those allowed; what it says is its kind."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A kind (what went wrong and where) and all that it said."""

    kind: str
    detail: str


def targets() -> dict[str, Target]:
    """All of this folder's, by `module.name`."""
    found: dict[str, Target] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in ("harness", "mutate") and not path.stem.startswith("test_"):
            module = importlib.import_module(f"tests.fuzz.{path.stem}")
            found |= {f"{path.stem}.{name}": target for name, target in module.TARGETS.items()}
    return found


@functools.cache
def data() -> Path:
    """A tiny model with rows for it (`tiny-data`), and a finished run on them (`tiny-run`); only to be read.

    Where `SELFREWARD_FUZZ_DATA` says, else made anew, in a process of its own: JAX must not run before workers fork.
    """
    if given := os.environ.get("SELFREWARD_FUZZ_DATA"):
        return Path(given)
    folder = tempfile.mkdtemp(prefix="fuzz-data-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make = "import sys, pathlib; from tests import tiny; tiny.shared_run(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", make, folder], check=True, stdout=subprocess.DEVNULL)
    os.environ["SELFREWARD_FUZZ_DATA"] = folder
    return Path(folder)


def command(arguments: Sequence[str]) -> Callable[[], object]:
    """Runs the command line; raises `Wrong` for another outcome than success, or one line and 2."""

    def run() -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(list(arguments))
        said = err.getvalue()
        if "Traceback (most recent call last)" in said:
            raise Wrong(f"traceback: {_place_in(said)}\n{list(arguments)}\n{said}")
        if status not in (0, 2):
            raise Wrong(f"status {status}\n{list(arguments)}\n{said}")
        # Lines of progress may stand before it.
        told = [line for line in said.split("\n")[:-1] if line.startswith("selfreward: ")]
        last = said.removesuffix("\n").rpartition("\n")[2]
        if status == 2 and (bad := f"{len(told)} messages" if told != [last] else unfit(last)):
            raise Wrong(f"stderr: {bad}\n{list(arguments)}\n{said!r}")

    return run


def unfit(line: str) -> str:
    """What is wrong about a message, "" for a good one."""
    if not line.strip():
        return "an empty message"
    if "\n" in line:
        return "more than a line"
    if not line.isprintable():
        return "control characters or half a character"
    return "too long" if len(line) > LONGEST else ""


def _place_in(trace: str) -> str:
    """The exception at the end of a traceback, and the last line of the package that it went through."""
    places = re.findall(r'File "[^"]*/(selfreward_jax/[^"]+)", line (\d+)', trace)
    kind = next((line for line in reversed(trace.splitlines()) if re.match(r"[\w.]+(Error|Exception|:|$)", line)), "?")
    return f"{kind.split(':')[0]} at {':'.join(places[-1]) if places else '?'}"


def _attempt(name: str, seed: int, folder: Path, files: Files | None = None) -> Finding | None:
    """Runs one input, with `files` in place of those written, where they are given."""
    try:
        read = targets()[name](random.Random(f"{name} {seed}"), folder)
        for path, data in (files or {}).items():
            (folder / path).write_bytes(data)
    except Exception:
        return Finding(f"the target itself: {name}", traceback.format_exc())
    try:
        read()
    except UserError as error:
        bad = unfit(str(error))
        return Finding(f"message: {bad}, {_raised_at(error)}", repr(str(error))) if bad else None
    except Wrong as wrong:
        return Finding(str(wrong).splitlines()[0], str(wrong))
    except BaseException:
        trace = traceback.format_exc()
        return Finding(_place_in(trace), trace)
    return None


def _raised_at(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def _serve(pipe: Any) -> None:
    """A forked process: an answer to each input that it is sent, and its peak memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for which, most in ((resource.RLIMIT_DATA, 2 * BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, BYTES)):
        resource.setrlimit(which, (most, most))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    while True:
        with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
            try:
                name, seed, files = pipe.recv()
            except EOFError:
                os._exit(0)
            os.chdir(folder)
            finding = _attempt(name, seed, Path(folder), files)
            os.chdir("/")
            if finding is None and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > BYTES:
                finding = Finding(f"memory: {name}", f"over {BYTES >> 20} MiB")
            pipe.send(finding)


@dataclasses.dataclass
class Worker:
    """A forked process and what it is at."""

    process: Any
    pipe: Any
    left: int = INPUTS_A_PROCESS
    task: tuple[str, int, Files | None] | None = None
    begun: tuple[float, float] = (0.0, 0.0)  # seconds of the clock, and of the processor

    @classmethod
    def start(cls) -> "Worker":
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def give(self, task: tuple[str, int, Files | None]) -> None:
        self.task, self.begun, self.left = task, (time.monotonic(), _seconds(self.process.pid)), self.left - 1
        self.pipe.send(task)

    def outcome(self) -> Finding | None:
        """Of the task that is over, or has to be. Raises `BlockingIOError` while it goes on."""
        assert self.task is not None
        name = self.task[0]
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except EOFError:
            self.process.join()
            return Finding(f"died: {name}", f"exit status {self.process.exitcode}")
        clock, worked = time.monotonic() - self.begun[0], _seconds(self.process.pid) - self.begun[1]
        if worked > SECONDS or clock > 3 * SECONDS:
            return self._kill(Finding(f"time: {name}", f"over {SECONDS:.0f} s"))
        if _memory(self.process.pid) > BYTES:
            return self._kill(Finding(f"memory: {name}", f"over {BYTES >> 20} MiB"))
        raise BlockingIOError

    def _kill(self, finding: Finding) -> Finding:
        self.process.kill()
        self.left = 0
        return finding

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _seconds(pid: int) -> float:
    """Of the processor that a process has taken."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def run(tasks: Iterator[tuple[str, int, Files | None]], workers: int) -> Iterator[tuple[str, int, Finding]]:
    """Findings among the inputs, as they come. What ended its process is tried once more, in a fresh one."""
    pool = [Worker.start() for _ in range(workers)]
    again: set[tuple[str, int]] = set()
    repeat: list[tuple[str, int, Files | None]] = []
    try:
        while True:
            for n, worker in enumerate(pool):
                if worker.task is None and (task := repeat.pop() if repeat else next(tasks, None)):
                    if worker.left < 1 or not worker.process.is_alive():
                        worker.stop()
                        worker = pool[n] = Worker.start()
                    worker.give(task)
            busy = [worker for worker in pool if worker.task]
            if not busy:
                return
            multiprocessing.connection.wait([worker.pipe for worker in busy], timeout=0.05)
            for worker in busy:
                try:
                    finding = worker.outcome()
                except BlockingIOError:
                    continue
                assert worker.task is not None
                (name, seed, _), task, worker.task = worker.task, worker.task, None
                if finding and finding.kind.startswith(("time", "died")):
                    worker.left = 0
                    if (name, seed) not in again:
                        again.add((name, seed))
                        repeat.append(task)
                        continue
                if finding:
                    yield name, seed, finding
    finally:
        for worker in pool:
            worker.stop()


# ---------------------------------------------------------------------------------------------------------------------
# Making a finding small


def minimised(name: str, seed: int, kind: str, seconds: float = 20.0) -> Files:
    """The files of an input, without what the finding can do without; as far as the time allows."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, contextlib.chdir(folder):
        targets()[name](random.Random(f"{name} {seed}"), Path(folder))
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20
        }
    until = time.monotonic() + seconds

    def still(changed: Files) -> bool:
        return any(f.kind == kind for *_, f in run(iter([(name, seed, changed)]), 1))

    for path in sorted(files, key=lambda path: len(files[path])):
        size = len(files[path])
        while size := size // 2:
            at = 0
            while at < len(files[path]):
                if time.monotonic() > until:
                    return files
                data = files[path]
                if still(files | {path: data[:at] + data[at + size :]}):
                    files[path] = data[:at] + data[at + size :]
                else:
                    at += size
    return files


def shown(files: Mapping[str, bytes], most: int = 300) -> str:
    return "\n".join(f"    {path}: {data[:most]!r}{'...' if len(data) > most else ''}" for path, data in files.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz.harness")
    parser.add_argument("--n", type=int, default=2000, help="inputs (default 2000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--only", default="", help="targets whose name holds this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no_minimise", action="store_true")
    options = parser.parse_args(arguments)

    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "SELFREWARD_HOSTS": "one"}
    names = [name for name in targets() if options.only in name]
    if not names:
        print(f"no target is named like {options.only}", file=sys.stderr)
        return 2
    data()  # here, and not by each worker within the limits of an input
    seeds = range(options.first, options.first + options.n)
    found: dict[str, list[tuple[str, int, Finding]]] = {}
    began = time.monotonic()
    for name, seed, finding in run(((names[seed % len(names)], seed, None) for seed in seeds), options.workers):
        found.setdefault(finding.kind, []).append((name, seed, finding))
        if len(found[finding.kind]) == 1:
            print(f"{finding.kind}  [{name} {seed}]", flush=True)
    took = time.monotonic() - began
    for kind, findings in sorted(found.items(), key=lambda item: -len(item[1])):
        name, seed, finding = min(findings, key=lambda x: x[1])
        print(f"\n{len(findings)} x {kind}\n  --only {name} --first {seed} --n 1\n{finding.detail.strip()[-1500:]}")
        if not options.no_minimise and "target itself" not in kind and not kind.startswith(("time", "memory")):
            print(shown(minimised(name, seed, kind)), flush=True)
    print(f"{len(seeds)} inputs, {len(names)} targets, {len(found)} kinds of finding, {took:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
