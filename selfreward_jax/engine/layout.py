"""The sampling layout: one mesh of replicas and tensor devices, and the weights laid out for it.

Training keeps layers stacked and weights split over all devices; sampling wants each layer by itself (a slice of a
stacked array inside a loop would be copied at every step) and split over the tensor devices only. The change is one
jitted program over the whole tree, with a checksum on both sides.
"""

import functools
from collections.abc import Sequence

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


def splits_kv(config: LlamaConfig, mesh: Mesh | AbstractMesh) -> bool:
    """Whether each tensor device holds its own share of the heads; if not, each does all of the attention."""
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


def _to_sampling(config: LlamaConfig, dtype, params: Params) -> Params:
    """Layers one by one, their weights fused, in the dtype of the computation."""
    cast = jax.tree.map(lambda x: x.astype(dtype), params)
    layers = [block.fuse(config, jax.tree.map(lambda x, i=i: x[i], cast["layers"])) for i in range(config.num_layers)]
    return cast | {"layers": layers}


def _in_order(mesh: Mesh, name: str, sharding: NamedSharding) -> NamedSharding | Format:
    """With the order of the axes in memory, where the devices want one of their own."""
    order = block.TPU_ORDER.get(name) if mesh.devices.flat[0].platform == "tpu" else None
    return Format(Layout(order), sharding) if order else sharding


def weight_shardings(config: LlamaConfig, params: Params, mesh: Mesh, dtype) -> Params:
    """Of every weight in the sampling layout; a `Format` where its axes' order in memory is given too.

    Raises:
      UserError: a weight can't be split over the tensor devices.
    """
    shapes = jax.eval_shape(functools.partial(_to_sampling, config, dtype), params)
    specs = param_specs(config)
    whole = {
        name: _sharding(specs[name].axes, x.shape, config, mesh, name) for name, x in shapes.items() if name != "layers"
    }
    layer = {
        name: _in_order(mesh, name, _sharding(block.AXES.get(name, (None,) * x.ndim), x.shape, config, mesh, name))
        for name, x in shapes["layers"][0].items()
    }
    return whole | {"layers": [layer] * config.num_layers}


def reshard(config: LlamaConfig, params: Params, mesh: Mesh, dtype):
    """The program that brings weights of the training layout, or of these shapes, into the sampling layout.

    Raises:
      UserError: a weight can't be split over the tensor devices.
    """
    change = functools.partial(_to_sampling, config, dtype)
    return jax.jit(change, out_shardings=weight_shardings(config, params, mesh, dtype))


def lay_out(config: LlamaConfig, params: Params, mesh: Mesh, dtype) -> Params:
    """Weights of the training layout in the sampling layout.

    Raises:
      UserError: they can't be split over the tensor devices.
      RuntimeError: they did not arrive as they were sent.
    """
    weights = reshard(config, params, mesh, dtype)(params)
    sent, arrived = sums_by_layer(params, dtype), sums_of_layers(functools.partial(block.unfuse, config), weights)
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
