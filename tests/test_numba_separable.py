"""`separable` of the numba backend: kernels of rank one in passes, all others by the way that is told."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import check

GEOMETRIES = [
    "f32 n1 c1 k1 g1 in70x131 w11x15 s1 p5x7 d1",
    "f64 n2 c3 k6 g3 in41x50 w5x7 s2x3 p2x4 d2x1 flip=1 bias=y act=relu",
    "f32 n1 c2 k2 g2 in11x9x20 w3x4x5 s2x1x2 p1 d1x2x1",
    "f32 n2 c2 k2 g2 in7x19x40 w1x5x3 s2x1x1 p0x2x1 d1 bias=y",
    "f32 n1 c1 k2 g1 in9x8 w9x15 s1 p7 d1",
]


@pytest.fixture
def separable():
    return next(each for each in default_registry().backend("numba").implementations() if each.name == "separable")


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of a few rows, and of a few groups."""
    from numconv_numba.depthwise import separable as module

    monkeypatch.setattr(module, "PIECE_BYTES", 3000)
    module._summary.cache_clear()
    yield
    module._summary.cache_clear()


def outer(problem, lines):
    """Weights of rank one from a line of taps ``[K, R]`` for each dimension, multiplied in double precision."""
    product = functools.reduce(lambda left, right: left[..., None] * right.reshape(problem.k, *[1] * (left.ndim - 1), -1), lines)
    return product[:, None].astype(np.float32 if problem.dtype == "float32" else np.float64)


def by_passes(separable, problem, arrays):
    """The results of the executor, which may not take any other way."""
    executor = separable.build(problem)
    executor.__dict__["_otherwise"] = None
    found = np.full(problem.y_shape, np.nan, arrays[0].dtype)
    executor((found,), arrays)
    again = np.full_like(found, np.nan)
    executor.bind(arrays[1])((again,), (arrays[0], *arrays[2:]))
    np.testing.assert_array_equal(again, found)
    return found


def defined(problem, arrays, activation=True):
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups", "flip", "pad_mode")}
    options["activation"] = problem.activation if activation else None
    return nc.conv(*(each.astype(np.float64) for each in arrays), backend="reference", **options)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_integer_factors_give_exact_results(separable, small_pieces, geometry, mode, rng):
    """Powers of two: quotients of taps are exact, too."""
    problem = parse(f"conv forward {geometry} pad={mode}" if mode != "zeros" else f"conv forward {geometry}")
    x_shape, _, *bias = problem.input_shapes
    w = outer(problem, [rng.choice([-4.0, -2, -1, 1, 2, 4], (problem.k, taps)) for taps in problem.kernel])
    arrays = [rng.integers(-3, 4, x_shape).astype(w.dtype), w, *(rng.integers(-3, 4, shape).astype(w.dtype) for shape in bias)]
    np.testing.assert_array_equal(by_passes(separable, problem, arrays), defined(problem, arrays))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_stated_error_holds(separable, geometry, rng):
    problem = parse(f"conv forward {geometry}")
    x_shape, _, *bias = problem.input_shapes
    w = outer(problem, [rng.standard_normal((problem.k, taps)) for taps in problem.kernel])
    w /= np.abs(w).sum(axis=tuple(range(1, w.ndim)), keepdims=True)
    arrays = [rng.standard_normal(x_shape).astype(w.dtype), w, *(rng.standard_normal(shape).astype(w.dtype) for shape in bias)]
    error = np.abs(by_passes(separable, problem, arrays) - defined(problem, arrays))
    magnitudes = defined(problem, [np.abs(each) for each in arrays], activation=False)
    assert (error / magnitudes).max() <= separable.measured_error[problem.dtype]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_other_kernels(geometry, rng):
    check(parse(f"conv forward {geometry}"), "numba", "separable", rng=rng, integer=False)


