"""The model card of an export: `README.md` with YAML front matter, so that the model explains itself on a hub.

Names and paths come from strangers: in the front matter the YAML library quotes them, in the text all punctuation is
escaped. Of a local path only the last name is told.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any

import jinja2
from etils import epath

from selfreward_jax import __version__
from selfreward_jax.configs import base as defaults
from selfreward_jax.core import hub_rows
from selfreward_jax.core.commit import commit
from selfreward_jax.core.config import leaves
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.hub_rows import HF
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.rows import Row
from selfreward_jax.core.store import Manifest
from selfreward_jax.core.stored import read_json
from selfreward_jax.core.tfds_rows import TFDS
from selfreward_jax.llama import gguf, hf_save, hub
from selfreward_jax.llama.load import MODEL_FILE, locate
from selfreward_jax.report.results import Results, read_results
from selfreward_jax.report.text import shorten, visible
from selfreward_jax.stages import summary
from selfreward_jax.stages.run import stored_config

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([^/]+)(?:/(.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
PATH = re.compile(r"(/|~|\.\.?/|hf:).*/")  # beginning of a text that, among others, is a path
LICENSE = ("license", "license_name", "license_link")
LONGEST = 200  # characters of a value


@dataclasses.dataclass(frozen=True)
class Made:
    """A model that a run made: the run's folder, which model it is (`m3`), and the run's configuration."""

    root: epath.Path
    name: str
    config: Row


@dataclasses.dataclass(frozen=True)
class Base:
    """What a model was made from.

    Attributes:
      name: for people.
      facts: of the front matter: `base_model`, its name on a hub, and the license; as far as they are known.
    """

    name: str
    facts: Row


def made_by(path: str) -> Made | None:
    """The run that made the model at `path`; None where there is none."""
    if not path:
        return None
    place = _place(path)
    # A link to a model may lie outside the run, and a model of a run may be a link to elsewhere.
    for folder in (place, epath.Path(os.path.realpath(place)) if is_local(place) else place):
        if (folder / MODEL_FILE).exists() and (folder.parent / "config.json").exists():
            config = stored_config(folder.parent)
            if "model" in config and "respond" in config:
                return Made(folder.parent, folder.name, config)
    return None


def sampling_of(path: str) -> Row:
    """How the model at `path` answers: section `respond` of its run, else the paper's values."""
    made, paper = made_by(path), defaults.get_config().to_dict()["respond"]
    return paper | made.config["respond"] if made else paper


def model_card(
    path: str, *, hash: str = "", steps: Sequence[Mapping[str, Any]] = (), adapter_of: str = "", date: str = ""
) -> str:
    """The card of a model, or of an adapter.

    Args:
      path: where the model was loaded from.
      hash: of the weights.
      steps: what was done with it since.
      adapter_of: for an adapter the path of the model that it belongs to.
      date: that its chat template was told, "" if it asks for none.
    """
    # Both take a while to import, which only exports should wait for.
    from huggingface_hub import ModelCard, ModelCardData

    made, base = made_by(path), base_of(adapter_of or path)
    name = f"{made.name.upper()} of {_last(str(made.root))}" if made else _title(path)
    if adapter_of and made_by(adapter_of):  # its weights are on no hub
        base = Base(name, {key: value for key, value in base.facts.items() if key != "base_model"})
    results = _eval_results(read_results(made.root / "eval"), made.name.upper()) if made else []
    methods = [str(step["method"]).lower() for step in steps]
    rows = _summary(made) if made else []
    methods += list(dict.fromkeys(row["stage"] for row in rows))
    facts = ModelCardData(
        library_name="peft" if adapter_of else "transformers",
        pipeline_tag="text-generation",
        tags=["selfreward_jax", *(["self-rewarding"] if made else []), *methods, *(["lora"] if adapter_of else [])],
        datasets=(_datasets(made) or None) if made else None,
        model_name=visible(name) if results else None,
        eval_results=results or None,
        **base.facts,
    )
    text = _template().render(
        title=f"{name} (adapter)" if adapter_of else name,
        adapter=bool(adapter_of),
        base=base.name,
        trained=bool(made or steps),
        hash=hash,
        version=__version__,
        commit=_commit(made),
        rows=_table(rows),
        judged_by=summary.judged_by(_fields(made)) if made and any("judge/score_mean" in row for row in rows) else "",
        steps=steps,
        date=date,
        recipe=_recipe(made) if made else {},
    )
    return str(ModelCard(f"---\n{facts.to_yaml()}\n---\n\n{text}"))


