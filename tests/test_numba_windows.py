"""Pooling and windows in vectors: what the contract suite's small problems do not reach."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from numconv_numba.direct import Direct
from numconv_numba.microkernels.emit import host
from numconv_numba.pooling.box_pooling import BoxPool
from numconv_numba.pooling.channelwise_pooling import ChannelwisePool
from numconv_numba.pooling.crosswise_plans import bands_of, groups_of
from numconv_numba.pooling.crosswise_pooling import CrosswisePool
from numconv_numba.pooling.flat_pooling import FlatPool
from numconv_numba.pooling.flat_unpooling import FlatUnpool
from numconv_numba.pooling.found_scatter import FoundScatter
from numconv_numba.pooling.inside_pooling import InsidePool
from numconv_numba.pooling.pool import Pool
from numconv_numba.pooling.vector_gather import VectorGather
from numconv_numba.pooling.vector_pooling import VectorPool
from numconv_numba.pooling.vector_scatter import VectorScatter
from numconv_numba.pooling.vector_windows import VectorWindows
from numconv_numba.pooling.wide_pooling import PART, WidePool, merged
from numconv_numba.pooling.windows import Windows
from numconv_numba.sliding import CHUNK
from numconv_numba.strided.woven import Woven

import numconv
from numconv.plugin import parse
from numconv.testing import candidates, check, inputs
from numconv.testing.cases import out_dtypes

LONG = 2 * CHUNK + 37
POOLS = ("max_pool", "avg_pool", "avg_pool_backward", "max_pool_backward")


def run(implementation, problem, arrays, threads=None):
    dtypes = [problem.out_dtype, "int64" if problem.op == "max_pool" else problem.out_dtype]
    outs = [np.full(shape, 7, dtype) for shape, dtype in zip(problem.output_shapes, dtypes, strict=False)]
    with numconv.using(threads=threads):
        implementation().build(problem)(outs, arrays)
    return outs


def bits(outs):
    return [out.tobytes() for out in outs]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize(
    "text",
    [
        *(f"pool {op} f32 n1 c2 in{LONG} w5 s1 p3:2 d1" for op in ("max_pool", "avg_pool", "avg_pool_backward")),
        f"pool avg_pool_backward f32 n1 c1 in{3 * LONG} w4 s3 p1 d1 ceil=1 countpad=0",
        f"pool max_pool f64 n1 c1 in{2 * LONG} w3 s2 p1 d1 indices=1",
        f"pool max_pool_backward f32 n1 c{CHUNK + 6} in3x4 w2x2 s1x2 p1 d1 layout=channels_last",
        f"pool avg_pool f32 n1 c2 in{40 * PART} w40 s38 p3 d1 countpad=0",
        "pool avg_pool_backward f32 n2 c3 in7x50 w3x20 s2x19 p1x5 d1 ceil=1 countpad=0",
        "pool max_pool f32 n2 c3 in5x70 w2x30 s1x9 p1x4 d2x1 indices=1",
        f"window unfold f32 n1 c1 in{LONG} w3 s6 p700:4 d500",
        f"window fold f32 n1 c1 in{LONG} w3 s2 p700:4 d500",
        "window fold f32 n2 c2 in5x6x7 w2x3x2 s1x2x3 p1 d1",
        f"pool max_pool f32 n2 c{PART + 9} in3x5 w3x5 s1 p0 d1 indices=1",
        "window pad f64 n2 c3 in5x6x37 w1x1x1 s1 p2x0:1x20 d1",
    ],
)
def test_long_rows_and_wide_windows(text, rng):
    check(parse(text), "numba", rng=rng)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [5, 16, 33, 150])
def test_maxima_have_the_bits_of_the_general_implementation(stride, size, rng):
    """Equal elements, both zeros, infinities and NaN: the first one wins."""
    problem = parse(f"pool max_pool f32 n1 c3 in7x{size} w3x4 s2x{stride} p1 d1 indices=1")
    values = np.array([-np.inf, -1, -0.0, 0.0, 1, np.nan], np.float32)
    x = rng.choice(values, problem.x_shape, p=[0.3, 0.2, 0.2, 0.2, 0.05, 0.05])
    x[0, 2] = -np.inf
    assert bits(run(VectorPool, problem, [x])) == bits(run(Pool, problem, [x]))
    assert bits(run(WidePool, problem, [x])) == bits(run(Pool, problem, [x]))
    assert bits(run(CrosswisePool, problem, [x])) == bits(run(Pool, problem, [x]))
    assert bits(run(VectorPool, problem.replace(indices=False), [x])) == bits(run(Pool, problem, [x])[:1])
    assert bits(run(CrosswisePool, problem.replace(indices=False), [x])) == bits(run(Pool, problem, [x])[:1])


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    "shape",
    [
        "n2 c19 in14x14 w2x2 s2 p0 d1",  # blocks of one row, the last group smaller
        "n1 c5 in15x29 w2x3 s2x3 p0 d1",  # rows and columns that no window holds
        "n2 c3 in12x7 w2x3 s2 p0x1 d1",  # padding between the rows
        "n2 c3 in12x7 w2x4 s2x3 p0x2:1 d1 countpad=0",
        "n1 c3 in13x33 w3x1 s2x1 p0 d2x1",  # windows that overlap along the outer axis
        "n2 c2 in4x6x20 w2x3x4 s2x3x4 p0 d1",  # blocks of several rows
        "n2 c2 in5x7x20 w1x3x2 s1x2x2 p0 d1",
        "n2 c5 in16x40 w8x5 s8x5 p0 d1",  # strides of which vectors are picked in halves
        "n1 c5 in13x42 w3x7 s3x7 p0 d1",
    ],
)
def test_rows_of_many_planes_are_one_row(shape, dtype, rng):
    taken = 0
    for op in ("max_pool", "avg_pool_backward"):
        problem = parse(f"pool {op} {dtype} {shape.removesuffix(' countpad=0') if op == 'max_pool' else shape}")
        taken += bool(FlatPool().supports(problem))
        if FlatPool().supports(problem):
            arrays = inputs(problem, rng)
            one, other = (run(each, problem, arrays)[0] for each in (FlatPool, Pool))
            np.testing.assert_allclose(one, other, rtol=0, atol=8 * np.finfo(one.dtype).eps * np.abs(other).max())
    assert taken


def test_maxima_of_many_planes_have_the_bits_of_the_general_implementation(rng):
    """Infinities and NaN; zeros have one sign: of both, either may stay."""
    problem = parse("pool max_pool f32 n3 c37 in12x23 w2x3 s2 p0x1 d1")
    values = np.array([-np.inf, -1, 0.0, 1, np.inf, np.nan], np.float32)
    x = rng.choice(values, problem.x_shape, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    x[0, 2] = -np.inf
    expected = bits(run(Pool, problem, [x]))
    assert bits(run(FlatPool, problem, [x])) == expected
    assert bits(run(WidePool, problem, [x])) == expected


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    "shape",
    [
        "n3 c37 in12x21 w2x3 s2x3 p0 d1",  # blocks of one row, items of several channels
        "n2 c3 in61x90 w2x2 s2 p0 d1",  # channels of several items
        "n2 c5 in25x43 w4x3 s8x7 p0 d2x3",
        "n2 c3 in4x7x33 w2x3x2 s2x3x4 p0 d1",
    ],
)
def test_places_of_maxima_of_many_planes_have_the_bits_of_the_general_implementation(shape, dtype, rng):
    """Equal elements, both zeros, infinities and NaN: the first one wins."""
    problem = parse(f"pool max_pool {dtype} {shape} indices=1")
    assert FlatPool().supports(problem)
    values = np.array([-np.inf, -1, -0.0, 0.0, 1, np.nan])
    x = rng.choice(values, problem.x_shape, p=[0.4, 0.2, 0.15, 0.1, 0.05, 0.1]).astype(problem.dtype)
    x[0, 2] = -np.inf
    assert bits(run(FlatPool, problem, [x])) == bits(run(Pool, problem, [x]))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [
        "n3 c37 in28x28 w2x2 s2 p0 d1",  # blocks of one row
        "n1 c2 in2x2 w2x2 s2 p0 d1",  # fewer rows than need masks
        "n2 c7 in8x8 w2x2 s2 p0 d1",  # rows shorter than a vector
        "n2 c3 in9x35 w3x3 s2 p0 d1",  # blocks of several rows, windows that overlap
        "n1 c3 in7x66 w3x4 s1 p0 d1",
        "n2 c5 in9x30 w2x2 s3x4 p0 d2x3",
        "n2 c3 in4x8x19 w2x2x2 s2 p0 d1",
        "n2 c3 in3x8x40 w3x1x3 s3x1x2 p0 d1",
    ],
)
def test_windows_inside_x_have_the_bits_of_the_general_implementation(shape, threads, dtype, rng):
    """Equal elements, infinities and NaN: the first one wins. Nothing is written behind the results."""
    problem = parse(f"pool max_pool {dtype} {shape} indices=1")
    assert InsidePool().supports(problem)
    values = np.array([-np.inf, -1, 0.0, 1, np.inf, np.nan])
    x = rng.choice(values, problem.x_shape, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]).astype(problem.dtype)
    x[0, 1] = -np.inf
    expected = run(Pool, problem, [x])
    size = expected[0].size
    memory = [np.full(size + 64, 7, each.dtype) for each in expected]
    outs = [each[:size].reshape(problem.y_shape) for each in memory]
    with numconv.using(threads=threads):
        InsidePool().build(problem)(outs, [x])
        InsidePool().build(problem.replace(indices=False))(outs[:1], [x])
    assert bits(outs) == bits(expected)
    assert all((each[size:] == 7).all() for each in memory)
    means = problem.replace(op="avg_pool", indices=False, dilation=(1,) * problem.ndim)
    arrays = inputs(means, rng)
    one, other = (run(each, means, arrays, threads)[0] for each in (InsidePool, Pool))
    np.testing.assert_allclose(one, other, rtol=0, atol=8 * np.finfo(one.dtype).eps * np.abs(other).max())


@pytest.mark.parametrize("c", [12, 24, 70, 77, 128])
@pytest.mark.parametrize("op", ["avg_pool", "avg_pool_backward"])
def test_averages_of_channels_beside_each_other(op, c, rng):
    """Groups are as large as fits."""
    problem = parse(f"pool {op} f32 n2 c{c} in9x8 w3x2 s2 p1x0 d1 countpad=0 layout=channels_last")
    arrays = [_last(each) for each in inputs(problem, rng, False)]
    expected = run(Pool, problem, arrays)[0]
    out = _last(np.full(expected.shape, 7, np.float32))
    CrosswisePool().build(problem)([out], arrays)
    np.testing.assert_array_equal(out, expected)


def test_groups_of_channels_leave_few_lanes_twice():
    lanes = host().width // 4
    problem = parse("pool max_pool f32 n2 c8 in9x8 w3x2 s2 p0 d1 layout=channels_last")
    taken = {vectors: groups_of(problem.replace(c=vectors * lanes)).vectors for vectors in (1, 2, 3, 4, 5, 9, 12)}
    assert taken == {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 9: 3, 12: 4}
    assert groups_of(problem.replace(c=2 * lanes - 1)).vectors == 1  # a group is never wider than an image


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("shape", ["n2 c37 in5x7 w3x3 s1 p1 d1", "n1 c3 in50x60 w2x2 s2 p0 d1"])
def test_given_winners_of_channels_in_turn_have_the_bits_of_the_general_implementation(shape, dtype, rng):
    problem = parse(f"pool max_pool_backward {dtype} {shape} indices=1")
    arrays = inputs(problem, rng, False)
    assert VectorScatter().supports(problem)
    assert bits(run(VectorScatter, problem, arrays)) == bits(run(Pool, problem, arrays))


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_the_gradient_of_maxima_adds_windows_in_the_order_of_y(layout, rng):
    problem = parse(f"pool max_pool_backward f32 n2 c37 in9x40 w3x3 s1 p1 d1 layout={layout}")
    arrays = inputs(problem, rng, False)
    places = run(Pool, problem.replace(op="max_pool", indices=True), arrays[1:])[1]
    if layout == "channels_last":
        arrays, places = [_last(each) for each in arrays], _last(places)
    expected = run(Pool, problem, arrays)
    given = (VectorScatter(), problem.replace(indices=True), [arrays[0], places])
    found = [(each, problem, arrays) for each in (CrosswisePool(), FoundScatter(), VectorGather()) if each.supports(problem)]
    assert len(found) == (2 if layout == "channels_last" else 3)
    for implementation, asked, ins in (given, *found):
        out = np.full(problem.x_shape, 7, np.float32)
        out = _last(out) if layout == "channels_last" else out
        implementation.build(asked)([out], ins)
        assert np.ascontiguousarray(out).tobytes() == expected[0].tobytes()


def _last(array):
    """The same array with the channels as neighbours in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def test_winners_from_elsewhere_are_taken_where_they_are(rng):
    """Indices need not lie in their windows."""
    problem = parse("pool max_pool_backward f32 n1 c2 in6x7 w2x2 s2 p0 d1 indices=1")
    grad_y = inputs(problem, rng)[0]
    places = rng.integers(0, 42, problem.y_shape)
    assert bits(run(VectorScatter, problem, [grad_y, places])) == bits(run(Pool, problem, [grad_y, places]))


