"""What it costs to know that weights are those that were saved: the hash beside the reading that it belongs to.

    python benchmarks/checksum.py --shape=smollm2      (135M in float32; or 1gb: 450M in bfloat16; or tiny)

The weights are random, saved and restored as a run's are. The median of some repeats, after one that compiles.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import jax
from etils import epath

from selfreward_jax.core.bits import tree_hash
from selfreward_jax.core.checkpoints import Checkpoints, abstract, restore
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import init_params

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("float32", {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4}),
    "smollm2": ("float32", {"hidden_size": 576, "intermediate_size": 1536, "num_layers": 30, "num_heads": 9}),
    "1gb": ("bfloat16", {"hidden_size": 1536, "intermediate_size": 4096, "num_layers": 15, "num_heads": 24}),
}


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--shape", choices=SHAPES, default="smollm2")
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    dtype, shape = SHAPES[given.shape]
    rest: Any = {"vocab_size": 49152, "num_kv_heads": shape["num_heads"] // 3 or 1, "head_dim": 64}
    ends: Any = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_ids": (2,)}
    config = LlamaConfig(**shape, **rest, **ends, tie_word_embeddings=True)
    params = jax.tree.map(lambda x: x.astype(dtype), init_params(config, jax.random.key(0)))
    target, whole, alone = {"params": abstract(params)}, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name) / "checkpoints"
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(1, {"params": params})
        for _ in range(given.repeats + 1):
            begun = time.perf_counter()
            restored = jax.block_until_ready(restore(folder, 1, target)["params"])
            read = time.perf_counter()
            tree_hash(restored)
            whole.append(read - begun)
            alone.append(time.perf_counter() - read)
    size = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9
    reading, hashing = (statistics.median(times[1:]) for times in (whole, alone))
    share = f"{100 * hashing / reading:.1f}%"
    print(f"{size:.2f} GB of {dtype}: read and checked in {reading:.2f} s, {share} of it the hash ({hashing:.3f} s)")


if __name__ == "__main__":
    main()
