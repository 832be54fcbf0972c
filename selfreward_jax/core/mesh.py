"""The device mesh, and one short table of rules from logical axes to mesh axes."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from selfreward_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")

Rules = tuple[tuple[str, tuple[str, ...]], ...]  # hashable, so that they can be static under jit

# Which mesh axes each logical axis is split over; the rest are whole on every device.
RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("embed", ("fsdp",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
)
LOGICAL_AXES = (*dict(RULES), "layers", "head_dim", "norm")


def make_rules(given: Mapping[str, str]) -> Rules:
    """The rules with some of them replaced.

    Args:
      given: mesh axes for logical axes, several joined by `+`, as `{"embed": "data+fsdp"}`; "" for none.

    Raises:
      UserError: an axis that there is none of, or that the mesh lacks.
    """
    rules = dict(RULES)
    for logical, axes in given.items():
        named = tuple(a for a in axes.split("+") if a)
        if logical not in LOGICAL_AXES:
            raise UserError(f"config.mesh.rules.{logical}: no such logical axis; there are {', '.join(LOGICAL_AXES)}.")
        wrong = next((a for a in named if a not in AXES), None)
        if wrong or len(set(named)) < len(named):
            raise UserError(
                f"config.mesh.rules.{logical}: {axes!r} names {wrong or 'an axis twice'}; give axes of the mesh"
                f" ({', '.join(AXES)}) joined by +, or nothing."
            )
        rules[logical] = named
    return tuple(rules.items())


def mesh_sizes(section, count: int, where: str) -> dict[str, int]:
    """Devices along each axis of a machine's mesh, which must use them all; -1 for one of them: all that are left.

    Args:
      section: `mesh` of the configuration.
      count: devices of the machine.
      where: their machine, for the message.

    Raises:
      UserError: the sizes don't multiply to the devices.
    """
    sizes = {axis: section[axis] for axis in AXES}
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    given = math.prod(size for size in sizes.values() if size != -1)
    left = [axis for axis, size in sizes.items() if size == -1]
    if len(left) == 1 and given and count % given == 0:
        sizes[left[0]] = count // given
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != count:
        raise UserError(
            f"config.mesh: {shown} does not multiply to the {count} devices of {where}; give sizes that do, one of them"
            " may be -1, all that are left."
        )
    return sizes


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
    return mesh_over(dict(zip(AXES, sizes, strict=True)), devices[: math.prod(sizes)])


def mesh_over(sizes: Mapping[str, int], devices: Sequence) -> Mesh:
    """A mesh over these devices, neighbours in a TPU's torus side by side, one of its dimensions split if need be."""
    shape = tuple(sizes[axis] for axis in AXES)
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def partition(
    axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, name: str, rules: Rules = RULES
) -> NamedSharding:
    """The sharding of an array whose axes have these logical names.

    Raises:
      UserError: a split axis isn't divisible by its mesh axes, or two axes are split over the same.
    """
    table, spec, used = dict(rules), [], set()
    for axis, size in zip(axes, shape, strict=True):
        rule = tuple(a for a in table.get(axis, ()) if mesh.shape[a] > 1)
        ways = math.prod(mesh.shape[a] for a in rule)
        if size % ways:
            raise UserError(
                f"config.mesh: {name} has {size} {axis}, which {ways} devices of mesh axis {'+'.join(rule)} can't split"
                f" evenly; choose a size that divides {size}."
            )
        if used & set(rule):
            raise UserError(
                f"config.mesh.rules.{axis}: {name} would be split twice over {'+'.join(used & set(rule))}; give its"
                f" axes ({', '.join(axes)}) different ones."
            )
        used |= set(rule)
        spec.append(rule or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def row_ways(mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[a] for a in dict(rules)["batch"])


def put_rows(tree, mesh: Mesh, rules: Rules = RULES):
    """Arrays split over the data-parallel devices by rows, or whole on each where the rows don't divide.

    In any number of processes that hold the same arrays; each lays out the rows of its own devices.
    """
    ways, split = row_ways(mesh, rules), NamedSharding(mesh, PartitionSpec(dict(rules)["batch"]))

    def put(x):
        x = np.asarray(x)
        layout = split if x.shape[0] % ways == 0 else replicated(mesh)
        return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])

    return jax.tree.map(put, tree)


def put_whole(tree, mesh: Mesh):
    """Arrays that all processes hold, whole on every device."""
    put = lambda x: jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])  # noqa: E731
    return jax.tree.map(lambda x: put(np.asarray(x)), tree)


def constrain(x: jax.Array, axes: tuple[str | None, ...], rules: Rules = RULES) -> jax.Array:
    """Keeps an activation split by its logical axes, under `jax.set_mesh` with the training mesh; elsewhere nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(axes, x.shape, mesh, rules))


def activation_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules = RULES
) -> PartitionSpec:
    """How an activation is split: as the rules say, where its sizes divide and no axis before has the devices."""
    table, spec, used = dict(rules), [], set()
    for axis, size in zip(axes, shape, strict=True):
        rule = tuple(a for a in table.get(axis or "", ()) if a not in used and mesh.shape[a] > 1)
        split = bool(rule) and size % math.prod(mesh.shape[a] for a in rule) == 0
        used |= set(rule) if split else set()
        spec.append(rule if split else None)
    return PartitionSpec(*spec)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def bytes_on_device(tree) -> float:
    """Of arrays, or of shapes with a layout, on each device; of shapes without one, 0."""
    return float(
        sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.sharding)
    )


def platform() -> str:
    """Where the program that is being traced will run: on the mesh that is set, else on JAX's default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
