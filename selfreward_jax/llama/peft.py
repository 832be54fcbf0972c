"""Adapters as folders of Hugging Face PEFT (`adapter_config.json`, `adapter_model.safetensors`), read and written.

As with models, whatever the forward pass would not honour is refused by name.
"""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import RULES, Rules
from selfreward_jax.core.paths import local_path
from selfreward_jax.llama import hf, hf_save, hub
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import Adapter, LoraSettings, lora_specs
from selfreward_jax.llama.params import PROJECTIONS, param_specs, shardings

CONFIG, WEIGHTS = hub.ADAPTER

# Keys of `adapter_config.json` that change what the adapter does, or what it was trained on; a set value is refused.
UNSUPPORTED_KEYS = (
    "fan_in_fan_out",
    "bias",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)
# Starts that leave the base as it is; others (PiSSA, OLoRA, LoftQ) subtract from it what the adapter begins with.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def is_adapter(location: epath.Path) -> bool:
    """Whether a path is a folder of an adapter without a model."""
    return (location / CONFIG).exists() and not (location / hf.CONFIG).exists()


def base_of(folder: epath.Path) -> str:
    """The path or name of the model that an adapter was trained on.

    Raises:
      UserError: the adapter doesn't say.
    """
    fields = hf.read_json(folder / CONFIG)
    base, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder}: {CONFIG} names no base_model_name_or_path; give the base, and this as the adapter.")
    return hub.at(base, revision) if isinstance(revision, str) and hub.parse(base) else base


def load_adapter(folder: epath.PathLike, config: LlamaConfig, mesh: Mesh, rules: Rules = RULES) -> Adapter:
    """Reads an adapter for a model of this shape, as float32.

    Args:
      folder: or a name on the Hugging Face hub, where there is no such folder.

    Raises:
      UserError: a missing or damaged file, a target or a feature that is not supported, or tensors that are missing,
        left over, or of another shape than rank and model say.
    """
    name = hub.parse(str(folder))
    folder = hub.find_adapter(name) if name else local_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; an adapter is a folder with {CONFIG} and {WEIGHTS}.")
    fields = hf.read_json(folder / CONFIG)
    settings, modules = settings_from_peft(fields, config, where=str(folder / CONFIG))
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder}: {WEIGHTS} is missing; adapters are read from safetensors only.")
    specs = lora_specs(config, settings)
    with contextlib.ExitStack() as opened:
        tensors = _padded(
            hf.open_tensors(folder, {WEIGHTS: None}, opened), config, settings, modules, str(folder / WEIGHTS)
        )
        params = hf.assemble_params(
            config, tensors, where=str(folder / WEIGHTS), dtype="float32",
            shardings=shardings(config, mesh, specs, rules), specs=specs,
        )  # fmt: skip
    return Adapter(settings, params, str(fields.get("base_model_name_or_path") or ""))


@dataclasses.dataclass(frozen=True)
class Module:
    """A matrix of one layer that an adapter file holds factors for, of its own rank and scale."""

    name: str
    layer: int
    rank: int
    scale: float


def settings_from_peft(
    fields: Mapping[str, Any], config: LlamaConfig, where: str
) -> tuple[LoraSettings, tuple[Module, ...]]:
    """What a parsed `adapter_config.json` says, and of which matrices of which layers.

    Where ranks or scales differ, the settings have the largest rank and scale 1.

    Args:
      where: the file's name, for error messages.
    """
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {fields.get('peft_type')!r} is not supported; LORA is.")
    for key in UNSUPPORTED_KEYS:
        if fields.get(key) not in (None, False, [], {}, "none"):
            raise UserError(f"{where}: {key} = {fields[key]!r} is not supported; the adapter would act differently.")
    if fields.get("init_lora_weights") not in PLAIN_STARTS:
        raise UserError(
            f"{where}: init_lora_weights = {fields['init_lora_weights']!r} changes the base model too; save the adapter"
            " converted to plain LoRA (PEFT: path_initial_model_for_weight_conversion)."
        )
    try:
        rank, alpha = int(fields["r"]), float(fields["lora_alpha"])
        dropout = float(fields.get("lora_dropout") or 0.0)
        ranks = {key: int(value) for key, value in (fields.get("rank_pattern") or {}).items()}
        alphas = {key: float(value) for key, value in (fields.get("alpha_pattern") or {}).items()}
        places = _targets(fields, config, where)
        rslora = bool(fields.get("use_rslora"))
        sizes = [(_of_pattern(ranks, path, rank), _of_pattern(alphas, path, alpha)) for _, _, path in places]
    except KeyError as missing:
        raise UserError(f"{where}: the field {missing} is missing.") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{where}: a field has an unusable value ({error}).") from None
    except re.error as error:
        raise UserError(f"{where}: {error.pattern!r} is no pattern ({error}).") from None
    for r, a in {(rank, alpha), *sizes}:
        if r < 1 or not math.isfinite(a) or not 0 <= dropout < 1:
            raise UserError(f"{where}: r {r}, lora_alpha {a}, lora_dropout {dropout} are no usable numbers.")
    targets = tuple(name for name in PROJECTIONS if name in {name for name, _, _ in places})
    if len(set(sizes)) == 1:
        rank, alpha = sizes[0]
        settings = LoraSettings(rank, alpha, targets, dropout, rslora)
        return settings, tuple(Module(name, layer, rank, settings.scale) for name, layer, _ in places)
    most = max(r for r, _ in sizes)
    modules = (
        Module(name, layer, r, LoraSettings(r, a, targets, use_rslora=rslora).scale)
        for (name, layer, _), (r, a) in zip(places, sizes, strict=True)
    )
    return LoraSettings(most, float(most), targets, dropout), tuple(modules)


