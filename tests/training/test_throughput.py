"""Model FLOP are those of the matrix products that the program holds; peaks are found by JAX's device names."""

import math

import jax
import numpy as np
import pytest

from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.loop import micro_batches
from selfreward_jax.training.objectives import SFT
from selfreward_jax.training.packing import Layout
from selfreward_jax.training.step import ForwardSettings, gradients
from selfreward_jax.training.throughput import closing_line, peak_flops, step_timing, train_flops
from tests.engine.small_llama import VARIANTS, random_params

PLAIN = ForwardSettings(dtype="float32", head_chunk=10**6, remat="none", dropout=0.0)


def product_flops(jaxpr) -> int:
    """2 m n k of every matrix product in a program, those in loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                times = equation.params["length"] if equation.primitive.name == "scan" else 1
                total += times * product_flops(inner)
    return total


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_are_those_of_the_programs_matrix_products(name):
    """Of rows without padding, but for the masked half of attention, and scores and logits that are computed twice."""
    config = VARIANTS[name]
    B, T, R = 3, 16, 8
    rows = [TrainRow((Example(tuple(range(T - R)), tuple(range(R))),))] * B
    ((batch, arrays),) = micro_batches(rows, Layout(B, 8))
    params = random_params(config)
    program = jax.make_jaxpr(
        lambda params: gradients(config, SFT(), PLAIN, params, batch, arrays, {"tokens": 1.0}, jax.random.key(0))
    )(params)
    masked = B * 12 * config.num_layers * config.num_heads * config.head_dim * (T * T - T * (T + 1) // 2)
    head_again = B * 2 * config.vocab_size * config.hidden_size * R
    scores_again = B * 2 * config.num_layers * config.num_heads * config.head_dim * T * T
    expected = train_flops(config, [r.examples[0] for r in rows]) + masked + head_again + scores_again
    assert product_flops(program.jaxpr) == expected


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918)]
    + [("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989)]
    + [("NVIDIA L4", 121), ("Tesla T4", 65), ("NVIDIA L40S", None), ("TPU v4 lite", None), ("cpu", None)],
)
def test_peaks_are_known_by_the_devices_name(kind, tflops):
    assert peak_flops(kind) == (tflops and tflops * 1e12)


def test_a_given_peak_comes_first():
    assert peak_flops("NVIDIA L4", 60.5) == 60.5e12 == peak_flops("cpu", 60.5)


def test_a_step_on_several_devices_by_hand():
    row = step_timing(3, 2.0, tokens=300, positions=400, flops=8 * 10**12, devices=4, peak=10e12)
    assert row == {
        "step": 3, "step_seconds": 2.0, "tokens_per_second": 150.0, "padding": 0.25,
        "model_tflops_per_second": 4.0, "mfu": 0.1,
    }  # fmt: skip


def test_where_no_peak_is_known_mfu_is_left_out():
    slow, *rest = (step_timing(n, s, tokens=10, positions=20, flops=1, devices=1, peak=None) for n, s in PACE)
    assert "mfu" not in slow
    assert closing_line([slow, *rest]) == "20 tok/s, 0.5 s a step (medians), 50% padding"
    np.testing.assert_allclose(slow["tokens_per_second"], 0.1)


PACE = [(1, 100.0), (2, 0.5), (3, 0.5)]  # the first compiles
