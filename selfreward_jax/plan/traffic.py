"""Bytes that a compiled program's operations read and write outside of a TPU's vector memory."""

import itertools
import math
import re
from collections.abc import Sequence

from selfreward_jax.plan.hlo import Array, Op, Program


def traffic(program: Program, computation: str, op: Op) -> float:
    """Bytes that an operation reads and writes; of an array that it only cuts a piece out of, that piece."""
    ops = program.computations[computation]
    operands = [ops[n].results[0] if n in ops and ops[n].results else None for n in op.operands]
    if op.code.removesuffix("-start") in ("dynamic-slice", "slice", "gather"):
        # One that is started names what it is given, the piece, and a word of its own; it fetches what comes next.
        piece, source = op.results[-2 if op.code.endswith("-start") else -1], operands[0]
        return float(piece.bytes * ((source is None or not source.fast) + (not piece.fast)))
    if op.code in ("dynamic-update-slice", "scatter"):
        return 2.0 * sum(a.bytes for a in operands[1:] if a is not None)
    if op.code == "fusion":
        return _fusion_traffic(program, op, operands)
    if op.code == "copy-start":
        return sum(r.bytes for r in op.results[:2] if not r.fast)
    if 'custom_call_target="AllocateBuffer"' in op.rest:
        return 0.0
    read = sum(a.bytes for a in operands if a is not None and not a.fast)
    results = op.results[-1:] if op.code.endswith("-start") else op.results
    if op.code == "custom-call":  # what it changes in place is counted as read, and little of it is written
        in_place = {int(n) for n in re.findall(r"\{(\d+)\}: \(", op.rest)}
        results = [r for n, r in enumerate(results) if n not in in_place]
    return read + sum(r.bytes for r in results if not r.fast)


def _fusion_traffic(program: Program, op: Op, operands: Sequence[Array | None]) -> float:
    name = op.called("calls")[0]
    total = 0.0
    for n, array in enumerate(operands):
        if array is not None and not array.fast:
            total += min(array.bytes, _read(program, name, n))
    inside = program.computations[name]
    root = inside[program.roots[name]]
    roots = [inside[n] for n in root.operands if n in inside] if root.code == "tuple" else [root]
    for result, made in itertools.zip_longest(op.results, roots):
        if result is not None and not result.fast:
            total += min(result.bytes, _written(program, name, made))
    return total


def _read(program: Program, computation: str, parameter: int) -> float:
    """Bytes that a computation reads of one of its parameters, infinite where it's more than a piece of it."""
    total, given_on = _pieces(program, computation, parameter)
    return math.inf if given_on else total


def _pieces(program: Program, computation: str, parameter: int) -> tuple[float, bool]:
    """Bytes of the pieces that are read of a parameter, and whether it is also what the computation gives."""
    inside = program.computations[computation]
    found = next((p for p in inside.values() if p.code == "parameter" and f"({parameter})" in p.rest), None)
    waiting, total, given_on = [found.name] if found else [], 0.0, False
    while waiting:
        name = waiting.pop()
        given_on |= name == program.roots[computation]
        for user in inside.values():
            for n, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.code in ("dynamic-slice", "slice", "gather") and n == 0:
                    total += user.results[0].bytes
                elif user.code == "bitcast":
                    waiting.append(user.name)
                elif user.code == "fusion":
                    pieces, as_it_is = _pieces(program, user.called("calls")[0], n)
                    total += pieces
                    waiting += [user.name] * as_it_is
                elif not (user.code == "dynamic-update-slice" and n == 0):
                    return math.inf, False
    return total, given_on


def _written(program: Program, computation: str, made: Op | None) -> float:
    """Bytes that a result costs, infinite where it's written whole."""
    inside = program.computations[computation]
    while made is not None and made.code == "bitcast":
        made = inside.get(made.operands[0])
    if made is not None and made.code == "dynamic-update-slice":
        return inside[made.operands[1]].results[0].bytes
    if made is not None and made.code == "fusion":
        callee = made.called("calls")[0]
        return _written(program, callee, program.computations[callee][program.roots[callee]])
    return math.inf
