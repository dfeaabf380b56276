"""Convolution by transforms: agreement, accuracy, what is not finite, bits, memory, and where it is chosen."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import bound

# Each in the arithmetic of its dtype, on several blocks or on one, with sizes off all of them.
GEOMETRIES = [
    "f32 n2 c1 k1 g1 in1500 w129 s1 p128 d1",
    "f32 n1 c3 k2 g1 in700 w61 s1 p30 d1 flip=1",
    "f64 n1 c4 k4 g4 in900 w200 s1 p150:20 d1",
    "f32 n3 c2 k4 g2 in801 w75 s3 p37 d1",
    "f32 n1 c2 k3 g1 in1000 w40 s1 p40 d4",
    "f64 n1 c1 k2 g1 in1203 w90 s4 p45 d6 flip=1",
    "f32 n1 c3 k5 g1 in400 w33 s1 p16 d1 pad=reflect bias=y act=relu",
    "f64 n1 c1 k1 g1 in300 w100 s2 p99 d1 pad=circular",
    "c64 n1 c2 k3 g1 in500 w50 s1 p20 d1 bias=y",
    "c128 n2 c2 k2 g2 in300 w64 s2 p30 d1",
    "f32 n1 c2 k2 g2 in70x61 w15x9 s1 p7x4 d1",
    "f64 n2 c3 k2 g1 in50x40 w9x11 s2x1 p4x5 d1x2 pad=symmetric",
    "f32 n1 c2 k3 g1 in20x18x23 w5x4x6 s1 p2 d1 bias=y act=gelu",
    "f32 n1 c9 k3 g1 in9x8x7x10 w3x2x3x4 s1 p1 d1",
    "f16 n1 c4 k3 g1 in600 w65 s1 p32 d1",
    "f32 n1 c9 k2 g1 in20 w3 s1 p14 d1",
    "f32 n1 c8 k6 g1 in3x2 w5x4 s1 p1 d1",
]


def text_of(geometry, op):
    """The problem of an operation, without the options that a gradient does not have."""
    words = geometry.split()
    return " ".join(["conv", op, *(w for w in words if op == "forward" or not w.startswith(("bias", "act")))])


def implementation(name, op):
    return next(each for each in default_registry().backend("numba").implementations() if each.name == name and op in each.ops)


def inputs(problem, rng):
    arrays = [rng.standard_normal(shape) for shape in problem.input_shapes]
    if problem.dtype.startswith("complex"):
        arrays = [array + 1j * rng.standard_normal(array.shape) for array in arrays]
    return [array.astype(problem.dtype) for array in arrays]


def computed(name, problem, arrays):
    outs = [np.full(shape, np.nan, problem.out_dtype) for shape in problem.output_shapes]
    implementation(name, problem.op).build(problem)(outs, arrays)
    return outs[0]


def magnitudes(problem, arrays):
    wide = problem.replace(dtype="float64", out_dtype="float64", activation=None, accuracy="high")
    return computed("direct", wide, [np.abs(array).astype(float) for array in arrays])


def exact(problem, arrays):
    complex_ = problem.dtype.startswith("complex")
    name = "complex128" if complex_ else "float64"
    return computed("direct", problem.replace(dtype=name, out_dtype=name, accuracy="high"), [a.astype(name) for a in arrays])


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_agrees_with_the_definition(op, geometry, rng):
    problem = parse(text_of(geometry, op))
    verdict = implementation("fft", op).supports(problem)
    if not verdict:
        pytest.skip(verdict.reason)
    arrays = inputs(problem, rng)
    got, want = computed("fft", problem, arrays), exact(problem, arrays)
    assert (np.abs(got - want) <= bound(problem) * magnitudes(problem, arrays) + 1e-300).all()


def test_short_sums_and_the_high_level_are_computed_in_double_precision(rng):
    """Then integers are exact, and windows that hold nothing are zero."""
    for text in ("conv forward f32 n1 c2 k3 g1 in60 w5 s1 p7 d1", "conv weight_grad f32 n1 c2 k3 g1 in9 w7 s1 p8 d1"):
        problem = parse(text)
        arrays = [rng.integers(-4, 5, shape).astype("float32") for shape in problem.input_shapes]
        want = computed("direct", problem, arrays)
        np.testing.assert_array_equal(computed("fft", problem, arrays), want)
        np.testing.assert_array_equal(computed("fft64", problem.replace(accuracy="high"), arrays), want)


def test_what_is_too_short_for_double_precision_is_refused():
    short, long = "conv forward f64 n1 c1 k1 g1 in60 w5 s1 p2 d1", "conv forward f64 n1 c1 k1 g1 in600 w99 s1 p98 d1"
    verdict = implementation("fft", "forward").supports(parse(short))
    assert "it needs sums of 8 terms" in verdict.reason
    assert implementation("fft", "forward").supports(parse(long))
    assert "no wider arithmetic than float64" in implementation("fft64", "forward").supports(parse(f"{long} accuracy=high")).reason
    assert "are exact" in implementation("fft", "forward").supports(parse("conv forward i32 n1 c1 k1 g1 in60 w50 s1 p2 d1")).reason


@pytest.mark.parametrize("name", ["fft", "fft64"])
def test_the_stated_error_holds(name, rng):
    """Largest error relative to the convolution of |x| with |w|, normal data, "full" padding included."""
    level = "" if name == "fft" else " accuracy=high"
    stated = implementation(name, "forward").measured_error
    for geometry in ("in20000 w1025 s1 p1024 d1", "in9000 w65 s1 p64 d1", "in120x120 w31x31 s1 p30 d1"):
        for dtype in ("f32", "f64") if name == "fft" else ("f32",):
            problem = parse(f"conv forward {dtype} n1 c1 k1 g1 {geometry}{level}")
            arrays = inputs(problem, rng)
            error = np.abs(computed(name, problem, arrays) - exact(problem, arrays)) / magnitudes(problem, arrays)
            assert error.max() <= stated[problem.dtype]


BANDS = [
    ("n1 c1 k1 g1 in40 w12 s1 p11 d1", 8), ("n1 c2 k1 g1 in37 w9 s2 p20:3 d3", 8),
    ("n1 c1 k1 g1 in30x25 w7x5 s1x2 p6x9:2 d1 flip=1", 12), ("n1 c1 k1 g1 in50 w12 s3 p20:-1 d2 flip=1", 6),
]  # fmt: skip


@pytest.mark.parametrize(("geometry", "least"), BANDS)
def test_bands_hold_all_short_sums(geometry, least, rng):
    from numconv_numba.spectral.bands import Bands, bands_of

    problem = parse(f"conv forward f64 {geometry}")
    arrays = [rng.integers(-4, 5, shape).astype(float) for shape in problem.input_shapes]
    bands, y = bands_of(problem, least), np.full(problem.y_shape, np.nan)
    Bands(bands)(y, arrays)
    inside = ~np.isnan(y)
    np.testing.assert_array_equal(y[inside], computed("direct", problem, arrays)[inside])
    terms = computed("direct", problem, [np.ones_like(array) for array in arrays])
    assert bands
    assert terms[~inside].min() >= least > terms[inside].min()


def test_too_many_short_sums():
    from numconv_numba.spectral.bands import bands_of

    assert bands_of(parse("conv forward f64 n1 c1 k1 g1 in6 w9 s1 p8 d1"), 8) is None
    assert bands_of(parse("conv forward f64 n1 c1 k1 g1 in60 w5 s1 p2 d1"), 8) is None
    assert bands_of(parse("conv forward f64 n1 c1 k1 g1 in60 w9 s1 p8 d1 pad=circular"), 8) == []


# --- what is not finite


SPECIAL = [
    (np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf), (np.nan, np.inf), (np.inf, np.nan, -np.inf, np.inf),
]  # fmt: skip


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("position", [0, 1])
def test_what_is_not_finite_stays_local(op, position, rng):
    """The class and sign that the definition gives, next to blocks that see none of it; zeros among the weights."""
    problem = parse(f"conv {op} f32 n2 c2 k2 g2 in1500 w70 s1 p35 d1")
    for values in SPECIAL:
        arrays = [rng.integers(-2, 3, shape).astype("float32") for shape in problem.input_shapes]
        flat = arrays[position].reshape(-1)
        flat[rng.permutation(flat.size)[: len(values)]] = values
        got, want = computed("fft", problem, arrays), computed("direct", problem, arrays)
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite])
        np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=1e-3)


@pytest.mark.parametrize("geometry", ["f32 n1 c1 k1 g1 in600 w70 s1 p35 d1", "c64 n2 c1 k1 g1 in600 w70 s1 p35 d1"])
def test_sums_that_overflow_only_within_a_transform(geometry, rng):
    problem = parse(f"conv forward {geometry}")
    x, w = inputs(problem, rng)
    x[0, 0, :400] *= 1e37
    np.testing.assert_allclose(computed("fft", problem, [x, w]), computed("direct", problem, [x, w]), rtol=1e-4, atol=1e33)


def test_a_nan_of_a_complex_signal_stays_in_its_windows(rng):
    problem = parse("conv forward c64 n2 c1 k1 g1 in600 w70 s1 p35 d1")
    x, w = inputs(problem, rng)
    x[1, 0, 300] = np.nan
    got = computed("fft", problem, [x, w])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(computed("direct", problem, [x, w])))


# --- bits, threads, memory


@pytest.mark.parametrize("text", [
    "conv forward f32 n1 c1 k1 g1 in60000 w1025 s1 p512 d1", "conv forward f32 n3 c2 k3 g1 in4000 w129 s1 p64 d1",
    "conv forward f32 n1 c6 k6 g6 in90x80 w15x15 s1 p7 d1", "conv weight_grad f32 n1 c1 k1 g1 in60000 w1025 s1 p512 d1",
    "conv weight_grad f64 n2 c12 k12 g12 in4000 w129 s1 p64 d1", "conv input_grad f32 n2 c2 k2 g1 in5000 w129 s2 p64 d1",
    "conv forward f32 n1 c1 k1 g1 in60000 w50001 s1 p25000 d1", "conv forward f32 n1 c1 k1 g1 in450x460 w401x391 s1 p200x195 d1",
])  # fmt: skip
def test_threads_change_no_bit(text, rng):
    problem = parse(text)
    arrays, found = inputs(problem, rng), set()
    for threads in (1, 2, 3):
        with nc.using(threads=threads):
            found.add(computed("fft", problem, arrays).tobytes())
    assert len(found) == 1


def test_bound_weights_give_the_same_bits(rng):
    x, w = rng.standard_normal((1, 2, 5000), dtype="float32"), rng.standard_normal((3, 2, 201), dtype="float32")
    plan = nc.plan("conv", x.shape, w.shape, "float32", padding=100, backend="numba", algorithm="fft")
    expected, bound_plan = plan(x, w), plan.bind(w)
    w[...] = 0
    np.testing.assert_array_equal(bound_plan(x), expected)


@pytest.mark.parametrize("op", ["forward", "weight_grad"])
def test_a_long_signal_takes_bounded_memory(op, rng):
    """The working memory stays below that of one copy of the signal, and below what was promised."""
    problem = parse(f"conv {op} f32 n1 c1 k1 g1 in3000000 w20001 s1 p0 d1 workspace={12 * 2**20}")
    each = implementation("fft", op)
    assert each.supports(problem)
    assert each.workspace(problem) <= problem.max_workspace
    arrays, outs = inputs(problem, rng), [np.empty(shape, "float32") for shape in problem.output_shapes]
    executor = each.build(problem)
    executor(outs, arrays)
    tracemalloc.start()
    executor(outs, arrays)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= each.workspace(problem)


@pytest.mark.parametrize("op", ["forward", "weight_grad"])
@pytest.mark.parametrize("geometry", [each for each in GEOMETRIES if "x" in each.split(" w")[1]])
def test_rows_that_nobody_reads_are_not_transformed_back(op, geometry, monkeypatch, rng):
    """Where many are spared the other dimensions are transformed by themselves: no other results, and no other way through them."""
    problem = parse(text_of(geometry, op))
    verdict = implementation("fft", op).supports(problem)
    if not verdict:
        pytest.skip(verdict.reason)
    arrays, found = inputs(problem, rng), []
    for spared in (1 << 60, 0):
        monkeypatch.setattr("numconv_numba.spectral.transforms.SPARED", spared)
        found.append(computed("fft", problem, arrays))
    assert (np.abs(found[0] - found[1]) <= bound(problem) * magnitudes(problem, arrays) + 1e-300).all()


@pytest.mark.parametrize("geometry", ["n1 c3 k9 g1 in300x280 w25x31 s1 p12x15 d1", "n1 c40 k40 g40 in3000 w1500 s1 p700 d1"])
def test_an_error_in_weights_ends_those_that_wait_for_them(geometry, monkeypatch, rng):
    from numconv_numba.spectral import transforms

    problem, split = parse(f"conv forward f32 {geometry}"), transforms._Transforms.split
    arrays, calls = inputs(problem, rng), []

    def failing(self, w):
        calls.append(len(w))
        if len(calls) == 2:
            raise ValueError("the second part")
        return split(self, w)

    monkeypatch.setattr(transforms._Transforms, "split", failing)
    with nc.using(threads=3), pytest.raises(ValueError, match="the second part"):
        computed("fft", problem, arrays)


def test_shared_work_runs_once_each_and_reports_errors():
    from numconv_numba.threads import share

    seen, lock = [], threading.Lock()

    def body(item):
        with lock:
            seen.append((item, threading.get_ident()))
        if item == 5:
            raise ValueError("item 5")

    with nc.using(threads=2), pytest.raises(ValueError, match="item 5"):
        share(range(8), 1.0, 2, body)
    assert 5 in {item for item, _ in seen}
    seen.clear()
    share(range(4), 1.0, 1, body)
    assert [item for item, _ in seen] == [0, 1, 2, 3]
    assert {who for _, who in seen} == {threading.get_ident()}


def test_a_body_that_computes_runs_serially(rng):
    """Inside shared work nobody enters the parallel region."""
    from numconv_numba.threads import share

    x, w = rng.standard_normal((4, 16, 64, 64), dtype="float32"), rng.standard_normal((16, 16, 3, 3), dtype="float32")
    expected, found = nc.conv(x, w), [None] * 4
    with nc.using(threads=2):
        share(range(4), 1.0, 2, lambda item: found.__setitem__(item, nc.conv(x, w)))
    for each in found:
        np.testing.assert_array_equal(each, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_threads_of_the_region_take_shared_work(rng):
    """They spin for some milliseconds after a loop, so that any others would have to wait for their processors."""
    from numconv_numba.threads import share, threads

    x, w = rng.standard_normal((4, 16, 64, 64), dtype="float32"), rng.standard_normal((16, 16, 3, 3), dtype="float32")
    with nc.using(threads=2):
        if threads() < 2:
            pytest.skip("one processor")
        nc.conv(x, w)
        before, both, who = set(Path("/proc/self/task").iterdir()), threading.Barrier(2, timeout=60), set()

        def body(item):
            both.wait()  # each waits for the other, so that no thread takes two
            who.add(Path(f"/proc/self/task/{threading.get_native_id()}"))

        share(range(2), 1.0, 2, body)
    assert len(who) == 2
    assert who <= set(before)


# --- cuts and choice


def test_smooth_numbers():
    from numconv_numba.spectral.overlap import smooth

    assert [smooth(n) for n in (1, 2, 7, 11, 13, 17, 97, 1025, 4097)] == [1, 2, 8, 12, 15, 18, 100, 1080, 4320]


def test_low_and_high_zeros_share_their_places():
    from numconv_numba.spectral.overlap import layout_for

    layout = layout_for(parse("conv forward f32 n1 c8 k8 g8 in1000 w999 s1 p499 d1"), "float32")
    assert layout.cuts == ((1500, 1000, 1),)


def chosen(text):
    problem = parse(text)
    rows = default_registry().candidates(problem, "cpu", "numba", None)
    return rows[0].algorithm


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_chosen_for_large_kernels_only(op):
    assert chosen(f"conv {op} f32 n1 c1 k1 g1 in160000 w16001 s1 p8000 d1") == "fft"
    # with one channel it would be `separable`, which goes on to `fft` where the kernel is not
    assert chosen(f"conv {op} f32 n1 c2 k2 g1 in1024x1024 w63x63 s1 p31 d1") == "fft"
    for level in ("strict", "high"):
        assert (
            chosen(f"conv {op} f32 n1 c1 k1 g1 in160000 w16001 s1 p8000 d1 accuracy={level}")
            == {"strict": chosen(f"conv {op} f32 n1 c1 k1 g1 in160000 w16001 s1 p8000 d1 accuracy=strict"), "high": "fft64"}[level]
        )
    for geometry in ("n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "n1 c1 k1 g1 in8x8 w3x3 s1 p1 d1", "n1 c64 k64 g1 in16000 w9 s1 p4 d1"):
        assert chosen(f"conv {op} f32 {geometry}") not in ("fft", "fft64")


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["haswell", "x86-64-v2"])
def test_narrower_processors(check_on, processor):
    geometries = [f"{dtype} n2 c5 k3 g1 in90 w40 s1 p19 d1" for dtype in ("f32", "f64")]
    jobs = [("fft", f"conv {op} {geometry}") for op in ("forward", "weight_grad") for geometry in geometries]
    check_on(processor, jobs)


@pytest.mark.slow
def test_a_hundred_million_samples(rng):
    """With a kernel of a million taps: on sampled outputs, in bounded memory."""
    x, w = rng.standard_normal((1, 1, 100_000_000), dtype="float32"), rng.standard_normal((1, 1, 1_000_000), dtype="float32")
    tracemalloc.start()
    y = nc.conv(x, w)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - y.nbytes < 256 * 2**20
    for q in rng.integers(0, y.size, 8):
        want = float(x[0, 0, q : q + w.size].astype(float) @ w[0, 0].astype(float))
        assert abs(y[0, 0, q] - want) < 1e-5 * w.size
