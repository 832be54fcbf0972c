"""Loss, metrics and gradients are the same on every mesh, whether or not the rows fill it."""

import functools

import jax
import numpy as np
import pytest

from selfreward_jax.core.mesh import put_rows, put_whole, row_ways
from selfreward_jax.training.loop import micro_batches
from selfreward_jax.training.packing import Layout
from selfreward_jax.training.step import add, gradients
from tests.engine.small_llama import GQA, small_model
from tests.training.test_gradients import BUCKET, FORWARD, OBJECTIVES, make_rows

MESHES = {"2": {"fsdp": 2}, "4x2": {"fsdp": 4, "tensor": 2}, "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2}}
ROWS = 3  # which none of the meshes divides


def spread(kind: str, rows, micro: int, **mesh: int):
    """Gradients and shares of a batch as the training loop computes them on a mesh."""
    model, objective = small_model(**mesh), OBJECTIVES[kind]
    counts = {name: np.float32(value) for name, value in objective.counts(rows).items()}
    with jax.set_mesh(model.mesh):
        parts = [
            gradients(
                GQA,
                objective,
                FORWARD,
                model.params,
                put_rows(batch, model.mesh),
                put_whole(arrays, model.mesh),
                counts,
                jax.random.key(0),
            )
            for batch, arrays in micro_batches(rows, Layout(micro, BUCKET, ways=row_ways(model.mesh)))
        ]
        return functools.reduce(add, parts)


@functools.cache
def on_one_device(kind: str):
    return jax.device_get(spread(kind, make_rows(kind, ROWS), ROWS))


def assert_close(found, expected) -> None:
    """Within 1e-5 of the largest value of each array."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(found)), jax.tree.leaves(expected), strict=True
    ):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_loss_and_gradients_on_a_mesh_are_those_on_one_device(kind, mesh):
    assert_close(spread(kind, make_rows(kind, ROWS), ROWS, **mesh), on_one_device(kind))


def test_micro_batches_that_divide_neither_batch_nor_mesh_change_nothing():
    rows = make_rows("sft", 5)
    assert_close(spread("sft", rows, 2, fsdp=2), jax.device_get(spread("sft", rows, 5)))
    assert_close(spread("sft", rows, 3, fsdp=2), jax.device_get(spread("sft", rows, 5)))
