"""A model's hash is that of its weights: the same however they are sharded, another for any change."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.llama.checksum import params_hash
from tests.engine.small_llama import GQA, random_params, small_model

PARAMS = random_params(GQA)
HASH = params_hash(PARAMS)


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
    assert params_hash({"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}) == "bc46c60ca3eb6464"


@given(st.sampled_from(["embed", "head", "norm", "q", "down", "attn_norm"]), st.data())
@settings(deadline=None, max_examples=30)
def test_one_changed_value_changes_it(name, data):
    x = np.array(weight(name))
    place = data.draw(st.integers(0, x.size - 1))
    x.flat[place] = np.nextafter(x.flat[place], np.float32(np.inf))
    assert params_hash(replaced(name, jnp.asarray(x))) != HASH


@given(st.sampled_from(["embed", "head", "q", "down"]), st.data())
@settings(deadline=None, max_examples=30)
def test_two_swapped_rows_change_it(name, data):
    x = np.array(weight(name))
    a, b = data.draw(st.lists(st.integers(0, len(x) - 1), min_size=2, max_size=2, unique=True))
    x[[a, b]] = x[[b, a]]
    assert params_hash(replaced(name, jnp.asarray(x))) != HASH


@pytest.mark.parametrize("change", [lambda x: x.astype(jnp.bfloat16), lambda x: x.T, lambda x: x[None]])
def test_dtype_and_shape_count(change):
    assert params_hash({"a": change(jnp.zeros((2, 3)))}) != params_hash({"a": jnp.zeros((2, 3))})


def test_names_count():
    layers = PARAMS["layers"]
    assert params_hash(PARAMS | {"layers": layers | {"k": layers["v"], "v": layers["k"]}}) != HASH
