"""Reads Hugging Face model folders: `config.json` and safetensors shards. `llama/hf_save.py` writes them.

Reading goes parameter by parameter. Each device's slice is cut out of the files, so that a host never holds more
than one parameter (all its layers). Weights in pickle files are refused, since loading a pickle runs code.

The steps after a file has been opened, `assemble_params`, know nothing about safetensors: they work on `Tensor`s, and
`llama/gguf.py` uses them too.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from selfreward_jax.core.errors import UserError, first_line
from selfreward_jax.core.paths import check_file, is_local, matching
from selfreward_jax.llama.config import LlamaConfig, config_from_hf, token_ids
from selfreward_jax.llama.params import Params, ParamSpec, full_shape, is_spec, param_specs

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

MOST_JSON = 128 << 20  # bytes; the largest file of a model that is read whole, a tokenizer.json, has some 35 MiB
MOST_CONFIG = 1 << 20  # of what only describes a model or an adapter

DTYPES = {"BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32}

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file, in Hugging Face layout.

    Attributes:
      where: the file's path and the tensor's name in it, for error messages.
      shape: of the whole tensor.
      dtype: of what `read` returns, by its name in safetensors files.
      read: cuts a slice of step 1 per axis out of the file.
    """

    where: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Index], np.ndarray]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_config(folder: epath.PathLike) -> LlamaConfig:
    """Reads `config.json`, and from `generation_config.json` any further ids that end a text.

    Chat models often end a turn with a token that only `generation_config.json` names.

    Raises:
      UserError: a missing or malformed file, or a feature that the forward pass would not honour.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a Hugging Face model folder (config.json, safetensors) is needed.")
    path = folder / CONFIG
    config = config_from_hf(read_json(path, MOST_CONFIG), where=str(path))
    generation_path = folder / GENERATION_CONFIG
    if not generation_path.exists():
        return config
    generation = read_json(generation_path, MOST_CONFIG)
    further = token_ids(str(generation_path), "eos_token_id", generation.get("eos_token_id"))
    return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys([*config.eos_token_ids, *further])))


def load_params(folder: epath.PathLike, config: LlamaConfig, *, dtype=None, shardings=None) -> Params:
    """Reads the weights of a Hugging Face folder.

    Args:
      folder: holds `model.safetensors`, or `model.safetensors.index.json` and the shards it names.
      config: what `read_config` gave.
      dtype: storage dtype of the arrays; None keeps the file's.
      shardings: tree of `jax.sharding.Sharding` of the structure of `param_specs(config)`; None puts everything on
        the default device.

    Raises:
      UserError: a missing, damaged, pickled or quantised file; a tensor that is missing, of another shape than the
        config says, or of no use to the forward pass.
    """
    folder = epath.Path(folder)
    with contextlib.ExitStack() as opened:
        tensors = open_tensors(folder, weight_map(folder), opened)
        return assemble_params(config, tensors, where=str(folder), dtype=dtype, shardings=shardings)


def assemble_params(
    config: LlamaConfig, tensors: Mapping[str, Tensor], *, where: str, dtype=None, shardings=None, specs=None
) -> Params:
    """Stacks, transposes, casts and places the tensors of a model, one parameter at a time.

    Args:
      tensors: by Hugging Face name.
      where: folder or file, for error messages.
      dtype, shardings: as in `load_params`.
      specs: the tree of `ParamSpec`s to assemble; None for the model's own.
    """
    specs = param_specs(config) if specs is None else specs
    check_tensors(config, tensors, where, specs)

    def load(spec: ParamSpec, sharding: jax.sharding.Sharding | None) -> jax.Array:
        sources = [tensors[name] for name in _hf_names(config, spec)]
        found = functools.reduce(jnp.promote_types, (DTYPES[source.dtype] for source in sources))
        target = np.dtype(found if dtype is None else dtype)
        read = functools.partial(_read_param, spec, sources, target)
        shape = full_shape(config, spec)
        if sharding is None:
            array = jnp.asarray(read(tuple(slice(None) for _ in shape)))
        else:
            array = jax.make_array_from_callback(shape, sharding, _once_per_slice(read, shape), dtype=target)  # pyright: ignore
        # Transfers are asynchronous and hold on to the host's copy: wait, so that there is only one at a time.
        return array.block_until_ready()

    shardings = shardings if shardings is not None else jax.tree.map(lambda _: None, specs, is_leaf=is_spec)
    return jax.tree.map(load, specs, shardings, is_leaf=is_spec)


def check_tensors(config: LlamaConfig, tensors: Mapping[str, Tensor], where: str, specs) -> None:
    """Refuses tensors that are missing, quantised, of another shape than the config says, or of no use to the model."""
    expected = tensor_shapes(config, specs)
    if missing := [name for name in expected if name not in tensors]:
        raise UserError(f"{where}: {some(missing)} missing; the files are incomplete or don't belong to this config.")
    for name, shape in expected.items():
        found = tensors[name]
        if found.dtype not in DTYPES:
            raise UserError(
                f"{found.where} has dtype {found.dtype}; only {', '.join(DTYPES)} are read, so use the model's "
                "unquantised files."
            )
        if found.shape != shape:
            raise UserError(f"{found.where} has shape {list(found.shape)}, but the config says {list(shape)}.")
    if extra := [name for name in tensors if name not in expected and not _ignored(config, name)]:
        raise UserError(
            f"{where}: {some(extra)} not part of the model that the config describes; "
            "leaving tensors out would change its answers."
        )


def _ignored(config: LlamaConfig, name: str) -> bool:
    """Old Llama 2 files hold their rotary frequencies; a tied model's file may hold its embedding a second time."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def tensor_shapes(config: LlamaConfig, specs) -> dict[str, tuple[int, ...]]:
    """Of all tensors of a tree of `ParamSpec`s, by their names in a file."""
    leaves = jax.tree.leaves(specs, is_leaf=is_spec)
    return {name: spec.hf_shape for spec in leaves for name in _hf_names(config, spec)}


