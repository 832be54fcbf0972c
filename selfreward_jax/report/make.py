"""Makes the report of a run: reads its folder, writes one page."""

from etils import epath

from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.progress import say
from selfreward_jax.core.store import write_changed

REPORT, SAMPLES = "report.html", 50


def write_report(root: epath.Path, output: epath.Path, *, samples: int = SAMPLES, seed: int = 0) -> None:
    """Writes the page; nothing in it depends on the clock, so that the same run has the same page.

    Args:
      root: the run's folder; no model in it is loaded.
      samples: how many prompts it shows with their answers, chosen by the seed.

    Raises:
      UserError: there is no run, or a file of it is damaged.
    """
    # What draws takes seconds to import, which only those who want a report should wait.
    from selfreward_jax.report.collect import collect
    from selfreward_jax.report.page import render

    write_changed(output, render(collect(root, samples=samples, seed=seed)))


def report_on(root: epath.Path) -> None:
    """The report of a run that has ended; if it can't be made, the run has ended all the same. One process makes it."""
    if not is_writer():
        return
    try:
        write_report(root, root / REPORT)
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        say(f"the report could not be made ({why}); try again: selfreward report --workdir={root}")
