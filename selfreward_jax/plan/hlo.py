"""What a compiled program does, read from its text: operations, bytes of memory, and collective operations.

XLA's own cost analysis counts the body of a loop once, so a model whose layers are scanned seems to have one. Here
every loop's body counts as often as it runs. A loop whose number of rounds is not written down counts once, and is
named in `Costs.unknown_loops`.

Counts are of one device. Operations are multiplications and additions of matrix products and convolutions, as the
rest is small beside them. Bytes are what each operation reads and writes outside of a TPU's vector memory.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from selfreward_jax.plan.kernels import kernel_flops

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8, "token": 0}

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# They hand on what others have computed, or wait for it.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "async-start", "opt-barrier", "partition-id", "replica-id", "domain", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
    """A shape of the text; `fast` if it lies in a TPU's vector memory, and not in the device's or the host's."""

    dtype: str
    shape: tuple[int, ...]
    fast: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        return self.size * BYTES.get(self.dtype, 4)


@dataclasses.dataclass(frozen=True)
class Op:
    """One line: its results, what it does to which others, and the rest of the line."""

    name: str
    results: tuple[Array, ...]
    code: str
    operands: tuple[str, ...]
    rest: str

    @property
    def free(self) -> bool:
        return self.code in FREE or self.code.endswith(("-done", "-update"))

    def called(self, *keys: str) -> list[str]:
        return [name for key in keys for name in re.findall(rf"\b{key}=%?([\w.\-]+)", self.rest)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation on one device.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: of the whole array: what an all-gather gives, what the others are given.
      group: ids of the devices that take part with device 0, by their place in the mesh.
      times: how often it is done.
      name: of the operation in the program that it comes from.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    times: int
    name: str

    @property
    def wire_bytes(self) -> float:
        """That each device sends in one of these, around a ring."""
        n = len(self.group)
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (n - 1) / max(n, 1)


@dataclasses.dataclass
class Costs:
    """Of one call of a program on one device."""

    flops: float = 0.0
    bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    unknown_kernels: list[str] = dataclasses.field(default_factory=list)
    largest: dict[str, Array] = dataclasses.field(default_factory=dict)


_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=\s]*)\](\{[^{}]*\})?")


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        shape = tuple(int(d.lstrip("<= ")) for d in dims.split(",") if d.strip())
        found.append(Array(dtype, shape, bool(re.search(r"S\([1-46-9]\)", layout))))
    return tuple(found)


def _balanced(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for n in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[n], 0)
        if not depth:
            return n + 1
    return len(text)


def _parse_line(line: str) -> Op | None:
    head, _, body = line.strip().removeprefix("ROOT ").partition(" = ")
    if not body or not head.startswith("%"):
        return None
    end = _balanced(body, 0) if body[0] == "(" else body.find(" ")
    results, rest = body[:end], body[end:].lstrip()
    opening = rest.find("(")
    closing = _balanced(rest, opening)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opening:closing]))
    return Op(head[1:], _arrays(results), rest[:opening], operands, rest[closing:] + " " + rest[opening:closing])


class Program:
    """The computations of a module, by name; each a mapping of its operations by theirs."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Op]] = {}
        self.roots: dict[str, str] = {}
        self.entry = ""
        current: dict[str, Op] = {}
        name = ""
        for line in text.splitlines():
            if line.endswith("{") and (opened := re.match(r"(ENTRY )?%([\w.\-]+) \(", line)):
                name = opened[2]
                current = self.computations[name] = {}
                if opened[1]:
                    self.entry = name
            elif line.startswith("  ") and (op := _parse_line(line)):
                current[op.name] = op
                if line.lstrip().startswith("ROOT "):
                    self.roots[name] = op.name

    def operand(self, computation: str, op: Op, n: int) -> Array:
        return self.computations[computation][op.operands[n]].results[0]


def rounds(program: Program, loop: Op) -> int | None:
    """How often a loop's body runs; None if the text does not say. Counters begin at 0, as all of XLA's own do."""
    if known := re.search(r'known_trip_count[^\d]*"?n"?:"?(\d+)', loop.rest):
        return int(known[1])
    condition = loop.called("condition")[0]
    ops = program.computations[condition]
    root = ops[program.roots[condition]]
    inside = program.computations[root.called("calls")[0]] if root.code == "fusion" else ops
    compared = inside[program.roots[root.called("calls")[0]]] if root.code == "fusion" else root
    counter = next((ops[n] for n in root.operands if n in ops and ops[n].code == "get-tuple-element"), None)
    bounds = {v for op in (*ops.values(), *inside.values()) if (v := _constant(op)) is not None}
    if compared.code != "compare" or "direction=LT" not in compared.rest or counter is None or len(bounds) != 1:
        return None
    return math.ceil(bounds.pop() / _stride(program, loop, counter))


def _stride(program: Program, loop: Op, counter: Op) -> int:
    """What a loop's counter grows by in a round: more than 1 where the compiler has unrolled it."""
    body = loop.called("body")[0]
    ops = program.computations[body]
    place = re.search(r"index=(\d+)", counter.rest)
    grown = ops.get(ops[program.roots[body]].operands[int(place[1])]) if place else None
    if grown is not None and grown.code == "fusion":
        callee = grown.called("calls")[0]
        ops = program.computations[callee]
        grown = ops[program.roots[callee]]
    if grown is None or grown.code != "add":
        return 1
    return next((v for n in grown.operands if n in ops and (v := _constant(ops[n]))), 1)