@pytest.mark.parametrize(
    ("implementation", "text"),
    [
        *((VectorPool, f"pool {op} f32 n2 c5 in61x67 w3x3 s2x1 p1 d1") for op in POOLS[:3]),
        (BoxPool, "pool avg_pool f32 n2 c37 in61x13 w3x3 s2x1 p1 d1"),
        (BoxPool, "pool avg_pool f32 n1 c2 in161x267 w3x3 s2x1 p1 d1 countpad=0"),
        *((FlatPool, f"pool {op} f32 n2 c37 in62x65 w2x3 s2 p0x1 d1") for op in POOLS[:3:2]),
        *((WidePool, f"pool {op} f32 n2 c5 in61x367 w3x40 s2x39 p1x3 d1") for op in POOLS[:3]),
        (FlatPool, "pool max_pool f32 n2 c37 in62x66 w2x3 s2x3 p0 d1 indices=1"),
        *((InsidePool, f"pool {op} f32 n2 c37 in63x67 w3x3 s2 p0 d1") for op in POOLS[:2]),
        *((ChannelwisePool, f"pool {op} f32 n2 c70 in33x41 w3x3 s2x1 p1 d1 layout=channels_last") for op in POOLS[:2]),
        (VectorScatter, "pool max_pool_backward f32 n2 c5 in61x67 w3x3 s2x1 p1 d1 indices=1"),
        (VectorScatter, "pool max_pool_backward f16 n2 c37 in61x67 w3x3 s2x1 p1 d1 indices=1"),
        (VectorGather, "pool max_pool_backward f32 n2 c5 in61x67 w3x3 s2x1 p1 d1"),
        (VectorWindows, "window unfold f32 n2 c5 in60x67 w3x3 s1 p1 d1"),
        (VectorWindows, "window fold f32 n2 c5 in60x67 w3x3 s1 p1 d1"),
        (VectorWindows, "window fold f32 n2 c5 in60x167 w3x9 s1x6 p1 d1"),
        (VectorWindows, "window pad f32 n2 c5 in60x67 w1x1 s1 p3 d1 pad=reflect"),
        (VectorWindows, "window pad_backward f32 n2 c5 in60x67 w1x1 s1 p3 d1 pad=circular"),
        (FoundScatter, "pool max_pool_backward f32 n2 c5 in61x367 w3x40 s2x39 p1x3 d1"),
        *((CrosswisePool, f"pool {op} f32 n3 c37 in61x67 w3x3 s2x1 p1 d1") for op in POOLS),
        (Woven, "conv input_grad f32 n2 c5 k5 g5 in120x131 w4x4 s2 p1 d1"),
    ],
)
def test_threads_change_no_bit(implementation, text, rng):
    problem = parse(text)
    assert implementation().supports(problem)
    arrays = inputs(problem, rng, False)
    alone, shared = run(implementation, problem, arrays, 1), run(implementation, problem, arrays, 3)
    assert bits(alone) == bits(shared)


