"""One of two processes, of `test_training_on_hosts`: gradients, checkpoints of and for other devices, a notice."""

import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from selfreward_jax.core import hosts

hosts.join()

from selfreward_jax.core import watchdog  # noqa: E402
from selfreward_jax.core.checkpoints import Checkpoints  # noqa: E402
from selfreward_jax.core.interrupt import Interrupt  # noqa: E402
from selfreward_jax.core.mesh import put_rows  # noqa: E402
from selfreward_jax.llama.load import abstract_params  # noqa: E402
from tests.engine.small_llama import GQA, small_model  # noqa: E402
from tests.training.test_gradients import OBJECTIVES, make_rows  # noqa: E402
from tests.training.test_meshes import ROWS, spread  # noqa: E402


def main(folder: epath.Path) -> None:
    model = small_model(fsdp=2)
    rows = put_rows(np.arange(8).reshape(4, 2), model.mesh)
    mine = np.concatenate([shard.data for shard in rows.addressable_shards])
    assert mine.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]][jax.process_index()]
    assert hosts.any_of(jax.process_index() == 1) and not hosts.any_of(False)

    whole = lambda tree: multihost_utils.process_allgather(tree, tiled=True)  # noqa: E731
    found = {}
    for kind in OBJECTIVES:
        grads, shares = spread(kind, make_rows(kind, ROWS), ROWS, fsdp=2)
        found[kind] = whole(grads), jax.device_get(shares)

    with Checkpoints(folder / "from_eight") as checkpoints:
        target = abstract_params(GQA, model.mesh, jnp.dtype("float32"))
        restored = checkpoints.restore(1, {"params": target})["params"]
    with Checkpoints(folder / "from_two") as checkpoints:
        checkpoints.save(1, {"params": restored})
    restored = whole(restored)
    if hosts.is_writer():
        leaves = jax.tree.leaves((found, restored))
        np.savez(folder / "found.npz", *leaves)
    heed_the_notice()
    watchdog.leave(0)


def heed_the_notice() -> None:
    """A SIGTERM that JAX's own handler takes, in one process, stops both at the same look."""
    interrupt, looks = Interrupt(), 1
    assert not interrupt.agreed()
    if jax.process_index() == 1:
        signal.raise_signal(signal.SIGTERM)
    while not interrupt.agreed():
        looks += 1
        assert looks < 2000
        time.sleep(0.01)
    assert len(set(multihost_utils.process_allgather(np.int32(looks)).tolist())) == 1
    assert not interrupt.requested


if __name__ == "__main__":
    main(epath.Path(sys.argv[1]))
