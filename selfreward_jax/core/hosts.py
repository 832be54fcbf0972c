"""Several processes as one run: each drives its own devices, all take the same decisions, one writes the files.

The processes share a file system. What a process reads of another's writing lies behind a `wait`. None goes on alone:
when one is lost or gives up, `watchdog` ends the others.
"""

import itertools
import os

import jax
import numpy as np

from selfreward_jax.core import watchdog
from selfreward_jax.core.errors import UserError

_looks = itertools.count(1)  # at JAX's notice of preemption, which is agreed on by such numbers
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Joins the other processes, where there are any.

    Told so by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; or by `SELFREWARD_HOSTS=auto`
    where JAX knows the cluster (Cloud TPU, Slurm, Open MPI, Kubernetes).

    Raises:
      UserError: only some of the variables are set, or the others can't be reached.
    """
    given = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _INDEX) if os.environ.get(name)}
    automatic = os.environ.get("SELFREWARD_HOSTS", "") == "auto"
    if jax.distributed.is_initialized() or not (given or automatic):
        return
    if given and len(given) < 3:
        missing = next(name for name in (_ADDRESS, _COUNT, _INDEX) if name not in given)
        raise UserError(f"{missing}: not set, though {next(iter(given))} is; several processes need all three.")
    try:
        if automatic:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(given[_ADDRESS], int(given[_COUNT]), int(given[_INDEX]))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{_ADDRESS}: can't join the other processes ({str(error).splitlines()[0]}).") from None
    watchdog.start()


def is_writer() -> bool:
    """Whether this process writes files and speaks for all."""
    return jax.process_count() == 1 or jax.process_index() == 0


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