@pytest.mark.parametrize(
    ("implementation", "text"),
    [
        (VectorPool, "pool max_pool f32 n2 c3 in8x9 w3x3 s2 p1 d1"),
        (BoxPool, "pool avg_pool f32 n2 c3 in8x9 w3x3 s2 p1 d1"),
        (FlatPool, "pool avg_pool_backward f32 n2 c3 in8x9 w2x3 s2x3 p0 d1"),
        (InsidePool, "pool max_pool f32 n2 c3 in8x9 w3x3 s2 p0 d1"),
        (WidePool, "pool avg_pool f32 n2 c3 in8x9 w8x9 s1 p0 d1"),
        *((CrosswisePool, f"pool {op} f32 n2 c3 in8x9 w3x3 s2 p1 d1") for op in POOLS),
        (VectorGather, "pool max_pool_backward f32 n2 c3 in8x9 w3x3 s2 p1 d1"),
        (VectorWindows, "window unfold f32 n2 c3 in8x9 w3x3 s2 p1 d1"),
        (VectorWindows, "window fold f32 n2 c3 in8x9 w3x3 s2 p1 d1"),
        (VectorWindows, "window pad f32 n2 c3 in8x9 w1x1 s1 p2 d1 pad=symmetric"),
        (VectorWindows, "window pad_backward f32 n2 c3 in8x9 w1x1 s1 p2 d1 pad=symmetric"),
        (Woven, "conv input_grad f32 n2 c3 k3 g3 in8x9 w3x3 s2 p1 d1"),
    ],
)
def test_arrays_of_any_strides(implementation, text, rng):
    """Where elements of a row are no neighbours, the general implementation computes."""
    problem = parse(text)
    arrays = inputs(problem, rng)
    spread = [np.repeat(each, 2, axis=-1)[..., ::2] for each in arrays]
    for one, other in zip(run(implementation, problem, spread), run(implementation, problem, arrays), strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-7)


