"""What a compiled program does, read from its text: operations, bytes of memory, and collective operations.

XLA's own cost analysis counts the body of a loop once, so a model whose layers are scanned seems to have one. Here
every loop's body counts as often as it runs. A loop whose number of rounds is not written down counts once, and is
named in `Costs.unknown_loops`.

Counts are of one device. Operations are multiplications and additions of matrix products and convolutions, as the
rest is small beside them. Bytes are what each operation reads and writes outside of a TPU's vector memory.
"""

import dataclasses
import re
from collections.abc import Mapping

from selfreward_jax.plan.collectives import COLLECTIVES, Collective, collective
from selfreward_jax.plan.flops import flops
from selfreward_jax.plan.hlo import Array, Op, Program, rounds
from selfreward_jax.plan.traffic import traffic


@dataclasses.dataclass
class Costs:
    """Of one call of a program on one device."""

    flops: float = 0.0
    bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    unknown_kernels: list[str] = dataclasses.field(default_factory=list)
    largest: dict[str, Array] = dataclasses.field(default_factory=dict)


def costs(text: str, rounds_of: Mapping[str, int] | None = None) -> Costs:
    """Reads a compiled program's text.

    Args:
      rounds_of: for loops whose rounds aren't written down, by the name of the operation that they come from.
    """
    program, total = Program(text), Costs()
    collectives: dict[str, Collective] = {}

    def visit(name: str, times: int, outer: str, inside: bool) -> None:
        ops = program.computations[name]
        for op in ops.values():
            if op.code in ("dot", "convolution", "custom-call"):
                total.flops += times * flops(program, name, op, total.unknown_kernels)
            if (kind := op.code.removesuffix("-start")) in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", op.rest)
                key = channel[1] if channel else f"{outer} {op.name}"
                # A TPU's asynchronous ones appear once for each piece, in loops inside of the one they are done in too.
                if key not in collectives or times < collectives[key].times:
                    collectives[key] = collective(program, name, op, kind, times)
            if op.code == "while":
                count = rounds(program, op)
                if count is None:
                    source = op.source
                    count = (rounds_of or {}).get(source, 1)
                    if source not in (rounds_of or {}):
                        total.unknown_loops.append(source)
                visit(op.called("body")[0], times * count, op.called("body")[0], False)
            elif op.code == "fusion":
                visit(op.called("calls")[0], times, outer, True)
            elif op.code in ("call", "async-start"):
                for callee in op.called("to_apply", "calls", "called_computation"):
                    visit(callee, times, outer, inside)
            elif op.code == "conditional":
                branches = op.called("true_computation", "false_computation")
                listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
                branches += re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
                visit(max(branches, key=lambda b: len(program.computations[b])), times, outer, inside)
            if not inside and not op.free:
                total.bytes += times * traffic(program, name, op)
            if not inside:
                for array in op.results:
                    if not array.fast and array.bytes > 0 and op.code not in ("tuple", "while", "parameter"):
                        known = total.largest.get(op.name)
                        if known is None or known.bytes < array.bytes:
                            total.largest[op.name] = array

    visit(program.entry, 1, program.entry, False)
    total.collectives = list(collectives.values())
    keep = sorted(total.largest.items(), key=lambda item: -item[1].bytes)[:12]
    total.largest = {_find(program, name).source + f" ({name})": array for name, array in keep}
    return total


def _find(program: Program, name: str) -> Op:
    return next(ops[name] for ops in program.computations.values() if name in ops)