@pytest.mark.parametrize("geometry", ["n2 c2 k2 g2 in20x31 w6x5 s2x1 p2 d1 bias=x", "n1 c1 k1 g1 in5x16x17 w3x4x5 s1 p1 d1x1x2"])
def test_gradients(geometry, rng):
    """Of any kernel, and of one of rank one."""
    problem = parse(f"conv input_grad f32 {geometry}")
    check(problem, "numba", "separable", rng=rng, integer=False)
    w = outer(problem, [rng.choice([-2.0, -1, 1, 2], (problem.k, taps)) for taps in problem.kernel])
    grad_y = rng.integers(-3, 4, problem.y_shape).astype(np.float32)
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}
    found = [
        nc.conv_input_grad(grad_y, w, problem.x_shape, backend=backend, algorithm=algorithm, **options)
        for backend, algorithm in (("numba", "separable"), ("reference", None))
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_where_it_is_seen(separable, small_pieces, value, rng):
    problem = parse("conv forward f32 n1 c2 k2 g2 in33x40 w5x7 s1x2 p2x3 d1")
    w = outer(problem, [rng.choice([-2.0, -1, 1, 2], (2, taps)) for taps in problem.kernel])
    x = rng.integers(-3, 4, problem.x_shape).astype(np.float32)
    x[0, 0, 10, 11], x[0, 1, 0, 39] = value, -value
    np.testing.assert_array_equal(by_passes(separable, problem, [x, w]), defined(problem, [x, w]))


def spoiled(w, what):
    w = w.copy()
    if what == "one tap":
        w[-1, 0, 3, 4] *= 1 + 2e-6
    elif what == "not finite":
        w[0, 0, 1, 2] = np.inf
    elif what == "rank two":
        w += outer(SimpleNamespace(k=len(w), dtype="float32"), [np.ones((len(w), size)) for size in w.shape[2:]])
    return w


@pytest.mark.parametrize("what", ["one tap", "not finite", "rank two"])
def test_kernels_that_are_not_of_rank_one_are_seen(what, rng):
    from numconv_numba.depthwise.separable import factors_of

    problem = SimpleNamespace(k=3, dtype="float32")
    w = outer(problem, [rng.uniform(0.5, 1, (3, taps)) for taps in (7, 9)])
    assert factors_of(w) is not None
    assert factors_of(spoiled(w, what)) is None


def test_usual_separable_kernels_are_seen():
    from numconv_numba.depthwise.separable import factors_of

    gauss = np.exp(-0.5 * (np.arange(-15, 16) / 2.0) ** 2)  # its tails underflow in float32
    for line in (gauss, gauss / gauss.sum(), np.ones(5) / 25, np.array([1.0, 4, 6, 4, 1]) / 256, np.zeros(3)):
        w = np.multiply.outer(line, line).astype(np.float32)
        for kernel in (w, w / max(w.sum(), np.float32(1e-30))):
            assert factors_of(kernel[None, None]) is not None


def test_a_large_gaussian_is_chosen_and_small_kernels_are_not():
    assert nc.plan("conv", (1, 1, 1024, 1024), (1, 1, 31, 31), "float32", padding=15, backend="numba").algorithm == "separable"
    assert nc.plan("conv", (1, 1, 64, 64), (1, 1, 3, 3), "float32", padding=1, backend="numba").algorithm != "separable"
    strict = nc.plan("conv", (1, 1, 1024, 1024), (1, 1, 31, 31), "float32", padding=15, backend="numba", accuracy="high")
    assert strict.algorithm != "separable"


@pytest.mark.parametrize(
    "geometry",
    [
        "n1 c1 k32 g1 in256x256 w15x15 s1 p7 d1",
        "n1 c1 k8 g1 in512x512 w11x11 s1 p5 d1",
        "n1 c3 k3 g3 in512x512 w15x15 s1 p7 d1",
        "n1 c1 k192 g1 in224x224 w16x16 s16 p0 d1",
        "n1 c1 k16 g1 in512x512 w5x5 s1 p2 d1",
        "n4 c64 k64 g64 in9x9 w5x5 s1 p2 d1",
    ],
)
def test_other_kernels_go_to_whom_they_would_go_without_it(geometry):
    from numconv_numba.depthwise.separable import _cheapest

    problem = parse(f"conv forward f32 {geometry}")
    others = [each for each in default_registry().backend("numba").implementations() if each.name != "separable"]
    able = [each for each in others if "forward" in each.ops and "default" in each.levels and each.supports(problem)]
    assert _cheapest(problem).name == min(able, key=lambda each: each.cost(problem)).name