def test_windows_that_cover_axes_are_joined():
    whole = merged(parse("pool max_pool f32 n2 c3 in4x5x6 w4x5x6 s1 p0 d1"))
    assert (whole.n, whole.c, whole.spatial, whole.window, whole.stride) == (1, 1, (720,), (120,), (120,))
    rows = merged(parse("pool avg_pool f32 n2 c3 in4x5x6 w2x3x6 s1x2x6 p1x0x0 d1"))
    assert (rows.spatial, rows.window, rows.stride) == ((4, 30), (2, 18), (1, 12))
    padded = parse("pool avg_pool f32 n2 c3 in4x5 w2x5 s1 p0x1 d1")
    assert merged(padded) == padded


def test_strict_averages_are_divided():
    problem = parse("pool avg_pool f32 n1 c3 in9x9 w3x3 s1 p0 d1 accuracy=strict")
    assert not BoxPool().supports(problem)
    assert "reciprocal" in BoxPool().supports(problem).reason
    assert Pool().supports(problem)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("sizes", ["in5x40 w1x1 s1 p2:3x1:19 d1", "in3x2x7 w1x1x1 s1 p0:1x5x9 d1", "in37 w1 s1 p80:1 d1"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_padding_and_its_adjoint_have_the_bits_of_the_general_implementation(mode, sizes, layout, rng):
    for op in ("pad", "pad_backward"):
        problem = parse(f"window {op} f32 n2 c6 {sizes} pad={mode} layout={layout}")
        arrays = inputs(problem, rng, False)
        expected = run(Windows, problem, arrays)
        outs = [np.full(problem.output_shapes[0], 7, np.float32)]
        if layout == "channels_last":
            arrays, outs = [_last(each) for each in arrays], [_last(each) for each in outs]
        VectorWindows().build(problem)(outs, arrays)
        assert np.ascontiguousarray(outs[0]).tobytes() == expected[0].tobytes()


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    "text",
    [
        "n2 c3 in48x64 w16x16 s16 p0 d1",
        "n1 c2 in37x50 w7x7 s5 p3 d1",
        "n2 c1 in20x30 w4x3 s2x6 p0x1 d2x1",  # gaps, and rows that no window reads
        "n3 c2 in1000 w40 s16 p9 d1",
        "n1 c1 in9000 w23 s8 p20:1 d1",  # several chunks of windows
        "n1 c2 in5x6x40 w2x3x9 s1x2x8 p1x0x4 d1",
    ],
)
def test_folding_windows_that_lie_apart_keeps_the_order_of_the_taps(text, dtype, rng, monkeypatch):
    """In rows that several items share, too."""
    monkeypatch.setattr("numconv_numba.pooling.apart_folding.CHUNK", 256)
    problem = parse(f"window fold {dtype} {text}")
    arrays = inputs(problem, rng, False)
    assert bits(run(VectorWindows, problem, arrays)) == bits(run(Windows, problem, arrays))


@pytest.mark.parametrize("flipped", [1, 2])
def test_rows_in_any_order(flipped, rng):
    problem = parse("window unfold f32 n2 c3 in8x9 w3x3 s1 p1 d1")
    (x,) = inputs(problem, rng)
    expected = run(Windows, problem, [np.flip(x, flipped).copy()])
    assert bits(run(VectorWindows, problem, [np.flip(x, flipped)])) == bits(expected)


def strided_anyhow(array, step):
    """A copy that fills its memory, where the axes of one element have a stride of so many elements."""
    strides = [step * array.itemsize if size == 1 else stride for size, stride in zip(array.shape, array.strides, strict=True)]
    return np.lib.stride_tricks.as_strided(array.copy("K"), array.shape, strides)


@pytest.mark.parametrize("step", [0, 3, -1])
@pytest.mark.parametrize(
    "text",
    [
        *(
            f"window {op} f32 n2 c6 in1x5 w1x1 s1 p0x1 d1 pad={mode}"
            for op in ("pad", "pad_backward")
            for mode in ("zeros", "circular")
        ),
        "window pad f32 n1 c1 in1x4x1 w1x1x1 s1 p0x1x0 d1 layout=channels_last",
        "window pad f32 n3 c5 in1x1 w1x1 s1 p0 d1",
        "window unfold f32 n2 c3 in1x9 w1x3 s1 p0 d1",
        "window unfold f32 n1 c1 in2x3 w2x3 s1 p0 d1",
        "window fold f32 n2 c3 in1x9 w1x3 s1 p0 d1",
        "window fold f32 n1 c1 in1x9 w1x3 s1x9 p0 d1",
        "window max_unpool f32 n2 c3 in1x5 w1x1 s1 p0 d1 target=1x1",
        *(f"pool {op} f32 n2 c3 in1x9 w1x3 s1x2 p0 d1" for op in POOLS),
        *(f"pool {op} f32 n1 c1 in4x1 w2x1 s1 p0 d1 layout=channels_last" for op in POOLS),
    ],
)
def test_axes_of_one_element_have_any_stride(text, step, rng):
    """As an axis that `None` added has: an array that fills its memory may have it."""
    problem = parse(text)
    arrays = inputs(problem, rng)
    last = problem.layout == "channels_last"
    outs = [np.full(shape, 7, dtype) for shape, dtype in zip(problem.output_shapes, out_dtypes(problem), strict=False)]
    if last:
        arrays, outs = [_last(each) for each in arrays], [_last(each) for each in outs]
    for row in candidates(problem, "numba"):
        if row.verdict:
            executor, found, expected = row.implementation.build(problem), [strided_anyhow(out, step) for out in outs], outs
            executor(expected, arrays)
            executor(found, [strided_anyhow(each, step) for each in arrays])
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=row.algorithm)


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "i8"])
def test_of_several_values_for_a_place_the_last_stays(dtype, rng):
    for op in ("max_unpool", "max_unpool_backward"):
        problem = parse(f"window {op} {dtype} n2 c5 in9x11 w1x1 s1 p0 d1 target=4x6")
        values = inputs(problem, rng)[0]
        for places in (
            rng.integers(0, 99, problem.y_shape),
            rng.permuted(np.tile(np.arange(24).reshape(4, 6), (2, 5, 1, 1)), axis=3),
        ):
            assert bits(run(FlatUnpool, problem, [values, places])) == bits(run(Windows, problem, [values, places]))


