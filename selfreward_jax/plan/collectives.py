"""The collective operations of a compiled program: who takes part, and what goes over the wire."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from selfreward_jax.plan.hlo import Op, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


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


def collective(program: Program, computation: str, op: Op, kind: str, times: int) -> Collective:
    if kind in ("all-gather", "collective-permute", "collective-broadcast"):
        results = op.results[:1]
        if kind == "all-gather":  # one that is started names what it is given, and then as many results
            results = op.results[len(op.operands) :] if op.code.endswith("-start") else op.results
        size = sum(r.bytes for r in results)
    else:
        ops = program.computations[computation]
        size = sum(ops[n].results[0].bytes for n in op.operands if n in ops and ops[n].results)
    return Collective(kind, size, group_of(op.rest), times, op.source)


def group_of(rest: str) -> tuple[int, ...]:
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
