"""The sampling layout: one mesh of replicas and tensor devices, and the weights laid out for it.

Training keeps layers stacked and weights split over all devices; sampling wants each layer by itself (a slice of a
stacked array inside a loop would be copied at every step) and split over the tensor devices only. A jitted program
changes one layer at a time, so that beside both layouts a layer's worth of memory is needed; a checksum on both sides
tells whether all arrived.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from selfreward_jax.core.errors import UserError
from selfreward_jax.engine import block
from selfreward_jax.llama.checksum import sums_by_layer, sums_of_layers
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params, param_specs

REPLICA, TENSOR = "replica", "tensor"


def sampling_mesh(mesh: Mesh, tensor: int = 0) -> Mesh:
    """The devices of a training mesh as replicas of `tensor` devices each (0: as many as the training mesh has).

    Raises:
      UserError: the devices can't be divided so.
    """
    ways = tensor or mesh.shape["tensor"]
    if mesh.size % ways:
        raise UserError(f"config.generation.tensor: {ways} does not divide the {mesh.size} devices of the mesh.")
    return Mesh(mesh.devices.reshape(-1, ways), (REPLICA, TENSOR), axis_types=(AxisType.Auto,) * 2)


def sampling_config(config: LlamaConfig, mesh: Mesh | AbstractMesh) -> LlamaConfig:
    """The model's shape as its tensor devices share it.

    With K/V heads that can't be split over them, each is there several times, once for a group of the queries that
    read it, as far as these can be split: of 64 query and 8 K/V heads, 16 devices hold 4 and 1 each.
    """
    ways = mesh.shape[TENSOR]
    copies = ways // math.gcd(config.num_kv_heads, ways)
    if config.num_heads // config.num_kv_heads % copies:
        return config
    return dataclasses.replace(config, num_kv_heads=config.num_kv_heads * copies)


def splits_kv(config: LlamaConfig, mesh: Mesh | AbstractMesh) -> bool:
    """Whether each tensor device holds its own share of the heads; if not, each does all of the attention.

    Args:
      config: of `sampling_config`.
    """
    return config.num_kv_heads % mesh.shape[TENSOR] == 0


def _sharding(axes: Sequence[str | None], shape: Sequence[int], config: LlamaConfig, mesh: Mesh, name: str):
    """Of a weight whose axes have these logical names, split over the tensor devices where the name says so."""
    ways = mesh.shape[TENSOR]
    spec: list[str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        split = axis in ("mlp", "vocab") or (axis in ("heads", "kv_heads") and splits_kv(config, mesh))
        if split and size % ways:
            raise UserError(
                f"config.generation.tensor: {name} has {size} {axis}, which {ways} tensor devices can't split evenly;"
                f" choose a number that divides {size}."
            )
        spec.append(TENSOR if split and ways > 1 else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def _outside(dtype, params: Params) -> Params:
    """The weights of no layer, in the dtype of the computation."""
    return {name: x.astype(dtype) for name, x in params.items() if name != "layers"}


def _layer(config: LlamaConfig, dtype, stacked: Params, index: jax.Array) -> Params:
    """A layer of the stack, its weights fused, in the dtype of the computation."""
    take = functools.partial(jax.lax.dynamic_index_in_dim, index=index, axis=0, keepdims=False)
    return block.fuse(config, jax.tree.map(lambda x: take(x).astype(dtype), stacked))


def _in_order(mesh: Mesh, name: str, sharding: NamedSharding) -> NamedSharding | Format:
    """With the order of the axes in memory, where the devices want one of their own."""
    order = block.TPU_ORDER.get(name) if mesh.devices.flat[0].platform == "tpu" else None
    return Format(Layout(order), sharding) if order else sharding


def sampling_weights(config: LlamaConfig, params: Params, mesh: Mesh, dtype) -> Params:
    """Shapes and layouts of all weights in the sampling layout; with their axes' order in memory where that is given.

    Raises:
      UserError: a weight can't be split over the tensor devices.
    """
    specs = param_specs(config)

    def outside(name: str, x) -> jax.ShapeDtypeStruct:
        sharding = _sharding(specs[name].axes, x.shape, config, mesh, name)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def inside(name: str, x) -> jax.ShapeDtypeStruct:
        sharding = _sharding(block.AXES.get(name, (None,) * x.ndim), x.shape, config, mesh, name)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_in_order(mesh, name, sharding))

    whole = jax.eval_shape(functools.partial(_outside, dtype), params)
    layer = jax.eval_shape(functools.partial(_layer, config, dtype), params["layers"], 0)
    layer = {name: inside(name, x) for name, x in layer.items()}
    return {name: outside(name, x) for name, x in whole.items()} | {"layers": [layer] * config.num_layers}


def reshard(config: LlamaConfig, params: Params, mesh: Mesh, dtype):
    """The programs that bring weights of the training layout, or of these shapes, into the sampling layout.

    Args:
      config: of `sampling_config`.

    Returns:
      Of all that is in no layer, from `params`; and of one layer, from `params["layers"]` and its number.

    Raises:
      UserError: a weight can't be split over the tensor devices.
    """
    weights = sampling_weights(config, params, mesh, dtype)
    layouts = jax.tree.map(lambda x: x.format if x.format.layout else x.sharding, weights)
    layer = tuple(layouts.pop("layers")[0].items())
    return _program(_outside, dtype, layouts=tuple(layouts.items())), _program(_layer, config, dtype, layouts=layer)


@functools.lru_cache(maxsize=16)
def _program(function, *fixed, layouts: tuple[tuple[str, Any], ...]):
    """One that the next engine of such a model finds compiled."""
    return jax.jit(functools.partial(function, *fixed), out_shardings=dict(layouts))


def lay_out(config: LlamaConfig, params: Params, mesh: Mesh, dtype) -> Params:
    """Weights of the training layout in the sampling layout.

    Args:
      config: of `sampling_config`.

    Raises:
      UserError: they can't be split over the tensor devices.
      RuntimeError: they did not arrive as they were sent.
    """
    outside, layer = reshard(config, params, mesh, dtype)
    weights = outside(params)
    weights["layers"] = [layer(params["layers"], np.int32(n)) for n in range(config.num_layers)]
    sent = sums_by_layer(block.copy_kv, config, params, dtype)
    arrived = sums_of_layers(block.unfuse, config, weights)
    for name in sent:
        if not np.array_equal(sent[name], arrived[name]):
            raise RuntimeError(f"the weight {name} changed on its way into the sampling layout; a device may be faulty")
    return weights


def put(x: np.ndarray, mesh: Mesh, *axes: str | None) -> jax.Array:
    """A small host array on the devices, in any number of processes; each lays out the part that is its own."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def replicate(xs: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Inside a program: results that every process wants to read."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tuple(xs)
    return tuple(jax.lax.with_sharding_constraint(x, PartitionSpec()) for x in xs)
