"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): a small tree of weights beside a frozen model.

A matrix W that an adapter targets acts as W + scale * A B, with A from the matrix's inputs to `rank` numbers and B from
these to its outputs. B begins at zero, so a fresh adapter changes nothing, and the model without its adapter is the
frozen one: the reference of preference training needs no second copy of the weights.

Adapters are float32 whatever the frozen weights are, and their products too: gradients are then summed over devices in
float32, and Adam's first steps, which follow the gradient's sign, don't depend on the mesh.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import (
    PROJECTIONS,
    Params,
    ParamSpec,
    full_shape,
    is_spec,
    map_specs,
    param_specs,
)

PEFT_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Which matrices get an adapter and of what size; hashable, so that it can be static under `jax.jit`.

    Attributes:
      alpha: the product A B is scaled by alpha / rank, or alpha / sqrt(rank) with `use_rslora` (arXiv 2312.03732).
      dropout: probability of zeroing each element of an adapter's input while it is trained.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS
    dropout: float = 0.0
    use_rslora: bool = False

    def __post_init__(self):
        if self.rank < 1 or not self.targets or not set(self.targets) <= set(PROJECTIONS):
            raise UserError(
                f"LoRA: rank {self.rank} on {', '.join(self.targets) or 'nothing'}; a rank of at least 1 on some of"
                f" {', '.join(PROJECTIONS)} is needed."
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Weights of the structure of `lora_specs`, and the name of the model that they were trained on."""

    settings: LoraSettings
    params: Params
    base: str


def lora_specs(config: LlamaConfig, settings: LoraSettings) -> dict[str, dict[str, ParamSpec]]:
    """For each target its `a` and `b`, derived from the matrix in the table; names and shapes in files are PEFT's."""
    layers = param_specs(config)["layers"]
    return {name: _pair(layers[name], settings.rank) for name in PROJECTIONS if name in settings.targets}


def _pair(matrix: ParamSpec, rank: int) -> dict[str, ParamSpec]:
    stem = PEFT_PREFIX + matrix.hf_name.removesuffix(".weight")
    outputs, inputs = matrix.hf_shape
    return {
        "a": ParamSpec(
            shape=(*matrix.shape[: matrix.inputs], rank),
            axes=(*matrix.axes[: matrix.inputs], "rank"),
            hf_name=f"{stem}.lora_A.weight",
            hf_shape=(rank, inputs),
            transpose=True,
            inputs=matrix.inputs,
        ),
        "b": ParamSpec(
            shape=(rank, *matrix.shape[matrix.inputs :]),
            axes=("rank", *matrix.axes[matrix.inputs :]),
            hf_name=f"{stem}.lora_B.weight",
            hf_shape=(outputs, rank),
            transpose=True,
        ),
    }


def trained_specs(config: LlamaConfig, settings: LoraSettings | None) -> dict[str, Any]:
    """The tree of what is trained: the adapter, or without one the whole model."""
    return param_specs(config) if settings is None else lora_specs(config, settings)


def init_lora(config: LlamaConfig, settings: LoraSettings, key: jax.Array) -> Params:
    """A fresh adapter, float32: A uniform within 1 / sqrt(inputs), as PEFT draws it; B zero."""

    def init(index: int, pair: dict[str, ParamSpec]) -> Params:
        a, b = pair["a"], pair["b"]
        bound = 1 / math.sqrt(a.hf_shape[1])
        drawn = jax.random.uniform(jax.random.fold_in(key, index), full_shape(config, a), minval=-bound, maxval=bound)
        return {"a": drawn, "b": jnp.zeros(full_shape(config, b))}

    specs = lora_specs(config, settings)
    return {name: init(PROJECTIONS.index(name), pair) for name, pair in specs.items()}


def attach(settings: LoraSettings, params: Params, adapter: Params) -> Params:
    """The frozen parameters with the adapter in their layers, for `hidden_states`; the scale goes into B."""
    scaled = {name: {"a": pair["a"], "b": settings.scale * pair["b"]} for name, pair in adapter.items()}
    return params | {"layers": params["layers"] | {"adapter": scaled}}


def merge(settings: LoraSettings, params: Params, adapter: Params) -> Params:
    """Parameters that act as the frozen ones with the adapter, of their dtype and layout.

    The sums are in float32 and rounded once. The frozen matrices that the adapter targets are given up.
    """
    layers = dict(params["layers"])
    for name, pair in adapter.items():
        merged = jax.jit(_merge, static_argnums=0, donate_argnums=1, out_shardings=layers[name].sharding)
        layers[name] = merged(settings.scale, layers[name], pair["a"], pair["b"])
    return params | {"layers": layers}


def _merge(scale: float, stack: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """A layer at a time and in place, so that no second stack is in memory."""

    def one(layer, stack):
        product = jnp.tensordot(a[layer], b[layer], axes=1, precision=jax.lax.Precision.HIGHEST)
        return stack.at[layer].set((stack[layer].astype(jnp.float32) + scale * product).astype(stack.dtype))

    return jax.lax.fori_loop(0, stack.shape[0], one, stack)


def compose(config: LlamaConfig, adapters: Sequence[Adapter]) -> Adapter:
    """One adapter, of the ranks' sum, that does what these do when merged one after another; its scale is 1."""
    names = {name for adapter in adapters for name in adapter.params}
    targets = tuple(name for name in PROJECTIONS if name in names)
    parts = []
    for adapter in adapters:
        blank = lora_specs(config, dataclasses.replace(adapter.settings, targets=targets))
        zeros = map_specs(lambda spec: jnp.zeros(full_shape(config, spec)), blank)
        scaled = {n: {"a": ab["a"], "b": adapter.settings.scale * ab["b"]} for n, ab in adapter.params.items()}
        parts.append(zeros | scaled)
    params = {
        name: {
            "a": jnp.concatenate([part[name]["a"] for part in parts], axis=-1),
            "b": jnp.concatenate([part[name]["b"] for part in parts], axis=1),
        }
        for name in targets
    }
    rank = sum(adapter.settings.rank for adapter in adapters)
    return Adapter(LoraSettings(rank, float(rank), targets), params, adapters[0].base)


def count_lora(config: LlamaConfig, settings: LoraSettings) -> int:
    """Weights of an adapter."""
    leaves = jax.tree.leaves(lora_specs(config, settings), is_leaf=is_spec)
    return sum(math.prod(full_shape(config, spec)) for spec in leaves)
