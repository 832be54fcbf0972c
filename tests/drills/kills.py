"""Kills a tiny run at random until it is done, and compares it bit by bit with one that nothing happened to.

    python -m tests.drills.kills --kills=200 --seed=0     (or: make drill N=200)

The run writes its own prompts, trains adapters and has a judge choose among checkpoints, so that every kind of file is
in the making at some time. A kill is SIGKILL, SIGTERM or SIGINT, the latter two also twice; it comes at a random time,
or just before or after a random call that changes the disk (a rename, a removal, an fsync), in whatever thread makes
it. The same command then goes on. A chain is one run, killed until it ends.

Each session is a fork of this process, which has imported everything and started nothing, so it works within seconds.
"""

import argparse
import dataclasses
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CHANGES: dict[str, Any] = {
    "prompts.source": "self_instruct",
    "prompts.generator": "current",  # which ends its texts sooner than M0
    "prompts.rouge_threshold": 1.0,
    "prompts.min_words": 1,
    "prompts.max_new_tokens": 16,
    "prompts.temperature": 1.6,
    "prompts.top_p": 1.0,
    "respond.truncated": "keep",
    "judge.method": "expected",
    "judge.rationale": False,
    "loop.iterations": 2,
    "lora.rank": 4,
    "sft.epochs": 2,
    "checkpoint.every_steps": 3,
    "checkpoint.choose": "win_rate",
    "checkpoint.prompts_max": 2,
}
CALLS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")  # of the module os, through which all others go
ENDS = {0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
LIMIT = 300  # seconds that a session may take, a stop that was asked for included
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # programs compile sooner


@dataclasses.dataclass(frozen=True)
class Kill:
    """What ends a session: the signal, how often, and when: after `seconds`, or else at the `call`th call."""

    number: signal.Signals
    times: int
    seconds: float | None
    call: int = 0
    before: bool = True

    def __str__(self) -> str:
        place = f"{'before' if self.before else 'after'} call {self.call}"
        when = place if self.seconds is None else f"after {self.seconds:.2f} s"
        return f"{self.number.name}{' twice' * (self.times - 1)} {when}"

    def strike(self, process: int) -> None:
        for n in range(self.times):
            time.sleep(0.05 * n)
            os.kill(process, self.number)


def draw(rng: random.Random, seconds: float, calls: int) -> Kill:
    """A kill within the first `seconds` or `calls` of a session."""
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    times = 1 if number == signal.SIGKILL else rng.choice([1, 2])
    at = rng.uniform(0, seconds) if rng.random() < 0.5 else None
    return Kill(number, times, at, rng.randint(1, max(calls, 1)), rng.random() < 0.5)


def wrap_calls(at: Kill | None) -> Callable[[], int]:
    """Lets a process kill itself at a call. Returns what tells how many there have been."""
    lock, calls = threading.Lock(), 0

    def wrapped(real: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            with lock:
                calls += 1
                mine = calls
            if at and at.seconds is None and at.before and mine == at.call:
                at.strike(os.getpid())
            made = real(*arguments, **options)
            if at and at.seconds is None and not at.before and mine == at.call:
                at.strike(os.getpid())
            return made

        return call

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))
    return lambda: calls


def fork(work: Callable[[], int], said: Path) -> int:
    """Begins work in a process of its own, whose standard error goes to a file. Returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, which has started no thread yet
        process = os.fork()
    if process:
        return process
    status = 1
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(process: int, limit: float) -> int | None:
    """The exit status, negative for a signal; None after `limit` seconds."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def session(words: list[str], said: Path, kill: Kill | None = None, counted: Path | None = None) -> int | None:
    """Runs a command until it ends or is killed. Returns how it ended."""

    def work() -> int:
        from selfreward_jax import cli

        calls = wrap_calls(kill)
        status = cli.main(words)
        if counted:
            counted.write_text(str(calls()))
        return status

    process = fork(work, said)
    if kill and kill.seconds is not None:
        status = wait(process, kill.seconds)
        if status is not None:
            return status
        kill.strike(process)
    status = wait(process, LIMIT)
    if status is None:
        os.kill(process, signal.SIGKILL)
        wait(process, 10)
    return status


# ---------------------------------------------------------------------------------------------------------------------
# Whether two runs are the same


def exempt(name: str) -> bool:
    """Files that may differ: Orbax names its files at random, TensorBoard's carry the time, speeds depend on it."""
    return bool({"checkpoints", "merged", "tb"} & set(Path(name).parts[:-1])) or name.endswith("throughput.jsonl")


