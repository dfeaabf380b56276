"""`channelwise` of the numba backend: depthwise convolution with the channels last."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.depthwise import channelwise

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import check

GEOMETRIES = [
    "f32 n2 c37 k37 g37 in9x21 w3x3 s1 p1 d1",  # tiles overlap, channels too
    "f32 n1 c80 k80 g80 in6x40 w3x5 s2x3 p1x3 d1x2 flip=1",
    "f64 n2 c9 k9 g9 in30 w11 s1 p10 d1",
    "f64 n1 c16 k16 g16 in4x5x13 w2x3x4 s1x2x1 p1x0x2 d1",
    "f64 n1 c16 k16 g16 in4x5x13 w2x3x4 s1x2x1 p1x0x2 d1 flip=1",
    "f32 n1 c16 k16 g16 in3x3 w5x5 s1 p2 d1",  # no window lies inside x
    "f32 n1 c20 k20 g20 in5x17 w3x9 s1x2 p1x11 d1x2 flip=1",  # some windows lie beside x
]
MODES = ["reflect", "symmetric", "replicate", "circular"]


OPS = ("forward", "input_grad", "weight_grad")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("geometry", [*GEOMETRIES, "f32 n1 c40 k40 g40 in9x13 w7x7 s1 p3 d2x1"])
def test_results(op, geometry, rng):
    problem = parse(f"conv {op} {geometry} layout=channels_last")
    for integer in (True, False):
        check(problem, "numba", "channelwise", rng=rng, integer=integer)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_bias_and_activation(activation, rng):
    geometry = GEOMETRIES[0].replace("d1", f"d1 bias=y act={activation}")
    check(parse(f"conv forward {geometry} layout=channels_last"), "numba", "channelwise", rng=rng, integer=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_borders(mode, geometry, rng):
    check(parse(f"conv forward {geometry} pad={mode} layout=channels_last"), "numba", "channelwise", rng=rng, integer=True)


@pytest.mark.parametrize("op", ["forward", "weight_grad"])
@pytest.mark.parametrize("position", [0, 1])
def test_not_finite_values_reach_the_right_results(op, position, rng):
    problem = parse(f"conv {op} {GEOMETRIES[0]} layout=channels_last")
    check(problem, "numba", "channelwise", rng=rng, nonfinite=(position,))


@pytest.mark.parametrize("bias", ["x", "y"])
@pytest.mark.parametrize("geometry", [GEOMETRIES[0], "f32 n2 c16 k16 g16 in3x4x5 w2x3x3 s1 p2x1x1 d1"])
def test_weight_gradients_with_a_bias(geometry, bias, rng):
    check(parse(f"conv weight_grad {geometry} bias={bias} layout=channels_last"), "numba", "channelwise", rng=rng, integer=False)


def test_threads_change_no_bit(rng):
    problem = parse("conv weight_grad f32 n3 c40 k40 g40 in30x31 w5x5 s2 p2 d1 layout=channels_last")
    implementations = default_registry().backend("numba").implementations()
    executor = next(each for each in implementations if each.name == "channelwise" and problem.op in each.ops).build(problem)
    shapes = ((3, 15, 16, 40), (3, 30, 31, 40))
    arrays = [np.moveaxis(rng.standard_normal(shape, dtype="float32"), -1, 1) for shape in shapes]
    found = set()
    for threads in (1, 2, 3):
        out = np.full(problem.w_shape, np.nan, "float32")
        with nc.using(threads=threads):
            executor((out,), arrays)
        found.add(out.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("geometry", GEOMETRIES[:2])
def test_strict_results_have_the_bits_of_direct(geometry, rng):
    problem = parse(f"conv forward {geometry} layout=channels_last accuracy=strict")
    x = rng.standard_normal((problem.n, *problem.spatial, problem.c), dtype="float32")
    w = rng.standard_normal(problem.w_shape, dtype="float32")
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups", "flip", "layout", "accuracy")}
    found, expected = (nc.conv(x, w, backend="numba", algorithm=name, **options) for name in ("channelwise", "direct"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("pad", ["", " pad=circular"])
@pytest.mark.parametrize("window", ["w3 s1 p1 d1", "w5 s2 p7 d1", "w11 s1 p0 d3", "w3 s3 p14 d2", "w1 s1 p2 d1"])
def test_tiles_that_are_left_out_are_like_one_that_is_not(window, pad):
    for size in (31, 57, 100, 333):
        problem = parse(f"conv forward f32 n1 c16 k16 g16 in{size} {window} layout=channels_last{pad}")
        indices, left, alike = channelwise._distinct(problem)
        row, some = channelwise.row_tiles(problem), channelwise.row_tiles(problem, indices)
        assert len(row) == len(some) + alike
        assert [tile.shape for tile in row] == [some[min(i, max(left, i - alike))].shape for i in range(len(row))]


def test_it_is_chosen_for_channels_that_are_last():
    options = {"dtype": "float32", "padding": 1, "groups": 144, "backend": "numba"}
    assert nc.plan("conv", (1, 56, 56, 144), (144, 1, 3, 3), layout="channels_last", **options).algorithm == "channelwise"
    gradient = nc.plan("conv_weight_grad", (1, 56, 56, 144), (144, 1, 3, 3), layout="channels_last", **options)
    assert gradient.algorithm == "channelwise"
    assert nc.plan("conv", (1, 144, 56, 56), (144, 1, 3, 3), **options).algorithm != "channelwise"
    strided = nc.plan("conv_input_grad", (1, 14, 14, 144), (144, 1, 3, 3), stride=2, layout="channels_last", **options)
    assert strided.algorithm == "channelwise"
