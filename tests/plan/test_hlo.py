"""A program's operations, traffic and collectives are counted as often as they happen."""

import functools
import math
import random

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selfreward_jax.plan.collectives import group_of
from selfreward_jax.plan.costs import costs
from selfreward_jax.plan.flops import convolution_flops
from selfreward_jax.plan.hlo import Program

L, N, D, F = 7, 32, 16, 48


def layers(x, w):
    def layer(x, w):
        up, down = w
        return jnp.tanh(x @ up) @ down, None

    return jax.lax.scan(layer, x, w)[0].sum()


def text_of(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile().as_text()


def test_a_scanned_layer_counts_as_often_as_it_runs():
    found = costs(text_of(lambda x, u, d: layers(x, (u, d)), (N, D), (L, D, F), (L, F, D)))
    assert found.flops == L * 2 * (2 * N * D * F)
    assert not found.unknown_loops


def test_a_gradient_is_two_more_products_for_each():
    grad = jax.grad(lambda u, d, x: layers(x, (u, d)), argnums=(0, 1))
    found = costs(text_of(grad, (L, D, F), (L, F, D), (N, D)))
    # Of the first layer's input none is asked for, but the loop forms it all the same; so does it the last output.
    assert found.flops == pytest.approx(3 * L * 2 * (2 * N * D * F), rel=0.1)


def test_loops_in_loops_multiply():
    def outer(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ w), x), x)

    assert costs(text_of(outer, (N, D), (D, D))).flops == 15 * 2 * N * D * D


def test_a_loop_that_goes_on_as_the_data_asks_is_named_and_can_be_told():
    def until(x, w):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: jnp.sin(x @ w), x)

    text = text_of(until, (N, D), (D, D))
    once = costs(text)
    assert once.flops == 2 * N * D * D and once.unknown_loops == ["jit(until)/while"]
    told = costs(text, {"jit(until)/while": 9})
    assert told.flops == 9 * once.flops and not told.unknown_loops


def test_a_loop_inside_of_one_that_is_told_has_rounds_of_its_own():
    def until(x, w):
        def outer(x):
            return jax.lax.while_loop(lambda y: y.sum() > 2, lambda y: jnp.sin(y @ w), x)

        return jax.lax.while_loop(lambda x: x.sum() > 1, outer, x)

    text = text_of(until, (N, D), (D, D))
    assert costs(text, {"jit(until)/while": 1}).unknown_loops == ["jit(until)/while/body/while"]
    both = costs(text, {"jit(until)/while": 3, "jit(until)/while/body/while": 5})
    assert both.flops == 15 * 2 * N * D * D and not both.unknown_loops


