"""The text of a compiled program, taken apart: its computations, and their operations with what these give."""

import dataclasses
import math
import re

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8, "token": 0}

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

    @property
    def source(self) -> str:
        """The name of the operation in the program that this one comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else self.name

    def called(self, *keys: str) -> list[str]:
        return [name for key in keys for name in re.findall(rf"\b{key}=%?([\w.\-]+)", self.rest)]


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
