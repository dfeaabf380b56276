"""Winograd's algorithm along the columns of planes, for few channels."""

import re

import numpy as np
import pytest
from numconv_numba.winograd import rows
from numconv_numba.winograd.rows import WinogradRows

import numconv as nc
from numconv.plugin import parse
from numconv.testing import bound, check

ROWS = WinogradRows()

PROBLEMS = [
    "f32 n2 c3 k16 g1 in21x61 w5x5 s1 p2 d1",
    "f32 n1 c3 k13 g1 in34x50 w3x3 s1 p1 d1 bias=y act=relu",
    "f32 n1 c2 k5 g1 in19x107 w4x3 s1 p1:2x1 d1 bias=y act=gelu",
    "f32 n2 c6 k10 g2 in23x31 w4x7 s1 p2x4 d1x2 flip=1 bias=y",
    "f64 n1 c5 k3 g1 in17x29 w5x2 s1 p0 d1",
    "f32 n1 c4 k9 g1 in15x20 w3x3 s1 p3x2 d1 pad=reflect",
    "f32 n2 c3 k8 g1 in16x33 w3x5 s1 p1x2 d1 layout=channels_last act=relu",
    "f16 n1 c4 k9 g1 in15x20 w3x3 s1 p1 d1",
    "f32 n0 c3 k8 g1 in16x33 w3x3 s1 p1 d1",
]


@pytest.mark.parametrize("op", ["forward", "input_grad"])
@pytest.mark.parametrize("text", PROBLEMS)
def test_results_are_within_the_default_bound(op, text, rng):
    """Rows and columns off every tile, groups, flipped kernels, bias, activations, padding, half types."""
    problem = parse(f"conv {op} {text.replace('bias=y', 'bias=x') if op == 'input_grad' else text}")
    if not (verdict := ROWS.supports(problem)):
        pytest.skip(verdict.reason)
    check(problem, "numba", "winograd_rows", rng=rng, integer=False)


def test_threads_and_blocks_change_no_bit(monkeypatch, rng):
    """Blocks of more or fewer rows begin where groups of rows do."""
    problem, found = parse("conv forward f32 n1 c3 k16 g1 in131x140 w5x5 s1 p2 d1"), set()
    arrays = [rng.standard_normal(shape, dtype="float32") for shape in problem.input_shapes]
    for size in (rows.SLAB_BYTES, 16 * 1024):
        monkeypatch.setattr(rows, "SLAB_BYTES", size)
        rows._layout.cache_clear()
        executor = ROWS.build(problem)
        for threads in (1, 2, 3):
            y = np.full(problem.y_shape, np.nan, "float32")
            with nc.using(threads=threads):
                executor([y], arrays)
            found.add(y.tobytes())
    rows._layout.cache_clear()
    assert len(found) == 1


def test_what_is_not_finite_stays_where_windows_hold_it(rng):
    x, w = rng.standard_normal((2, 3, 12, 40), dtype="float32"), rng.standard_normal((8, 3, 3, 3), dtype="float32")
    x[0, 1, 5, 7], x[1, 2, 0, 39] = np.nan, -np.inf
    y = nc.conv(x, w, padding=1, backend="numba", algorithm="winograd_rows")
    expected = nc.conv(x, w, padding=1, backend="reference")
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(y[np.isinf(expected)], expected[np.isinf(expected)])
    w[3, 0, 0, 1] = np.inf
    y = nc.conv(x[1:], w, padding=1, backend="numba", algorithm="winograd_rows")
    np.testing.assert_array_equal(np.isnan(y), np.isnan(nc.conv(x[1:], w, padding=1, backend="reference")))


@pytest.mark.parametrize("geometry", ["n400 c2 k16 g1 in9x10 w3x3 s1 p1 d1", "n400 c1 k16 g1 in9x10 w5x5 s1 p2 d1"])
def test_the_least_terms_keep_the_stated_error(geometry, rng):
    """A window in the corner has 8 terms, or 9, and shares a tile with rows that have more."""
    problem = parse(f"conv forward f32 {geometry}")
    assert ROWS.supports(problem)
    x, w = (rng.standard_normal(shape, dtype="float32") for shape in problem.input_shapes)
    y = nc.conv(x, w, padding=problem.padding, backend="numba", algorithm="winograd_rows")
    wide = [array.astype(float) for array in (x, w)]
    exact, size = (nc.conv(*arrays, padding=problem.padding, backend="numba") for arrays in (wide, map(np.abs, wide)))
    assert np.max(np.abs(y - exact) / size) < ROWS.measured_error["float32"] < bound(problem)


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        ("c1 k16 g1 in64x64 w3x3 s1 p1 d1", "windows of 8 terms; some have 4 here"),
        ("c3 k16 g1 in64x64 w5x5 s1 p4 d1", "windows of 8 terms; some have 3 here"),
        ("c3 k16 g1 in64x64 w7x5 s1 p2 d1", r"3 to 5 rows of taps, and the kernel is \(7, 5\)"),
        ("c3 k16 g1 in64x64 w5x5 s2x1 p2 d1", "without stride and dilation"),
        ("c3 k16 g1 in64x64 w5x5 s1 p2 d2x1", "without stride and dilation"),
        ("c3 k16 g1 in640 w5 s1 p2 d1", "tiles are of planes"),
    ],
)
def test_refusals(geometry, reason):
    verdict = ROWS.supports(parse(f"conv forward f32 n1 {geometry}"))
    assert not verdict
    assert re.search(reason, verdict.reason)


def test_a_bank_of_filters_is_computed_by_rows_at_the_default_level_only():
    def chosen(**options):
        return nc.explain("conv", (1, 3, 512, 512), (16, 3, 5, 5), padding=2, backend="numba", **options).chosen.algorithm

    assert chosen() == "winograd_rows"
    assert {chosen(accuracy="high"), chosen(accuracy="strict")} <= {"tile", "blocked", "planewise"}


def test_bound_weights_give_the_same_bits(rng):
    x, w = rng.standard_normal((1, 3, 19, 18), dtype="float32"), rng.standard_normal((36, 3, 3, 3), dtype="float32")
    plan = nc.plan("conv", x.shape, w.shape, "float32", padding=1, backend="numba", algorithm="winograd_rows")
    expected, ready = plan(x, w), plan.bind(w)
    w[...] = 0
    np.testing.assert_array_equal(ready(x), expected)