def base_of(path: str) -> Base:
    """What a path tells of a model; of a run's model, what its M0's path tells."""
    made = made_by(path)
    if made:
        return base_of(_base_path(made))
    name = _on_hub(path)
    facts = _own_facts(path, name) | ({"base_model": name.repo} if name else {})
    return Base(name.repo if name else _title(path), facts)


def _base_path(made: Made) -> str:
    """The path of a run's M0; on the hub with the commit that it was, which may be in no cache here."""
    path, told = made.config["model"]["path"], made.root / "m0" / MODEL_FILE
    begun = read_json(told) if told.exists() else {}
    return hub.at(path, begun.get("commit", "") if begun.get("path") == path else "")


def _on_hub(path: str) -> hub.Name | None:
    """A model's name on the hub, with its commit; None where it may be a folder that is gone now."""
    if found := CACHED.search(path):
        org, name, commit, file = found.groups()
        return hub.Name(f"{org}/{name}", commit, file or "")
    name = hub.parse(path)
    if not name or COMMIT.fullmatch(name.revision):
        return name
    folder = hub.cached(name)
    return dataclasses.replace(name, revision=folder.name) if folder else None


def _own_facts(path: str, name: hub.Name | None) -> Row:
    """The license, and what it was made from, as the model itself says; of the hub its card alone is downloaded."""
    place = None
    if not name or _place(path).exists():
        try:
            place = locate(path)
        except UserError:  # it lay there when the run began
            return {}
    elif folder := hub.cached(name):
        place = folder / name.file
    found = _facts_of_card(place / hf_save.CARD) if place and place.is_dir() else {}
    if not found and name:
        found = _facts_of_card(_card_on_hub(name))
    if "license" not in found and place and place.is_file():
        text = gguf.read_license(place)
        found |= {"license": text} if re.fullmatch(r"[\w.-]+", text) else {}
    return found


def _card_on_hub(name: hub.Name) -> epath.Path | None:
    """A model's card, at its commit; None if it has none, or there is no network."""
    import huggingface_hub

    try:
        return epath.Path(huggingface_hub.hf_hub_download(name.repo, hf_save.CARD, revision=name.revision))
    except Exception:  # whatever the reason, it can't be had
        return None


def _facts_of_card(card: epath.Path | None) -> Row:
    if card is None or not card.exists():
        return {}
    import yaml
    from huggingface_hub import ModelCard

    try:
        facts: Row = ModelCard(card.read_text(), ignore_metadata_errors=True).data.to_dict()  # pyright: ignore
    except (ValueError, TypeError, yaml.YAMLError):
        return {}  # somebody else's text, of which nothing here depends
    parents = [p for p in _as_list(facts.get("base_model")) if isinstance(p, str) and HUB_NAME.fullmatch(p)]
    told = {key: facts[key] for key in LICENSE if isinstance(facts.get(key), str)}
    return told | ({"base_model": parents if len(parents) > 1 else parents[0]} if parents else {})


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _fields(made: Made) -> Row:
    """The run's configuration by dotted names."""
    return dict(leaves(made.config))


def _datasets(made: Made) -> list[str]:
    """Names on a hub of all data that a run took from there."""
    given = [x for x in summary.used(_fields(made)).values() if isinstance(x, str) and x.startswith(HF)]
    return sorted({name.name for value in given if (name := _parsed(value)) and not name.folder})


