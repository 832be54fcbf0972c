"""Writes Hugging Face model folders, shard by shard; one gets its name only when it is whole."""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from jax.experimental import multihost_utils

from selfreward_jax.configs import base
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.paths import is_local, local_path
from selfreward_jax.core.store import write_atomic
from selfreward_jax.llama.config import LlamaConfig, config_to_hf, config_to_json
from selfreward_jax.llama.hf import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS
from selfreward_jax.llama.params import Params, ParamSpec, param_specs

PROVENANCE = "provenance.json"
CARD = "README.md"
TOKENIZER_CONFIG = "tokenizer_config.json"
# What `transformers` takes where a file is silent may be what we don't do (it draws from the 50 most probable tokens),
# and may change from one version to the next: so what we do is written out.
NEUTRAL = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
}


def refuse_existing(target: epath.Path) -> None:
    if target.exists():
        raise UserError(f"{target}: exists; choose another folder or remove it.")


@contextlib.contextmanager
def whole_folder(target: epath.Path) -> Iterator[epath.Path]:
    """A folder to write into, which gets the name `target` when the block ends, and vanishes if it fails.

    Object stores can't rename a folder: there the block writes to `target` itself.

    Raises:
      UserError: `target` exists.
    """
    refuse_existing(target)
    partial = target.parent / f"{target.name}.partial" if is_local(target) else target
    if partial.exists():
        partial.rmtree()  # of an export that was killed; nothing else uses this name
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        partial.rmtree()
        raise
    if partial != target:
        partial.rename(target)


