"""The plan of the cache: within its budget, as large as it may be, and of few shapes."""

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.engine.cache import blocks_for, bucket, empty_region, padded_length, plan_cache, resize
from selfreward_jax.engine.layout import sampling_mesh
from tests.engine.small_llama import GQA

MESH = sampling_mesh(make_mesh())
PER_TOKEN = 2 * 2 * 2 * 8 * 4  # keys and values, layers, kv heads, head size, bytes


def plan(**changes):
    given_ = {
        "requests": 100, "samples": 4, "slots": 64, "prefix": 70, "padded_prompt": 96, "own_limit": 300,
        "dtype": jnp.float32, "budget": 10**9,
    }  # fmt: skip
    return plan_cache(GQA, MESH, **given_ | changes)


def test_the_plan_counts_every_region_at_its_largest():
    made = plan()
    assert (made.slots, made.entries, made.prefix, made.own_block) == (64, 24, 128, 128)
    assert made.total_bytes() == (128 + 24 * 96 + 64 * 3 * 128) * PER_TOKEN


@given(st.integers(200_000, 8_000_000))
def test_a_plan_keeps_within_its_budget_and_one_slot_more_would_not(budget):
    made = plan(budget=budget)
    assert made.total_bytes() <= budget
    if made.slots < 64:
        assert plan(slots=made.slots + 1, budget=10**9).total_bytes() > budget


def test_no_more_slots_and_entries_than_there_is_work():
    made = plan(requests=3)
    assert (made.slots, made.entries) == (12, 3)


def test_replicas_share_slots_and_work_and_tensor_devices_share_heads():
    mesh = sampling_mesh(make_mesh(data=4, tensor=2))
    made = plan_cache(
        GQA, mesh, requests=100, samples=4, slots=64, prefix=0, padded_prompt=96, own_limit=100,
        dtype=jnp.bfloat16, budget=10**9,
    )  # fmt: skip
    assert made.slots == 16 and made.bytes_per_token == PER_TOKEN // 4


def test_a_budget_for_no_row_is_refused_with_the_numbers():
    with pytest.raises(UserError, match=r"one row of 166 prompt tokens, with padding, and 300 new ones needs .* GiB"):
        plan(budget=1000)


@given(st.integers(1, 5000))
def test_buckets_hold_what_they_must_and_waste_a_third_at_most(n):
    assert n <= bucket(n) <= max(1.5 * n, n)
    assert blocks_for(n, 16) * 16 >= n


def test_there_are_few_buckets_and_few_padded_lengths():
    assert sorted({bucket(n) for n in range(1, 65)}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert len({padded_length(n, 128) for n in range(1, 4097)}) < 32


@given(st.integers(1, 5000), st.sampled_from([16, 32, 128]))
def test_padding_is_a_multiple_and_an_eighth_at_most_or_less_than_one_multiple(n, multiple):
    padded = padded_length(n, multiple)
    assert padded % multiple == 0 and n <= padded
    assert padded - n < multiple or padded <= n * 1.125 + multiple


def test_a_region_grows_and_shrinks_with_what_it_holds():
    region = empty_region(GQA, MESH, blocks=2, rows=3, width=16, dtype=jnp.float32)
    region = [type(kv)(kv.k + 1, kv.v + 2) for kv in region]
    grown = resize(list(region), 4)
    assert [kv.capacity for kv in grown] == [64, 64]
    assert all((kv.k[:2] == 1).all() and (kv.k[2:] == 0).all() and (kv.v[:2] == 2).all() for kv in grown)
    back = resize(grown, 1)
    assert [kv.capacity for kv in back] == [16, 16] and not grown  # what was given is let go
