"""`plan`: what a run would need and take on a machine that need not be here."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfreward_jax.core.config import load_config
from selfreward_jax.core.errors import UserError, did_you_mean
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.mesh import mesh_over, mesh_sizes
from selfreward_jax.core.progress import say
from selfreward_jax.core.store import write_atomic
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.known import shape_of
from selfreward_jax.plan import iteration as iterations
from selfreward_jax.plan import machines, table
from selfreward_jax.plan.compiled import Result, as_json, compile_planned
from selfreward_jax.plan.search import sampling, training, try_out
from selfreward_jax.plan.shapes import Lengths, Planned, Plans
from selfreward_jax.plan.target import devices_of

STAGES = ("sft", "dpo", "reference", "reshard", "respond", "judge")


def plan(options: argparse.Namespace, overrides: Sequence[str], interrupt: Interrupt) -> None:
    config: Any = load_config(options.config, overrides)
    machine, stages = machines.parse(options.topology), _stages(options.stages)
    model = shape_of(config.model.path)
    lengths = Lengths(options.prompt_tokens, options.instruction_tokens)
    if not options.search:
        mesh_sizes(config.mesh, machine.devices, machine.name)
    target = Target(config, model, machine, devices_of(machine), lengths, interrupt)
    say(f"{config.model.path} on {machine.name}, {machine.chips} {machine.chip.title}")
    tried: list[dict[str, Any]] = []
    if options.search:
        changes, tried = search_layout(target, options.search)
        target = dataclasses.replace(target, config=changed(config, changes))
    # All of them before the first is compiled, so that a field that can't be is told at once.
    planned = list(programs(target.plans(), stages))
    results = [target.compiled(p) for p in planned]
    means = iterations.Means(options.mean_prompt, options.mean_answer, options.mean_judgement, options.pair_share)
    whole = {"dpo", "respond", "judge"} <= set(stages)
    parts = iterations.iteration(target.config, model.num_layers, results, means, machine) if whole else []
    table.show(results, parts, machine, options.price)
    if options.output:
        facts = _facts(target, results, parts, options.price) | {"tried": tried}
        write_atomic(options.output, json.dumps(facts, indent=1))
        say(f"the same as JSON lies in {options.output}")


@dataclasses.dataclass(frozen=True)
class Target:
    """A configuration, and the machine that it is planned for."""

    config: Any
    model: LlamaConfig
    machine: machines.Machine
    devices: list
    lengths: Lengths
    interrupt: Interrupt

    @property
    def mesh(self) -> dict[str, int]:
        return mesh_sizes(self.config.mesh, self.machine.devices, self.machine.name)

    def plans(self) -> Plans:
        hbm = self.machine.chip.hbm_gib * 2**30
        mesh = mesh_over(self.mesh, self.devices)
        return Plans(self.config, self.model, mesh, self.machine.kind, hbm, self.lengths)

    def compiled(self, planned: Planned) -> Result:
        say(f"compiling {planned.name} ...")
        if self.interrupt.agreed():
            raise Interrupted("of a plan nothing is kept, so the same command begins anew")
        result = compile_planned(planned, self.machine)
        say(table.told(result))
        return result


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a configuration with other values in some fields."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(changes)
    return copy


def search_layout(target: Target, most: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fields of the fastest layout that fits, for training and for sampling, and all that were tried as JSON.

    Raises:
      UserError: none fits.
    """
    found: dict[str, Any] = {}
    facts: list[dict[str, Any]] = []
    machine = target.machine
    kinds = {
        "DPO step": (
            training, ("mesh.data", "mesh.fsdp", "mesh.tensor", "training.remat"),
            lambda plans: next(iter(plans.training("dpo"))),
        ),
        "decode step": (
            sampling, ("generation.tensor", "generation.slots"),
            lambda plans: list(plans.stage("respond").programs())[-1],
        ),
    }  # fmt: skip
    for what, (candidates_for, names, program) in kinds.items():
        so_far = dataclasses.replace(target, config=changed(target.config, found))

        def compiled(changes: Mapping[str, Any], so_far=so_far, program=program) -> Result:
            say(f"trying {' '.join(f'{name}={value}' for name, value in changes.items())}")
            tried = dataclasses.replace(so_far, config=changed(so_far.config, changes))
            return tried.compiled(program(tried.plans()))

        candidates = candidates_for(so_far.config, target.model, machine, target.lengths)
        tried = try_out(candidates, most, names, compiled)
        table.show_tried(what, tried, machine)
        facts += [
            {
                "for": what, "changes": t.candidate.changes, "estimated_bytes": t.candidate.bytes, "why": t.why,
                "result": as_json(t.result, machine) if t.result else None,
            }
            for t in tried
        ]  # fmt: skip
        if not tried or tried[0].seconds == math.inf:
            found_out = f"none of the {len(tried)} layouts of a {what} that were tried fits"
            estimated = f"no layout of a {what} fits, by the formulas (not compiled),"
            raise UserError(
                f"--search: {found_out if tried else estimated} {machine.name}; take a larger slice, fewer tokens"
                " (dpo.max_length, respond.max_new_tokens, --prompt_tokens), training.moments_dtype=int8 or lora.rank."
            )
        found |= tried[0].candidate.changes
    say("the fastest that fit: " + " ".join(f"--config.{name}={value}" for name, value in found.items()))
    return found, facts


def programs(plans: Plans, stages: Sequence[str]) -> Iterator[Planned]:
    """Of the stages, in the order of the algorithm."""
    made = {
        "sft": lambda: plans.training("sft"),
        "reshard": plans.resharding,
        "respond": lambda: plans.stage("respond").programs(),
        "judge": lambda: plans.stage("judge").programs() if plans.config.judge.method != "function" else iter(()),
        "reference": plans.reference,
        "dpo": lambda: plans.training("dpo"),
    }
    for name, programs_of in made.items():
        if name in stages:
            yield from programs_of()


def _stages(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or list(STAGES)
    for name in names:
        if name not in STAGES:
            hint = did_you_mean(name, STAGES)
            raise UserError(f"--stages={text}: no stage {name!r}; there are {', '.join(STAGES)}.{hint}")
    return names


def _facts(target: Target, results: Sequence[Result], parts: Sequence[iterations.Part], price: float) -> dict[str, Any]:
    machine = target.machine

    def part(p: iterations.Part) -> dict[str, Any]:
        hours = None if p.seconds is None else p.seconds / 3600
        spent = None if hours is None else hours * machine.chips
        return {
            "stage": p.stage, "work": p.work, "calls": dict(p.calls), "missing": p.missing, "seconds": p.seconds,
            "hours": hours, "chip_hours": spent, "usd": spent * price if price and spent is not None else None,
        }  # fmt: skip

    return {
        "topology": machine.name,
        "chips": machine.chips,
        "devices": machine.devices,
        "hbm_gib": machine.chip.hbm_gib if math.isfinite(machine.chip.hbm_gib) else None,
        "model": target.config.model.path,
        "mesh": target.mesh,
        "config": target.config.to_dict(),
        "programs": [as_json(r, machine) for r in results],
        "iteration": [part(p) for p in parts],
        "total": part(iterations.total(parts)) if parts else None,
    }
