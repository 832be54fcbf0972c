"""A program compiled for the described machine, and what it would need and take there."""

import collections
import dataclasses
import math
import re
import time
from typing import Any

import jax

from selfreward_jax.core.mesh import bytes_on_device
from selfreward_jax.engine.compiling import compiled_anew
from selfreward_jax.plan.collectives import Collective
from selfreward_jax.plan.costs import costs
from selfreward_jax.plan.hlo import Array
from selfreward_jax.plan.machines import Machine
from selfreward_jax.plan.shapes import Planned
from selfreward_jax.plan.values import largest_arguments, largest_values


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found out about one program, all of one device.

    Attributes:
      memory: bytes by kind; what the program gives beside what it was given is under `results`, all that lies in
        memory while it runs and no longer under `temporaries`.
      flops, bytes: done, and moved between memory and the device, in one call; in a decode program in one step.
      wire: bytes sent to other devices, by kind of the collective operation.
      counts: how often each kind is done.
      seconds: of a call by what bounds it, `matrix`, `hbm` and `ici`, as if each were alone and at its full speed.
      too_big: why it doesn't fit, "" if it does.
      largest: the largest arrays, (source, shape, bytes); of a program that was refused, of all devices together.
      notes: what could not be counted, and what was expected instead.
      text: the compiled program's; "" if it didn't fit.
    """

    planned: Planned
    memory: dict[str, float]
    flops: float
    bytes: float
    wire: dict[str, float]
    counts: dict[str, int]
    seconds: dict[str, float]
    too_big: str
    largest: list[tuple[str, str, float]]
    notes: list[str]
    compile_seconds: float
    text: str = dataclasses.field(default="", repr=False)

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def bound(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def roofline(self) -> float:
        """Seconds that a call takes at the least, everything at its full speed and all at once; infinite if refused."""
        return max(self.seconds.values(), default=math.inf)


def compile_planned(planned: Planned, machine: Machine) -> Result:
    """Compiles a program; that it doesn't fit is a result too."""
    begun = time.perf_counter()
    if planned.too_big:
        arrays = largest_arguments(planned)
        return Result(planned, dict(planned.kinds), 0.0, 0.0, {}, {}, {}, planned.too_big, arrays, [], 0.0)
    lowered = planned.lower()
    try:
        with compiled_anew():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(planned, machine, str(error), time.perf_counter() - begun)
    text, stats = compiled.as_text(), compiled.memory_analysis()
    seconds = time.perf_counter() - begun
    found = costs(text, planned.rounds)
    memory = dict(planned.kinds)
    memory["results"] = max(0.0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    memory["temporaries"] = float(stats.temp_size_in_bytes)
    memory = {name: size for name, size in memory.items() if size}
    hbm, total = machine.chip.hbm_gib * 2**30, sum(memory.values())
    too_big = "" if total <= hbm else f"needs {total / 2**30:.2f} GiB of {machine.chip.hbm_gib:.2f} GiB"
    wire: dict[str, float] = collections.defaultdict(float)
    counts: collections.Counter[str] = collections.Counter()
    for c in found.collectives:
        if len(c.group) > 1:
            wire[c.kind] += c.times * c.wire_bytes
            counts[c.kind] += c.times
    largest = sorted({_told(name, a): a.bytes for name, a in found.largest.items()}.items(), key=lambda x: -x[1])
    notes = list(planned.notes)
    notes += [f"rounds of a loop unknown, counted once: {name}" for name in dict.fromkeys(found.unknown_loops)]
    notes += [f"operations of a kernel unknown: {name}" for name in dict.fromkeys(found.unknown_kernels)]
    return Result(
        planned, memory, found.flops, found.bytes, dict(wire), dict(counts),
        _seconds(found.flops, found.bytes, found.collectives, planned, machine), too_big,
        [(*key, size) for key, size in largest], notes, seconds, text,
    )  # fmt: skip


def _told(name: str, array: Array) -> tuple[str, str]:
    return re.sub(r" \([^)]*\)$", "", name), f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _seconds(flops: float, moved: float, collectives: list[Collective], planned: Planned, machine: Machine):
    devices = list(planned.mesh.devices.flat)

    def sending(c: Collective) -> float:
        members = [devices[i] for i in c.group if i < len(devices)]
        places = [tuple(d.coords) if machine.chip.dimensions else (d.id,) for d in members]
        return c.times * c.wire_bytes / machine.bandwidth(places)

    return {
        "matrix": flops / (machine.chip.tflops * 1e12),
        "hbm": moved / (machine.chip.hbm_gbps * 1e9),
        "ici": sum(sending(c) for c in collectives if len(c.group) > 1),
    }


_NEEDED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of", re.I)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _refused(planned: Planned, machine: Machine, message: str, seconds: float) -> Result:
    """What the compiler said of a program that can't fit, and what is large in it."""
    found = next((m for m in _NEEDED.finditer(message)), None)
    size, unit = [g for g in found.groups() if g is not None] if found else ("0", "")
    need = float(size) * _UNITS[unit.upper()]
    said = f"the program alone needs {need / 2**30:.2f} GiB of {machine.chip.hbm_gib:.2f} GiB"
    too_big = said if found else message.splitlines()[0][:200]
    rest = max(0.0, need - bytes_on_device([x for x in jax.tree.leaves(planned.arguments) if hasattr(x, "sharding")]))
    memory = planned.kinds | ({"temporaries": rest} if rest else {})
    return Result(planned, memory, 0.0, 0.0, {}, {}, {}, too_big, largest_values(planned), [], seconds)


def rate(result: Result, machine: Machine) -> float:
    """Tokens a second and chip at the roofline's speed; 0 where nobody counts them."""
    return result.planned.tokens / result.roofline / machine.chips


def mfu(result: Result, machine: Machine) -> float:
    """Share of the devices' arithmetic that goes into the model's own, at the roofline's speed."""
    return result.planned.model_flops / (machine.devices * machine.chip.tflops * 1e12 * result.roofline)


def as_json(result: Result, machine: Machine) -> dict[str, Any]:
    """For the file beside the table; bytes and seconds, of one call."""
    p, done = result.planned, bool(result.seconds)
    return {
        "program": p.name,
        "fits": not result.too_big,
        "too_big": result.too_big,
        "memory": result.memory,
        "total": result.total,
        "flops": result.flops,
        "bytes": result.bytes,
        "collectives": {
            kind: {"count": result.counts[kind], "bytes": result.wire[kind]} for kind in sorted(result.counts)
        },
        "seconds": result.seconds,
        "bound": result.bound if done else "",
        "roofline": result.roofline if done else None,
        "tokens": p.tokens,
        "tokens_per_second_per_chip": rate(result, machine) if done and p.tokens else None,
        "model_flops": p.model_flops,
        "mfu": mfu(result, machine) if done and p.model_flops else None,
        "largest": [{"source": s, "array": a, "bytes": b} for s, a, b in result.largest],
        "notes": result.notes,
        "compile_seconds": result.compile_seconds,
    }