def save_pretrained(
    folder: epath.PathLike,
    config: LlamaConfig,
    params: Params,
    tokenizer: Any,
    *,
    dtype=None,
    max_shard_bytes: int = 5 * 2**30,
    provenance: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Writes a folder that `transformers` opens with `from_pretrained`.

    In a run of several processes all must call this; the first one writes.

    Args:
      folder: must not exist; a local folder appears only when it is whole.
      tokenizer: a fast tokenizer of `transformers`, saved with its chat template; None writes none.
      dtype: of the saved weights; None keeps that of `params`.
      max_shard_bytes: a file holds at most this many bytes of weights (or a single tensor); also the host memory used.
      provenance: how the model was made, written as `provenance.json`.
      sampling: how it answers, section `respond` of a configuration; None for the paper's values.
      card: text of `README.md`, the model's page on a hub; None writes none.

    Raises:
      UserError: `folder` exists.
    """
    tensors = _exports(config, params, dtype)
    shards = _pack(tensors, max_shard_bytes)
    target = local_path(folder)
    # Every process looks before any writes, or some would be left waiting for one that gave up.
    refuse_existing(target)
    wait_for_all(f"save_pretrained {target}: start")
    with contextlib.ExitStack() as stack:
        writer = jax.process_index() == 0
        work = stack.enter_context(whole_folder(target)) if writer else None
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            name = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            arrays = {tensor.name: tensor.to_host() for tensor in shard}  # all processes: gathering is collective
            weight_map |= dict.fromkeys(arrays, name)
            if work:
                write_safetensors(work / name, arrays)
            del arrays
        if work:
            if len(shards) > 1:
                index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
                write_json(work / INDEX, index)
            if tokenizer is not None:
                write_tokenizer(work, tokenizer)
            if provenance is not None:
                write_json(work / PROVENANCE, provenance)
            if card is not None:
                (work / CARD).write_text(card)
            dtype_name = tensors[0].dtype.name
            defaults: Any = base.get_config()
            write_json(work / GENERATION_CONFIG, generation_config(config, sampling or defaults.respond))
            # Last, because no reader takes a folder without it for a model.
            (work / CONFIG).write_text(config_to_json(config, dtype_name))
    wait_for_all(f"save_pretrained {target}: end")


def wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def generation_config(config: LlamaConfig, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """`generation_config.json`: the special ids, and every setting of sampling that a reader would fill in otherwise.

    The limit is `max_length`, the context, where transformers would fill in 20 tokens. A limit of new tokens would go
    before the one that other programs ask for by length, such as lm-eval's.

    Args:
      sampling: section `respond` of a configuration.
    """
    hf = config_to_hf(config, "float32")
    ids = {key: hf[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if hf[key] is not None}
    names = ("temperature", "top_p", "top_k")
    optional = {"min_p": sampling["min_p"], "min_new_tokens": sampling["min_new_tokens"]}
    optional["stop_strings"] = list(sampling["stop"])  # `generate` asks for the tokenizer where this is set
    return (
        ids
        | {"do_sample": sampling["temperature"] > 0, "max_length": config.max_position_embeddings}
        | {name: sampling[name] for name in names}
        | {name: value for name, value in optional.items() if value}
        | NEUTRAL
    )


def tokenizer_config(written: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """`tokenizer_config.json` as transformers 5 writes it, with what version 4 would read otherwise.

    It doesn't know the class `TokenizersBackend`, `PreTrainedTokenizerFast` there (5 reads both), and fills in
    `token_type_ids`, which a Llama's `generate` refuses.
    """
    config = {**written, "model_input_names": ["input_ids", "attention_mask"]}
    config |= {name: getattr(tokenizer, name) for name in ("clean_up_tokenization_spaces", "padding_side")}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config


@dataclasses.dataclass(frozen=True)
class Export:
    """One tensor to be written: its name in the file, and where it comes from."""

    name: str
    spec: ParamSpec
    array: Any
    layer: int | None
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.spec.hf_shape) * self.dtype.itemsize

    def to_host(self) -> np.ndarray:
        """The tensor in the file's layout. Collective where the array is spread over processes."""
        array = self.array if self.layer is None else _take_layer(self.array, self.layer)
        if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
            array = multihost_utils.process_allgather(array, tiled=True)
        return self.spec.to_hf(np.asarray(array).astype(self.dtype, copy=False))


# The layer is an argument, not a constant, so that one compiled program serves all layers.
@jax.jit
def _take_layer(stack: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)


def export_of(spec: ParamSpec, array, dtype, layer: int | None = None) -> Export:
    """A parameter's tensor (of one layer, where it has layers); dtype None keeps the array's."""
    saved = np.dtype(array.dtype if dtype is None else dtype)
    return Export(spec.hf_name.format(layer=layer), spec, array, layer, saved)


def _exports(config: LlamaConfig, params: Params, dtype) -> list[Export]:
    """All tensors in the order of the model, so that a shard holds neighbouring layers."""
    specs = param_specs(config)
    layers = [
        export_of(spec, params["layers"][key], dtype, layer)
        for layer in range(config.num_layers)
        for key, spec in specs["layers"].items()
    ]
    ends = {key: export_of(spec, params[key], dtype) for key, spec in specs.items() if key != "layers"}
    return [ends.pop("embed"), *layers, *ends.values()]


def _pack(tensors: list[Export], max_bytes: int) -> list[list[Export]]:
    """Cuts the list into shards of at most `max_bytes`; a larger tensor has a shard of its own."""
    shards: list[list[Export]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def write_safetensors(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    metadata = {"format": "pt"}  # transformers refuses a file without it
    if not is_local(path):
        path.write_bytes(safetensors.numpy.save(arrays, metadata))
    else:
        safetensors.numpy.save_file(arrays, os.fspath(path), metadata)
        os.chmod(path, 0o644)  # the library makes it readable by its owner alone


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer(folder: epath.Path, tokenizer: Any) -> list[str]:
    """Writes a tokenizer so that transformers 4 and 5 both read it as it is. Returns the names of its files.

    `transformers` only writes to local folders, so the files pass through one.
    """
    names = []
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        path = Path(local) / TOKENIZER_CONFIG
        path.write_text(json.dumps(tokenizer_config(json.loads(path.read_text()), tokenizer), indent=2) + "\n")
        for file in sorted(Path(local).rglob("*")):
            if file.is_file():
                names.append(file.relative_to(local).as_posix())
                write_atomic(folder / names[-1], file.read_bytes())
    return names