def test_reading_a_piece_of_an_array_is_not_reading_all_of_it():
    pieces = costs(text_of(lambda x, u, d: layers(x, (u, d)), (N, D), (L, D, F), (L, F, D))).bytes
    weights = 4 * L * 2 * D * F
    assert weights < pieces < 12 * weights  # all of them at each of the layers would be 49 times as much at least


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (1, 8), (4, 2)])
def test_collectives_are_those_of_the_layers(fsdp, tensor):
    mesh = jax.make_mesh((fsdp, tensor), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def put(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    args = put((N, D), "fsdp"), put((L, D, F), None, "fsdp", "tensor"), put((L, F, D), None, "tensor", "fsdp")
    with jax.set_mesh(mesh):
        text = jax.jit(lambda x, u, d: layers(x, (u, d))).lower(*args).compile().as_text()
    found = costs(text)
    assert found.flops == pytest.approx(L * 2 * (2 * N * D * F) / 8, rel=0.01)
    gathered = sum(c.times * c.bytes for c in found.collectives if c.kind == "all-gather" and len(c.group) == fsdp)
    summed = sum(c.times * c.bytes for c in found.collectives if c.kind == "all-reduce" and len(c.group) == tensor)
    if fsdp > 1:  # each layer's own columns or rows, of all devices that share them
        assert gathered == 4 * L * 2 * D * F / tensor
    if tensor > 1:  # each layer's results, for this device's rows
        assert summed >= 4 * L * N * D / fsdp


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, x", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}, x", tuple(range(8))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", (0, 1)),
        ("replica_groups=mesh['a'=8] {'a':(1)2}, x", (0, 4)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", (0, 2)),
        ("source_target_pairs={{0,3},{3,6}}, x", (0, 3)),
    ],
)
def test_groups_are_read_in_all_spellings(written, group):
    assert group_of(written) == group


def test_what_is_sent_around_a_ring():
    line = "  %{0}.1 = f32[8,16]{{1,0}} {0}(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={{0}}"
    start = "ENTRY %main (p: f32[8,16]) -> f32[8,16] {\n  %p = f32[8,16]{1,0} parameter(0)\n"
    sent = {}
    for kind in ("all-gather", "all-reduce", "collective-permute"):
        (only,) = costs(start + line.format(kind) + "\n}\n").collectives
        sent[kind] = only.wire_bytes
    assert sent == {"all-gather": 512 * 3 / 4, "all-reduce": 2 * 512 * 3 / 4, "collective-permute": 512}


def test_a_gather_of_several_arrays_gives_them_all():
    text = """
ENTRY %main (a: f32[2,8], b: f32[2,4]) -> f32[8,4] {
  %a = f32[2,8]{1,0} parameter(0)
  %b = f32[2,4]{1,0} parameter(1)
  %g = ((f32[2,8], f32[2,4]), (f32[8,8], f32[8,4])) all-gather-start(%a, %b), replica_groups=[1,4]<=[4]
  ROOT %d = (f32[8,8]{1,0}, f32[8,4]{1,0}) all-gather-done(%g)
}
"""
    (only,) = costs(text).collectives
    assert only.bytes == 4 * (64 + 32)


def test_to_wait_costs_nothing_and_a_hosts_memory_is_not_fast():
    text = """
ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %s = f32[8,8]{1,0:S(5)} parameter(1)
  %v = f32[8,8]{1,0:S(1)} parameter(2)
  ROOT %d = f32[8,8]{1,0} DONE(%a)
}
"""
    for code in ("reduce-scatter-done", "all-to-all-done", "async-update", "copy-done"):
        assert costs(text.replace("DONE", code)).bytes == 0
    assert costs(text.replace("DONE", "negate")).bytes == 2 * 4 * 64
    ops = Program(text).computations["main"]
    assert [ops[n].results[0].fast for n in "asv"] == [False, False, True]


@pytest.mark.parametrize(("source", "piece", "times"), [("", "S(1)", 1), ("", "", 2), ("S(1)", "", 1)])
def test_a_piece_that_is_fetched_into_fast_memory_is_read_and_not_written(source, piece, times):
    text = """
ENTRY %main (a: f32[8,8]) -> f32[2,8] {
  %a = f32[8,8]{1,0:SOURCE} parameter(0)
  %i = s32[] parameter(1)
  %p = ((f32[8,8]{1,0:SOURCE}), f32[2,8]{1,0:PIECE}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:8]}
  %d = f32[2,8]{1,0:PIECE} slice-done(%p)
  ROOT %q = f32[2,8]{1,0:PIECE} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={2,8}
}
"""
    assert costs(text.replace("SOURCE", source).replace("PIECE", piece)).bytes == 2 * times * 4 * 16


def test_an_array_that_an_inner_fusion_gives_on_is_read_by_the_one_around_it():
    text = """
%inner (a: f32[8,16]) -> f32[16,8] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %turned = f32[16,8]{0,1} bitcast(%a)
}
%outer (b: f32[8,16], x: f32[8]) -> f32[16] {
  %b = f32[8,16]{1,0} parameter(0)
  %x = f32[8]{0} parameter(1)
  %f = f32[16,8]{0,1} fusion(%b), kind=kLoop, calls=%inner
  ROOT %y = f32[16]{0} dot(%f, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (w: f32[8,16], v: f32[8]) -> f32[16] {
  %w = f32[8,16]{1,0} parameter(0)
  %v = f32[8]{0} parameter(1)
  ROOT %out = f32[16]{0} fusion(%w, %v), kind=kOutput, calls=%outer
}
"""
    assert costs(text).bytes == 4 * (8 * 16 + 8 + 16)


def test_the_pieces_of_one_collective_are_one():
    """A TPU's program has an asynchronous gather wherever a piece of it is waited for, in inner loops as well."""
    gather = "%gather.{0} = f32[8,8]{{1,0}} all-gather(%x), channel_id=7, replica_groups=[1,4]<=[4], dimensions={{0}}"
    text = """
%body (s: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %s = (s32[], f32[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[2,8]{1,0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  GATHER1
  ROOT %out = (s32[], f32[2,8]{1,0}) tuple(%next, %x)
}
%condition (s: (s32[], f32[2,8])) -> pred[] {
  %s = (s32[], f32[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(16)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (x: f32[2,8], p: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %x = f32[2,8]{1,0} parameter(0)
  %p = (s32[], f32[2,8]{1,0}) parameter(1)
  GATHER2
  ROOT %w = (s32[], f32[2,8]{1,0}) while(%p), condition=%condition, body=%body
}
""".replace("GATHER1", gather.format(1)).replace("GATHER2", gather.format(2))
    (only,) = costs(text).collectives
    assert only.times == 1 and only.bytes == 4 * 64


def naive(left, right, out, stride, low, dilate):
    """Along one axis: how often an output and a place of the window meet an element."""
    return sum(
        0 <= o * stride + k - low <= (left - 1) * dilate and (o * stride + k - low) % dilate == 0
        for o in range(out)
        for k in range(right)
    )


def test_convolutions_count_what_lies_inside_of_their_input():
    """TPU programs write batched products as convolutions whose windows are mostly padding."""
    draw = random.Random(0)
    for _ in range(40):
        left, right, stride, low, dilate = (draw.randint(1, 6) for _ in range(5))
        high = draw.randint(0, 5)
        padded = (left - 1) * dilate + 1 + low + high
        if padded < right:
            continue
        out = (padded - right) // stride + 1
        text = (
            "ENTRY %main () -> f32[2] {\n"
            f"  %a = f32[5,{left},3]{{2,1,0}} parameter(0)\n  %b = f32[{right},3,7]{{2,1,0}} parameter(1)\n"
            f"  %c = f32[5,{out},7]{{2,1,0}} convolution(%a, %b), window={{size={right} stride={stride}"
            f" pad={low}_{high} lhs_dilate={dilate}}}, dim_labels=b0f_0io->b0f\n}}\n"
        )
        program = Program(text)
        expected = 2.0 * 5 * 7 * 3 * naive(left, right, out, stride, low, dilate)
        assert convolution_flops(program, "main", program.computations["main"]["c"]) == expected


def test_a_windows_axes_go_by_their_numbers_in_whatever_order_they_stand():
    """As a TPU's compiler writes [4, 512, 4096] x [4096, 2, 6, 128]: all of it is a product of matrices."""
    text = (
        "ENTRY %main () -> f32[2] {\n"
        "  %a = bf16[4,512,4096,1,1]{4,3,2,1,0} parameter(0)\n  %b = bf16[4096,2,6,128,1]{4,3,2,1,0} parameter(1)\n"
        "  %c = bf16[4,512,2,6,128]{4,3,2,1,0} convolution(%a, %b),"
        " window={size=6x1x2 pad=5_5x0_0x1_1 rhs_reversal=1x0x1}, dim_labels=1bf20_i20o1->1b20f\n}\n"
    )
    assert costs(text).flops == 2.0 * 4 * 512 * 4096 * 2 * 6 * 128


def test_an_unrolled_loop_runs_less_often():
    body = """
%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %s = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%s), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[8,8]{1,0}) tuple(%next, %y)
}
%condition (s: (s32[], f32[8,8])) -> pred[] {
  %s = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,8]{1,0}) while(%p), condition=%condition, body=%body
}
"""
    assert costs(body).flops == math.ceil(9 / 2) * 2 * 8**3


def test_the_compiler_agrees_where_there_are_no_loops():
    function = functools.partial(lambda x, u, d: jnp.tanh(x @ u) @ d)
    lowered = jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((N, D), (D, F), (F, D))))
    compiled = lowered.compile()
    products = compiled.cost_analysis()["flops"]
    assert costs(compiled.as_text()).flops == pytest.approx(products, rel=0.05)
