"""How fast a training goes, and what share of the devices' arithmetic it puts to use (MFU).

Model FLOP count what the mathematics needs, as in PaLM (Chowdhery et al. 2022, appendix B), so what is computed twice
(rematerialisation) or for nothing (padding, masked halves of attention) only lowers the share:

- A matrix of n weights costs 2n FLOP a token forward and twice that backward: 6n. The matrices are those of the
  layers, for every token, and the head, for those tokens alone whose loss is taken, the response. Looking up an
  embedding costs nothing; a table that is head as well counts once.
- With LoRA these matrices have no gradient: 4n, and 6n for the adapter's.
- A query and a key cost 2E in the score and 2E in the mean of values, in each of H heads and L layers: with the
  backward pass 12 L H E. Causal attention over a row of T tokens has T (T + 1) / 2 such pairs, so 6 L H E (T + 1) a
  token; half of what counts that ignore the mask give.
"""

import math
import re
import statistics
from collections.abc import Iterable, Sequence

import jax

from selfreward_jax.core.rows import Row
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import LoraSettings, count_lora
from selfreward_jax.llama.params import full_shape, is_spec, param_specs
from selfreward_jax.training.batches import Example

# Peak TFLOP/s of one device in bfloat16 without sparsity, from the makers' data sheets, by a pattern of JAX's name for
# it; the first that fits counts. The T4 has no bfloat16, so its float16 stands here.
PEAK_TFLOPS = {
    r"TPU v4$": 275.0,
    r"TPU v5( lite|e)$": 197.0,
    r"TPU v5p?$": 459.0,
    r"TPU v6( lite|e)$": 918.0,
    r"\bA100\b": 312.0,
    r"\bH100 PCIe\b": 756.0,
    r"\bH100 NVL\b": 835.0,
    r"\b(H100|H200)\b": 989.0,
    r"\bL4\b": 121.0,
    r"\bT4\b": 65.0,
}


def peak_flops(device_kind: str, given_tflops: float = 0.0) -> float | None:
    """FLOP/s of one device: what is given, else what its kind is known for; None where neither is."""
    known = (tflops for pattern, tflops in PEAK_TFLOPS.items() if re.search(pattern, device_kind))
    tflops = given_tflops or next(known, None)
    return None if tflops is None else tflops * 1e12


def train_flops(config: LlamaConfig, examples: Iterable[Example], lora: LoraSettings | None = None) -> int:
    """Model FLOP of a forward and a backward pass over rows (see the top of this file).

    A prompt that several answers share counts for each of them, as TRL's rows do.
    """
    c = config
    each = 4 if lora else 6
    layers = jax.tree.leaves(param_specs(c)["layers"], is_leaf=is_spec)
    matrices = sum(math.prod(full_shape(c, spec)) for spec in layers if spec.kind == "matrix")
    adapter = count_lora(c, lora) if lora else 0
    total = 0
    for example in examples:
        T, R = len(example), len(example.response_ids)
        total += each * (matrices * T + c.vocab_size * c.hidden_size * R)
        total += 6 * adapter * T
        total += 6 * c.num_layers * c.num_heads * c.head_dim * T * (T + 1)
    return total


def step_timing(
    step: int, seconds: float, *, tokens: int, positions: int, flops: int, devices: int, peak: float | None
) -> Row:
    """One step's line.

    Args:
      seconds: of the whole step, saving a checkpoint not included.
      tokens: of prompts and responses.
      positions: of the padded batches.
      flops: model FLOP of all tokens.
      devices: that shared the step.
      peak: FLOP/s of each; None leaves `mfu` out.
    """
    row = {
        "step": step,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "padding": max(0.0, 1 - tokens / positions),  # a shared prompt counts once as a position
        "model_tflops_per_second": flops / seconds / 1e12,
    }
    return row | ({"mfu": flops / seconds / (devices * peak)} if peak else {})


def closing_line(timings: Sequence[Row]) -> str:
    """Medians over the steps, which the few that compile a program don't sway."""
    median = lambda name: statistics.median(row[name] for row in timings)  # noqa: E731
    mfu = f", MFU {100 * median('mfu'):.1f}%" if all("mfu" in row for row in timings) else ""
    return (
        f"{median('tokens_per_second'):.0f} tok/s{mfu}, {median('step_seconds'):.3g} s a step (medians),"
        f" {100 * median('padding'):.0f}% padding"
    )
