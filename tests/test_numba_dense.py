"""The dense implementations of the numba backend: every width of vectors, memory, bits, phases of strided gradients."""

from __future__ import annotations

import itertools
import math
import threading
import tracemalloc

import numpy as np
import pytest
from numconv_numba.dense import patches
from numconv_numba.dense import tile as register_tile
from numconv_numba.dense.blocked import layout_for
from numconv_numba.dense.weights import BlockedWeights, WeightsExecutor, exchanged
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.product import product
from numconv_numba.winograd import forward as winograd
from numconv_numba.winograd import layout as winograd_layout
from numconv_numba.winograd import weights as winograd_weights
from numconv_numba.winograd.forward import Winograd
from numconv_numba.winograd.tiles import tiles_of
from numconv_numba.winograd.weights import WinogradWeights

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import candidates, check

DENSE = [
    "n1 c3 k40 g1 in38x37 w7x7 s2 p3 d1",
    "n2 c16 k48 g1 in29x27 w3x3 s1 p1 d1",
    "n1 c64 k24 g1 in7x7 w3x3 s1 p1 d1",
    "n2 c24 k33 g1 in21x22 w1x1 s1 p0 d1",
    "n1 c8 k16 g1 in9x14x13 w3x3x3 s2 p1 d1",
    "n2 c12 k40 g2 in45 w5 s3 p2 d2",
    "n2 c6 k20 g1 in23x30 w5x4 s1x2 p2 d1",
    "n1 c30 k20 g1 in13x95 w3x3 s1x2 p1 d1",
    "n2 c40 k24 g1 in9x11x14 w1x1x1 s2x3x2 p0 d1",
    "n1 c40 k24 g1 in9x20 w1x1 s2 p1 d1",
    "n5 c9 k20 g1 in3x5x6 w3x3x3 s1 p1 d1",
]
LOSSY = ("dilated_winograd", "fused_winograd", "winograd", "winograd_rows", "interleaved", "fft")


def rows_of(problem):
    """The numba backend's implementations that compute a problem."""
    implementations = default_registry().backend("numba").implementations()
    return [each for each in implementations if problem.op in each.ops and problem.level in each.levels and each.supports(problem)]


def computed(implementation, problem, arrays):
    outs = [np.full(shape, np.nan, problem.out_dtype) for shape in problem.output_shapes]
    implementation.build(problem)(outs, arrays)
    return outs