BOXES = [
    "f32 n3 c5 in7x7 w3x3 s2 p1 d1",  # rows of four results, which are taken together; those at the border read fewer
    "f32 n2 c3 in9x15 w2x3 s2 p0 d1",  # rows of planes that are no multiple of those taken together
    "f64 n2 c3 in7x7 w3x3 s1 p1 d1 countpad=0",  # rows with scales of their own
    "f32 n1 c2 in13x130 w3x3 s1 p1 d1",  # vectors of x that fit into registers
    "f32 n1 c2 in5x700 w2x5 s1x3 p1x2 d1",  # chunks inside the row, and at its ends
    "f64 n1 c1 in300 w9 s4 p5:3 d2",
    "f32 n2 c3 in4x9x20 w2x3x3 s2x1x2 p1 d1x2x1 ceil=1 countpad=0",
    "f32 n1 c2 in12x70 w11x3 s1 p5x1 d1",  # rows of x that are read in a loop
    "bf16 n1 c3 in9x8 w2x2 s2 p0 d1",
    "f32 n1 c1 in40x90 w1x40 s1x2 p0x20 d1",
]


@pytest.mark.parametrize("text", BOXES)
def test_averages_along_the_outer_axes_first(text, rng):
    problem = parse(f"pool avg_pool {text}")
    check(problem, "numba", "box_pool", rng=rng)


