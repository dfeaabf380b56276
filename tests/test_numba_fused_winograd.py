"""Winograd's algorithm with kernels that are transformed on the way to their products."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.halved_product import halve, halved_product
from numconv_numba.microkernels.transforms import matrices
from numconv_numba.winograd import fused

import numconv as nc
from numconv.plugin import parse
from numconv.testing import check

ROWS = [
    "f32 n1 c40 k50 g1 in7x7 w3x3 s1 p1 d1",
    "f32 n3 c20 k9 g1 in7x8 w3x3 s1 p1 d1",
    "f32 n2 c20 k9 g1 in8x5 w3x3 s1 p1 d1",
    "f32 n5 c33 k20 g1 in4x4 w3x3 s1 p1 d1",
    "f64 n2 c34 k20 g2 in14x13 w3x3 s1 p1 d1",
    "f32 n7 c130 k17 g1 in9x6 w3x3 s1 p0 d1 flip=1",
    "f32 n2 c48 k17 g1 in10x9 w3x3 s1 p1x2 d1 layout=channels_last",
    "f32 n1 c20 k33 g1 in5x8 w3x3 s1 p1 d1 pad=reflect",
]


@pytest.mark.parametrize("op", ["forward", "input_grad"])
@pytest.mark.parametrize("text", ROWS)
def test_it_keeps_the_contract(op, text, rng):
    problem = parse(f"conv forward {text}")
    if op == "input_grad" and problem.pad_mode != "zeros":
        pytest.skip("folds back")
    changed = problem.replace(bias="y", activation="relu") if op == "forward" else problem.replace(op=op)
    check(changed, "numba", "fused_winograd", rng=rng, integer=False)


def test_blocks_of_images_and_of_rows_that_are_not_full(monkeypatch, rng):
    """Of seven images three at a time, and of eleven rows of tiles some."""
    for text in ("f32 n7 c24 k20 g1 in7x7 w3x3 s1 p1 d1", "f32 n1 c24 k20 g1 in42x9 w3x3 s1 p1 d1"):
        problem = parse(f"conv forward {text}")
        monkeypatch.setattr(fused, "BLOCK_BYTES", (12 * 36 * 24 * 4,))
        fused._layout.cache_clear()
        assert fused._layout(problem).block.pieces > 1
        check(problem, "numba", "fused_winograd", rng=rng, integer=False)
        monkeypatch.undo()
        fused._layout.cache_clear()


@pytest.mark.parametrize("op", ["conv", "conv_input_grad"])
def test_bound_weights_and_threads_change_no_bit(op, rng):
    x, w = rng.standard_normal((2, 70, 7, 6), np.float32), rng.standard_normal((70, 70, 3, 3), np.float32)
    plan = nc.plan(op, x.shape, w.shape, "float32", padding=1, algorithm="fused_winograd")
    results = [plan.bind(w)(x)]
    for count in (1, 2, 3):
        with nc.using(threads=count):
            results.append(plan(x, w))
    for each in results[1:]:
        np.testing.assert_array_equal(each, results[0])


@pytest.mark.parametrize("position", [0, 1], ids=["x", "w"])
def test_what_is_not_finite_stays_where_it_is(position, rng):
    problem = parse("conv forward f32 n3 c8 k30 g1 in5x6 w3x3 s1 p1 d1")
    check(problem, "numba", "fused_winograd", rng=rng, nonfinite=(position,))


def test_late_layers_choose_it():
    few = () if host().registers < 32 else ((2, 7),)
    for n, size in ((1, 7), (4, 4), *few):
        assert nc.plan("conv", (n, 512, size, size), (512, 512, 3, 3), "float32", padding=1).algorithm == "fused_winograd"
    assert nc.plan("conv", (8, 64, 56, 56), (64, 64, 3, 3), "float32", padding=1).algorithm == "winograd"


def test_what_it_refuses():
    for kernel, change, words in (
        ((5, 5), {}, "3x3 with stride 1"),
        ((3, 3), {"stride": 2}, "stride 1"),
        ((3, 3), {"dilation": 2}, "dilation 1"),
    ):
        with pytest.raises(nc.UnsupportedProblemError, match=words):
            nc.plan("conv", (1, 8, 9, 9), (8, 8, *kernel), "float32", algorithm="fused_winograd", **change)
    with pytest.raises(nc.UnsupportedProblemError, match="float16"):
        nc.plan("conv", (1, 8, 9, 9), (8, 8, 3, 3), "float16", algorithm="fused_winograd")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("low", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
def test_products_of_half_transformed_kernels(dtype, low, narrow, rng):
    """Of some channels, then of the others; products at infinity that nobody needs are left out."""
    lanes, channels, shape = lanes_of(dtype), 7, (4, 3, 4, 3, lanes_of(dtype))
    w = rng.standard_normal((channels, 3, 3, lanes)).astype(dtype)
    v = rng.standard_normal((6, channels, 6, 4)).astype(dtype)
    u, m = np.full((6, channels, 3, lanes), np.nan, dtype), np.full((6, 6, 4, lanes), np.nan, dtype)
    transform, multiply = halve.specialise(shape, dtype), halved_product.specialise(shape, dtype)
    transform(w.ctypes.data, *w.strides[1:3], w.strides[0], channels, u.ctypes.data, u.strides[0])
    for first, last in ((0, 3), (3, channels)):
        kernels, inputs = (array[:, first:].ctypes.data for array in (u, v))
        steps = (u.strides[0], u.strides[2], u.strides[1]), (v.strides[2], v.strides[0])
        ends = int(first > 0), int(last == channels), low, narrow
        multiply(kernels, *steps[0], inputs, *steps[1], last - first, m.ctypes.data, m.strides[1], *ends)
    matrix = np.array(matrices(4, 3).weights)
    want = np.einsum("ir,js,crsl,icjt->ijtl", matrix, matrix, w.astype(float), v.astype(float))
    if low:
        m[-1, :, 2:] = want[-1, :, 2:]
    if narrow:
        m[:, -1, 1::2] = want[:, -1, 1::2]
    np.testing.assert_allclose(m, want, rtol=0, atol=1e2 * np.finfo(dtype).eps)