def _hf_names(config: LlamaConfig, spec: ParamSpec) -> list[str]:
    """The tensors that a parameter is stacked from: one per layer, or just one."""
    return [spec.hf_name.format(layer=i) for i in range(config.num_layers)] if spec.stacked else [spec.hf_name]


def _read_param(spec: ParamSpec, sources: list[Tensor], dtype: np.dtype, index: Index) -> np.ndarray:
    """A slice of a parameter, `index` being over its full shape (with the layer axis, where it has one)."""
    if not spec.stacked:
        return _read_layer(spec, sources[0], index).astype(dtype, copy=False)
    sources, index = sources[index[0]], index[1:]
    sizes = (len(range(*cut.indices(size))) for cut, size in zip(index, spec.shape, strict=True))
    stack = np.empty((len(sources), *sizes), dtype)
    for layer, source in enumerate(sources):
        stack[layer] = _read_layer(spec, source, index)
    return stack


def _read_layer(spec: ParamSpec, source: Tensor, index: Index) -> np.ndarray:
    """A slice of one layer of a parameter, reading no more rows and columns of the file than it touches.

    An axis of the file is a group of axes of the parameter, flattened (`[heads * head_dim, embed]`): narrowing the
    first axis of a group is a contiguous range there; the other axes are cut after reading.
    """
    ranges, shape, cuts = [], [], []
    for group in _axis_groups(spec):
        sizes, inner = spec.shape[group], math.prod(spec.shape[group][1:])
        start, stop, _ = index[group][0].indices(sizes[0])
        ranges.append(slice(start * inner, stop * inner))
        shape += [stop - start, *sizes[1:]]
        cuts += [slice(None), *index[group][1:]]
    array = source.read(tuple(ranges[::-1])).T if spec.transpose else source.read(tuple(ranges))
    return array.reshape(shape)[tuple(cuts)]


def _axis_groups(spec: ParamSpec) -> list[slice]:
    """Which axes of a parameter make up each axis of the file's tensor (after transposing)."""
    first = spec.hf_shape[-1] if spec.transpose else spec.hf_shape[0]
    split = next(n for n in range(1, len(spec.shape) + 1) if math.prod(spec.shape[:n]) == first)
    groups = [slice(0, split), slice(split, len(spec.shape))]
    return groups[: len(spec.hf_shape)]