def integers(problem, rng):
    return [rng.integers(-4, 5, shape).astype(problem.dtype) for shape in problem.input_shapes]


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", DENSE)
def test_all_implementations_agree(op, geometry, rng):
    """Exactly on integers; those that reorder products within the default bound."""
    problem = parse(f"conv {op} f32 {geometry}")
    arrays = integers(problem, rng)
    rows = rows_of(problem)
    assert len(rows) > 1
    results = {each.name: computed(each, problem, arrays)[0] for each in rows}
    for name, got in results.items():
        if name in LOSSY:
            np.testing.assert_allclose(got, results["direct"], rtol=0, atol=1e-5 * 16 * problem.terms)
        else:
            np.testing.assert_array_equal(got, results["direct"], err_msg=name)


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", DENSE)
def test_threads_change_no_bit(op, geometry, rng):
    problem = parse(f"conv {op} f32 {geometry.replace('n1 ', 'n5 ').replace('n2 ', 'n5 ')}")
    arrays = [rng.standard_normal(shape, dtype="float32") for shape in problem.input_shapes]
    for each in rows_of(problem):
        found = set()
        for threads in (1, 2, 3):
            with nc.using(threads=threads):
                found.add(computed(each, problem, arrays)[0].tobytes())
        assert len(found) == 1, each.name


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [
        "n3 c3 k8 g1 in37x45 w4x4 s4 p0 d1",
        "n5 c3 k6 g1 in33x33 w3x4 s5 p2 d1",
        "n2 c4 k6 g2 in40 w3 s10 p4 d4",
        "n1 c2 k5 g1 in9x17x21 w1x2x3 s2x3x4 p1 d1",
        "n1 c2 k3 g1 in5x6 w1x1 s4 p2 d1",
        "n0 c3 k8 g1 in37x45 w4x4 s4 p0 d1",
    ],
)
@pytest.mark.parametrize("bytes_at_once", [1, 1 << 22])
def test_gradients_of_windows_that_lie_apart(geometry, flip, bytes_at_once, rng, monkeypatch):
    """Borders, gaps, groups, dilation, bias and activation, one image at a time or several: the values of `direct`."""
    monkeypatch.setattr(patches, "MOST_BYTES", bytes_at_once)
    patches.patch_products.cache_clear()
    problem = parse(f"conv input_grad f32 {geometry}").replace(flip=flip, bias="x", activation="relu")
    assert patches.is_patchwise(problem)
    y, w, bias = integers(problem, rng)
    rows = {each.name: each for each in rows_of(problem)}
    expected = computed(rows["direct"], problem, [y, w, bias])[0]
    for name in ("tile", "blocked", "implicit_gemm", "subpixel"):
        np.testing.assert_array_equal(computed(rows[name], problem, [y, w, bias])[0], expected, err_msg=name)
        bound = np.full_like(expected, np.nan)
        rows[name].build(problem).bind(w)((bound,), (y, bias))
        np.testing.assert_array_equal(bound, expected, err_msg=name)
    patches.patch_products.cache_clear()


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    "geometry",
    [
        "n5 c3 k37 g1 in7x7 w1x1 s1 p0 d1",  # whole vectors of each image, then what is left of all of them
        "n4 c6 k24 g1 in14x14 w1x1 s1 p0 d1",  # left over: one whole vector; the last two panels are of equal width
        "n2 c4 k17 g1 in5x41 w3x3 s1 p1x0 d1",  # rows end within vectors, in what is read, but not in y
        "n3 c700 k9 g1 in5x5 w1x1 s1 p0 d1",  # more channels than a panel holds
        "n9 c20 k16 g1 in3 w2 s1 p0 d1",  # one panel for all images, whose pixels are no neighbours
        "n2 c16 k24 g2 in29x31 w1x1 s1 p0 d1",
    ],
)
def test_panels_across_images(geometry, activation, rng):
    """The same bits from x whose neighbours lie apart, from bound weights and by one thread; on integers the exact sums."""
    problem = parse(f"conv forward f32 {geometry}")
    x, w = integers(problem, rng)
    bias = rng.integers(-9, 10, problem.k).astype("f4")
    options = {"groups": problem.groups, "activation": activation, "backend": "numba", "algorithm": "implicit_gemm"}
    y = nc.conv(x, w, bias, **options)
    apart = np.repeat(x, 2, axis=-1)[..., ::2]
    plan = nc.plan("conv", x.shape, w.shape, x.dtype, bias=True, like=x, **options).bind(w)
    for other in (nc.conv(apart, w, bias, **options), plan(x, bias)):
        np.testing.assert_array_equal(other, y)
    with nc.using(threads=1):
        np.testing.assert_array_equal(nc.conv(x, w, bias, **options), y)
    expected = nc.conv(x, w, bias, groups=problem.groups, activation=activation, backend="reference")
    np.testing.assert_allclose(y, expected, rtol=0 if activation != "gelu" else 1e-6, atol=0 if activation != "gelu" else 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", host().channel_tiles)
def test_products_of_any_number_of_positions(shape, dtype, rng):
    """In tiles of `positions`, or of one less: nothing is read or written beyond whole tiles, and nothing computed in vain."""
    vectors, positions = shape
    lanes, terms = lanes_of(dtype), 7
    a, b = (rng.integers(-4, 5, (terms, size)).astype(dtype) for size in (vectors * lanes, 3 * positions * (positions - 1)))
    run = product.specialise((vectors, positions, lanes), dtype)
    offsets = np.arange(terms, dtype=np.int64) * b.strides[0]
    for count in range(1, b.shape[1] + 1):
        whole = -(-count // positions) * positions
        places = np.minimum(np.arange(whole), count - 1) * b.itemsize
        y = np.full((whole + 1, vectors * lanes), -99, dtype)
        for resume in (0, 1):
            run(a, b, places, y, count, terms, offsets, y.strides[0], resume)
        np.testing.assert_array_equal(y[:count], 2 * (b[:, :count].T @ a))
        assert (y[whole:] == -99).all()
        if count >= (positions - 1) * (positions - 2):
            assert (y[count:] == -99).all()


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    "geometry",
    [
        "n1 c70 k200 g1 in7x7 w1x1 s1 p0 d1",
        "n3 c33 k150 g1 in5x5 w1x1 s1 p0 d1",  # a tile has pixels of two images
        "n2 c40 k130 g1 in9x11 w1x1 s2 p0 d1",  # pixels lie apart
        "n1 c12 k260 g2 in1x2 w1x1 s1 p0 d1",  # fewer than a tile has
        "n1 c300 k110 g1 in50 w1 s1 p0 d1",  # more channels than a panel holds
    ],
)
def test_tiles_gather_what_they_read(geometry, dtype, rng):
    """By `blocked`: the exact sums of integers, from x in any order, from bound weights and by one thread."""
    problem = parse(f"conv forward {dtype} {geometry}")
    assert layout_for(problem).gathered == (host().width <= 32)
    x, w = integers(problem, rng)
    bias = rng.integers(-9, 10, problem.k).astype(problem.dtype)
    options = {"groups": problem.groups, "stride": problem.stride, "activation": "relu"}
    expected = nc.conv(x, w, bias, backend="reference", **options)
    options |= {"backend": "numba", "algorithm": "blocked"}
    apart = np.repeat(x, 2, axis=-1)[..., ::2]
    plan = nc.plan("conv", x.shape, w.shape, x.dtype, bias=True, like=x, **options).bind(w)
    for y in (nc.conv(x, w, bias, **options), nc.conv(apart, w, bias, **options), plan(x, bias)):
        np.testing.assert_array_equal(y, expected)
    with nc.using(threads=1):
        np.testing.assert_array_equal(nc.conv(x, w, bias, **options), expected)


@pytest.mark.parametrize("together", [0, 1, 3])
@pytest.mark.parametrize(
    "geometry",
    [
        "n2 c3 k11 g1 in31x37 w3x3 s2 p1 d1",  # the last lines are fewer, the last channels overlap others
        "n1 c4 k6 g2 in7x9x20 w2x3x3 s1 p1 d1",
        "n1 c2 k9 g1 in12x50 w4x4 s4 p0 d1",
        "n2 c2 k11 g1 in500 w10 s5 p3 d1",  # single pixels, stored as one line
    ],
)
def test_lines_that_are_stored_while_others_are_computed(geometry, together, rng, monkeypatch):
    """The exact sums with bias and relu by one thread and by two; what is not finite is found in every line."""
    known = register_tile.lines_for

    def forced(problem, tile, block):
        width = tile.vectors * tile.lanes
        pixels = (together - 1) * block.pitch[-1] + block.size[-1] if problem.ndim > 1 else together
        return known(problem, tile, block)._replace(together=together, row=-(-pixels // width) * width)

    monkeypatch.setattr(register_tile, "lines_for", forced)
    register_tile._layout.cache_clear()
    problem = parse(f"conv forward f32 {geometry}").replace(bias="y", activation="relu")
    arrays = integers(problem, rng)
    rows = {each.name: each for each in rows_of(problem)}
    expected = computed(rows["direct"], problem, arrays)[0]
    for count in (1, 2):
        with nc.using(threads=count):
            np.testing.assert_array_equal(computed(rows["tile"], problem, arrays)[0], expected)
    arrays[1][-1].flat[0] = np.inf  # it meets padding zeros, which are no terms
    np.testing.assert_array_equal(computed(rows["tile"], problem, arrays)[0], computed(rows["direct"], problem, arrays)[0])
    register_tile._layout.cache_clear()


def test_lines_of_few_terms_are_stored_together():
    """Where products take long beside that, all lines of a block are computed before."""
    first = parse("conv forward f16 n1 c3 k32 g1 in224x224 w3x3 s2 p1 d1")
    deep = parse("conv forward f32 n1 c256 k32 g1 in58x58 w3x3 s1 p0 d1")
    sound = parse("conv forward f32 n1 c1 k512 g1 in48000 w10 s5 p0 d1")
    for few in (first, sound):
        assert 0 < register_tile._layout(few).lines.together < register_tile._layout(few).block.size[0]
    assert register_tile._layout(deep).lines.together == 0


def test_sums_of_few_terms_leave_the_registers_for_their_places():
    """Lines of whole vectors, but no short ones, and none whose sums are rounded or go through an activation."""
    bank = parse("conv forward f32 n64 c1 k32 g1 in28x28 w5x5 s1 p0 d1")
    half = parse("conv forward f16 n64 c1 k32 g1 in28x28 w5x5 s1 p0 d1")
    others = [bank.replace(spatial=(9, 9)), bank.replace(activation="silu"), half]
    assert register_tile._layout(bank).lines.together == register_tile.PLACED
    assert all(register_tile._layout(each).lines.together != register_tile.PLACED for each in others)


@pytest.mark.parametrize(
    "geometry",
    [
        "n2 c3 k11 g1 in31x37 w3x3 s2 p1 d1",  # the last vector of a line and the last channels overlap others
        "n1 c4 k6 g2 in7x19x40 w2x3x3 s1 p1 d1",
        "n1 c2 k9 g1 in12x70 w4x4 s4 p0 d1",
        "n2 c2 k5 g1 in501 w7 s1 p3 d2",
        "n1 c1 k4 g1 in9x16 w3x1 s1 p0 d1 flip=1",
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_vectors_at_places_of_their_own(geometry, dtype, rng, monkeypatch):
    """The exact sums with and without bias and relu, by one thread and by two; what is not finite is found in every vector."""
    known = register_tile.lines_for

    def forced(problem, tile, block):
        assert register_tile.can_place(problem, tile, block)
        vectors = np.prod(block.size[:-1], dtype=int) * -(-block.size[-1] // tile.lanes)
        together = known(problem, tile, block)
        return together._replace(together=register_tile.PLACED, row=-(-int(vectors) // tile.vectors) * tile.vectors)

    monkeypatch.setattr(register_tile, "lines_for", forced)
    register_tile._layout.cache_clear()
    for changes in ({}, {"bias": "y"}, {"bias": "y", "activation": "relu"}, {"activation": "relu"}):
        problem = parse(f"conv forward {dtype} {geometry}").replace(**changes)
        arrays = integers(problem, rng)
        rows = {each.name: each for each in rows_of(problem)}
        expected = computed(rows["direct"], problem, arrays)[0]
        for count in (1, 2):
            with nc.using(threads=count):
                np.testing.assert_array_equal(computed(rows["tile"], problem, arrays)[0], expected)
        for place in (0, -1):
            spoiled = [arrays[0], arrays[1].copy(), *arrays[2:]]
            spoiled[1][place].flat[0] = np.inf  # it meets padding zeros, which are no terms
            found, wanted = (computed(rows[name], problem, spoiled)[0] for name in ("tile", "direct"))
            np.testing.assert_array_equal(found, wanted)
    register_tile._layout.cache_clear()


@pytest.mark.parametrize("rows", [3, 7])
def test_what_is_not_finite_stays_in_its_image(rows, rng):
    """Though its pixels share a panel with those of the image before, also where those left over at its end do."""
    x, w = rng.standard_normal((6, 8, rows, 5)), rng.standard_normal((40, 8, 1, 1))
    x[2, 1, 0, 0] = np.inf
    x[4, 3, rows - 1, 4] = np.nan
    y = nc.conv(x, w, backend="numba", algorithm="implicit_gemm")
    np.testing.assert_array_equal(np.argwhere(~np.isfinite(y[:, 0])), [[2, 0, 0], [4, rows - 1, 4]])


@pytest.mark.parametrize("count", [4, 64])
def test_problems_are_cut_for_several_threads(count):
    """What has work for threads and one panel of channels has as many blocks, which none of them packs for another."""
    problem = parse(f"conv forward f32 n{count // 4} c24 k48 g1 in90x90 w5x5 s3 p2 d1")
    assert layout_for(problem).block.pieces >= 4
    small = parse("conv forward f32 n1 c4 k48 g1 in20x20 w3x3 s1 p1 d1")
    assert layout_for(small).block.pieces == 1


@pytest.mark.parametrize("algorithm", ["tile", "blocked", "winograd", "implicit_gemm"])
def test_bound_weights_give_the_same_bits(algorithm, rng):
    x, w = rng.standard_normal((1, 80, 19, 18), dtype="float32"), rng.standard_normal((36, 80, 3, 3), dtype="float32")
    plan = nc.plan("conv", x.shape, w.shape, "float32", padding=1, backend="numba", algorithm=algorithm)
    expected, bound = plan(x, w), plan.bind(w)
    w[...] = 0
    np.testing.assert_array_equal(bound(x), expected)


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("size", [56, 224])
def test_extra_memory_stays_small(op, size):
    """NumPy reports its allocations: the kept scratch memory of a call is far below 64 MiB, whatever the size of the image."""
    problem = parse(f"conv {op} f32 n1 c64 k64 g1 in{size}x{size} w3x3 s1 p1 d1")
    arrays = [np.ones(shape, "float32") for shape in problem.input_shapes]
    outs = [np.ones(shape, "float32") for shape in problem.output_shapes]
    for each in rows_of(problem):
        if each.name in ("direct", "fft"):  # one needs little anyway, the other has a test of its own
            continue
        executor = each.build(problem)
        with nc.using(threads=2):
            executor(outs, arrays)
            tracemalloc.start()
            executor(outs, arrays)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 4 * 2**20, each.name  # fresh in a repeated call: what `tile` takes in its kernel
        assert each.workspace(problem) <= problem.max_workspace


def test_scratch_memory_is_bounded():
    """What the largest call needed is kept, up to a limit, for each thread; that of all workers is kept once."""
    from numconv_numba import threads

    memory = threads.Memory(5 * 2**20)
    assert memory.take(100).size == memory.take(1000).size == 4 * 2**20
    assert memory.take(5 * 2**20 + 1).size == 5 * 2**20 + 1
    assert memory.take(0).size == 4 * 2**20
    own, found = threads.Kept(), []
    thread = threading.Thread(target=lambda: found.append(own.take(1)))
    thread.start()
    thread.join()
    assert not np.shares_memory(own.take(1), found[0])


def test_phases_of_a_strided_gradient_cover_every_tap_and_place():
    """No zeros are multiplied: the parts share the taps among them, and the places of x."""
    from numconv_numba.dense.base import forward_parts

    problem = parse("conv input_grad f32 n1 c2 k3 g1 in13x16 w5x2 s3x2 p2:1x0 d1")
    parts = forward_parts(problem)
    assert len(parts) == 6
    places, products = np.zeros(problem.spatial, int), 0
    for part in parts:
        places[part.places] += 1
        products += 0 if part.problem is None else part.problem.flops
    np.testing.assert_array_equal(places, 1)
    assert products <= 1.5 * problem.flops


@pytest.mark.parametrize("algorithm", ["blocked", "implicit_gemm"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("taps", "picked"),
    [
        ((3, 3), np.s_[:2, 1:]),  # runs shorter than a row
        ((4, 3), np.s_[::2, ::2]),
        ((3, 3), np.s_[1:, :]),  # rows that follow each other, and a gap
        ((3, 3), np.s_[:1, 1:]),
        ((3, 3), np.s_[1:2, 2:]),  # one of nine, too few to turn all
        ((3, 3), np.s_[::-1, :2]),  # rows that lead back
        ((3,), np.s_[1:]),
    ],
)
def test_weights_that_are_some_taps_of_larger_kernels(taps, picked, dtype, algorithm, rng):
    """As views, of a layer and of its adjoint: what lies between them has no part in any sum."""
    w = rng.integers(-3, 4, (70, 19, *taps)).astype(dtype)
    for whole in (w, w.swapaxes(0, 1)):
        some = whole[(slice(None), slice(None), *(picked if isinstance(picked, tuple) else (picked,)))]
        x = rng.integers(-3, 4, (2, whole.shape[1], *(9,) * len(taps))).astype(dtype)
        y = nc.conv(x, some, padding=1, backend="numba", algorithm=algorithm)
        np.testing.assert_array_equal(y, nc.conv(x, some.copy(), padding=1, backend="reference"))


def test_large_weight_gradients_share_their_sums():
    """The room of all workers together does not grow with their number, as each has its own taps."""
    problem = parse("conv weight_grad f32 n1 c2048 k256 g1 in33x33 w3x3 s1 p1 d1")
    assert BlockedWeights().workspace(problem) <= problem.max_workspace // 2


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("n3 c1300 k600 g1 in9x10 w1x1 s1 p0 d1", True),
        ("n9 c20 k1260 g2 in9x11 w3x3 s1 p1 d1", False),
        ("n1 c150 k601 g1 in7x7 w1x1 s1 p0 d1", False),
    ],
)
def test_panels_of_a_weight_gradient_pass_over_x_together(text, shared, rng):
    """In several blocks, whose taps are shared, or in one; the last panel is not full; by any number of threads."""
    problem = parse(f"conv weight_grad f32 {text} bias=y")
    layout = BlockedWeights().layout(problem)
    assert layout.together > 1
    assert (layout.shares > 1) is shared
    arrays = integers(problem, rng)
    got = computed(BlockedWeights(), problem, arrays)
    with nc.using(threads=1):
        alone = computed(BlockedWeights(), problem, arrays)
    reference = default_registry().backend("reference").implementations()[0]
    for one, other, wanted in zip(got, alone, computed(reference, problem, arrays), strict=True):
        np.testing.assert_array_equal(one, wanted)
        np.testing.assert_array_equal(other, wanted)


def test_weight_gradients_pack_the_few_channels_of_kernels_of_one_tap():
    """What is asked for is a matter of cost; what is not possible is not."""
    few = parse("conv weight_grad f32 n2 c48 k384 g1 in64x64 w1x1 s1 p0 d1 bias=y")
    many = few.replace(c=384, k=48)
    assert BlockedWeights().faced(few) == exchanged(few) == many.replace(bias="x")
    assert BlockedWeights().faced(many) is many
    for change in ({"groups": 2}, {"stride": (2, 1)}, {"padding": ((0, 1), (0, 0))}, {"kernel": (1, 2)}):
        assert exchanged(few.replace(**change)) is None


EXCHANGED = ["n3 c5 k70 g1 in9x11 w1x1 s1 p0 d1", "n2 c40 k310 g1 in64x64 w1x1 s1 p0 d1", "n5 c7 k67 g1 in301 w1 s1 p0 d1"]


@pytest.mark.parametrize("bias", ["", "x", "y"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "f16"])
@pytest.mark.parametrize("text", EXCHANGED)
def test_x_and_grad_y_change_places_for_kernels_of_one_tap(text, dtype, bias, rng, monkeypatch):
    """x of few channels is packed in place of grad_y: the same bits, by any number of threads and from arrays in any order."""
    problem = parse(f"conv weight_grad {dtype} {text}").replace(bias=bias)
    monkeypatch.setattr(BlockedWeights, "faced", lambda self, problem: exchanged(problem))
    arrays = [rng.standard_normal(shape).astype(problem.dtype) for shape in problem.input_shapes]
    plain = [np.full(shape, np.nan, problem.out_dtype) for shape in problem.output_shapes]
    WeightsExecutor(problem, BlockedWeights().layout(problem), problem.acc_dtype)(plain, arrays)
    got = computed(BlockedWeights(), problem, arrays)
    apart = computed(BlockedWeights(), problem, [np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) for a in arrays])
    with nc.using(threads=1):
        alone = computed(BlockedWeights(), problem, arrays)
    for one, other, another, wanted in zip(got, alone, apart, plain, strict=True):
        np.testing.assert_array_equal(one, other)
        if one.ndim > 1:
            np.testing.assert_array_equal(one, wanted)
            np.testing.assert_array_equal(another, wanted)
    strict = problem.replace(accuracy="strict")
    reference = default_registry().backend("reference").implementations()[0]
    for one, wanted in zip(computed(BlockedWeights(), strict, arrays), computed(reference, strict, arrays), strict=True):
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.parametrize(
    "text", ["n5 c8 k16 g1 in30x57 w3x3 s1 p1 d1", "n1 c64 k128 g1 in16x56x56 w3x3x3 s2 p1 d1", "n3 c6 k8 g2 in70 w5 s2 p2 d1"]
)
def test_costs_of_winograd_count_every_tile_once(text):
    """Also those of the short blocks that end a dimension."""
    problem = parse(f"conv forward f32 {text}")
    for tiles in tiles_of(problem):
        for deep in (False, True):
            block = winograd_layout.layout_with(problem, tiles, min(winograd_layout.BLOCK_BYTES), deep).block
            counted = winograd_layout._tiles_of_blocks(problem, block)
            assert counted.size == block.pieces
            assert counted.max() == block.tiles
            along = zip(problem.output, block.size, block.unit, strict=True)
            every = [sum(-(-min(size, whole - at) // unit) for at in range(0, whole, size)) for whole, size, unit in along]
            assert counted.sum() == problem.n * np.prod(every)


def test_winograd_is_never_chosen_where_every_bit_or_plain_sums_are_asked_for():
    for level in ("strict", "high"):
        explanation = nc.explain("conv", (1, 64, 56, 56), (64, 64, 3, 3), padding=1, accuracy=level, backend="numba")
        refused = next(row for row in explanation.candidates if row.algorithm == "winograd")
        assert not refused.verdict
    assert nc.explain("conv", (1, 64, 56, 56), (64, 64, 3, 3), padding=1, backend="numba").chosen.algorithm == "winograd"


@pytest.mark.parametrize("text", ["n2 c12 k40 g2 in19x21 w5x5 s2 p2 d1", "n3 c9 k70 g1 in6x9x11 w2x3x3 s1 p1 d1"])
def test_winograd_transforms_bound_weights_in_parts_where_they_would_leave_the_caches(text, monkeypatch, rng):
    problem = parse(f"conv forward f32 {text}")
    x, w = (rng.standard_normal(shape, np.float32) for shape in problem.input_shapes)
    (expected,) = computed(Winograd(), problem, (x, w))
    for most in (winograd.BOUND_BYTES, 0):
        monkeypatch.setattr(winograd, "BOUND_BYTES", most)
        got = np.full_like(expected, np.nan)
        Winograd().build(problem).bind(w)((got,), (x,))
        np.testing.assert_array_equal(got, expected)


def winograd_layouts(monkeypatch, deep, budget):
    """Layouts in which the lanes of the input's transform are channels (or else tiles), of the largest tiles in small blocks."""
    for module in (winograd_layout, winograd_weights):
        monkeypatch.setattr(module, "tiles_of", lambda problem: tiles_of(problem)[:1])
        monkeypatch.setattr(module, "deep_cycles", lambda *_: -1e15 if deep else 1e15)
    monkeypatch.setattr(winograd_layout, "BLOCK_BYTES", (budget,))
    monkeypatch.setattr(winograd_weights, "BLOCK_BYTES", budget)
    caches = winograd_layout.layout_for, winograd_layout.fine_layout, winograd_weights._layout
    for each in caches:
        each.cache_clear()
    return caches


@pytest.mark.parametrize(
    "text",
    [
        "f32 n3 c24 k20 g1 in9x7 w3x3 s1 p1 d1",
        "f32 n2 c34 k20 g2 in61 w3 s1 p2 d1 pad=reflect",
        "f32 n1 c40 k9 g1 in37x50 w3x3 s1 p1x2 d1 pad=circular",
        "f32 n3 c20 k24 g1 in25x22 w5x5 s1 p2 d1 flip=1",
        "f32 n2 c48 k17 g1 in30x33 w3x3 s1 p0 d1 layout=channels_last",
        "f16 n3 c18 k20 g1 in8x8 w3x3 s1 p1 d1",
        "f32 n2 c34 k20 g1 in33x28 w3x3 s2 p1 d1",
        "f32 n2 c24 k20 g2 in41 w5 s3 p2 d1 flip=1",
        "f32 n1 c18 k9 g1 in29x31 w5x4 s3x2 p2x1 d1 pad=reflect",
        "f32 n1 c17 k20 g1 in5x17x19 w3x3x3 s2 p1 d1 layout=channels_last",
        "f32 n2 c18 k20 g2 in13x29 w7x6 s1 p3x2 d1 flip=1",
        "f32 n1 c40 k9 g1 in17x18 w1x7 s1 p0x3 d1 pad=reflect",
        "f32 n2 c20 k17 g1 in19x9 w10x1 s1 p4x0 d1 layout=channels_last",
        "f32 n2 c20 k17 g1 in47 w8 s1 p0 d1",
    ],
)
def test_winograd_takes_tiles_or_channels_for_its_lanes(text, monkeypatch, rng):
    """With the same bits, in blocks of any part of an image."""
    forward, found = parse(f"conv forward {text}"), []
    arrays = [rng.standard_normal(shape, np.float32).astype(forward.dtype) for shape in forward.input_shapes]
    for deep in (False, True):
        caches = winograd_layouts(monkeypatch, deep, 96 * 1024)
        assert winograd_layout.layout_for(forward).deep == deep
        found += computed(Winograd(), forward, arrays)
        for problem in (forward, forward.replace(op="weight_grad")) if deep else ():
            check(problem, "numba", "winograd", rng=rng, integer=False)
    np.testing.assert_array_equal(*found)
    monkeypatch.undo()
    for each in caches:
        each.cache_clear()


def test_winograd_transforms_small_images_with_the_lanes_over_channels():
    """256 images of 8x8 in 16 channels: a vector of tiles of one channel would be three quarters empty."""
    problem = parse("conv forward f32 n256 c16 k32 g1 in8x8 w3x3 s1 p1 d1")
    for op in ("forward", "input_grad", "weight_grad"):
        each = problem.replace(op=op)
        assert (
            nc.explain(f"conv_{op}" if op != "forward" else "conv", each.x_shape, each.w_shape, padding=1).chosen.algorithm
            == "winograd"
        )
    few = parse("conv forward f32 n1 c4 k16 g1 in112x112 w3x3 s1 p1 d1")
    assert winograd_layout.layout_for(problem).deep
    assert not winograd_layout.layout_for(few).deep


def test_winograd_matrices_compute_a_convolution(rng):
    from numconv_numba.microkernels.transforms import matrices

    for m, r in ((2, 3), (4, 2), (5, 2), (4, 3), (3, 4), (2, 5)):
        inputs, weights, output = map(np.array, matrices(m, r))
        x, w = rng.standard_normal(m + r - 1), rng.standard_normal(r)
        np.testing.assert_allclose(output @ ((weights @ w) * (inputs @ x)), np.correlate(x, w, "valid"), rtol=0, atol=1e-12)


def winograd_error(rng, m, r):
    """Largest error of F(m x m, r x r) in float32, relative to the convolution of |x| with |w|, over tiles of 16 channels."""
    from numconv_numba.microkernels.transforms import matrices

    inputs, weights, output = (np.array(matrix, "float32") for matrix in matrices.__wrapped__(m, r))
    worst = 0.0
    for _ in range(30):
        x, w = (
            rng.standard_normal((16, m + r - 1, m + r - 1), dtype="float32"),
            rng.standard_normal((64, 16, r, r), dtype="float32"),
        )
        products = (weights @ w @ weights.T) * (inputs @ x @ inputs.T)
        y = output @ products.sum(axis=1) @ output.T
        windows = np.lib.stride_tricks.sliding_window_view(x.astype(float), (r, r), (1, 2))
        want, size = (np.einsum("cabij,kcij->kab", f(windows), f(w.astype(float))) for f in (np.positive, np.abs))
        worst = max(worst, float(np.max(np.abs(y - want) / size)))
    return worst


@pytest.mark.parametrize(("m", "r"), [(4, 2), (5, 2), (4, 3), (3, 4), (2, 5)])
def test_winograd_points_are_more_accurate_than_the_usual_ones(monkeypatch, m, r):
    """What docs/architecture.md says of them."""
    from numconv_numba.microkernels import transforms

    ours = winograd_error(np.random.default_rng(0), m, r)
    monkeypatch.setitem(transforms._POINTS, m + r - 1, ("1", "-1", "2", "-2")[: m + r - 3])
    usual = winograd_error(np.random.default_rng(0), m, r)
    assert ours < 1.3e-6
    assert ours < (0.5 if m + r == 7 else 0.8) * usual


@pytest.mark.parametrize(
    ("geometry", "products"),
    [
        ("in9x9 w3x3 s2", (121, 81, 25)),
        ("in9x9 w5x5 s2", (121, 49)),
        ("in19 w7 s3", (16, 10)),
        ("in9x9 w4x2 s2", (24, 20, 12)),
        ("in17x17 w1x7 s1", (11,)),
        ("in17x17 w6x1 s1", (12, 8)),
    ],
)
def test_winograd_multiplies_no_tap_that_is_not_there(geometry, products):
    """F(4, 2) and F(4, 1) take 5 + 4 products along a dimension, F(4, 3) and F(4, 2) 6 + 5, as F(3, 4) and F(3, 3) of 7 taps."""
    problem = parse(f"conv forward f32 n1 c32 k32 g1 {geometry} p0 d1")
    assert tuple(tiles.products for tiles in tiles_of(problem)) == products


@pytest.mark.parametrize(
    "text",
    [
        "n1 c50 k33 g1 in37x33 w3x3 s2 p1 d1",
        "n1 c40 k24 g2 in7x19x18 w3x3x3 s2 p1 d1",
        "n2 c40 k33 g1 in37x33 w3x3 s1 p1 d1",
        "n1 c50 k33 g1 in37x33 w7x3 s1 p3x1 d1",
    ],
)
def test_winograd_weights_are_shared_kept_or_transformed_again_with_the_same_bits(text, rng, monkeypatch):
    """The order of a sum follows from the problem alone."""
    problem = parse(f"conv forward f32 {text}")
    arrays, found = [rng.standard_normal(shape, np.float32) for shape in problem.input_shapes], []
    for kept, cycles in ((1 << 30, 0.0), (0, -1e12), (0, 1e12)):
        caches = winograd_layouts(monkeypatch, True, 96 * 1024)
        monkeypatch.setattr(winograd_layout, "KEPT_BYTES", kept)
        monkeypatch.setattr(winograd_layout, "OTHERS_CYCLES", cycles)
        layout = winograd_layout.layout_for(problem)
        assert (layout.kept, layout.shared) == (kept > 0, cycles < 0)
        for threads in (1, 2):
            with nc.using(threads=threads):
                found += computed(Winograd(), problem, arrays)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    monkeypatch.undo()
    for each in caches:
        each.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "f32 n2 c24 k10 g2 in11x7x6 w3x1x1 s1 p1x0x0 d1 flip=1",
        "f32 n1 c20 k17 g1 in9x7x14 w5x1x3 s1x1x2 p2x0x1 d1 layout=channels_last",
        "f32 n1 c12 k9 g1 in7x3x6x8 w2x3x1x1 s1 p0x1x0x0 d1",
    ],
)
def test_winograd_has_tiles_along_a_dimension_before_the_last_two(text, rng):
    """Where the kernel is a single tap wide along the last but one: results, gradients, bound weights, NaN."""
    problem = parse(f"conv forward {text}")
    for changed in (problem.replace(bias="y", activation="relu"), problem.replace(op="weight_grad", bias="y")):
        check(changed, "numba", "winograd", rng=rng, integer=False)
    for position in (0, 1):
        check(problem, "numba", "winograd", rng=rng, nonfinite=(position,))
    if max(problem.stride) == 1:
        check(problem.replace(op="input_grad"), "numba", "winograd", rng=rng, integer=False)
    x, w = (rng.standard_normal(shape, np.float32) for shape in problem.input_shapes)
    (expected,) = computed(Winograd(), problem, (x, w))
    bound = np.full((*problem.y_shape, 2), np.nan, np.float32)[..., 0]
    Winograd().build(problem).bind(w)((bound,), (x,))
    np.testing.assert_array_equal(bound, expected)


def test_kernels_of_few_taps_in_a_line_are_computed_by_winograd():
    for spatial, kernel in (((17, 17), (1, 7)), ((17, 17), (7, 1)), ((16, 28, 28), (3, 1, 1)), ((16, 28, 28), (1, 3, 1))):
        padding, shapes = tuple(r // 2 for r in kernel), ((8, 128, *spatial), (128, 128, *kernel))
        for op in ("conv", "conv_input_grad", "conv_weight_grad"):
            assert nc.plan(op, *shapes, "float32", padding=padding, backend="numba").algorithm == "winograd"


def test_winograd_leaves_windows_of_few_terms_to_others():
    """Four taps are left of 3x3 in a corner: their sum may be small beside the error of the tile."""
    verdicts = [Winograd().supports(parse(f"conv forward f32 n1 c{c} k64 g1 in56x56 w3x3 s2 p1 d1")) for c in (4, 5)]
    assert list(map(bool, verdicts)) == [False, True]
    assert "windows of 20 terms; some have 16" in verdicts[0].reason
    wide = Winograd().supports(parse("conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s2 p2 d1"))
    assert "1 of 9 taps beside the padding" in wide.reason
    corner = Winograd().supports(parse("conv forward f32 n1 c4 k64 g1 in56x56 w3x3 s1 p2 d1"))
    assert "windows of 8 terms; some have 4" in corner.reason
    half = Winograd().supports(parse("conv forward f32 n1 c64 k64 g1 in56x56 w7x7 s1 p6 d1"))
    assert "1 of 49 taps beside the padding" in half.reason
    assert Winograd().supports(parse("conv forward f32 n1 c4 k64 g1 in56x56 w3x3 s2 p1 d1 pad=reflect"))
    assert Winograd().supports(parse("conv forward f32 n1 c4 k64 g1 in256 w3 s2 p1 d1"))


@pytest.mark.parametrize(
    "text",
    [
        "n4 c5 k64 g1 in57x56 w3x3 s2 p1 d1",
        "n4 c4 k64 g1 in513 w3 s2 p1 d1",
        "n1 c8 k32 g1 in64x64 w5x5 s2 p2 d1",
        "n4 c4 k64 g1 in40x40 w7x7 s1 p3 d1",
        "n4 c4 k64 g1 in9x9x16 w1x3x1 s1 p0x1x0 d1",
    ],
)
def test_winograd_keeps_its_error_where_windows_hold_few_terms(text, rng):
    problem = parse(f"conv forward f32 {text}")
    x, w = (rng.standard_normal(shape, np.float32) for shape in problem.input_shapes)
    wide = [a.astype(float) for a in (x, w)]
    (got,) = computed(Winograd(), problem, [x, w])
    kwargs = {"stride": problem.stride, "padding": problem.padding, "backend": "numba"}
    want, size = nc.conv(*wide, **kwargs), nc.conv(*map(np.abs, wide), **kwargs)
    assert np.max(np.abs(got - want) / size) < 5e-6


@pytest.mark.parametrize("signed", [True, False])
def test_winograd_weight_gradients_are_as_accurate_as_one_chain(signed, rng):
    """Relative to the gradient of |x| and |grad_y|: sums of a tile's products are few, where a chain has a term for each pixel."""
    x, y = rng.standard_normal((1, 16, 40, 41)), rng.standard_normal((1, 16, 40, 41))
    if not signed:
        x, y = np.abs(x), np.abs(y)
    narrow = x.astype("float32"), y.astype("float32")
    shape = (16, 16, 3, 3)
    want = nc.conv_weight_grad(narrow[1].astype(float), narrow[0].astype(float), shape, padding=1, backend="numba")
    size = nc.conv_weight_grad(np.abs(narrow[1]), np.abs(narrow[0]), shape, padding=1, backend="numba")
    errors = {}
    for algorithm in ("winograd", "blocked"):
        got = nc.conv_weight_grad(narrow[1], narrow[0], shape, padding=1, backend="numba", algorithm=algorithm)
        errors[algorithm] = float(np.max(np.abs(got - want) / size))
    assert errors["winograd"] < 1e-6
    assert errors["winograd"] < 2 * errors["blocked"]


@pytest.mark.parametrize(
    "text",
    [
        "f32 n2 c37 k21 g1 in13x140 w4x4 s2 p1 d1 bias=x",  # rows long enough to be put together first
        "f32 n3 c20 k18 g2 in10x9 w3x3 s2 p1 d1 bias=x act=silu",
        "f64 n1 c9 k40 g1 in5x12x41 w2x3x3 s1x3x2 p0x1x2:0 d1x2x1 flip=1 bias=x act=relu",
        "f16 n2 c18 k12 g1 in80 w16 s8 p4 d1",
        "f32 n1 c4 k3 g1 in3x2 w1x2 s4x3 p0 d1",  # more phases than places
        "f32 n1 c4 k300 g1 in9x7 w3x3 s2 p1 d1",  # several passes, of more channels where a phase has fewer taps
        "f32 n2 c33 k7 g1 in9x9 w3x3 s2 p1 d1 layout=channels_last bias=x act=gelu",
    ],
)
def test_strided_gradients_in_one_pass(text, rng):
    """Every dtype, layout and activation; integers exactly, and what is not finite where it belongs."""
    problem = parse(f"conv input_grad {text}")
    check(problem, "numba", "subpixel", rng=rng)
    if problem.activation is None:
        for watched in (0, 1):
            check(problem, "numba", "subpixel", rng=rng, nonfinite=(watched,))


def test_strides_with_more_phases_than_can_be_listed_are_left_to_others():
    shapes = (1, 4, 9, 10), (4, 3, 3, 3)
    with pytest.raises(nc.UnsupportedProblemError, match="16900 are more than 4096"):
        nc.plan("conv_transpose", *shapes, "float32", stride=130, algorithm="subpixel")
    assert nc.plan("conv_transpose", *shapes, "float32", stride=10_000).backend == "numba"


def test_phases_of_subpixel_share_the_taps():
    """No zeros are multiplied: each tap belongs to one phase, and reads inside the window that all of them share."""
    from numconv_numba.strided.phases import phases_of

    problem = parse("conv input_grad f32 n1 c2 k3 g1 in13x16 w5x3 s3x2 p2:1x0 d2x3")
    phases = phases_of(problem)
    assert phases.counts == (3, 2)
    assert sorted(number for phase in phases.taps for number, _ in phase) == list(range(15))
    for phase in phases.taps:
        assert all(0 <= place < size for _, places in phase for place, size in zip(places, phases.window.kernel, strict=True))
    assert phases.window.output == (5, 8)


@pytest.mark.parametrize("budgets", [(1,), None])
@pytest.mark.parametrize(
    "text",
    [
        "f32 n3 c5 k24 g1 in70x26 w4x4 s2 p1 d1 bias=x act=relu",
        "f64 n2 c3 k9 g1 in83x41 w7x5 s2 p3x2 d1 flip=1",
        "f32 n2 c6 k12 g1 in642 w16 s8 p4 d1",
        "f32 n1 c4 k20 g1 in120x27 w6x6 s3 p0 d1",
        "f32 n1 c4 k20 g1 in9x14x16 w4x4x4 s2 p1 d1",
        "f32 n2 c1 k10 g1 in163 w40 s16 p0 d1 bias=x act=silu",
        "f32 n1 c3 k21 g1 in45x27 w4x4 s2 p0 d1 bias=x act=relu",
        "f32 n2 c70 k21 g1 in30x41 w3x3 s2 p1x0 d1 layout=channels_last",
        "f32 n3 c6 k50 g2 in11x14x16 w3x3x3 s2 p1 d1 flip=1",
        "f32 n3 c38 k40 g2 in33x30 w3x3 s2 p1 d1",
    ],
)
def test_strided_gradients_by_winograd(text, budgets, rng, monkeypatch):
    """In few blocks or in many; NaN where it belongs; bound weights, results with gaps and other threads give the same."""
    from numconv_numba.strided import interleaved

    monkeypatch.setattr(interleaved, "BLOCK_BYTES", budgets or interleaved.BLOCK_BYTES)
    interleaved._layout.cache_clear()
    problem = parse(f"conv input_grad {text}")
    row = next(each for each in rows_of(problem) if each.name == "interleaved")
    check(problem, "numba", "interleaved", rng=rng, integer=False)
    if problem.activation is None:
        check(problem, "numba", "interleaved", rng=rng, nonfinite=(0,))
        check(problem, "numba", "interleaved", rng=rng, nonfinite=(1,))
    y, w, *bias = (rng.standard_normal(shape).astype(problem.dtype) for shape in problem.input_shapes)
    expected = computed(row, problem, [y, w, *bias])[0]
    apart = np.full((*problem.x_shape, 2), np.nan, problem.dtype)[..., 0]
    row.build(problem)((apart,), (y, w, *bias))
    np.testing.assert_array_equal(apart, expected)
    with nc.using(threads=1):
        np.testing.assert_array_equal(computed(row, problem, [y, w, *bias])[0], expected)
    bound = np.full_like(expected, np.nan)
    row.build(problem).bind(w)((bound,), (y, *bias))
    np.testing.assert_array_equal(bound, expected)
    interleaved._layout.cache_clear()


@pytest.mark.parametrize("fewest", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [
        "in8x9 w3x3 s2 p1 d1",
        "in8x8 w4x4 s2 p1 d1 flip=1",
        "in9x10 w3x5 s2 p0x1 d1",
        "in9x5x12 w4x3x5 s2x1x3 p1:0x1x1 d1",
        "in41 w16 s8 p4 d1",
    ],
)
def test_aligned_phases_hold_each_product_once(geometry, fewest):
    """Each tap that reads an output for a position of x is in the window of one place of one phase."""
    from numconv_numba.strided.aligned import aligned

    problem = parse(f"conv input_grad f32 n1 c3 k4 g1 {geometry}")
    phases, inner = aligned(problem, fewest), max(0, problem.ndim - 2)
    steps = [math.prod(problem.kernel[axis + 1 :]) * (1 if problem.flip else -1) for axis in range(problem.ndim)]
    found = []
    for offsets, phase in zip(itertools.product(*map(range, problem.stride)), phases.phases, strict=True):
        window = phases.windows[phase.window]
        rests = [*itertools.product(*map(range, phase.taps[inner:]))]
        taps = [(number, (*places, *rest)) for number, places in phases.leads[phase.lead] for rest in rests]
        for place in itertools.product(*map(range, window.output)):
            axes = zip(place, problem.stride, offsets, phases.origins, strict=True)
            position = tuple(i * s + offset - origin for i, s, offset, origin in axes)
            for lead, rest in taps:
                number = lead + phase.first + sum(problem.stride[a] * steps[a] * rest[a] for a in range(inner, problem.ndim))
                output = tuple(i - low + j for i, (low, _), j in zip(place, window.padding, rest, strict=True))
                if all(0 <= p < size for p, size in zip((*position, *output), (*problem.spatial, *problem.output), strict=True)):
                    found.append((position, number, output))
    expected = set()
    for output, tap in itertools.product(np.ndindex(*problem.output), np.ndindex(*problem.kernel)):
        axes = zip(output, problem.stride, tap, problem.padding, strict=True)
        position = tuple(q * s + t - low for q, s, t, (low, _) in axes)
        if all(0 <= p < size for p, size in zip(position, problem.spatial, strict=True)):
            numbers = [r - 1 - t if problem.flip else t for t, r in zip(tap, problem.kernel, strict=True)]
            expected.add((position, int(np.ravel_multi_index(numbers, problem.kernel)), output))
    assert len(found) == len(expected)
    assert set(found) == expected


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        ("n1 c8 k8 g1 in33x33 w3x3 s2 p1 d1", "20 terms"),
        ("n1 c8 k8 g1 in1 w4 s2 p4:0 d1", "positions that no window reads"),
        ("n1 c8 k30 g1 in16x16 w2x2 s2 p0 d1", "2 to 5 taps"),
        ("n1 c8 k40 g1 in16x16 w4x4 s2 p1 d2", "dilation"),
        ("n1 c8 k40 g1 in16x16 w2x4 s3x2 p0x1 d1", "phases without taps"),
    ],
)
def test_what_zeros_or_rounding_would_reach_is_refused(geometry, reason):
    from numconv_numba.strided.interleaved import Interleaved

    verdict = Interleaved().supports(parse(f"conv input_grad f32 {geometry}"))
    assert not verdict
    assert reason in verdict.reason


@pytest.mark.parametrize("processor", ["haswell", "x86-64-v2"])
def test_narrower_processors(check_on, processor):
    """The same kernels for AVX2 and for 128 bits."""
    layer, forward = "f32 n2 c5 k19 g1 in11x13 w3x3 s1 p1 d1", ("tile", "blocked", "winograd", "implicit_gemm")
    jobs = [(algorithm, f"conv {op} {layer}") for op in ("forward", "input_grad") for algorithm in forward]
    jobs += [(algorithm, f"conv weight_grad {layer}") for algorithm in ("blocked", "winograd")]
    jobs += [(algorithm, "conv forward f32 n1 c4 k7 g1 in9x10 w3x3 s1 p1 d1") for algorithm in forward]
    jobs += [(algorithm, "conv input_grad f32 n2 c19 k20 g1 in11x43 w3x3 s2 p1 d1") for algorithm in ("subpixel", "interleaved")]
    check_on(processor, jobs)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("k", [5, 33, 70, 150])
def test_the_gradient_of_a_bias_is_one_chain(k, dtype, rng):
    """Over the images, then the outputs row-major, whatever the width of a panel."""
    problem = parse(f"conv weight_grad {dtype} n3 c6 k{k} g1 in7x9 w3x3 s1 p1 d1 bias=y")
    y, x = (rng.standard_normal(shape).astype(problem.dtype) for shape in problem.input_shapes)
    chain = np.cumsum(y.swapaxes(0, 1).reshape(k, -1), axis=1, dtype=problem.dtype)[:, -1]
    rows = {row.name: row for row in rows_of(problem)}
    for name in ("blocked", "winograd"):
        np.testing.assert_array_equal(computed(rows[name], problem, [y, x])[1], chain, err_msg=name)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float64", "float64"), ("float16", "float32"), ("float32", "float16")])
@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("biased", [False, True])
def test_rectangles_are_transposed_and_what_is_not_finite_is_told(dtypes, relu, biased, rng):
    from numconv_numba.microkernels.transpose import transpose

    wide = max(dtypes, key=lambda name: np.dtype(name).itemsize)
    lanes = lanes_of(wide)
    run, most = transpose.specialise(lanes, dtypes), 3 * lanes
    for _ in range(200):
        rows, columns = (int(n) for n in rng.integers(0, most, 2))
        x, bias = rng.standard_normal((most, most)).astype(dtypes[0]), rng.standard_normal(most).astype(wide)
        bad = rng.choice([0, np.nan, np.inf, -np.inf]) if rows and columns else 0
        if bad:
            x[rng.integers(rows), rng.integers(columns)] += bad
        x[rows:], x[:, columns:] = np.nan, np.nan  # which nothing reads
        y = np.full((most, most), -7, dtypes[1])
        expected = y.copy()
        shifted = x[:rows, :columns] + (bias[:columns] if biased else 0)
        expected[:columns, :rows] = (np.maximum(shifted, 0) if relu else shifted).T
        found = run(x, x.strides[0], rows, columns, bias if biased else 0, relu, y, y.strides[0])
        np.testing.assert_array_equal(y, expected)
        assert found == (bad != 0)


@pytest.mark.parametrize("phases", [1, 2, 3, 4])
def test_planes_of_rows_are_split_and_nothing_beside_them_is_written(phases, rng):
    from numconv_numba.microkernels.copies import split
    from numconv_numba.microkernels.emit import lanes_of

    lanes = lanes_of("float32")
    run = split.specialise((phases, lanes), ("float32", "float32"))
    for _ in range(200):
        size, start, count = (int(rng.integers(low, high)) for low, high in ((1, 150), (-150, 150), (1, 6 * lanes)))
        x = rng.standard_normal((2, 3, size), dtype="float32")
        y = np.full((2, 3, phases, count + 5), -7, np.float32)
        run(x, start, size, y, y.strides[2], count, 3, x.strides[1], y.strides[1], 2, x.strides[0], y.strides[0])
        places = start + np.arange(count) * phases + np.arange(phases)[:, None]
        expected = np.where((places >= 0) & (places < size), x[..., places.clip(0, size - 1)], 0)
        np.testing.assert_array_equal(y[..., :count], expected)
        assert (y[..., count:] == -7).all()


def test_a_batch_of_small_images_has_work_for_several_threads():
    from numconv_numba.dense.blocked import layout_for

    for n in (2, 3, 4, 64):
        batch = layout_for(parse(f"conv forward f32 n{n} c32 k64 g1 in4x4 w3x3 s1 p1 d1"))
        least = 8 if host().width < 64 else 2 * min(n, 4)
        assert batch.block.pieces * -(-64 // batch.shape.width) >= least  # an item is a panel of output channels of a block


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("f32 n2 c3 k11 g1 in29x13 w3x3 s1 p1 d1", {"bias": "y", "activation": "relu"}),
        ("f32 n2 c3 k11 g1 in29x13 w3x3 s1 p1 d1", {"bias": "y", "activation": "silu"}),
        ("f32 n1 c3 k9 g1 in29x13 w3x3 s1 p1 d1", {"layout": "channels_last", "bias": "y"}),
        ("f64 n2 c4 k6 g2 in45 w5 s3 p2 d2", {"bias": "y"}),
        ("f16 n1 c3 k9 g1 in5x7x18 w3x2x3 s1 p1 d1", {"bias": "y"}),
        ("f32 n1 c2 k3 g1 in3x4x5x6 w2x3x2x3 s1 p1 d1", {}),
    ],
)
def test_tiles_write_lines(text, changes, rng):
    """Lines, planes and what lies beyond them, with bias and activation, in every dtype and layout."""
    check(parse(f"conv forward {text}").replace(**changes), "numba", "tile", rng=rng)


def test_strides_of_too_many_phases_are_left_to_others():
    """To plan a million phases would take minutes."""
    problem = parse("conv input_grad f32 n1 c1 k1 g1 in1048577 w2 s1048576 p0 d1")
    reasons = {each.algorithm: each.verdict.reason for each in candidates(problem, "numba") if not each.verdict}
    for name in ("blocked", "tile", "winograd", "fft"):
        assert "at most 4096, and here are 1048576" in reasons[name]


def test_winograd_counts_what_padding_leaves_of_leading_taps():
    """Of 3x3 slices one or four are inside where planes are padded: with one channel a window may hold nothing but a zero."""
    supports = [
        Winograd().supports(parse(f"conv forward f32 n1 c1 k4 g1 in{size}x9x9 w3x3x3x3 s1 p{pad}x{pad}x1x1 d1"))
        for size, pad in (("5x5", 1), ("5x5", 2), ("1x1", 1), ("9x9", 0))
    ]
    assert [bool(each) for each in supports] == [True, False, False, True]
    assert "channels of a group may be small" in supports[1].reason


def test_winograd_leaves_weight_gradients_of_few_terms_to_plain_sums():
    """Where few terms cancel, the error of a tile is large beside their sum."""
    verdicts = [WinogradWeights().supports(parse(f"conv weight_grad f32 n{n} c64 k64 g1 in5x5 w2x2 s1 p0 d1")) for n in (1, 2)]
    few = WinogradWeights().supports(parse("conv weight_grad f32 n1 c64 k64 g1 in5x4 w3x2 s1 p0 d1"))
    assert all(verdicts)
    assert not few
    assert "sums of 9 terms" in few.reason


# Costs.


@pytest.mark.skipif(host().width < 64, reason="timed with vectors of 64 bytes")
@pytest.mark.parametrize(
    ("text", "faster", "slower"),
    [
        ("forward f32 n4 c384 k3 g1 in28x28 w1x1 s1 p0 d1", "implicit_gemm", "planewise"),  # planes are one run of neighbours
        ("forward f32 n4 c192 k192 g192 in8x8x8 w2x2x2 s1 p0 d1", "planewise", "tile"),  # a call for each small plane
        ("forward f32 n1 c128 k24 g1 in8x8 w4x4 s1 p0 d2", "inner_product", "blocked"),  # whole panels of weights
        ("input_grad f32 n8 c80 k33 g1 in20x20x20 w1x1x1 s2 p0 d1", "col2im", "tile"),  # lines that are written twice
        ("input_grad f32 n8 c33 k65 g1 in82x82 w2x2 s2 p0 d1", "subpixel", "tile"),  # short last blocks
        ("weight_grad f32 n8 c384 k2 g1 in200 w2 s2 p0 d1", "blocked", "planewise"),  # loads across lines, in one dimension
        ("weight_grad f32 n1 c1 k32 g1 in48000 w7 s1 p3 d1", "depthwise", "planewise"),
    ],
)
def test_costs_order_algorithms_as_their_times_do(text, faster, slower):
    """Problems on which one took less than 0.7 of the other's time: what is small beside the products was counted wrongly."""
    costs = {row.algorithm: row.cost for row in candidates(parse(f"conv {text}"), "numba") if row.verdict}
    assert costs[faster] < costs[slower]


@pytest.mark.skipif(host().width != 32, reason="timed with vectors of 32 bytes")
@pytest.mark.parametrize(
    ("text", "faster", "slower"),
    [
        ("forward f32 n1 c320 k1280 g1 in7x7 w1x1 s1 p0 d1", "blocked", "inner_product"),
        ("forward f32 n1 c960 k160 g1 in7x7 w1x1 s1 p0 d1", "blocked", "inner_product"),
        ("forward f32 n1 c512 k512 g1 in6x6 w1x1 s1 p0 d1", "blocked", "inner_product"),
        ("forward f32 n1 c512 k512 g1 in3x3 w1x1 s1 p0 d1", "inner_product", "blocked"),  # to pack takes as long as to multiply
        ("forward f32 n1 c256 k256 g1 in3x3 w3x3 s1 p1 d1", "inner_product", "blocked"),
        ("input_grad f32 n16 c2048 k512 g1 in7x7 w1x1 s1 p0 d1", "blocked", "implicit_gemm"),
        ("input_grad f32 n16 c3072 k768 g1 in7x7 w1x1 s1 p0 d1", "blocked", "implicit_gemm"),
        ("input_grad f32 n16 c768 k3072 g1 in7x7 w1x1 s1 p0 d1", "implicit_gemm", "blocked"),  # many terms for few pixels
        ("input_grad f32 n4 c64 k256 g1 in56x56 w1x1 s1 p0 d1", "implicit_gemm", "blocked"),  # few rows of w
    ],
)
def test_costs_with_avx2_order_algorithms_as_their_times_do(text, faster, slower):
    """Small planes, and input gradients whose rows of weights, a power of two apart, crowd the sets of a cache: 0.8 of the time."""
    costs = {row.algorithm: row.cost for row in candidates(parse(f"conv {text}"), "numba") if row.verdict}
    assert costs[faster] < costs[slower]
