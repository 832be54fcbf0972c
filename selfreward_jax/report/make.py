"""Makes the report of a run: reads its folder, writes one page."""

from etils import epath

from selfreward_jax.core.store import write_atomic
from selfreward_jax.report.collect import collect
from selfreward_jax.report.page import render

REPORT, SAMPLES = "report.html", 50


def write_report(root: epath.Path, output: epath.Path, *, samples: int = SAMPLES, seed: int = 0) -> None:
    """Writes the page; nothing in it depends on the clock, so that the same run has the same page.

    Args:
      root: the run's folder; no model in it is loaded.
      samples: how many prompts it shows with their answers, chosen by the seed.

    Raises:
      UserError: there is no run, or a file of it is damaged.
    """
    write_atomic(output, render(collect(root, samples=samples, seed=seed)))
