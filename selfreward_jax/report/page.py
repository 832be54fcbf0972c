"""The report as one HTML page: tables, figures and samples in a template that escapes all it is given.

The page asks for nothing from anywhere. Its content security policy lets one script run, named by its hash, so that
no text of a model could, even if it came to stand in the page unescaped.
"""

import base64
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from selfreward_jax.methods.template_files import packaged
from selfreward_jax.report import figures, tables
from selfreward_jax.report.checks import check_run
from selfreward_jax.report.collect import RunFacts
from selfreward_jax.report.plots import SERIES
from selfreward_jax.report.text import visible
from selfreward_jax.report.topics import SEEDS, PromptMap, map_prompts
from selfreward_jax.stages.summary import judged_by, learns_from_given


class Named(NamedTuple):
    """The figures of one data file of an evaluation."""

    name: str
    about: str
    panels: Sequence[Markup]
    table: tables.Table | None = None
    parts: tables.Table | None = None


def render(run: RunFacts) -> str:
    """The whole page."""
    script = packaged("report.js")
    found = check_run(run)
    passed = [f for f in found if not f.look]
    own = [f"M{n}" for n in range(len(run.models))]
    topics = map_prompts(run.seeds | {f"M{i.t}": i.prompts for i in run.iterations})
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(packaged("report.html.j2")).render(
        run=run,
        base=run.settings.get("model.path", ""),
        given=learns_from_given(run.settings),
        judge=judged_by(run.settings),
        tiles=tables.tiles(run),
        warnings=[list(same) for _, same in itertools.groupby((f for f in found if f.look), lambda f: f.name)],
        passed=passed,
        passed_table=tables.passed(passed),
        models=tables.models(run),
        drops=tables.drops(run),
        clusters=tables.clusters(topics) if topics else None,
        settings=tables.settings(run),
        figures=_figures(run, topics),
        map_left_out=f"{topics.left_out:,}" if topics and topics.left_out else "",
        samples=run.samples,
        colors={name: f"var(--s{n % len(SERIES)})" for names in (own, SEEDS) for n, name in enumerate(names)},
        style=Markup(packaged("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return visible(page)


def _figures(run: RunFacts, topics: PromptMap | None) -> dict[str, Any]:
    learnt = {i.t: next((tables.learnt(m) for m in run.models if m.name == f"M{i.t}"), None) for i in run.iterations}
    return {
        "scores": figures.score_histograms(run.models),
        "lengths": figures.lengths(run.models, run.iterations),
        "judges": [
            Named(name, f"{found[-1].prompts:,} prompts", figures.judge_accuracy(found))
            for name, found in run.results.judges.items()
            if found
        ],
        "wins": [
            Named(
                name,
                f"judged by {found[0].judge}",
                figures.win_rates(found),
                tables.win_rates(found),
                tables.win_categories(found),
            )
            for name, found in run.results.win_rates.items()
        ],
        "dpo": figures.training_curves(run.models, "dpo"),
        "sft": figures.training_curves(run.models, "sft"),
        "funnels": figures.funnels(run.iterations, learnt),
        "map": figures.prompt_map(topics) if topics else "",
    }
