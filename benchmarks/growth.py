"""How time and memory grow with a run: filtering prompts, reading rows, pairs, the report, evaluation following rows.

    python benchmarks/growth.py [--answers 10000,100000,1000000] [--prompts 5000,10000,20000] [--texts FILE]

Answers of 100 tokens and 400 characters, four a prompt, with three judgements of 300 characters each; a million of
them take 3 GB of the folder for temporary files. Prompts are those of `--texts` (rows with `prompt`; default: the
packaged seeds), and when these are used up, the first half of one with the second half of another. Each size runs in a
process of its own. Told are seconds of the processor, which other work on the machine disturbs little, the peak of
resident memory, and the exponent by which the seconds grow from each size to the next. Prompts' token ids are given, so
that the tokenizer's time isn't among the pairs'.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath


def peak() -> int:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1000 if sys.platform != "darwin" else 10**6)


def write_rows(folder: Path, answers: int) -> None:
    """What a run's folder holds of one iteration before its pairs are made."""
    from selfreward_jax import api
    from selfreward_jax.core.config import to_dict

    rng = random.Random(0)
    words = [f"word{n}" for n in range(3000)]
    texts = [" ".join(rng.choices(words, k=55)) for _ in range(500)]
    (folder / "config.json").write_text(json.dumps(to_dict(api.config(loop__iterations=2))))
    (folder / "m2").mkdir()
    with contextlib.ExitStack() as stack:
        names = ("prompts", "responses", "judgements")
        files = [stack.enter_context(open(folder / f"m2/{name}.jsonl", "w")) for name in names]
        _write(*files, answers=answers, texts=texts, rng=rng)