def _constant(op: Op) -> int | None:
    found = re.search(r"\((-?\d+)\)\s*$", op.rest) if op.code == "constant" else None
    return int(found[1]) if found else None


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
                total.flops += times * _flops(program, name, op, total)
            if (kind := op.code.removesuffix("-start")) in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", op.rest)
                key = channel[1] if channel else f"{outer} {op.name}"
                # A TPU's asynchronous ones appear once for each piece, in loops inside of the one they are done in too.
                if key not in collectives or times < collectives[key].times:
                    collectives[key] = _collective(program, name, op, kind, times)
            if op.code == "while":
                count = rounds(program, op)
                if count is None:
                    source = _source(op)
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
                total.bytes += times * _traffic(program, name, op)
            if not inside:
                for array in op.results:
                    if not array.fast and array.bytes > 0 and op.code not in ("tuple", "while", "parameter"):
                        known = total.largest.get(op.name)
                        if known is None or known.bytes < array.bytes:
                            total.largest[op.name] = array

    visit(program.entry, 1, program.entry, False)
    total.collectives = list(collectives.values())
    keep = sorted(total.largest.items(), key=lambda item: -item[1].bytes)[:12]
    total.largest = {_source(_find(program, name)) + f" ({name})": array for name, array in keep}
    return total


def _find(program: Program, name: str) -> Op:
    return next(ops[name] for ops in program.computations.values() if name in ops)


def _source(op: Op) -> str:
    """The name of the operation in the program that an operation of the text comes from."""
    found = re.search(r'op_name="([^"]*)"', op.rest)
    return found[1] if found else op.name


def _collective(program: Program, computation: str, op: Op, kind: str, times: int) -> Collective:
    if kind in ("all-gather", "collective-permute", "collective-broadcast"):
        results = op.results[:1]
        if kind == "all-gather":  # one that is started names what it is given, and then as many results
            results = op.results[len(op.operands) :] if op.code.endswith("-start") else op.results
        size = sum(r.bytes for r in results)
    else:
        ops = program.computations[computation]
        size = sum(ops[n].results[0].bytes for n in op.operands if n in ops and ops[n].results)
    return Collective(kind, size, _group(op.rest), times, _source(op))


def _group(rest: str) -> tuple[int, ...]:
    """The devices that work together with device 0, or with the first that is named."""
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        groups, dims = ([int(x) for x in found[n].split(",")] for n in (1, 2))
        order = [int(x) for x in found[3].split(",")] if found[3] else range(len(dims))
        return tuple(itertools.islice(_iota(dims, order), groups[-1]))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(x) for x in found[1].split(","))
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", rest
    ):
        return _mesh_group(*found.groups())
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(found[1]), int(found[2])
    return (0,)


def _mesh_group(axes: str, ids: str | None, order: str | None, named: str) -> tuple[int, ...]:
    """A group written as axes of a mesh, or as parts of them, `'axis':(before)size`."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    strides = {name: math.prod(list(sizes.values())[n + 1 :]) for n, name in enumerate(sizes)}
    places = [0]
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named):
        count = int(size) if size else sizes[name]
        stride = strides[name] * (sizes[name] // (int(before) * count) if size else 1)
        places = [place + k * stride for place in places for k in range(count)]
    if ids is None:
        return tuple(places)
    dims = [int(x) for x in ids.split(",")]
    listed = list(_iota(dims, [int(x) for x in order.split(",")] if order else range(len(dims))))
    return tuple(listed[place] for place in places)


def _iota(dims: Sequence[int], order: Iterable[int]) -> Iterator[int]:
    """Numbers from 0 in an array of these sizes, read after its axes were put into another order."""
    order = list(order)
    strides = [math.prod(dims[n + 1 :]) for n in range(len(dims))]
    for place in itertools.product(*(range(dims[n]) for n in order)):
        yield sum(strides[n] * p for n, p in zip(order, place, strict=True))


def _flops(program: Program, computation: str, op: Op, total: Costs) -> float:
    if op.code == "dot":
        lhs = program.operand(computation, op, 0)
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
        dims = [int(x) for x in contracted[1].split(",") if x] if contracted else []
        return 2.0 * op.results[0].size * math.prod(lhs.shape[d] for d in dims)
    if op.code == "convolution":
        return _convolution_flops(program, computation, op)
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
        total.unknown_kernels.append(op.name)
    return found or 0.0


def _convolution_flops(program: Program, computation: str, op: Op) -> float:
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


def _traffic(program: Program, computation: str, op: Op) -> float:
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
