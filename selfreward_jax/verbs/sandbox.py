"""`sandbox`: the loop where the truth is known."""

import argparse
from collections.abc import Sequence

from etils import epath

from selfreward_jax.core.config import leaves, load_config
from selfreward_jax.core.console import Terminal
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.lock import alone
from selfreward_jax.core.paths import local_path
from selfreward_jax.sandbox.seeds import WorldSettings
from selfreward_jax.sandbox.study import Study, default_config, study
from selfreward_jax.sandbox.table import table, verdicts


@alone(lambda options: options.workdir)
def sandbox(options: argparse.Namespace, overrides: Sequence[str], interrupt: Interrupt) -> None:
    config = load_config(options.config or default_config(), overrides)
    if dict(leaves(config))["loop.iterations"] < 2:
        raise UserError("config.loop.iterations: the sandbox compares models, so it needs at least 2.")
    world = WorldSettings(
        ift_rows=options.ift_rows,
        eft_rows=options.eft_rows,
        answer_error=options.answer_error,
        judge_noise=options.judge_noise,
        judge_bias=options.judge_bias,
    )
    root = local_path(options.workdir)
    found = study(root, config, world, options.reward, range(options.seeds), interrupt)
    show(found, root, options.reward)


def show(found: Study, root: epath.Path, reward: str) -> None:
    """The table, what can be said from it, and where everything lies."""
    console = Terminal(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    console.print(table(found, reward))
    for line in verdicts(found):
        console.print(line)
    console.print(f"Numbers      {root / 'sandbox.json'}")
    console.print(f"Worlds, runs {root}/seed*/world, {root}/seed*/run; what was measured: {root}/seed*/eval")
