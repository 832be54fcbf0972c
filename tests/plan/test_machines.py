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
        ("v4-8", "v4:2x2x1", 4),  # two cores make one device
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
        ("v5p-384", "give that, as v5p:4x8x8"),
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


def test_a_part_of_a_cube_has_open_ends():
    assert parse("v5p-32").bandwidth([(0, 0, z) for z in range(4)]) == 90e9
    assert parse("v5p:2x4x4").bandwidth([(0, 0, z) for z in range(4)]) == 90e9
    assert parse("v5p:4x4x8").bandwidth([(0, 0, z) for z in range(8)]) == 180e9


def test_groups_that_lie_between_one_another_share_their_links():
    pod = parse("v5e:16x16")
    strided = [(x, y, 0) for x in (0, 8) for y in range(16)]
    assert pod.bandwidth(strided) == 45e9 * (2 + 2 / 8)
    assert parse("v5e:4x8").bandwidth([(0, 0, 0), (2, 0, 0)]) == 45e9 / 2


def test_the_devices_of_a_chip_share_its_links():
    cube = parse("tpu7x:4x4x4")
    one = [(0, 0, z) for z in range(4)]
    assert cube.bandwidth(one) == 90e9 and cube.bandwidth([*one, *one]) == 180e9
    assert cube.bandwidth([(0, 0, 0)] * 2) == 90e9


def test_gpus_of_several_nodes_are_as_fast_as_their_network():
    assert parse("gpu:8xh100").bandwidth([(n,) for n in range(8)]) == 450e9
    nodes = parse("gpu:64xh100")
    assert nodes.bandwidth([(n,) for n in range(8, 16)]) == 450e9
    assert nodes.bandwidth([(n,) for n in range(0, 64, 8)]) == 50e9
    assert parse("cpu:16").bandwidth([(n,) for n in range(16)]) == 10e9
