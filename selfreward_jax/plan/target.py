"""The devices of a machine that need not be here: a TPU slice by its own compiler, other machines by simulation."""

import contextlib
import importlib
import os

import jax

from selfreward_jax.core.errors import UserError
from selfreward_jax.plan.machines import Machine, known

# What the TPU compiler would otherwise ask the machine's metadata for.
_DESCRIBED = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
}  # fmt: skip


def devices_of(machine: Machine) -> list:
    """To compile for. CPU and GPU machines stand on simulated devices of this one, so theirs is a CPU's program.

    Raises:
      UserError: the TPU compiler isn't installed or is in use, the slice can't be described, or JAX was started with
        fewer devices than asked for.
    """
    with contextlib.suppress(RuntimeError):  # where JAX has looked for devices already, it keeps them
        jax.config.update("jax_platforms", "cpu")  # nothing runs, so no accelerator that is here need be taken
    return _described(machine) if machine.kind == "tpu" else _simulated(machine)


def _described(machine: Machine) -> list:
    from jax.experimental import topologies

    try:
        importlib.import_module("libtpu")
    except ImportError:
        raise UserError(
            f"--topology={machine.name}: the TPU compiler is not installed; pip install 'selfreward_jax[tpu]'."
        ) from None
    for name, value in _DESCRIBED.items():
        os.environ.setdefault(name, value)
    more = {"chips_per_host_bounds": machine.shape if len(machine.shape) == 3 else (*machine.shape, 1)}
    more = more if machine.chips < 4 else {}
    more |= {"chip_config_name": machine.chip.described_as} if machine.chip.described_as else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=machine.name, **more).devices)
    except Exception as error:  # of several types, by what failed first
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if "lockfile" in str(error) or "already in use" in str(error):
            raise UserError(
                "the TPU compiler is in use by another process, and one at a time may have it; wait for that plan to"
                f" end, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 if no TPU is attached here ({said})."
            ) from None
        raise UserError(
            f"--topology={machine.name}: the TPU compiler does not know it ({said}); known are {known()}."
        ) from None


def _simulated(machine: Machine) -> list:
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", machine.devices)
    found = jax.devices("cpu")
    if len(found) < machine.devices:
        raise UserError(
            f"--topology={machine.name}: JAX has started with {len(found)} devices; plan in a process of its own."
        )
    return found[: machine.devices]
