"""A study in the made world: the whole loop for each of several seeds, and what the models are truly worth."""

import dataclasses
import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from etils import epath

from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Row
from selfreward_jax.core.store import write_atomic
from selfreward_jax.evals.desk import Desk
from selfreward_jax.evals.statistics import Interval, mean_interval
from selfreward_jax.loop import self_reward
from selfreward_jax.report.make import report_on
from selfreward_jax.sandbox.measure import NUMBERS, Measured, measure
from selfreward_jax.sandbox.seeds import WorldSettings, make_world
from selfreward_jax.stages import summary
from selfreward_jax.stages.run import Run

# Who rewards: the fields of the configuration that say so.
REWARDS: dict[str, dict[str, str]] = {
    "self": {},  # every model its own answers (paper)
    "frozen": {"by": "m1"},  # the first judge for ever
    "people": {"method": "function", "function": "{world}/people.py:score"},  # with their noise and their bias
    "truth": {"method": "function", "function": "selfreward_jax.sandbox.world:score"},
}


@dataclasses.dataclass(frozen=True)
class Study:
    """What came out.

    Attributes:
      seeds: for each seed the models M1 to MT.
      rows: for each model the mean of every number over the seeds, with its interval.
      gain: of every number, the last model minus M1, paired by seed.
    """

    seeds: tuple[tuple[Measured, ...], ...]
    rows: tuple[dict[str, Any], ...]
    gain: dict[str, Interval]


def default_config() -> str:
    """The path of configs/sandbox.py, wherever the package is."""
    return str(resources.files("selfreward_jax") / "configs" / "sandbox.py")


def study(
    workdir: epath.PathLike,
    config: Any,
    world: WorldSettings,
    reward: str,
    seeds: Sequence[int],
    interrupt: Interrupt | None = None,
) -> Study:
    """Runs what has not been run yet; a study that was stopped goes on.

    Args:
      config: of the runs; the world's files, the seed and the judge are filled in.
      reward: one of `REWARDS`.

    Raises:
      UserError: the folder was begun with another world, reward or configuration.
    """
    root = local_path(workdir)
    interrupt = interrupt or Interrupt()
    made = []
    for n, seed in enumerate(seeds, 1):
        say(f"seed {seed} ({n} of {len(seeds)})")
        made.append(run_seed(root / f"seed{seed}", config, world, reward, seed, interrupt))
    found = summarise(made)
    write_atomic(root / "sandbox.json", json.dumps(_facts(found, world, reward, seeds), indent=2) + "\n")
    return found


def run_seed(
    folder: epath.Path, config: Any, world: WorldSettings, reward: str, seed: int, interrupt: Interrupt
) -> tuple[Measured, ...]:
    """One world, one run M0 to MT in it, and what each model is worth."""
    place = folder / "world"
    make_world(place, world, seed)
    mine = seed_config(config, place, reward, seed)
    run = Run(str(folder / "run"), mine, interrupt=interrupt)
    self_reward(run)
    summary.summarise(run)
    report_on(run.root)
    own = seed_config(config, place, "self", seed)  # whoever rewards, every model is measured as a judge
    desk = Desk(folder / "eval", own, interrupt)
    names = [f"m{t}" for t in range(1, config.loop.iterations + 1)]
    return tuple(measure(desk, place, desk.ref(str(run.root / name)), name) for name in names)


def seed_config(config: Any, world: epath.Path, reward: str, seed: int) -> Any:
    """The configuration with the world's files, the seed and the judge filled in."""
    made = config.copy_and_resolve_references()
    made.seed = seed
    made.model.path = str(world / "model")
    made.seeds.ift, made.seeds.eft = str(world / "ift.jsonl"), str(world / "eft.jsonl")
    made.prompts.seeds, made.prompts.template = str(world / "tasks.jsonl"), str(world / "prompts.txt")
    made.judge.template = str(world / "judge.txt")
    made.judge.update({name: value.replace("{world}", str(world)) for name, value in REWARDS[reward].items()})
    return made


def summarise(seeds: Sequence[Sequence[Measured]]) -> Study:
    """Means over the seeds with intervals, and the paired difference of the last model to the first."""
    rows = []
    for models in zip(*seeds, strict=True):
        numbers = {name: mean_interval(_defined([getattr(m, name) for m in models])) for name in NUMBERS}
        rows.append({"model": models[0].model, **numbers})
    gain = {
        name: mean_interval(_defined([getattr(models[-1], name) - getattr(models[0], name) for models in seeds]))
        for name in NUMBERS
    }
    return Study(tuple(map(tuple, seeds)), tuple(rows), gain)


def _defined(values: Sequence[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


def _facts(found: Study, world: WorldSettings, reward: str, seeds: Sequence[int]) -> Row:
    def plain(row: dict[str, Any]) -> Row:
        return {k: v.to_json() if isinstance(v, Interval) else v for k, v in row.items()}

    return {
        "kind": "sandbox",
        "reward": reward,
        "world": dataclasses.asdict(world),
        "seeds": {str(seed): [m.to_json() for m in models] for seed, models in zip(seeds, found.seeds, strict=True)},
        "models": [plain(row) for row in found.rows],
        "gain": plain(found.gain),
    }
