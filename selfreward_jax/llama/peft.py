"""Adapters as folders of Hugging Face PEFT (`adapter_config.json`, `adapter_model.safetensors`), read and written.

As with models, whatever the forward pass would not honour is refused by name.
"""

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import RULES, Rules
from selfreward_jax.core.paths import local_path
from selfreward_jax.llama import hf, hf_save
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import Adapter, LoraSettings, lora_specs
from selfreward_jax.llama.params import PROJECTIONS, param_specs, shardings

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Keys of `adapter_config.json` that change what the adapter does, or what it was trained on; a set value is refused.
UNSUPPORTED_KEYS = (
    "fan_in_fan_out",
    "bias",
    "lora_bias",
    "modules_to_save",
    "exclude_modules",
    "layers_to_transform",
    "layer_replication",
    "rank_pattern",
    "alpha_pattern",
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


def load_adapter(folder: epath.PathLike, config: LlamaConfig, mesh: Mesh, rules: Rules = RULES) -> Adapter:
    """Reads an adapter for a model of this shape, as float32.

    Raises:
      UserError: a missing or damaged file, a target or a feature that is not supported, or tensors that are missing,
        left over, or of another shape than rank and model say.
    """
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; an adapter is a folder with {CONFIG} and {WEIGHTS}.")
    fields = hf.read_json(folder / CONFIG)
    settings = settings_from_peft(fields, config, where=str(folder / CONFIG))
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder}: {WEIGHTS} is missing; adapters are read from safetensors only.")
    specs = lora_specs(config, settings)
    with contextlib.ExitStack() as opened:
        tensors = hf.open_tensors(folder, {WEIGHTS: None}, opened)
        params = hf.assemble_params(
            config, tensors, where=str(folder / WEIGHTS), dtype="float32",
            shardings=shardings(config, mesh, specs, rules), specs=specs,
        )  # fmt: skip
    return Adapter(settings, params, str(fields.get("base_model_name_or_path") or ""))


def settings_from_peft(fields: Mapping[str, Any], config: LlamaConfig, where: str) -> LoraSettings:
    """What a parsed `adapter_config.json` says; `where` is its name, for error messages."""
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
    except KeyError as missing:
        raise UserError(f"{where}: the field {missing} is missing.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a field has an unusable value ({error}).") from None
    if rank < 1 or not math.isfinite(alpha) or not 0 <= dropout < 1:
        raise UserError(f"{where}: r {rank}, lora_alpha {alpha}, lora_dropout {dropout} are no usable numbers.")
    targets = _targets(fields.get("target_modules"), config, where)
    return LoraSettings(rank, alpha, targets, dropout, bool(fields.get("use_rslora")))


def _targets(modules: Any, config: LlamaConfig, where: str) -> tuple[str, ...]:
    """`target_modules` (names, or one pattern, as PEFT takes them) as names of the table of parameters."""
    layers = param_specs(config)["layers"]
    paths = {name: layers[name].hf_name.removesuffix(".weight") for name in PROJECTIONS}
    if isinstance(modules, str):
        try:
            every = modules == "all-linear"
            found = [n for n, path in paths.items() if every or re.fullmatch(modules, path.format(layer=0))]
        except re.error as error:
            raise UserError(f"{where}: target_modules {modules!r} is no pattern ({error}).") from None
    else:
        names = {path.rsplit(".", 1)[1]: name for name, path in paths.items()}
        wanted = [str(module).rsplit(".", 1)[-1] for module in modules or ()]
        if unknown := [module for module in wanted if module not in names]:
            raise UserError(f"{where}: target_modules: {unknown[0]} is not supported; {', '.join(names)} are.")
        found = [name for name in PROJECTIONS if name in {names[module] for module in wanted}]
    if not found:
        raise UserError(f"{where}: target_modules {modules!r} names no matrix of the model.")
    return tuple(found)


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