def _of_pattern(values: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first key that ends a module's path, keys being patterns."""
    return next((value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _targets(fields: Mapping[str, Any], config: LlamaConfig, where: str) -> list[tuple[str, int, str]]:
    """The matrices that PEFT would put an adapter on: name in the table of parameters, layer and path.

    `target_modules` and `exclude_modules` are one pattern of whole paths, or ends of paths. With ends,
    `layers_to_transform` picks layers, whose number stands behind one of `layers_pattern` (by default any name).
    """
    wanted, excluded = fields.get("target_modules"), fields.get("exclude_modules") or []
    table = param_specs(config)["layers"]
    paths = {name: table[name].hf_name.removesuffix(".weight") for name in PROJECTIONS}
    every = [(name, n, paths[name].format(layer=n)) for n in range(config.num_layers) for name in PROJECTIONS]
    layers, before = fields.get("layers_to_transform"), fields.get("layers_pattern") or r"[^.]*"
    layers = [layers] if isinstance(layers, int) else layers
    before = [before] if isinstance(before, str) else before

    def ends(path: str, modules: Any) -> bool:
        if isinstance(modules, str):
            return re.fullmatch(modules, path) is not None
        return any(path == module or path.endswith(f".{module}") for module in modules)

    def picked(path: str) -> bool:
        if not layers or isinstance(wanted, str):
            return True
        found = next(filter(None, (re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", path) for name in before)), None)
        return found is not None and int(found[1]) in layers

    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        found = every
    else:
        found = [place for place in every if ends(place[2], wanted or ())]
        if not isinstance(wanted, str):
            known = [path for _, _, path in every]
            if unknown := [module for module in wanted or () if not any(ends(path, [module]) for path in known)]:
                names = ", ".join(path.rsplit(".", 1)[1] for path in paths.values())
                raise UserError(f"{where}: target_modules: {unknown[0]} is not supported; {names} are.")
    found = [place for place in found if picked(place[2]) and not ends(place[2], excluded)]
    if not found:
        raise UserError(f"{where}: target_modules {wanted!r} names no matrix of the model.")
    return found


def _padded(
    tensors: Mapping[str, hf.Tensor], config: LlamaConfig, settings: LoraSettings, modules: Sequence[Module], where: str
) -> dict[str, hf.Tensor]:
    """The factors of every layer, of one rank and scale: zeros for the layers that have none in the file."""
    own, made, listed = {(m.name, m.layer): m for m in modules}, {}, set()
    for name, pair in lora_specs(config, settings).items():
        for layer, side in itertools.product(range(config.num_layers), pair):
            path, shape = pair[side].hf_name.format(layer=layer), pair[side].hf_shape
            if module := own.get((name, layer)):
                listed.add(path)
                if path in tensors:
                    made[path] = _resized(tensors[path], 0 if side == "a" else 1, shape, module, settings)
            else:
                made[path] = hf.Tensor(path, shape, "F32", np.zeros(shape, np.float32).__getitem__)
    if extra := [path for path in tensors if path not in listed]:
        raise UserError(f"{where}: {hf.some(extra)} not part of the adapter that {CONFIG} describes.")
    return made


def _resized(tensor: hf.Tensor, axis: int, shape: tuple[int, ...], module: Module, settings: LoraSettings) -> hf.Tensor:
    """A factor with zeros up to the rank of the settings, on `axis`; B (axis 1) takes on what the scales differ by."""
    held = tuple(module.rank if n == axis else size for n, size in enumerate(shape))
    if tensor.dtype not in hf.DTYPES or (held == shape and module.scale == settings.scale):
        return tensor
    if tensor.shape != held:
        raise UserError(f"{tensor.where} has shape {list(tensor.shape)}, but the config says {list(held)}.")
    factor = module.scale / settings.scale if axis else 1.0

    def read(index: hf.Index) -> np.ndarray:
        whole = np.zeros(shape, np.float32)
        whole[: held[0], : held[1]] = factor * tensor.read((slice(None), slice(None))).astype(np.float32)
        return whole[index]

    return hf.Tensor(tensor.where, shape, "F32", read)


def save_adapter(folder: epath.PathLike, config: LlamaConfig, adapter: Adapter, card: str | None = None) -> None:
    """Writes a folder that `PeftModel.from_pretrained(base, folder)` opens.

    Args:
      card: text of `README.md`, its page on a hub; None writes none.

    In a run of several processes all must call this; the first one writes.

    Raises:
      UserError: `folder` exists.
    """
    target = local_path(folder)
    hf_save.refuse_existing(target)
    hf_save.wait_for_all(f"save_adapter {target}: start")
    specs = lora_specs(config, adapter.settings)
    tensors = [
        hf_save.export_of(specs[name][side], adapter.params[name][side], None, layer)
        for layer in range(config.num_layers)
        for name in specs
        for side in ("a", "b")
    ]
    arrays = {tensor.name: tensor.to_host() for tensor in tensors}  # all processes: gathering is collective
    if jax.process_index() == 0:
        with hf_save.whole_folder(target) as work:
            hf_save.write_safetensors(work / WEIGHTS, arrays)
            if card is not None:
                (work / hf_save.CARD).write_text(card)
            hf_save.write_json(work / CONFIG, _to_peft(config, adapter))
    hf_save.wait_for_all(f"save_adapter {target}: end")


def _to_peft(config: LlamaConfig, adapter: Adapter) -> dict[str, Any]:
    layers, settings = param_specs(config)["layers"], adapter.settings
    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": settings.rank,
        "lora_alpha": alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.use_rslora,
        "target_modules": [layers[name].hf_name.split(".")[-2] for name in adapter.params],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }
