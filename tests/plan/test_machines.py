"""Machines by their names, and how fast their groups of devices talk."""

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.plan.machines import parse


@pytest.mark.parametrize(
    ("name", "shape", "devices"),
    [
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v5p-128", "v5p:4x4x4", 64),  # it counts cores, two a chip
        ("v5p-8", "v5p:2x2x1", 4),
        ("V6E-16", "v6e:4x4", 16),
        ("v5p:2x2x4", "v5p:2x2x4", 16),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 8),
        ("cpu:8", "cpu:8", 8),
        ("gpu:8xh100", "gpu:8xh100", 8),
    ],
)
def test_a_slice_by_its_shape_or_its_name(name, shape, devices):
    machine = parse(name)
    assert machine.name == shape and machine.devices == devices


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v9:4x4", "v5e:2x2 to v5e:16x16"),
        ("v5p:4x4", "has 3 dimensions, not 2"),
        ("gpu:8xb100", "there are a100, h100, h200"),
        ("v5e:0x4", "from 1 on"),
        ("v5p-7", "no slice of this size"),
        ("v5e:16x15x", "Did you mean v5e:16x16"),
        ("", "known are"),
    ],
)
def test_what_is_unknown_is_told_with_what_is_known(name, told):
    with pytest.raises(UserError, match=r"^--topology=") as error:
        parse(name)
    assert told in str(error.value)


def test_a_ring_that_is_closed_is_twice_as_fast_and_two_dimensions_twice_again():
    pod = parse("v5e:16x16")
    row, half = [(x, 0, 0) for x in range(16)], [(x, 0, 0) for x in range(8)]
    whole = [(x, y, 0) for x in range(16) for y in range(16)]
    assert pod.bandwidth(row) == 90e9
    assert pod.bandwidth(half) == 45e9
    assert pod.bandwidth(whole) == 180e9
    assert parse("v5p:4x4x4").bandwidth([(0, 0, z) for z in range(4)]) == 180e9
    assert parse("gpu:8xh100").bandwidth([]) == 450e9
