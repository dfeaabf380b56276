"""Padding modes, activations and layouts in the numba backend: what packs and stores them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numconv_numba import borders
from numconv_numba.dense.base import Adjoint

import numconv as nc
from numconv.plugin import parse
from numconv.testing import check

MODES = ["reflect", "symmetric", "replicate", "circular"]
GEOMETRIES = [
    "f32 n2 c20 k18 g1 in13x19 w3x3 s1 p1 d1",
    "f32 n1 c3 k4 g1 in7x8 w3x3 s1 p4:3x2:5 d2 flip=1",  # the padding turns back several times
    "f64 n1 c6 k6 g6 in23x20 w5x4 s3x2 p2x3:1 d1x2",
    "f32 n1 c4 k4 g2 in9x31 w3x6 s2x4 p3:-1x2:0 d2x1 flip=1",
    "f32 n3 c5 k4 g1 in40 w9 s1 p4 d1",
    "f32 n1 c5 k6 g1 in5x6x7 w3x3x3 s1 p1 d1",
]
WAYS = {"apart": (0.0, 1.0), "whole": (1.0, 0.0)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("geometry", "mode"), [(g, MODES[i % 4]) for i, g in enumerate(GEOMETRIES)])
def test_input_gradients(way, geometry, mode, monkeypatch, rng):
    """By bands and by padded images, of which the last few may be fewer."""
    monkeypatch.setattr(borders, "_costs", lambda problem: WAYS[way])
    monkeypatch.setattr(borders, "PADDED_BYTES", 2 * 4 * 5 * 48)
    for layout in ("", " layout=channels_last"):
        problem = parse(f"conv input_grad {geometry} pad={mode}{layout}")
        check(problem, "numba", "borders", rng=rng)
        check(problem.replace(accuracy="high"), "numba", "plain_borders", rng=rng)
        check(problem, "numba", "borders", rng=rng, nonfinite=(0,))


SWEPT = [
    "f32 n2 c5 k5 g5 in13x19 w3x3 s1 p1 d1",
    "f64 n2 c3 k3 g3 in13x49 w3x3 s1 p1 d1 flip=1",  # the last strip has less than what lies beside it is added to
    "f32 n1 c4 k2 g2 in40x25 w2x3 s1 p1:0x0:1 d1",  # ends without padding
    "f32 n1 c1 k1 g1 in130x97 w5x2 s1 p1 d1",  # bands of one plane
    "f32 n2 c3 k3 g3 in2x57 w3x3 s1 p1 d1",
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", SWEPT)
def test_input_gradients_in_one_sweep(geometry, mode, monkeypatch, rng):
    monkeypatch.setattr(borders, "_costs", lambda problem: (1.0, 2.0))
    monkeypatch.setattr(borders, "_turned", lambda problem: None)
    problem = parse(f"conv input_grad {geometry} pad={mode}")
    assert isinstance(borders.Borders().build(problem), borders._Together)
    for integer in (True, False):
        check(problem, "numba", "borders", rng=rng, integer=integer)
    for position in (0, 1):
        check(problem, "numba", "borders", rng=rng, nonfinite=(position,))


TRANSPOSED = [
    "f32 n2 c37 k37 g37 in9x7 w3x3 s1 p1 d1",
    "f32 n1 c32 k32 g32 in6x23 w3x5 s1 p1x3:2 d1x2 flip=1",  # several tiles a row, of which the last one overlaps
    "f64 n1 c9 k9 g9 in4x5x13 w2x3x4 s1 p1x0x2 d1x2x1",
    "f32 n1 c20 k20 g20 in5 w9 s1 p11 d1",  # the padding is wider than x
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", TRANSPOSED)
def test_input_gradients_of_planes_that_are_transposed(geometry, mode, monkeypatch, rng):
    monkeypatch.setattr(borders, "_costs", lambda problem: (1.0, 2.0))
    monkeypatch.setattr(borders, "_turned", lambda problem: None)
    monkeypatch.setattr(borders, "_swept_cost", lambda problem: 3.0)
    for layout in ("", " layout=channels_last"):
        problem = parse(f"conv input_grad {geometry} pad={mode}{layout}")
        executor = borders.Borders().build(problem)
        assert isinstance(executor._folded, borders.FoldedPlanes)
        for integer in (True, False):
            check(problem, "numba", "borders", rng=rng, integer=integer)
        check(problem, "numba", "borders", rng=rng, nonfinite=(0,))
    # planes with gaps go to another
    grad_y, w = (rng.integers(-4, 5, shape).astype(problem.dtype) for shape in (problem.y_shape, problem.w_shape))
    found = [
        np.full((*problem.x_shape[:-1], size), np.nan, problem.dtype) for size in (problem.x_shape[-1], 2 * problem.x_shape[-1])
    ]
    for out, grad in zip((found[0], found[1][..., ::2]), (grad_y, np.repeat(grad_y, 2, -1)[..., ::2]), strict=True):
        borders.Borders().build(problem.replace(layout="channels_first"))((out,), (grad, w))
    np.testing.assert_array_equal(found[1][..., ::2], found[0])
    assert np.isnan(found[1][..., 1::2]).all()


TURNED = [
    "f32 n2 c5 k5 g5 in13x19 w3x3 s1 p1 d1",
    "f32 n2 c6 k4 g2 in13x19 w3x3 s1 p2x1:3 d2 flip=1 bias=x",
    "f64 n1 c3 k4 g1 in30 w5 s1 p3:1 d1",
    "f32 n1 c16 k18 g1 in5x6 w7x7 s1 p6 d2",  # the padding is wider than x
    "f32 n1 c3 k3 g1 in5x6x7 w3x3x3 s1 p1 d1",
]


@pytest.mark.parametrize("layout", ["", " layout=channels_last"])
@pytest.mark.parametrize("geometry", TURNED)
def test_the_gradient_of_a_circular_x_is_a_circular_convolution(geometry, layout, rng):
    problem = parse(f"conv input_grad {geometry} pad=circular{layout}").replace(accuracy="high")
    assert isinstance(borders.PlainBorders().build(problem), Adjoint)
    check(problem, "numba", "plain_borders", rng=rng)
    for position in (0, 1):
        check(problem.replace(accuracy=None), "numba", "borders", rng=rng, nonfinite=(position,))


def test_a_bias_is_added_once(rng):
    check(parse("conv input_grad f32 n1 c5 k4 g1 in9x8 w3x3 s1 p1 d1 pad=reflect bias=x"), "numba", "borders", rng=rng)


def test_it_refuses_what_it_cannot_do():
    with pytest.raises(nc.UnsupportedProblemError, match="padding of zeros gives nothing back"):
        nc.plan("conv_input_grad", (1, 2, 9), (3, 2, 3), "float32", padding=1, backend="numba", algorithm="borders")


def test_threads_change_no_bit(rng):
    x_shape, w = (2, 24, 30, 30), rng.standard_normal((24, 24, 3, 3), dtype="float32")
    grad = rng.standard_normal((2, 24, 30, 30), dtype="float32")
    found = set()
    for threads in (1, 2, 3):
        with nc.using(threads=threads):
            options = {"padding": 1, "pad_mode": "circular", "backend": "numba", "algorithm": "borders"}
            found.add(nc.conv_input_grad(grad, w, x_shape, **options).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activations_are_accurate_to_a_few_units(activation, dtype):
    """Also where they are small beside their argument, but for gelu in float32; and with the class of what is not finite."""
    x = np.concatenate([np.linspace(-12, 30, 4001), [-1e-30, 0.0, 1e-30, np.inf, -np.inf, np.nan]]).astype(dtype)
    if activation == "silu":
        expected = [v / (1 + math.exp(-v)) if np.isfinite(v) else v for v in x.tolist()]
    else:
        expected = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()]
    expected = np.where(x == -np.inf, np.nan, expected)
    for algorithm in ("direct", "blocked", "implicit_gemm", "depthwise", "planewise"):
        y = nc.conv(x[None, None], np.ones((1, 1, 1), dtype), activation=activation, backend="numba", algorithm=algorithm)[0, 0]
        if (activation, dtype) == ("gelu", "float32"):
            small = np.abs(x) < 6
            assert (np.abs(y[small] - expected[small]) <= 2 * np.finfo(dtype).eps * np.abs(x[small])).all()
            np.testing.assert_array_equal(y[~small], [v if v > 0 else -0.0 if np.isfinite(v) else np.nan for v in x[~small]])
        else:  # erfc of a rounded argument is as far off as the square of that
            np.testing.assert_allclose(y, expected, rtol=6 * np.finfo(dtype).eps if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("algorithm", ["tile", "blocked", "winograd", "implicit_gemm"])
def test_transposed_views_are_inputs_and_outputs(algorithm, rng):
    """Of each order of the dimensions, and with gaps: the bits are those of arrays in order."""
    x, w = rng.standard_normal((2, 21, 18, 23), dtype="float32"), rng.standard_normal((19, 21, 3, 3), dtype="float32")
    options = {"padding": 1, "pad_mode": "reflect", "activation": "silu", "backend": "numba", "algorithm": algorithm}
    expected = nc.conv(x, w, **options)
    for order in ((0, 1, 3, 2), (0, 2, 3, 1), (2, 3, 1, 0)):
        view = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        out = np.full(tuple(np.array(expected.shape)[list(order)]), np.nan, "float32").transpose(np.argsort(order))
        nc.conv(view, w, out=out, **options)
        np.testing.assert_array_equal(out, expected)
    wide, out = np.repeat(x, 2, -1), np.full((2, 19, 18, 46), np.nan, "float32")
    nc.conv(wide[..., ::2], w, out=out[..., ::2], **options)
    np.testing.assert_array_equal(out[..., ::2], expected)
    assert np.isnan(out[..., 1::2]).all()
