"""Programs compiled by the real compiler for TPUs that are described, not there."""

import os

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

KINDS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v5e-16": "v5e:4x4"}

needs_libtpu = pytest.mark.torch("libtpu")


def described_mesh(kind: str, sizes: tuple[int, ...], axes: tuple[str, ...]) -> Mesh:
    """Of as many chips as the sizes give, if the kind has them."""
    from jax.experimental import topologies

    # So that no metadata server is asked, and several processes may compile at a time.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=KINDS[kind]).devices
    chosen = np.array(devices[: int(np.prod(sizes))]).reshape(sizes)
    return Mesh(chosen, axes, axis_types=(AxisType.Auto,) * len(axes))


def described(mesh: Mesh, shape: tuple[int, ...], dtype, *axes) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
