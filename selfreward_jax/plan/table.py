"""A plan as tables for people."""

import math
from collections.abc import Sequence

from rich.table import Table

from selfreward_jax.core.console import Terminal
from selfreward_jax.plan.compiled import Result, mfu, rate
from selfreward_jax.plan.iteration import Part, total
from selfreward_jax.plan.machines import Machine
from selfreward_jax.plan.search import Tried

KINDS = (
    "parameters", "adapter", "sampling weights", "optimizer", "summed gradients", "gradients", "KV cache", "batch",
    "results", "temporaries",
)  # fmt: skip


def told(r: Result) -> str:
    """A result in a line."""
    if r.too_big:
        return f"{r.planned.name}: TOO BIG, {r.too_big}"
    return f"{r.planned.name}: {gib(r.total)} GiB, {1000 * r.roofline:.3g} ms, bound by {r.bound}"


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}" if size >= 2**30 / 200 else ("0" if not size else "<0.01")


def memory_table(results: Sequence[Result], machine: Machine) -> Table:
    """GiB on each device, by kind."""
    known = math.isfinite(machine.chip.hbm_gib)
    limit = f", GiB of {machine.chip.hbm_gib:g}" if known else ", GiB"
    table = Table(title=f"Memory of one device{limit}", title_justify="left")
    kinds = [k for k in KINDS if any(r.memory.get(k, 0) >= 2**30 / 200 for r in results)]
    table.add_column("program")
    for name in (*kinds, "all", "of it"):
        table.add_column(name, justify="right")
    for r in results:
        share = "" if not known else f"{100 * r.total / (machine.chip.hbm_gib * 2**30):.0f}%"
        row = [gib(r.memory.get(k, 0)) if r.memory.get(k) else "" for k in kinds]
        table.add_row(r.planned.name, *row, gib(r.total), "TOO BIG" if r.too_big else share)
    return table


def speed_table(results: Sequence[Result], machine: Machine) -> Table:
    """Operations, traffic and the roofline."""
    table = Table(title="One call on each device, at full speed", title_justify="left")
    for name in (
        "program",
        "TFLOP",
        "HBM GB",
        "sent GB",
        "matrix ms",
        "HBM ms",
        "ICI ms",
        "bound",
        "tok/s/chip",
        "MFU",
    ):
        table.add_column(name, justify="left" if name in ("program", "bound") else "right")
    for r in results:
        if not r.seconds:
            continue
        p, time = r.planned, r.roofline
        table.add_row(
            p.name, f"{r.flops / 1e12:.3g}", f"{r.bytes / 1e9:.3g}", f"{sum(r.wire.values()) / 1e9:.3g}",
            *(f"{1000 * r.seconds[name]:.3g}" for name in ("matrix", "hbm", "ici")), r.bound,
            f"{rate(r, machine):.0f}" if p.tokens and time else "",
            f"{100 * mfu(r, machine):.0f}%" if p.model_flops and time else "",
        )  # fmt: skip
    return table


def collectives_table(results: Sequence[Result]) -> Table:
    """How often each kind of collective operation is done in a call, and what it sends."""
    kinds = sorted({kind for r in results for kind in r.counts})
    table = Table(title="Collective operations of a call: how many, GB sent by each device", title_justify="left")
    table.add_column("program")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for r in results:
        if r.counts:
            cells = [f"{r.counts[k]:,}: {r.wire[k] / 1e9:.3g}" if k in r.counts else "" for k in kinds]
            table.add_row(r.planned.name, *cells)
    return table


def iteration_table(parts: Sequence[Part], machine: Machine, price: float) -> Table:
    """Hours of an iteration."""
    table = Table(title="One iteration, expected", title_justify="left")
    for name in ("stage", "work"):
        table.add_column(name)
    for name in ("hours", "chip-hours", *(("USD",) if price else ())):
        table.add_column(name, justify="right")

    for part in (*parts, total(parts)):
        if part.seconds is None:
            table.add_row(part.stage, part.work, *["-"] * (2 if price else 1), part.missing)
            continue
        hours = part.seconds / 3600
        cost = (f"{price * hours * machine.chips:,.0f}",) if price else ()
        table.add_row(part.stage, part.work, f"{hours:.3g}", f"{hours * machine.chips:,.3g}", *cost)
    return table


def show_tried(what: str, tried: Sequence[Tried], machine: Machine) -> None:
    """Candidates of a search as one table, best first."""
    table = Table(title=f"Layouts tried for a {what}", title_justify="left")
    for name in ("layout", "estimated GiB", "GiB", "matrix ms", "HBM ms", "ICI ms", "tok/s/chip", "MFU"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for t in tried:
        layout, r = " ".join(f"{name}={value}" for name, value in t.candidate.changes.items()), t.result
        cells = [layout, gib(t.candidate.bytes)]
        if r is None or r.too_big:
            table.add_row(*cells, t.why or r.too_big if r else t.why)
            continue
        times = (f"{1000 * r.seconds[name]:.3g}" for name in ("matrix", "hbm", "ici"))
        table.add_row(*cells, gib(r.total), *times, f"{rate(r, machine):.0f}", f"{100 * mfu(r, machine):.0f}%")
    _console().print(table)


def _console() -> Terminal:
    console = Terminal(highlight=False)
    if not console.is_terminal:
        console.width = 150
    return console


def show(results: Sequence[Result], parts: Sequence[Part], machine: Machine, price: float) -> None:
    """Prints the whole plan."""
    console = _console()
    for table in (memory_table(results, machine), speed_table(results, machine), collectives_table(results)):
        if table.row_count:
            console.print(table)
    for r in results:
        if r.too_big:
            where = " (GiB on a device)" if r.seconds else " (GiB on all devices together)"
            console.print(f"{r.planned.name} does not fit: {r.too_big}. Its largest arrays{where}:")
            for source, array, size in r.largest[:8]:
                console.print(f"  {gib(size):>6} GiB  {array}  {source}", markup=False)
    if parts:
        console.print(iteration_table(parts, machine, price))
    for note in dict.fromkeys(f"{r.planned.name}: {n}" for r in results for n in r.notes):
        console.print(note, markup=False)
