"""`plan`: what a run would need and take on a machine that need not be here."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from selfreward_jax.core.config import load_config
from selfreward_jax.core.errors import UserError, did_you_mean
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.mesh import mesh_sizes
from selfreward_jax.core.progress import say
from selfreward_jax.core.store import write_atomic
from selfreward_jax.llama.known import shape_of
from selfreward_jax.plan import iteration as iterations
from selfreward_jax.plan import machines, table
from selfreward_jax.plan.compiled import Result, as_json, compile_planned
from selfreward_jax.plan.shapes import Lengths, Planned, Plans, torus_mesh
from selfreward_jax.plan.target import devices_of

STAGES = ("sft", "dpo", "reference", "reshard", "respond", "judge")


def plan(options: argparse.Namespace, overrides: Sequence[str], interrupt: Interrupt) -> None:
    config: Any = load_config(options.config, overrides)
    machine, stages = machines.parse(options.topology), _stages(options.stages)
    model = shape_of(config.model.path)
    sizes = mesh_sizes(config.mesh, machine.devices, machine.name)
    devices = devices_of(machine)
    lengths = Lengths(options.prompt_tokens, options.instruction_tokens)
    plans = Plans(config, model, torus_mesh(sizes, devices), machine.kind, machine.chip.hbm_gib * 2**30, lengths)
    shown = " x ".join(f"{name} {size}" for name, size in sizes.items())
    say(f"{config.model.path} on {machine.name}: {machine.chips} {machine.chip.title}, {shown}")
    results = []
    for planned in programs(plans, stages):
        say(f"compiling {planned.name} ...")
        results.append(compile_planned(planned, machine))
        interrupt.check()
    means = iterations.Means(options.mean_prompt, options.mean_answer, options.mean_judgement, options.pair_share)
    whole = {"dpo", "respond", "judge"} <= set(stages)
    parts = iterations.iteration(config, results, means, machine) if whole else []
    table.show(results, parts, machine, options.price)
    if options.output:
        write_atomic(epath.Path(options.output), json.dumps(_facts(config, machine, sizes, results, parts), indent=1))
        say(f"the same as JSON lies in {options.output}")


def programs(plans: Plans, stages: Sequence[str]) -> Iterator[Planned]:
    """Of the stages, in the order of the algorithm."""
    made = {
        "sft": lambda: plans.training("sft"),
        "reshard": plans.resharding,
        "respond": lambda: plans.stage("respond").programs(),
        "judge": lambda: plans.stage("judge").programs(),
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


def _facts(config: Any, machine: machines.Machine, sizes, results: Sequence[Result], parts) -> dict[str, Any]:
    return {
        "topology": machine.name,
        "chips": machine.chips,
        "model": config.model.path,
        "mesh": sizes,
        "config": config.to_dict(),
        "programs": [as_json(r) for r in results],
        "iteration": [{"stage": p.stage, "work": p.work, "calls": dict(p.calls), "seconds": p.seconds} for p in parts],
    }
