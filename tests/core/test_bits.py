"""A model's hash is that of its weights: the same however they are sharded, another for any change."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.core.bits import sums, tree_hash
from tests.engine.small_llama import GQA, random_params, small_model

PARAMS = random_params(GQA)
HASH = tree_hash(PARAMS)


def replaced(name: str, value) -> dict:
    layers = PARAMS["layers"]
    return PARAMS | {name: value} if name in PARAMS else PARAMS | {"layers": layers | {name: value}}


def weight(name: str):
    return PARAMS.get(name, PARAMS["layers"].get(name))


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4}, {"tensor": 2}])
def test_it_does_not_depend_on_the_sharding(mesh):
    assert small_model(**mesh).hash == HASH


def test_it_is_the_same_in_every_process():
    """A golden value: run folders written earlier name their models by it."""
    assert tree_hash({"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}) == "bc46c60ca3eb6464"


@given(st.sampled_from(["embed", "head", "norm", "q", "down", "attn_norm"]), st.data())
@settings(deadline=None, max_examples=30)
def test_one_changed_value_changes_it(name, data):
    x = np.array(weight(name))
    place = data.draw(st.integers(0, x.size - 1))
    x.flat[place] = np.nextafter(x.flat[place], np.float32(np.inf))
    assert tree_hash(replaced(name, jnp.asarray(x))) != HASH


@given(st.sampled_from(["embed", "head", "q", "down"]), st.data())
@settings(deadline=None, max_examples=30)
def test_two_swapped_rows_change_it(name, data):
    x = np.array(weight(name))
    a, b = data.draw(st.lists(st.integers(0, len(x) - 1), min_size=2, max_size=2, unique=True))
    x[[a, b]] = x[[b, a]]
    assert tree_hash(replaced(name, jnp.asarray(x))) != HASH


@pytest.mark.parametrize("change", [lambda x: x.astype(jnp.bfloat16), lambda x: x.T, lambda x: x[None]])
def test_dtype_and_shape_count(change):
    assert tree_hash({"a": change(jnp.zeros((2, 3)))}) != tree_hash({"a": jnp.zeros((2, 3))})


def test_names_count():
    layers = PARAMS["layers"]
    assert tree_hash(PARAMS | {"layers": layers | {"k": layers["v"], "v": layers["k"]}}) != HASH


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8", "int32"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 300, 9)])
def test_the_sums_are_those_of_the_definition_element_by_element(dtype, shape):
    x = np.random.default_rng(0).normal(size=shape) * 100
    x = np.asarray(jnp.asarray(x).astype(dtype))
    plain, mixed = 0, 0
    for place, value in enumerate(x.reshape(-1)):
        bits = int.from_bytes(value.tobytes(), "little")
        spread = (bits ^ (place * 2654435761 % 2**32)) * 2246822519 % 2**32
        plain, mixed = plain + bits, mixed + (spread ^ (spread >> 15))
    assert np.asarray(sums(jnp.asarray(x))).tolist() == [plain % 2**32, mixed % 2**32]