def _once_per_slice(read: Callable[[Index], np.ndarray], shape: tuple[int, ...]) -> Callable[[Index], np.ndarray]:
    """Devices that hold the same slice share one read."""
    done: dict[tuple, np.ndarray] = {}

    def cached(index: Index) -> np.ndarray:
        key = tuple(cut.indices(size) for cut, size in zip(index, shape, strict=True))
        if key not in done:
            done[key] = read(index)
        return done[key]

    return cached


def weight_map(folder: epath.Path) -> dict[str, list[str] | None]:
    """Shard file names and which tensors to take from each (None: all)."""
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    path = folder / INDEX
    if not path.exists():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in matching(folder, pattern))
        if pickles:
            raise UserError(
                f"{folder}: only pickle weights ({some(pickles, verb=False)}), which are never loaded since they can "
                "run code; convert to safetensors (transformers: model.save_pretrained(folder))."
            )
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX} is there; download the model's safetensors files.")
    entries = read_json(path).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise UserError(f"{path}: no weight_map (tensor name to file name) in it; download the file again.")
    shards: dict[str, list[str]] = {}
    for name, file in entries.items():
        if os.path.basename(file) != file or not (file.endswith(".safetensors") and file.isprintable()):
            raise UserError(
                f"{path}: {name} lies in {file!r}; only files of the same folder are read, named .safetensors."
            )
        shards.setdefault(file, []).append(name)
    return dict(shards)


def open_tensors(
    folder: epath.Path, shards: Mapping[str, list[str] | None], opened: contextlib.ExitStack
) -> dict[str, Tensor]:
    """Opens the shards (until `opened` closes) and describes their tensors by name."""
    if missing := [name for name in shards if not (folder / name).exists()]:
        raise UserError(f"{folder}: {some(missing)} missing, though {INDEX} names such shards; download them.")
    tensors = {}
    for file_name, wanted in shards.items():
        path = folder / file_name
        check_file(path)
        try:
            file = opened.enter_context(safetensors.safe_open(local_copy(path, opened), framework="numpy"))
        except (safetensors.SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not a whole safetensors file ({reason}); download it again.") from None
        present = set(file.keys())
        for name in present if wanted is None else present.intersection(wanted):
            view = file.get_slice(name)
            tensors[name] = Tensor(f"{path}: {name}", tuple(view.get_shape()), view.get_dtype(), view.__getitem__)
    return tensors


def local_copy(path: epath.Path, opened: contextlib.ExitStack) -> str:
    """The path of a local file, or of a temporary copy of a remote one: safetensors files are memory-mapped."""
    if is_local(path):
        return os.fspath(path)
    copy = epath.Path(opened.enter_context(tempfile.TemporaryDirectory())) / path.name
    path.copy(copy)
    return os.fspath(copy)


def read_bytes(path: epath.Path, most: int = MOST_JSON) -> bytes:
    """A file of a model that is read whole.

    Raises:
      UserError: it isn't there, can't be read, or is larger than any such file.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            # In pieces: a read takes the memory that it asks for, also where the file is short.
            pieces = iter(lambda: file.read(1 << 20), b"")
            data = b"".join(itertools.islice(pieces, (most >> 20) + 1))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; a Hugging Face model folder has one.") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({first_line(error)}).") from None
    if len(data) > most:
        raise UserError(f"{path}: more than {most >> 20} MiB, which no such file of a model has; download it again.")
    return data


def read_json(path: epath.Path, most: int = MOST_JSON) -> dict[str, Any]:
    """A file of a model that holds a JSON object.

    Raises:
      UserError: as `read_bytes`; it holds something else.
    """
    data = read_bytes(path, most)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not an object.")
    return value


def some(names: Iterable[str], verb: bool = True, limit: int = 3) -> str:
    """`a, b, c and 4 more are`, for error messages of one line."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more + ((" is" if len(names) == 1 else " are") if verb else "")
