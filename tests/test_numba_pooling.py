"""Pooling and window kernels of the Numba plugin beyond the contract suite: rows of several chunks, the order of sums, threads."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from numconv_numba.pooling.pool import Pool
from numconv_numba.pooling.window_rows import PART, ROW
from numconv_numba.pooling.windows import Windows

import numconv
from numconv.errors import ProblemError
from numconv.plugin import POOL_OPS, parse
from numconv.testing import check, inputs

MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
LONG, PAST_PART = 2 * ROW + 37, PART + 41


def run(problem, arrays, threads=None):
    implementation = Pool() if problem.word == "pool" else Windows()
    dtypes = [problem.out_dtype, "int64" if problem.op == "max_pool" else problem.out_dtype]
    outs = [np.full(shape, 7, dtype) for shape, dtype in zip(problem.output_shapes, dtypes, strict=False)]
    with numconv.using(threads=threads):
        implementation.build(problem)(outs, arrays)
    return outs


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize(
    "text",
    [
        *(f"pool {op} f32 n1 c2 in{LONG} w5 s1 p3:2 d1" for op in POOL_OPS),
        *(f"pool {op} f32 n1 c1 in{3 * LONG} w4 s3 p1 d700 ceil=1 countpad=0" for op in POOL_OPS),
        *(f"pool {op} f32 n1 c{ROW + 6} in3x4 w2x3 s1x2 p1 d1" for op in POOL_OPS),
        f"pool max_pool f32 n1 c{ROW + 6} in3x4 w2x3 s1x2 p1 d1 indices=1",
        *(f"window {op} f32 n1 c2 in{LONG} w1 s1 p1030:9 d1 pad={mode}" for op in ("pad", "pad_backward") for mode in MODES),
        *(f"window {op} f32 n1 c{ROW + 6} in3x4 w1x1 s1 p2:5x1 d1 pad=reflect" for op in ("pad", "pad_backward")),
        *(f"window {op} f32 n1 c1 in{LONG} w3 s2 p700:4 d500" for op in ("unfold", "fold")),
    ],
)
def test_rows_of_several_chunks(text, rng):
    check(parse(text), "numba", rng=rng)


@pytest.mark.parametrize("size", [f"n1 c1 in{PAST_PART}", f"n2 c17 in{PART // 16}"])
@pytest.mark.parametrize("op", ["max_pool_backward", "max_unpool", "max_unpool_backward"])
def test_channels_of_several_parts(op, size, rng):
    text = f"pool {op} f32 {size} w3 s2 p1 d1" if op == "max_pool_backward" else f"window {op} f32 {size} w1 s1 p0 d1 target=9000"
    check(parse(text), "numba", rng=rng)
    if op == "max_pool_backward":
        check(parse(f"{text} indices=1"), "numba", rng=rng)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_given_and_found_winners_give_the_same_bits(layout, rng):
    """The sums of overlapping windows have one order, that of y."""
    problem = parse("pool max_pool f32 n2 c19 in23x17 w3x3 s1 p1 d1 indices=1")
    x, grad_y = rng.standard_normal(problem.x_shape, np.float32), rng.standard_normal(problem.y_shape, np.float32)
    indices = run(problem, [x])[1]
    backward = problem.replace(op="max_pool_backward", layout=layout)
    arrays = [grad_y, indices, x]
    if layout == "channels_last":
        arrays = [np.moveaxis(np.ascontiguousarray(np.moveaxis(each, 1, -1)), -1, 1) for each in arrays]
    given = run(backward, arrays[:2])[0]
    found = run(backward.replace(indices=False), [arrays[0], arrays[2]])[0]
    expected = np.zeros((*problem.x_shape[:2], 23 * 17), np.float32)
    for n, c in np.ndindex(expected.shape[:2]):
        np.add.at(expected[n, c], indices[n, c].ravel(), grad_y[n, c].ravel())
    assert given.tobytes() == found.tobytes() == expected.tobytes()


def test_averages_add_the_taps_in_row_major_order(rng):
    problem = parse("pool avg_pool f32 n1 c3 in9x40 w3x4 s2x1 p0 d1x2 accuracy=strict")
    x, sums = rng.standard_normal(problem.x_shape, np.float32), np.zeros(problem.y_shape, np.float32)
    for i, j in np.ndindex(3, 4):
        sums += x[:, :, i : i + 7 : 2, 2 * j : 2 * j + 34]
    assert run(problem, [x])[0].tobytes() == (sums / np.float32(12)).tobytes()


@pytest.mark.parametrize(
    "text",
    [
        *(f"pool {op} f32 n2 c5 in61x67 w3x3 s2x1 p1 d1" for op in POOL_OPS),
        "window pad_backward f32 n2 c5 in60x67 w1x1 s1 p9 d1 pad=symmetric",
        "window fold f32 n2 c5 in60x67 w3x3 s1 p1 d1",
        "window max_unpool f32 n2 c5 in70x71 w1x1 s1 p0 d1 target=60x61",
    ],
)
def test_threads_change_no_bit(text, rng):
    problem = parse(text)
    arrays = inputs(problem, rng, False)
    alone, shared = run(problem, arrays, 1), run(problem, arrays, 3)
    assert [out.tobytes() for out in alone] == [out.tobytes() for out in shared]


@pytest.mark.parametrize("index", [-1, 12])
@pytest.mark.parametrize(
    "text",
    [
        "pool max_pool_backward f32 n1 c2 in3x4 w2x2 s1 p0 d1 indices=1",
        "window max_unpool f32 n1 c2 in3x4 w1x1 s1 p0 d1 target=2x3",
        "window max_unpool_backward f32 n1 c2 in3x4 w1x1 s1 p0 d1 target=2x3",
    ],
)
def test_an_index_outside_x_is_refused_before_anything_is_written(text, index, rng):
    problem = parse(text)
    arrays = inputs(problem, rng)
    arrays[1][0, 1, 1, 2] = index
    out = np.full(problem.output_shapes[0], 7, np.float32)
    implementation = Pool() if problem.word == "pool" else Windows()
    with pytest.raises(ProblemError, match=f"indices range .*{index}"):
        implementation.build(problem)([out], arrays)
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_values_that_only_move_share_the_code_of_their_size(dtype, rng):
    from numconv_numba.pooling import windows

    problem = parse("window pad f32 n1 c2 in3x4 w1x1 s1 p1 d1 pad=circular")
    run(problem, inputs(problem, rng))
    before = windows.unfold.statistics.signatures
    run(problem.replace(dtype=dtype, out_dtype=dtype), [rng.integers(0, 9, problem.x_shape).astype(dtype)])
    assert windows.unfold.statistics.signatures == before
