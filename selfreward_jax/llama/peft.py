"""Adapters as folders of Hugging Face PEFT (`adapter_config.json`, `adapter_model.safetensors`), read and written.

As with models, whatever the forward pass would not honour is refused by name.
"""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from selfreward_jax.core.errors import UserError, first_line, shown
from selfreward_jax.core.mesh import RULES, Rules
from selfreward_jax.core.paths import local_path
from selfreward_jax.llama import hf, hf_save, hub
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import Adapter, LoraSettings, lora_specs
from selfreward_jax.llama.params import PROJECTIONS, param_specs, shardings
from selfreward_jax.llama.patterns import check_pattern

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
MOST_PATTERNS = 10_000  # in one field: there are fewer matrices in any model
MOST_EFFORT = 2_000_000  # of all patterns on all matrices, beside one that leaves nothing open: some seconds
OPEN = 4  # open repetitions in a pattern, which only has to match the short path of a matrix


def is_adapter(location: epath.Path) -> bool:
    """Whether a path is a folder of an adapter without a model."""
    return (location / CONFIG).exists() and not (location / hf.CONFIG).exists()


def base_of(folder: epath.Path) -> str:
    """The path or name of the model that an adapter was trained on.

    Raises:
      UserError: the adapter doesn't say.
    """
    fields = hf.read_json(folder / CONFIG, hf.MOST_CONFIG)
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
    fields = hf.read_json(folder / CONFIG, hf.MOST_CONFIG)
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
        raise UserError(f"{where}: peft_type {shown(fields.get('peft_type'))} is not supported; LORA is.")
    for key in UNSUPPORTED_KEYS:
        if fields.get(key) not in (None, False, [], {}, "none"):
            raise UserError(
                f"{where}: {key} = {shown(fields[key])} is not supported; the adapter would act differently."
            )
    if (start := fields.get("init_lora_weights")) not in PLAIN_STARTS:
        raise UserError(
            f"{where}: init_lora_weights = {shown(start)} changes the base model too; save the adapter"
            " converted to plain LoRA (PEFT: path_initial_model_for_weight_conversion)."
        )
    try:
        rank, alpha = _whole(fields["r"]), float(fields["lora_alpha"])
        dropout = float(fields.get("lora_dropout") or 0.0)
        keys = [*_few(fields, "rank_pattern"), *_few(fields, "alpha_pattern")]
        _check_patterns(keys, config, where)
        ranks = {_compiled(key): _whole(value) for key, value in _few(fields, "rank_pattern").items()}
        alphas = {_compiled(key): float(value) for key, value in _few(fields, "alpha_pattern").items()}
        places = _targets(fields, config, where)
        rslora = bool(fields.get("use_rslora"))
        sizes = [(_of_pattern(ranks, path, rank), _of_pattern(alphas, path, alpha)) for _, _, path in places]
    except KeyError as missing:
        raise UserError(f"{where}: the field {missing} is missing.") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: a field has an unusable value ({first_line(error)}).") from None
    except RecursionError:
        raise UserError(f"{where}: a pattern has too many groups in each other.") from None
    except re.error as error:
        raise UserError(f"{where}: {shown(error.pattern)} is no pattern ({error}).") from None
    # A rank above a model's widths adds nothing, and each matrix would take the memory of a larger one.
    most = max(config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    for r, a in {(rank, alpha), *sizes}:
        if not 1 <= r <= most or not abs(a) < 1e30 or not 0 <= dropout < 1:
            numbers = f"r {shown(r)}, lora_alpha {a}, lora_dropout {dropout}"
            raise UserError(f"{where}: {numbers} are no usable numbers (r goes up to the model's widths, {most}).")
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


def _of_pattern(values: Mapping[re.Pattern[str], Any], path: str, default: Any) -> Any:
    """The value of the first key that ends a module's path, keys being patterns."""
    return next((value for key, value in values.items() if key.match(path)), default)


def _check_patterns(patterns: Sequence[str], config: LlamaConfig, where: str) -> None:
    """Raises `UserError` for patterns that could take very long on the paths of all matrices."""
    effort = sum(check_pattern(pattern, where, OPEN, whole=True) for pattern in patterns)
    if effort * config.num_layers * len(PROJECTIONS) > MOST_EFFORT:
        raise UserError(f"{where}: {len(patterns)} patterns could take very long on {config.num_layers} layers.")


def _compiled(key: str) -> re.Pattern[str]:
    """A key of `rank_pattern` or `alpha_pattern`, which may be a pattern, as the end of a path."""
    return re.compile(rf"(.*\.)?({key})$")


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{shown(value)} is no whole number")
    return value


def _few(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = fields.get(name) or {}
    if not isinstance(found, Mapping):
        raise TypeError(f"{name} is {shown(found)}")
    if len(found) > MOST_PATTERNS:
        raise ValueError(f"{name} has {len(found)} entries")
    return found


def _targets(fields: Mapping[str, Any], config: LlamaConfig, where: str) -> list[tuple[str, int, str]]:
    """The matrices that PEFT would put an adapter on: name in the table of parameters, layer and path.

    `target_modules` and `exclude_modules` are one pattern of whole paths, or ends of paths. With ends,
    `layers_to_transform` picks layers, whose number stands behind one of `layers_pattern` (by default any name).
    """
    wanted, excluded = _modules(fields, "target_modules", where), _modules(fields, "exclude_modules", where)
    table = param_specs(config)["layers"]
    paths = {name: table[name].hf_name.removesuffix(".weight") for name in PROJECTIONS}
    every = [(name, n, paths[name].format(layer=n)) for n in range(config.num_layers) for name in PROJECTIONS]
    layers, before = fields.get("layers_to_transform"), fields.get("layers_pattern") or r"[^.]*"
    layers = {layers} if isinstance(layers, int) else set(layers or ())
    before = [before] if isinstance(before, str) else before[:MOST_PATTERNS]
    _check_patterns(before, config, where)
    numbered = [re.compile(rf"(?:^|.*?\.){name}\.(\d+)\.") for name in before]

    def ends(path: str, modules: str | frozenset[str]) -> bool:
        if isinstance(modules, str):
            return re.fullmatch(modules, path) is not None
        return not modules.isdisjoint(_ends(path))

    def picked(path: str) -> bool:
        if not layers or isinstance(wanted, str):
            return True
        found = next(filter(None, (pattern.match(path) for pattern in numbered)), None)
        return found is not None and int(found[1]) in layers

    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        found = every
    else:
        found = [place for place in every if ends(place[2], wanted)]
        if not isinstance(wanted, str):
            known = {
                ".".join(parts[n:]) for *_, path in every for parts in [path.split(".")] for n in range(len(parts))
            }
            if unknown := sorted(wanted - known):
                names = ", ".join(path.rsplit(".", 1)[1] for path in paths.values())
                raise UserError(f"{where}: target_modules: {unknown[0]} is not supported; {names} are.")
    found = [place for place in found if picked(place[2]) and not ends(place[2], excluded)]
    if not found:
        raise UserError(f"{where}: target_modules {shown(fields.get('target_modules'))} names no matrix of the model.")
    return found


def _ends(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[n:]) for n in range(len(parts))]


def _modules(fields: Mapping[str, Any], name: str, where: str) -> str | frozenset[str]:
    """One pattern of whole paths, or ends of paths."""
    found = fields.get(name) or []
    if isinstance(found, str):
        check_pattern(found, where, OPEN, whole=True)
        return found
    if not isinstance(found, list) or not all(isinstance(module, str) for module in found):
        raise UserError(f"{where}: {name} is {shown(found)}; a pattern or a list of names is needed.")
    return frozenset(found)


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
                made[path] = hf.Tensor(path, shape, "F32", np.broadcast_to(np.float32(0), shape).__getitem__)
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