@pytest.mark.parametrize("text", BOXES)
def test_averages_write_nothing_behind_the_last_row(text, rng):
    """Without masks that store fast, vectors at the ends of rows run into the rows behind them."""
    problem = parse(f"pool avg_pool {text}")
    (y_shape,), (x,) = problem.output_shapes, inputs(problem, rng)
    size, memory = int(np.prod(y_shape)), np.full(int(np.prod(y_shape)) + 99, 7, x.dtype)
    shared = memory[:size].reshape(y_shape)
    with numconv.using(threads=2):
        BoxPool().build(problem)([shared], [x])
    assert (memory[size:] == 7).all()
    assert shared.tobytes() == run(BoxPool, problem, [x], threads=1)[0].tobytes()


def test_averages_of_what_is_not_finite_stay_local(rng):
    problem = parse("pool avg_pool f32 n2 c3 in9x15 w3x3 s2 p1 d1")
    (x,) = inputs(problem, rng)
    x[0, 1, 3, 14], x[1, 2, 8, 0], x[1, 0, 0, 7] = np.inf, np.nan, -np.inf
    box, general = (run(each, problem, [x])[0] for each in (BoxPool, Pool))
    np.testing.assert_array_equal(np.isfinite(box), np.isfinite(general))
    np.testing.assert_allclose(box, general, rtol=1e-6)


