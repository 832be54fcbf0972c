"""Several processes as one run: each drives its own devices, all take the same decisions, one writes the files.

The processes share a file system or an object store. What a process reads of another's writing lies behind a `wait`.
None goes on alone: when one is lost or gives up, `watchdog` ends the others.
"""

import itertools
import os
import urllib.request
from collections.abc import Mapping

import jax
import numpy as np

from selfreward_jax.core import watchdog
from selfreward_jax.core.errors import UserError

_looks = itertools.count(1)  # at JAX's notice of preemption, which is agreed on by such numbers
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_HOSTS = "SELFREWARD_HOSTS"
_TPU_VM_WORKERS = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


def join() -> None:
    """Joins the other processes, where there are any.

    Told so by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; else found out (`found`) and left to
    JAX, which knows Cloud TPU, GKE and Slurm. `SELFREWARD_HOSTS=auto` leaves it to JAX in any case (Open MPI, say),
    `SELFREWARD_HOSTS=one` means that this process is alone.

    Raises:
      UserError: only some of the variables are set, or the others can't be reached.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _INDEX) if os.environ.get(name)}
    asked = os.environ.get(_HOSTS, "")
    if asked not in ("", "auto", "one"):
        raise UserError(f"{_HOSTS}={asked}: must be auto, one, or not set.")
    why = "" if given or asked == "one" else f"{_HOSTS}=auto" if asked else found(os.environ)
    if not (given or why):
        return
    if given and len(given) < 3:
        missing = next(name for name in (_ADDRESS, _COUNT, _INDEX) if name not in given)
        raise UserError(f"{missing}: not set, though {next(iter(given))} is; several processes need all three.")
    try:
        if given:
            jax.distributed.initialize(given[_ADDRESS], int(given[_COUNT]), int(given[_INDEX]))
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        mend = "" if given else f"; start the same command on every host, or set {_HOSTS}=one for this process alone"
        raise UserError(f"{why or _ADDRESS}: can't join the other processes ({reason}){mend}.") from None
    watchdog.start()


def found(env: Mapping[str, str]) -> str:
    """What shows that this is one of several processes: a setting, for people to read. Empty if nothing does."""
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # of `srun`; a batch script itself is one process
        return f"SLURM_STEP_NUM_TASKS={env['SLURM_STEP_NUM_TASKS']}"
    if "tpu" not in env.get("JAX_PLATFORMS", "tpu"):
        return ""
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):  # of GKE
        if len(env.get(name, "").split(",")) > 1:
            return name
    if _on_tpu_vm() and "TPU_SKIP_MDS_QUERY" not in env and len(_tpu_vm_workers().split(",")) > 1:
        return "this TPU slice has several workers"
    return ""


def _on_tpu_vm() -> bool:
    from jax._src import cloud_tpu_init  # JAX tells it nowhere else

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _tpu_vm_workers() -> str:
    """The addresses of all workers of a Cloud TPU slice, empty where the machine doesn't tell."""
    request = urllib.request.Request(_TPU_VM_WORKERS, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def is_writer() -> bool:
    """Whether this process writes files and speaks for all."""
    return jax.process_count() == 1 or jax.process_index() == 0


def alone() -> bool:
    """Whether this process computes for itself, which is known without starting a backend."""
    return not jax.distributed.is_initialized()


def wait(what: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def any_of(flag: bool) -> bool:
    """Whether it holds in any process; all must ask, at the same point of their work."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def preempted() -> bool:
    """Whether JAX has a notice of preemption, and this is where it wants all processes to stop; all must ask alike.

    Its coordination service takes a SIGTERM to any process for such a notice wherever its own handler is in place:
    from `join` until `on_signals`, and in programs that set no other.
    """
    enabled = jax.config.jax_enable_preemption_service  # pyright: ignore[reportAttributeAccessIssue]
    if not (enabled and jax.distributed.is_initialized()):
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_looks))