def files(run: Path) -> dict[str, bytes]:
    from tests import tiny

    return {name: content for name, content in tiny.snapshot(run).items() if not exempt(name)}


def assert_same_run(run: Path, expected: Path) -> None:
    """Every file byte for byte, and every weight bit for bit."""
    import jax

    from selfreward_jax.llama.load import load_model

    found, wanted = files(run), files(expected)
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())  # no part, journal or temporary file
    titled = {"report.html"} if run.name != expected.name else set()  # its title is the folder's name
    differing = {name for name in found if found[name] != wanted[name]}
    assert differing <= titled, differing
    assert not list(run.rglob("*.partial"))
    assert not list(run.rglob("*orbax-checkpoint-tmp*"))
    assert steps(run) == steps(expected)
    for t in sorted(p.parent.name for p in expected.glob("m[1-9]*/model.json")):
        one, other = (load_model(str(folder / t)) for folder in (run, expected))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one.params, other.params)
        assert one.hash == other.hash


def steps(run: Path) -> list[str]:
    """The checkpoints of a run's models, and the trees in each."""
    trees = (p for name in ("checkpoints", "merged") for p in run.glob(f"m*/{name}/*/*") if p.is_dir())
    return sorted(str(p.relative_to(run)) for p in trees)


# ---------------------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A session ended as none may, or a run is another; what lies in its folder stays."""


def drill(folder: Path, kills: int, seed: int, tell: Callable[[str], None] = print) -> int:
    """Kills runs until there have been so many kills, and the last of them has ended. Returns how many chains.

    Raises:
      Failed: what happened, and where it lies.
    """
    from tests import tiny

    data, counted, said = folder / "data", folder / "calls", folder / "said"

    def words(run: Path) -> list[str]:
        prompts = {"checkpoint.prompts": str(data / "prompts.jsonl")}
        return tiny.arguments("run", run, data, CHANGES | prompts)

    def ended(status: int | None, why: str, run: Path) -> None:
        lines = said.read_text() if said.exists() else ""
        if status not in ENDS or "Traceback" in lines:
            raise Failed(f"{run}: {why}: ended with {status}:\n{lines[-4000:]}")

    def in_a_child(what: str, work: Callable[[], Any]) -> None:
        said.unlink(missing_ok=True)
        if (status := wait(fork(lambda: int(work() is None and 0), said), LIMIT)) != 0:
            raise Failed(f"{what}: {status}: {said.read_text()[-4000:]}")

    in_a_child("data", lambda: tiny.make_data(data) and None)
    expected = folder / "uninterrupted" / "run"
    begun = time.monotonic()
    if (status := session(words(expected), said, counted=counted)) != 0:
        raise Failed(f"{expected}: without a kill it ended with {status}:\n{said.read_text()[-4000:]}")
    seconds, calls = time.monotonic() - begun, int(counted.read_text())
    tell(f"an uninterrupted run takes {seconds:.1f} s, compiling included, and {calls} calls")
    rng, done, chains = random.Random(seed), 0, 0
    while done < kills:
        chains += 1
        run, plan = folder / f"chain{chains}" / "run", []
        while True:
            said.unlink(missing_ok=True)
            kill = draw(rng, seconds / 6, calls // 4) if done < kills else None
            status = session(words(run), said, kill)
            ended(status, f"{[*map(str, plan)]}, then {kill}", run)
            if status == 0:
                break
            plan.append(kill)
            done += 1
        what = f"{run} is not as {expected} after {[*map(str, plan)]}"
        in_a_child(what, lambda r=run: assert_same_run(r, expected))
        shutil.rmtree(run.parent)
        tell(f"chain {chains}: {len(plan)} kills, bit for bit the same ({done} of {kills})")
    return chains


def main() -> int:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folder", default="", help="where to work; by default one that is removed unless it fails")
    given = options.parse_args()
    folder = Path(given.folder or tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    # Before JAX is imported, which reads some of them only then.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    from selfreward_jax.core.commit import commit
    from tests import tiny

    os.environ |= tiny.environment()
    if "optimization_level" not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += f" {QUICK}"
    for name in ("transformers", "orbax.checkpoint", "tensorboardX", "selfreward_jax.verbs.runs", "matplotlib.pyplot"):
        importlib.import_module(name)
    commit()  # asked now, once: the manifest tells it, and somebody may work on the files meanwhile
    begun = time.monotonic()
    try:
        chains = drill(folder, given.kills, given.seed, lambda line: print(line, flush=True))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.kills} kills in {chains} chains, every one the same: {time.monotonic() - begun:.0f} s")
    if not given.folder:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
