"""Changes each file of a tiny run, finished and half done, in each way, and sees that it is refused or made again.

    python -m tests.drills.corruptions --seed=0     every file in every way, a line each

Refused is one line and exit status 2, with every other file as it was. Made again is every file as it was, bit by bit,
and exit status 0. What lies in the folders of checkpoints has a test of its own (tests/core/test_checkpoints.py).
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import string
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from selfreward_jax import cli
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.rows import Prompt, Response, load_rows
from selfreward_jax.stages.judge import judge
from selfreward_jax.stages.run import Run
from tests import tiny

# Logs, and what is made from all the rest each time.
NOT_CHECKED = ("throughput.jsonl", "report.html", "training.json")
JUDGED = "m3/judgements.jsonl"  # what is in the making in the run that is half done


def _replaced(data: bytes, rng: random.Random, among: str) -> bytes:
    places = [n for n, byte in enumerate(data) if chr(byte) in among]
    place = rng.choice(places)
    other = rng.choice([x for x in among if ord(x) != data[place]])
    return data[:place] + other.encode() + data[place + 1 :]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _without_last_line(data: bytes, _: random.Random) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:-1])


WAYS: Mapping[str, Callable[[bytes, random.Random], bytes | None]] = {
    "letter": lambda data, rng: _replaced(data, rng, string.ascii_lowercase),
    "digit": lambda data, rng: _replaced(data, rng, string.digits),
    "last line": _without_last_line,
    "truncation": lambda data, rng: data[: rng.randrange(len(data))],
    "bit": _flipped,
    "deletion": lambda data, rng: None,
}


def snapshot(run: Path) -> dict[str, bytes]:
    """Every file by its path, but for logs and checkpoints."""
    hidden = ("checkpoints", "tb")
    return {
        name: data
        for name, data in tiny.snapshot(run).items()
        if not set(Path(name).parts) & set(hidden) and Path(name).name not in NOT_CHECKED
    }


def corrupted(path: Path, way: str, seed: int) -> bool:
    """Changes a file in one way. Returns whether it can be."""
    data = path.read_bytes()
    if not data or (way == "digit" and not any(chr(byte) in string.digits for byte in data)):
        return False
    changed = WAYS[way](data, random.Random(f"{path.name}/{way}/{seed}"))
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return True


def told(words: list[str]) -> tuple[int, list[str]]:
    """A command's exit status, and the lines that it ended with an error."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(words)
    return status, [line for line in err.getvalue().splitlines() if line]


def verdict(words: list[str], run: Path, name: str, before: Mapping[str, bytes], made: Mapping[str, bytes]) -> str:
    """What became of a change: "refused" or "made again", with the lines that say so.

    Args:
      words: of the command.
      name: of the file that was changed.
      before: all files before it was.
      made: all files once the command has ended well.

    Raises:
      AssertionError: neither.
    """
    status, lines = told(words)
    after = snapshot(run)
    if status == 2:
        errors = [line for line in lines if line.startswith("selfreward: ")]
        assert len(errors) == 1 and "Traceback" not in "".join(lines), lines
        others = {file: data for file, data in before.items() if file != name}
        assert {file: after.get(file) for file in others} == others, f"refused, but others were changed: {errors[0]}"
        return f"refused: {errors[0]}"
    assert status == 0, lines
    wrong = sorted(file for file in made.keys() | after.keys() if made.get(file) != after.get(file))
    assert not wrong, f"ended well with other bytes: {', '.join(wrong)}; {lines}"
    return f"made again: {'; '.join(line for line in lines if 'again' in line) or 'silently'}"


class StopAfter(Interrupt):
    """Asked to stop after so many looks."""

    def __init__(self, looks: int):
        super().__init__()
        self._left = looks

    def check(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise Interrupted


def make_half_done(finished: Path, run: Path) -> None:
    """Copies a finished run as it was while M2 judged its answers, with three parts of its judgements."""
    shutil.copytree(finished, run)
    kept = []
    for line in (run / "manifest.jsonl").read_text().splitlines(keepends=True):
        kept.append(line)
        if '"m3/responses.jsonl"' in line:
            break
    (run / "manifest.jsonl").write_text("".join(kept))
    recorded = re.findall(r'"artefact": "(\S+)"', "".join(kept))
    for path in (run / "m3").iterdir():
        if f"m3/{path.name}" not in recorded:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("summary.json", "metrics.jsonl", "report.html"):
        (run / name).unlink()
    from etils import epath

    from selfreward_jax.verbs.runs import config_of_run

    for looks in (5, 5, 5):
        work = Run(str(run), config_of_run(epath.Path(run)), interrupt=StopAfter(looks))
        rows = load_rows(work.root / "m3/prompts.jsonl", Prompt), load_rows(work.root / "m3/responses.jsonl", Response)
        with contextlib.suppress(Interrupted):
            judge(work, "m3", work.ref("m2"), *rows)


def cases(run: Path) -> Iterator[tuple[str, str]]:
    """Every file of a run, in every way."""
    for name in sorted(snapshot(run)):
        yield from ((name, way) for way in WAYS)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0, help="of where in a file, and which character")
    seed = arguments.parse_args().seed
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(base / "programs"))
        data, finished = tiny.shared_data(base), tiny.shared_run(base)
        half, judged = base / "half", base / "judged"
        make_half_done(finished, half)
        shutil.copytree(half, judged)
        verb = ["judge", "--iteration=3"]
        assert told([*tiny.arguments("judge", judged, data), "--iteration=3"])[0] == 0
        for source, words, made in ((finished, ["run"], finished), (half, verb, judged)):
            for name, way in cases(source):
                run = base / "run"
                shutil.copytree(source, run)
                if corrupted(run / name, way, seed):
                    try:
                        said = verdict(
                            [*tiny.arguments(words[0], run, data), *words[1:]],
                            run,
                            name,
                            snapshot(source),
                            snapshot(made),
                        )
                    except AssertionError as error:
                        said, failed = f"FAILED: {error}", failed + 1
                    print(f"{words[0]} {name} {way}: {said}", flush=True)
                shutil.rmtree(run)
    print(f"{failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