def _parsed(value: str) -> hub_rows.Name | None:
    """What `hf:...` names; None where it names nothing."""
    try:
        return hub_rows.parse_name(value)
    except UserError:
        return None


def _summary(made: Made) -> list[Row]:
    """The run's closing table up to this model; empty before the run's end."""
    path = made.root / "summary.json"
    rows = read_json(path, list) if path.exists() else []
    return [row for row in rows if int(row["model"][1:]) <= int(made.name[1:])]


def _table(rows: Sequence[Row]) -> list[list[str]]:
    if not rows:
        return []
    columns = summary.table(rows).columns
    cells = zip(*(column.cells for column in columns), strict=True)
    return [[str(column.header) for column in columns], *([str(cell) for cell in line] for line in cells)]


def _recipe(made: Made) -> Row:
    plain = dict(leaves(json.loads(json.dumps(defaults.get_config().to_dict()))))
    return {name: _shown(x) for name, x in summary.used(_fields(made)).items() if plain.get(name) != x}


def _shown(value: Any) -> Any:
    """A value of the configuration, but of a local path only what it ends with."""
    if isinstance(value, list | tuple):
        return [_last(x) if isinstance(x, str) and PATH.match(x) else x for x in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    if value.startswith(TFDS):
        return value.partition("?")[0]
    name = _parsed(value) if value.startswith(HF) else None
    return value if name and not name.folder else _last(value)


def _last(path: str) -> str:
    return PurePath(path).name or path


def _title(path: str) -> str:
    """A model's own name: what its path ends with, of the hub without organisation and revision."""
    name = _on_hub(path) or hub.parse(path)
    return _last(name.file or name.repo if name else str(_place(path)))


def _place(path: str) -> epath.Path:
    try:
        return local_path(path)
    except UserError:  # of a user of another machine
        return epath.Path(path)


def _eval_results(results: Results, model: str) -> list[Any]:
    """What evaluations in the run's folder found about this model."""
    from huggingface_hub import EvalResult

    def result(data: str, metric: str, value: float, name: str) -> Any:
        data = visible(data)
        return EvalResult(
            task_type="text-generation", dataset_type=data, dataset_name=data, metric_type=metric,
            metric_value=round(value, 4), metric_name=name,
        )  # fmt: skip

    found = [
        result(data, metric, interval.value, f"as a judge: {metric}")
        for data, judges in results.judges.items()
        for judge in judges
        if judge.model == model
        for metric, interval in judge.metrics.items()
        if not math.isnan(interval.value)
    ]
    return found + [
        result(data, "win_rate", x.win_rate.value, visible(f"win rate against {x.b}, judged by {x.judge}"))
        for data, comparisons in results.win_rates.items()
        for x in comparisons
        if x.a == model and not math.isnan(x.win_rate.value)
    ]


def _commit(made: Made | None) -> str:
    """Of the program that made the model."""
    if made is None:
        return commit()
    entry = Manifest(made.root).entry("config.json") or {}
    return entry.get("versions", {}).get("commit", "")


def markdown(value: Any) -> str:
    """A value as text on one line that Markdown, and HTML within it, show as it is, without a link."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}: {x}" for name, x in value.items())
    elif isinstance(value, Iterable) and not isinstance(value, str):
        value = ", ".join(map(str, value))
    text = re.sub(r"([\\`*_{}\[\]<>()#!|~&@:$^])", r"\\\1", shorten(visible(str(value)), LONGEST))
    return re.sub(r"(?i)(www)\.", r"\1\\.", text)  # which is a link even without a scheme


def _template() -> jinja2.Template:
    source = (resources.files("selfreward_jax") / "templates" / "model_card.md.j2").read_text()
    environment = jinja2.Environment(
        finalize=markdown, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(source)
