"""`report`: the page that shows a run, by itself and at the end of every run."""

import argparse

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import say
from selfreward_jax.report.make import REPORT, write_report
from selfreward_jax.stages.run import stored_config
from selfreward_jax.verbs.runs import Overrides


def report(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    root = local_path(options.workdir)
    stored_config(root)
    output = local_path(options.output) if options.output else root / REPORT
    if output.is_dir():
        raise UserError(f"--output={options.output}: a folder; give the name of a file, such as report.html.")
    if not output.parent.exists():
        raise UserError(f"--output={options.output}: the folder {output.parent} does not exist.")
    if is_writer():
        write_report(root, output, samples=options.samples, seed=options.seed)
    say(f"the report lies in {output}")
