"""The device mesh, and one short table of rules from logical axes to mesh axes."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from selfreward_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Which mesh axis each logical axis is split over; the rest are whole on every device.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of the given sizes; -1 for one of them means all devices that the others leave.

    Raises:
      UserError: the sizes don't fit the devices there are.
    """
    devices = jax.devices()
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        rest = math.prod(s for s in sizes if s != -1)
        sizes[sizes.index(-1)] = len(devices) // max(rest, 1)
    if min(sizes) < 1 or math.prod(sizes) > len(devices):
        shown = " x ".join(f"{name} {size}" for name, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise UserError(
            f"config.mesh: {shown} does not fit the {len(devices)} {devices[0].platform} device(s) there are."
        )
    count = math.prod(sizes)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count])


def partition(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, name: str) -> NamedSharding:
    """The sharding of an array whose axes have these logical names.

    Raises:
      UserError: a split axis isn't divisible by its mesh axis.
    """
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        rule = RULES.get(axis)
        ways = math.prod(mesh.shape[r] for r in ((rule,) if isinstance(rule, str) else rule or ()))
        if size % ways:
            raise UserError(
                f"config.mesh: {name} has {size} {axis}, which {ways} devices of mesh axis {rule} can't split evenly;"
                f" choose a size that divides {size}."
            )
        spec.append(rule if ways > 1 else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def row_ways(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_rows(tree, mesh: Mesh, *, axis: int = 0):
    """Arrays split over the data-parallel devices by rows, or whole on each where the rows don't divide.

    In any number of processes that hold the same arrays; each lays out the rows of its own devices.

    Args:
      axis: the rows' axis, 0 or -1.
    """
    ways = row_ways(mesh)

    def put(x):
        x = np.asarray(x)
        before = [None] * (x.ndim - 1 if axis else 0)
        split = NamedSharding(mesh, PartitionSpec(*before, RULES["batch"]))
        layout = split if x.shape[axis] % ways == 0 else replicated(mesh)
        return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])

    return jax.tree.map(put, tree)


def constrain_rows(x: jax.Array) -> jax.Array:
    """Keeps activations split by rows at layer borders, under `jax.set_mesh`; elsewhere does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
