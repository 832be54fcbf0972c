"""Multiplications and additions of a compiled program's operations."""

import functools
import math
import re

from selfreward_jax.plan.hlo import Op, Program
from selfreward_jax.plan.kernels import kernel_flops


def flops(program: Program, computation: str, op: Op, unknown: list[str]) -> float:
    """Of one operation; kernels that nobody can count are added to the unknown."""
    if op.code == "dot":
        lhs = program.operand(computation, op, 0)
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
        dims = [int(x) for x in contracted[1].split(",") if x] if contracted else []
        return 2.0 * op.results[0].size * math.prod(lhs.shape[d] for d in dims)
    if op.code == "convolution":
        return convolution_flops(program, computation, op)
    target = re.search(r'custom_call_target="([^"]*)"', op.rest)
    if target is None or target[1] not in ("tpu_custom_call", "__onednn$matmul"):
        return 0.0
    ops = program.computations[computation]
    arrays = [ops[n].results[0] for n in op.operands if n in ops and ops[n].results]
    shapes = [a.shape for a in arrays]
    if target[1] == "__onednn$matmul":
        return 2.0 * op.results[0].size * shapes[0][-1]
    found = kernel_flops(op.name, shapes, [r.shape for r in op.results])
    if found is None:
        unknown.append(op.name)
    return found or 0.0


def convolution_flops(program: Program, computation: str, op: Op) -> float:
    """Only the products that fall inside of the input count: batch axes are written as windows full of padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    assert labels is not None
    lhs, rhs, out = labels[1], labels[2], labels[3]
    left, right = program.operand(computation, op, 0).shape, program.operand(computation, op, 1).shape
    result = op.results[0].shape
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", re.search(r"window=\{([^}]*)\}", op.rest + " window={}")[1]))  # type: ignore[index]
    spatial = [c for c in out if c.isdigit()]
    flops = 2.0 * right[rhs.index("i")]
    for label, size in zip(out, result, strict=True):
        if not label.isdigit():
            flops *= size

    def field(key: str, n: int, default: str) -> str:
        return window[key].split("x")[n] if key in window else default

    for label in spatial:
        n = int(label)  # a window names its axes by number, in whatever order the labels stand
        low, _, _ = field("pad", n, "0_0").partition("_")
        flops *= _valid(
            left[lhs.index(label)], right[rhs.index(label)], result[out.index(label)],
            int(field("stride", n, "1")), int(low), int(field("lhs_dilate", n, "1")), int(field("rhs_dilate", n, "1")),
        )  # fmt: skip
    return flops


@functools.cache
def _valid(size: int, kernel: int, out: int, stride: int, low: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Pairs of an output and a kernel position along one axis that meet an element of the input."""
    if kernel == 1 and stride == lhs_dilate == 1 and low == 0:
        return min(out, size)
    reach = (size - 1) * lhs_dilate
    found = 0
    for k in range(kernel):
        for o in range(out):
            at = o * stride + k * rhs_dilate - low
            found += 0 <= at <= reach and at % lhs_dilate == 0
    return found