CROSSWISE = [
    f"pool {op} {dtype} {geometry}{option}"
    for dtype, geometry in (
        ("f32", "n2 c7 in13x15 w3x2 s2x3 p1 d1x2 ceil=1"),  # few channels
        ("f32", "n5 c16 in7x7 w3x3 s1 p1 d1"),  # four vectors of them, and one
        ("f64", "n3 c37 in300 w7 s3 p2 d2"),  # one axis
        ("f16", "n1 c33 in4x5x6 w2x3x3 s2x1x2 p1 d1"),
        ("bf16", "n1 c2 in9x8 w3x3 s1 p1 d1"),
        ("f32", "n1 c23 in9x9 w9x9 s1 p0 d1 layout=channels_last"),
        ("f32", "n1 c67 in24x9 w5x3 s2x1 p2x0 d1 layout=channels_last"),
    )
    for op, option in (*((op, "") for op in POOLS), ("max_pool", " indices=1"), ("avg_pool", " countpad=0"))
]


@pytest.mark.parametrize("text", CROSSWISE)
def test_windows_across_channels(text, rng):
    check(parse(text), "numba", "crosswise_pool", rng=rng)


CHANNELWISE = [
    "f32 n2 c70 in9x8 w3x3 s2 p1 d1",  # the last block of channels overlaps the one before it; windows at all borders
    "f64 n2 c17 in9x8 w3x2 s2x1 p1x0 d1x2",
    "f32 n2 c33 in7x7 w7x7 s1 p0 d1",  # more taps than are unrolled
    "f32 n1 c24 in4x5x6 w2x3x3 s2x1x2 p1 d1",
    "f32 n3 c37 in30 w7 s3 p2 d2",  # one axis
    "f32 n2 c23 in9x9 w3x3 s2 p1 d1 ceil=1",
]


@pytest.mark.parametrize("geometry", CHANNELWISE)
@pytest.mark.parametrize(("op", "option"), [("max_pool", ""), ("avg_pool", ""), ("avg_pool", " countpad=0")])
def test_windows_pixel_by_pixel(op, option, geometry, rng):
    check(parse(f"pool {op} {geometry}{option} layout=channels_last"), "numba", "channelwise_pool", rng=rng)


@pytest.mark.parametrize("geometry", CHANNELWISE)
def test_largest_elements_pixel_by_pixel_are_nan_where_one_is(geometry, rng):
    problem = parse(f"pool max_pool {geometry} layout=channels_last")
    values = np.array([-np.inf, -1, 0.5, 1, np.inf, np.nan])
    x = _last(rng.choice(values, problem.x_shape, p=[0.5, 0.2, 0.2, 0.05, 0.02, 0.03]).astype(problem.dtype))
    (expected,) = run(Pool, problem, [x])
    out = _last(np.full(expected.shape, 7, problem.dtype))
    ChannelwisePool().build(problem)([out], [x])
    np.testing.assert_array_equal(out, expected)


def test_pixels_that_are_no_neighbours_go_to_the_general_implementation(rng):
    problem = parse("pool avg_pool f32 n2 c24 in9x8 w3x3 s2 p1 d1 layout=channels_last")
    x = _last(inputs(problem, rng)[0])
    (expected,) = run(Pool, problem, [x])
    (found,) = run(ChannelwisePool, problem, [np.repeat(x, 2, axis=-1)[..., ::2]])
    np.testing.assert_allclose(found, expected, rtol=3e-7)


@pytest.mark.parametrize("op", POOLS)
def test_groups_of_channels_take_turns_with_each_band(op, rng):
    problem = parse(f"pool {op} f32 n1 c70 in171x61 w3x3 s2 p1 d1 layout=channels_last")
    assert len(bands_of(problem, groups_of(problem))) > 1
    assert groups_of(problem).blocks > 1
    check(problem, "numba", "crosswise_pool", rng=rng)