def _write(prompts, responses, judgements, *, answers: int, texts: list[str], rng: random.Random) -> None:
    from selfreward_jax.core.rows import Judgement, Prompt, Response, as_messages, to_line

    for p in range(answers // 4):
        prompt = Prompt(_id(p), as_messages(f"Question {p}: {texts[p % 500][:120]}"), "file")
        prompts.write(to_line(prompt))
        for i in range(4):
            ids, stop = tuple(rng.choices(range(49_152), k=100)), "eos" if rng.random() < 0.9 else "length"
            text = f"{i} {p} {texts[(p + 7 * i) % 500]}"
            answer = Response(_id(p, i), prompt.id, i, ids, text, stop, -100 * rng.random())
            responses.write(to_line(answer))
            for k in range(3):
                score = rng.choice((None, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0))
                text = f"{texts[(3 * p + k) % 500][:300]}\nScore: {score}"
                judgements.write(to_line(Judgement(_id(p, i, k), answer.id, k, text, score, "eos")))


def _id(*parts: int) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class Ids:
    """In the place of a tokenizer: every prompt has the same ids."""

    eos_ids = (2,)

    def prompts_ids(self, conversations) -> list[list[int]]:
        return [list(range(1000, 1040))] * len(conversations)


def pairs(folder: Path) -> Iterator[str]:
    from selfreward_jax.core.rows import Judgement, Prompt, Response, content_id, load_rows, to_lines
    from selfreward_jax.core.store import write_atomic
    from selfreward_jax.stages.pairs import make_pairs
    from selfreward_jax.stages.work import ModelRef

    yield ""
    prompts = load_rows(folder / "m2/prompts.jsonl", Prompt)
    responses = load_rows(folder / "m2/responses.jsonl", Response)
    judgements = load_rows(folder / "m2/judgements.jsonl", Judgement, texts=False)
    yield "answers and judgements read"
    content_id([r.id for r in responses], [j.id for j in judgements])
    chat, ref = Ids(), ModelRef("m1", "0" * 64)
    made, drops, _ = make_pairs(
        chat,  # type: ignore[arg-type]
        prompts,
        responses,
        judgements,
        model=ref,
        reference=ref,
        rule="best_worst",
        min_parsed=2,
        min_margin=0.0,
        keep_truncated=False,
    )
    write_atomic(folder / "m2/pairs.jsonl", to_lines(made))
    write_atomic(folder / "m2/dropped.jsonl", to_lines(drops))
    yield "pairs made and written"


def read_pairs(folder: Path) -> Iterator[str]:
    from selfreward_jax.core.rows import Pair, load_rows

    yield ""
    load_rows(folder / "m2/pairs.jsonl", Pair)
    yield "pairs read"


def report(folder: Path) -> Iterator[str]:
    import selfreward_jax.report.page  # noqa: F401  (takes seconds)
    from selfreward_jax.report.make import write_report

    yield ""
    write_report(epath.Path(folder), epath.Path(folder / "report.html"))
    yield "report"


def parts(folder: Path) -> Iterator[str]:
    from selfreward_jax.core.store import Journal

    journal = Journal(epath.Path(folder / "joined.jsonl"), {})
    with open(folder / "m2/judgements.jsonl") as file:
        for n, lines in enumerate(iter(lambda: list(itertools.islice(file, 4096)), [])):
            journal.write(n, map(json.loads, reversed(lines)))
    yield ""


def join(folder: Path) -> Iterator[str]:
    from selfreward_jax.core.store import Journal

    yield ""
    Journal(epath.Path(folder / "joined.jsonl"), {}).finish(lambda row: (row["response_id"], row["index"]))
    yield "judgements joined in order"


def eft(count: int) -> Iterator[str]:
    """Ranked answers as in Open Assistant: two to four a prompt, with three judgements each."""
    from selfreward_jax.core.ranked import Answer, Ranked
    from selfreward_jax.core.rows import Judgement, as_messages, content_id
    from selfreward_jax.stages.eft import EftRules, build_eft

    rng = random.Random(0)
    ranked = []
    judgements = []
    for p in range(count):
        answers = tuple(Answer(f"answer {p} {n}", float(n)) for n in range(rng.randint(2, 4)))
        ranked.append(Ranked(_id(p), as_messages(f"Question {p}"), answers, False))
        for a in answers:
            for k in range(3):
                score = float(rng.randint(0, 5))
                text = f"One reason for mark {p}, another and a third.\nScore: {score:g}"
                judgements.append(Judgement(_id(p, k), content_id(_id(p), a.text), k, text, score, "eos"))
    yield ""
    build_eft(ranked, judgements, EftRules(0.5, 4, 0.35), count, 0)
    yield "evaluation following rows"


def filtered(count: int, texts: str) -> Iterator[str]:
    from selfreward_jax.core.forms import prompt_of
    from selfreward_jax.core.readers import read_rows
    from selfreward_jax.core.seeds import load_ift
    from selfreward_jax.methods.self_instruct import FilterSettings, PromptFilter

    rng = random.Random(0)
    if texts:
        given = read_rows(texts, lambda row: prompt_of(row)[-1]["content"], "rows with a prompt")
    else:
        given = [d.messages[-1]["content"] for d in load_ift("builtin")]
    given = [text for text in dict.fromkeys(given) if 4 <= len(text.split()) <= 60]
    words = [text.split() for text in given]
    accept = PromptFilter(FilterSettings(0.7, 4, 150, ()), [])
    kept = tried = 0
    yield ""
    while kept < count:
        a, b = rng.sample(words, 2)
        text = given[tried] if tried < len(given) else " ".join([*a[: len(a) // 2], *b[len(b) // 2 :]])
        tried += 1
        kept += accept.reject_reason(text) is None
    yield f"prompts kept of {tried / kept:.1f} times as many"


def one(kind: str, argument: str, texts: str) -> None:
    """Runs a piece and prints its steps as JSON lines; a step without a name is not told."""
    steps = {
        "pairs": lambda: pairs(Path(argument)),
        "read_pairs": lambda: read_pairs(Path(argument)),
        "report": lambda: report(Path(argument)),
        "parts": lambda: parts(Path(argument)),
        "join": lambda: join(Path(argument)),
        "eft": lambda: eft(int(argument)),
        "filter": lambda: filtered(int(argument), texts),
    }[kind]()
    began = time.process_time()
    for name in steps:
        if name:
            print(json.dumps([name, time.process_time() - began, peak()]), flush=True)
        began = time.process_time()


def measure(kind: str, argument: str, texts: str) -> list[list]:
    """Name, seconds and MB of each step."""
    command = [sys.executable, __file__, "--one", kind, argument, "--texts", texts]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("[")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", default="10000,100000,1000000")
    parser.add_argument("--prompts", default="5000,10000,20000", help="kept by the filter, and judged for EFT")
    parser.add_argument("--texts", default="")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        one(flags.one[0], flags.one[1], flags.texts)
        return
    found: dict[str, list[tuple[int, float, int]]] = {}
    for size in map(int, filter(None, flags.prompts.split(","))):
        for kind, unit in (("filter", "prompts"), ("eft", "prompts")):
            for name, seconds, memory in measure(kind, str(size), flags.texts):
                found.setdefault(f"{unit}: {name.split(' of ')[0]}", []).append((size, seconds, memory))
                print(f"# {size:,}: {name}: {seconds:.1f} s, {memory:,} MB", flush=True)
    for size in map(int, filter(None, flags.answers.split(","))):
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder), size)
            for kind in ("pairs", "read_pairs", "report", "parts", "join"):
                for name, seconds, memory in measure(kind, folder, ""):
                    found.setdefault(name, []).append((size, seconds, memory))
                    print(f"# {size:,}: {name}: {seconds:.1f} s, {memory:,} MB", flush=True)
    print("| | sizes | seconds | MB | exponents |\n|---|---|---|---|---|")
    for name, rows in found.items():
        growth = [math.log(b[1] / a[1]) / math.log(b[0] / a[0]) for a, b in zip(rows, rows[1:], strict=False)]
        forms = ("{:,}", "{:.1f}", "{:,}")
        sizes, seconds, memory = (" / ".join(form.format(row[n]) for row in rows) for n, form in enumerate(forms))
        print(f"| {name} | {sizes} | {seconds} | {memory} | {', '.join(f'{x:.2f}' for x in growth)} |")


if __name__ == "__main__":
    main()