def test_winners_are_found_some_images_at_a_time(rng, monkeypatch):
    monkeypatch.setattr("numconv_numba.pooling.found_scatter.TOGETHER", 20)
    check(parse("pool max_pool_backward f32 n7 c5 in6x50 w3x40 s2x5 p1x3 d1"), "numba", "found_scatter", rng=rng)


GATHERED = [
    "n2 c3 in33x70 w3x3 s2 p1 d1",
    "n1 c2 in21x150 w2x3 s3x4 p0x1 d1",
    "n1 c3 in19x23 w3x5 s1 p1x2 d2 ceil=1",
    "n2 c2 in300 w4 s2 p1 d1",
    "n1 c2 in7x9x40 w2x3x3 s1x2x2 p1 d1",
    "n1 c1 in9x40 w1x1 s2x3 p0 d1",
    "n1 c1 in40x41 w5x6 s2x1 p2 d3x1",
]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("geometry", GATHERED)
def test_gathered_gradients_have_the_bits_of_the_general_implementation(geometry, dtype, rng, monkeypatch):
    """In bands of a few rows, with equal elements, infinities and NaN in x."""
    monkeypatch.setattr("numconv_numba.pooling.vector_gather.BAND", 1 << 9)
    problem = parse(f"pool max_pool_backward {dtype} {geometry}")
    assert VectorGather().supports(problem)
    grad_y, x = inputs(problem, rng, False)
    x = x.round(0)
    for position in rng.integers(0, x.size, 8):
        x.flat[position] = rng.choice([np.nan, np.inf, -np.inf])
    assert bits(run(VectorGather, problem, [grad_y, x])) == bits(run(Pool, problem, [grad_y, x]))


def test_averages_of_x_that_lies_apart_are_those_of_a_copy_if_there_is_memory_for_one(rng):
    problem = parse("pool avg_pool f32 n2 c3 in16x9 w3x3 s2 p1 d1")
    x = rng.standard_normal((2, 3, 16, 18), dtype="float32")[..., ::2]
    assert bits(run(BoxPool, problem, [x])) == bits(run(BoxPool, problem, [x.copy()]))
    tight = problem.replace(max_workspace=1)
    assert bits(run(BoxPool, tight, [x])) == bits(run(Pool, tight, [x]))


@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize("geometry", ["n1 c3 in61x67 w5x5 s1 p2 d1", "n1 c40 in26x9 w4x3 s4x2 p0x1 d1", "n2 c3 in500 w6 s2 p1 d1"])
def test_planes_in_several_bands(op, geometry, rng, monkeypatch):
    monkeypatch.setattr("numconv_numba.pooling.crosswise_plans.BAND", host().width << 6)
    problem = parse(f"pool {op} f32 {geometry}")
    assert len(bands_of(problem, groups_of(problem))) > 2
    arrays = inputs(problem, rng, False)
    assert bits(run(CrosswisePool, problem.replace(indices=op == "max_pool"), arrays)) == bits(
        run(Pool, problem.replace(indices=op == "max_pool"), arrays)
    )


WOVEN = [
    "n2 c3 k3 g3 in18x14 w4x4 s2 p1 d1",
    "n1 c5 k5 g5 in57x100 w3x3 s2 p1 d1 bias=x",
    "n2 c2 k2 g2 in163 w16 s4 p1 d1 bias=x act=relu",
    "n1 c4 k4 g4 in12x10x70 w3x3x3 s2 p1 d1 act=silu",
    "n2 c3 k3 g3 in33x40 w3x2 s1x3 p2x0 d2 act=gelu",
    "n1 c2 k2 g2 in9x8 w2x2 s3x4 p0 d1",
]


@pytest.mark.parametrize("text", WOVEN)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_upsampling_row_by_row(text, dtype, rng):
    check(parse(f"conv input_grad {dtype} {text}"), "numba", "woven", rng=rng)


@pytest.mark.parametrize("text", [each for each in WOVEN if "act" not in each])
def test_upsampling_keeps_the_strict_order_and_what_is_not_finite(text, rng):
    problem = parse(f"conv input_grad f32 {text} accuracy=strict")
    y, w, *bias = inputs(problem, rng, False)
    assert bits(run(Woven, problem, [y, w, *bias])) == bits(run(Direct, problem, [y, w, *bias]))
    w[0, 0].flat[0], w[1, 0].flat[-1], y.flat[5] = np.inf, np.nan, -np.inf
    woven, direct = (run(each, problem, [y, w, *bias])[0] for each in (Woven, Direct))
    np.testing.assert_array_equal(woven, direct)
