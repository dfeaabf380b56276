"""The reference backend against definitions in pure Python, SciPy, exact fractions and examples worked by hand."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from numconv_reference import backend
from numconv_reference.fma import fma
from numconv_reference.geometry import sources

import numconv
from numconv.plugin import CONV_OPS, POOL_OPS, WINDOW_OPS, Backend, ConvProblem, ProblemError, np_dtype, parse

IMPLEMENTATIONS = {op: implementation for implementation in backend.implementations() for op in implementation.ops}


def scattered(shape, dtype):
    """An array whose every bit is set (NaN, or -1), with axes in reverse order and gaps in memory."""
    memory = np.empty((*shape[::-1], 2), dtype)
    memory.view(np.uint8)[...] = 0xFF
    return memory[..., 0].T


def run(problem, *arrays):
    """The results of a problem from inputs and into outputs of odd strides; inputs must stay as they are."""
    ins = [scattered(array.shape, np_dtype(problem.dtype) if array.dtype.kind in "fcV" else array.dtype) for array in arrays]
    for strided, array in zip(ins, arrays, strict=True):
        strided[...] = array
    before = [array.tobytes() for array in ins]
    dtypes = [problem.out_dtype, "int64" if problem.op == "max_pool" else problem.out_dtype]
    outs = [scattered(shape, np_dtype(dtype)) for shape, dtype in zip(problem.output_shapes, dtypes, strict=False)]
    IMPLEMENTATIONS[problem.op].build(problem)(outs, ins)
    assert [array.tobytes() for array in ins] == before
    return outs[0] if len(outs) == 1 else outs


def integers(shape, dtype, seed=0, limit=4):
    """Small integers as values of `dtype`; complex ones have an imaginary part."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0 if dtype.startswith("u") else -limit, limit + 1, shape)
    if dtype.startswith("complex"):
        values = values + 1j * rng.integers(-limit, limit + 1, shape)
    return values.astype(np_dtype(dtype))


def inputs(problem, make=integers):
    return [make(shape, problem.dtype, seed) for seed, shape in enumerate(problem.input_shapes)]


def read_position(position, size, mode):
    """Where a position of the padded axis reads x; None for a padding zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    if mode == "symmetric":
        position %= 2 * size
        return min(position, 2 * size - 1 - position)
    period = max(2 * (size - 1), 1)
    position %= period
    return min(position, period - position)


def window_reads(problem, window, q, *, flip=False, mode="zeros"):
    """For each tap of the window at q, row-major: the tap, its position relative to x on each axis, what it reads or None."""
    for tap in itertools.product(*map(range, window)):
        lag = [r - 1 - t if flip else t for t, r in zip(tap, window, strict=True)]
        place = [o * s + t * d - low for o, s, t, d, (low, _) in
                 zip(q, problem.stride, lag, problem.dilation, problem.padding, strict=True)]  # fmt: skip
        reads = tuple(read_position(p, size, mode) for p, size in zip(place, problem.spatial, strict=True))
        yield tap, place, None if None in reads else reads


def conv_terms(problem):
    """Every product of the definition, as indices into y, w and x, in the order of y, then c, then w row-major."""
    group_x, group_y = problem.c // problem.groups, problem.k // problem.groups
    for n, k, *q in np.ndindex(*problem.y_shape):
        for c in range(group_x):
            for tap, _, reads in window_reads(problem, problem.kernel, q, flip=problem.flip, mode=problem.pad_mode):
                if reads is not None:
                    yield (n, k, *q), (k, c, *tap), (n, k // group_y * group_x + c, *reads)


def roles(op, y, w, x):
    """Of the three indices of a term: that of the result and those of the two inputs."""
    return {"forward": (y, x, w), "input_grad": (x, y, w), "weight_grad": (w, y, x)}[op]


def conv_by_definition(problem, first, second):
    """The sum of products in Python's own numbers: exact for integers."""
    if problem.op != "forward":
        second = second.conj()
    first, second = first.astype(object), second.astype(object)
    result = np.zeros(problem.output_shapes[0], object)
    for term in conv_terms(problem):
        out, a, b = roles(problem.op, *term)
        result[out] += first[a] * second[b]
    return result


CONV_CASES = [
    "f32 n2 c3 k2 g1 in9 w4 s1 p0 d1",
    "f32 n2 c4 k6 g2 in7x8 w3x2 s2x1 p1:2x0:3 d1x2",
    "f64 n1 c4 k6 g2 in7x8 w3x2 s2x1 p1:2x0:3 d1x2 flip=1",
    "f32 n1 c3 k3 g3 in4x5x3 w2x3x1 s1x2x1 p1:0x2x0 d2x1x1",
    "f64 n1 c1 k2 g1 in3x2x4x3 w2x1x3x2 s1x1x2x1 p1x0:1x2:0x1 d1",
    "f32 n1 c2 k2 g1 in6x5 w3x2 s2x1 p1:-2x0:-1 d1 flip=1",
    *(
        f"f32 n2 c2 k2 g1 in{size} w3 s{stride} p{padding} d2 pad={mode}"
        for mode in ("reflect", "symmetric", "replicate", "circular")
        for size, stride, padding in ((6, 1, "2:3"), (3, 2, "8:7"), (1, 1, "4"))
    ),
    "f64 n1 c2 k2 g1 in4x3 w2x3 s1 p5:2x1:4 d1x2 pad=reflect flip=1",
    "f64 n1 c2 k2 g2 in3x2 w2x2 s2x1 p4:3x1:5 d1 pad=circular",
    "c64 n2 c2 k2 g1 in4x3 w2x2 s1 p1:2x0:1 d1",
    "c128 n1 c2 k4 g2 in5 w3 s2 p3:4 d1 pad=symmetric flip=1",
    "f16 n1 c2 k1 g1 in5 w3 s1 p1 d1",
    "bf16 n1 c2 k1 g1 in5 w3 s1 p1 d1",
    "f16 n1 c2 k1 g1 in5 w3 s1 p1 d1 out=f32",
]


@pytest.mark.parametrize("accuracy", [None, "strict"])
@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize("case", CONV_CASES)
def test_conv_is_its_definition(case, op, accuracy):
    problem = parse(f"conv {op} {case}").replace(accuracy=accuracy)
    ins = inputs(problem)
    expected = conv_by_definition(problem, *ins)
    np.testing.assert_array_equal(run(problem, *ins).astype(complex), expected.astype(complex))


@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize("dtypes", ["i8", "u8", "i16", "u32", "i64", "u64", "i8 out=i32", "u8 out=i16"])
def test_integers_wrap_in_the_dtype_of_the_output(dtypes, op):
    dtype, _, out = dtypes.partition(" ")
    problem = parse(f"conv {op} {dtype} n2 c2 k3 g1 in5 w3 s1 p2 d1 pad=symmetric {out}")
    limits = np.iinfo(problem.dtype)
    ins = [
        np.random.default_rng(seed).integers(limits.min, limits.max, shape, problem.dtype, endpoint=True)
        for seed, shape in enumerate(problem.input_shapes)
    ]
    bits = np.iinfo(problem.out_dtype).bits
    expected = (conv_by_definition(problem, *ins) % 2**bits).astype(f"uint{bits}").astype(problem.out_dtype)
    np.testing.assert_array_equal(run(problem, *ins), expected)


@pytest.mark.parametrize("case", ["g1 in5x4 w3x2 s1 p1 d1", "g2 in5x4 w3x2 s2x1 p4:2x1 d1x2 pad=reflect flip=1"])
def test_gradients_are_adjoints_of_the_complex_convolution(case):
    forward = parse(f"conv forward c128 n2 c2 k4 {case}")
    rng = np.random.default_rng(0)
    x, w, grad = (
        rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        for shape in (forward.x_shape, forward.w_shape, forward.y_shape)
    )
    product = np.vdot(run(forward, x, w), grad)
    assert np.vdot(x, run(forward.replace(op="input_grad"), grad, w)) == pytest.approx(product, rel=1e-13)
    assert np.vdot(w, run(forward.replace(op="weight_grad"), grad, x)) == pytest.approx(product, rel=1e-13)


def filter_problem(x, w, padding, **options):
    return ConvProblem(
        op="forward", dtype="float64", n=1, c=1, k=1, spatial=x.shape, kernel=w.shape, stride=(1,) * x.ndim,
        padding=tuple(padding), dilation=(1,) * x.ndim, **options,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("flip", [False, True], ids=["correlate", "convolve"])
@pytest.mark.parametrize("shapes", [((9,), (4,)), ((6, 7), (3, 2)), ((4, 5, 3), (2, 3, 3))], ids=["1d", "2d", "3d"])
def test_scipy_signal(shapes, flip, mode):
    x, w = (integers(shape, "float64", seed) for seed, shape in enumerate(shapes))
    padding = [{"full": (r - 1, r - 1), "same": (r // 2, (r - 1) // 2), "valid": (0, 0)}[mode] for r in w.shape]
    problem = filter_problem(x, w, padding, flip=flip)
    function = scipy.signal.convolve if flip else scipy.signal.correlate
    np.testing.assert_array_equal(run(problem, x[None, None], w[None, None])[0, 0], function(x, w, mode, method="direct"))


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("flip", [False, True], ids=["correlate", "convolve"])
@pytest.mark.parametrize(
    ("pad_mode", "mode"),
    [("zeros", "constant"), ("reflect", "mirror"), ("symmetric", "reflect"), ("replicate", "nearest"), ("circular", "wrap")],
)
def test_scipy_ndimage(pad_mode, mode, flip, size):
    x, w = integers((5, 6), "float64", 1), integers((size, size + 1), "float64", 2)
    low = [(r - 1) // 2 if flip else r // 2 for r in w.shape]
    problem = filter_problem(x, w, [(a, r - 1 - a) for a, r in zip(low, w.shape, strict=True)], pad_mode=pad_mode, flip=flip)
    function = scipy.ndimage.convolve if flip else scipy.ndimage.correlate
    np.testing.assert_array_equal(run(problem, x[None, None], w[None, None])[0, 0], function(x, w, mode=mode))


def test_convolution_in_one_dimension_by_hand():
    forward = parse("conv forward f64 n1 c1 k1 g1 in3 w2 s1 p1 d1 flip=1")
    x, k, grad_h = (np.array(values, float)[None, None] for values in ([1, 2, 3], [4, 5], [1, 0, 2, -1]))
    # h(t) = sum over tau of x(t - tau) k(tau): 1*4; 2*4 + 1*5; 3*4 + 2*5; 3*5
    assert run(forward, x, k).tolist() == [[[4, 13, 22, 15]]]
    # dL/dk(tau) = sum over t of dL/dh(t) x(t - tau): 1*1 + 0*2 + 2*3; 0*1 + 2*2 - 1*3
    assert run(forward.replace(op="weight_grad"), grad_h, x).tolist() == [[[7, 1]]]
    # dL/dx(s) = sum over tau of dL/dh(s + tau) k(tau): 1*4 + 0*5; 0*4 + 2*5; 2*4 - 1*5
    assert run(forward.replace(op="input_grad"), grad_h, k).tolist() == [[[4, 10, 3]]]


def test_volume_of_three_channels_by_hand():
    """A 5x5x3 volume, padding 1, stride 2, two 3x3x3 filters with biases: a 3x3x2 volume."""
    x = np.array([
        [[0, 1, 2, 0, 1], [2, 1, 0, 1, 0], [1, 0, 1, 2, 2], [0, 2, 1, 0, 1], [1, 1, 0, 2, 0]],
        [[1, 0, 1, 0, 2], [0, 2, 0, 1, 1], [2, 1, 0, 0, 1], [1, 0, 2, 1, 0], [0, 1, 1, 0, 2]],
        [[2, 0, 0, 1, 1], [1, 1, 2, 0, 0], [0, 2, 1, 1, 0], [2, 0, 0, 2, 1], [1, 0, 1, 0, 1]],
    ], np.float32)  # fmt: skip
    w = np.array([
        [[[1, 0, -1], [0, 1, 0], [1, -1, 0]], [[0, 1, 1], [-1, 0, 0], [0, 1, -1]], [[1, 1, 0], [0, -1, 1], [-1, 0, 0]]],
        [[[0, -1, 1], [1, 1, 0], [0, 0, -1]], [[1, 0, 0], [0, -1, 1], [1, 0, 1]], [[-1, 0, 1], [0, 1, -1], [0, 1, 1]]],
    ], np.float32)  # fmt: skip
    # The first output, of taps inside the volume only. Channel 0: [0 1; 2 1] * [1 0; -1 0] = 0 - 2 = -2. Channel 1:
    # [1 0; 0 2] * [0 0; 1 -1] = -2. Channel 2: [2 0; 1 1] * [-1 1; 0 0] = -2. With the bias 1: -2 - 2 - 2 + 1 = -5.
    expected = [[[-5, 3, 3], [7, 7, 2], [2, 4, 3]], [[4, 5, 1], [-2, 6, 6], [5, 2, -1]]]
    problem = parse("conv forward f32 n1 c3 k2 g1 in5x5 w3x3 s2 p1 d1 bias=y")
    np.testing.assert_array_equal(run(problem, x[None], w, np.array([1, 0], np.float32))[0], expected)


def nearest(value, dtype):
    """The float of `dtype` nearest to a fraction, of two the even one."""
    guess = dtype(float(value))
    if dtype is np.float64:
        return guess  # Python's division of integers is correctly rounded
    near = (guess, np.nextafter(guess, dtype(-np.inf)), np.nextafter(guess, dtype(np.inf)))
    return min(near, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.int32)) & 1))


def exact_fma(a, b, c, dtype):
    return nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)), dtype)


def chain_step(a, b, c, dtype):
    """One term of a strict chain; a complex one takes four FMAs."""
    if not np.iscomplexobj(a):
        return exact_fma(a, b, c, dtype)
    real = exact_fma(-a.imag, b.imag, exact_fma(a.real, b.real, c.real, dtype), dtype)
    return complex(real, exact_fma(a.imag, b.real, exact_fma(a.real, b.imag, c.imag, dtype), dtype))


def wild(shape, dtype, seed=0):
    """Values of widely different size, so that the order of a sum shows in its last bits."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6, shape)
    if dtype.startswith("complex"):
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(np_dtype(dtype))


@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize(
    "case",
    [
        "f32 n2 c4 k4 g2 in4x3 w2x3 s1 p1:2x1 d1 pad=circular flip=1",
        "f64 n2 c2 k2 g1 in4x2 w2x2 s1 p3:2x1 d1 pad=reflect",
        "f16 n1 c3 k2 g1 in6 w3 s1 p1 d1",
        "bf16 n1 c3 k2 g1 in6 w3 s1 p1 d1",
        "f32 n1 c3 k2 g1 in6 w3 s2 p1 d1 out=f64",
        "c64 n1 c3 k2 g1 in5 w3 s1 p2 d1 pad=replicate",
    ],
)
def test_strict_is_one_chain_in_the_promised_order(case, op):
    problem = parse(f"conv {op} {case} bias=y" if op == "forward" else f"conv {op} {case}").replace(accuracy="strict")
    ins = inputs(problem, wild)
    first, second = ins[0], ins[1] if op == "forward" else ins[1].conj()
    terms = list(conv_terms(problem))
    if op == "input_grad":
        terms.sort(key=lambda term: (term[0][1], term[1][2:], term[0][2:]))  # k, w row-major, y row-major
    accumulator = np.dtype(problem.acc_dtype)
    dtype = accumulator.type(0).real.dtype.type
    sums = np.zeros(problem.output_shapes[0], accumulator)
    for term in terms:
        out, a, b = roles(op, *term)
        sums[out] = chain_step(first[a], second[b], sums[out], dtype)
    if op == "forward":
        sums += ins[2].astype(accumulator).reshape(-1, *[1] * problem.ndim)
    np.testing.assert_array_equal(run(problem, *ins), sums.astype(np_dtype(problem.out_dtype)))


LONGER = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="longdouble is no longer than float64 here")


@pytest.mark.parametrize(
    ("dtype", "digits", "little"),
    [("bf16", 8, 2.0**-40), ("f16", 11, 2.0**-24), ("f32", 24, 2.0**-50), pytest.param("f64", 53, 2.0**-60, marks=LONGER)],
)
def test_other_levels_round_once(dtype, digits, little):
    # 1, half a unit in its last place, and so little more that any rounding on the way would lose it and end at the even 1.
    problem = parse(f"conv forward {dtype} n1 c3 k1 g1 in1 w1 s1 p0 d1")
    x = np.array([1, 2.0**-digits, little]).reshape(1, 3, 1).astype(np_dtype(problem.dtype))
    assert run(problem, x, np.ones_like(x)).astype(float).item() == 1 + 2.0 ** (1 - digits)


def factors(kind, dtype, count):
    """Arrays a, b and c that make one step of the emulated FMA hard."""
    rng = np.random.default_rng(0)
    a, b, c = ((rng.standard_normal(count) * 2.0 ** rng.integers(-30, 30, count)).astype(dtype) for _ in range(3))
    if kind == "cancelling":
        c = -(a * b)
    elif kind == "ties":  # c and half a unit in its last place, less m**2 eps**2 of that half
        eps = np.finfo(dtype).eps
        m = rng.integers(0, 4, count) * eps
        a, b, c = 1 + m, (1 - m) * rng.choice([-eps / 2, eps / 2], count), 1 + rng.integers(1, 64, count) * eps
        a, b, c = (part.astype(dtype) for part in (a, b, c))
    elif kind == "subnormal":
        a, b, c = (part * dtype(2.0**power) for part, power in ((a, -60), (b, -70), (c, -125)))
    return a, b, c


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        *((dtype, kind) for dtype in (np.float32, np.float64) for kind in ("mixed", "cancelling", "ties")),
        (np.float32, "subnormal"),
    ],
)
def test_fma_rounds_the_exact_value_once(dtype, kind):
    a, b, c = factors(kind, dtype, 2000)
    expected = np.array([exact_fma(*values, dtype) for values in zip(a, b, c, strict=True)])
    assert expected.dtype == dtype
    np.testing.assert_array_equal(fma(a, b, c), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (np.inf, 2, 1, np.inf),
        (np.inf, 0, 1, np.nan),
        (np.inf, 1, -np.inf, np.nan),
        (2, 3, -np.inf, -np.inf),
        (np.nan, 1, 1, np.nan),
        (-0.0, 1, 0.0, 0.0),
        (-0.0, 1, -0.0, -0.0),
        (1, 1, -1, 0.0),
        ("max", 2, 0, np.inf),
        ("max", 1, 0, "max"),
        ("max", -1, "max", 0.0),
    ],
)
def test_fma_of_special_values(dtype, a, b, c, expected):
    a, b, c, expected = (np.array([np.finfo(dtype).max if value == "max" else value], dtype) for value in (a, b, c, expected))
    with np.errstate(all="ignore"):
        result = fma(a, b, c)
    np.testing.assert_array_equal(result, expected)
    assert np.isnan(expected) or np.signbit(result) == np.signbit(expected)


@pytest.mark.parametrize("accuracy", [None, "strict"])
def test_bias_on_either_side_and_its_gradient(accuracy):
    problem = parse("conv forward f32 n2 c2 k3 g1 in4x3 w2x2 s1 p1 d1").replace(accuracy=accuracy)
    x, w, grad_y = (integers(shape, "float32") for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    on_y, on_x = np.array([10, 20, 30], np.float32), np.array([5, 7], np.float32)
    plain = run(problem, x, w)
    np.testing.assert_array_equal(run(problem.replace(bias="y"), x, w, on_y), plain + on_y[:, None, None])
    transposed = problem.replace(op="input_grad")
    plain = run(transposed, grad_y, w)
    np.testing.assert_array_equal(run(transposed.replace(bias="x"), grad_y, w, on_x), plain + on_x[:, None, None])
    gradient = problem.replace(op="weight_grad")
    for side, values in (("y", grad_y), ("x", x)):
        grad_w, grad_bias = run(gradient.replace(bias=side), grad_y, x)
        np.testing.assert_array_equal(grad_w, run(gradient, grad_y, x))
        assert grad_bias.tolist() == [sum(values[:, channel].ravel().tolist()) for channel in range(values.shape[1])]


@pytest.mark.parametrize("accuracy", [None, "strict"])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda v: max(v, 0.0)),
        ("silu", lambda v: v / (1 + math.exp(-v))),
        ("gelu", lambda v: v * math.erfc(-v / math.sqrt(2)) / 2),
    ],
)
def test_activation_comes_after_the_bias(activation, function, accuracy):
    problem = parse(f"conv forward f64 n1 c1 k1 g1 in7 w1 s1 p0 d1 bias=y act={activation}").replace(accuracy=accuracy)
    x = np.array([-4, -1, -0.5, 0, 0.5, 2, np.nan])
    result = run(problem, x[None, None], np.full((1, 1, 1), 2.0), np.array([-0.25]))[0, 0]
    np.testing.assert_allclose(result[:-1], [function(2 * v - 0.25) for v in x[:-1]], rtol=1e-13, atol=1e-16)
    assert np.isnan(result[-1])


def with_specials(shape, dtype, seed=0):
    """Integers among which are a NaN and an infinity."""
    values = integers(shape, dtype, seed)
    values.flat[1], values.flat[values.size // 2 - 1] = np.nan, -np.inf
    return values


@pytest.mark.parametrize("accuracy", [None, "strict"])
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_nan_and_infinity_stay_local(mode, op, which, accuracy):
    problem = parse(f"conv {op} f32 n2 c2 k4 g2 in4x5 w3x2 s1x2 p2x1 d1 pad={mode}").replace(accuracy=accuracy)
    ins = inputs(problem)
    ins[which] = with_specials(ins[which].shape, "float32", seed=which)
    expected = conv_by_definition(problem, *ins).astype(np.float32)
    assert np.isfinite(expected).any()
    assert not np.isfinite(expected).all()
    np.testing.assert_array_equal(run(problem, *ins), expected)


def test_an_infinite_weight_meets_no_padding_zero():
    problem = parse("conv forward f32 n1 c1 k1 g1 in3 w2 s1 p1 d1")
    x, w = np.array([[[1, 2, 3]]], np.float32), np.array([[[np.inf, 1]]], np.float32)
    assert run(problem, x, w).tolist() == [[[1, np.inf, np.inf, np.inf]]]


POOL_CASES = [
    "n2 c2 in7 w3 s2 p1 d1",
    "n1 c2 in6x5 w3x2 s2x3 p1x1:0 d1x2",
    "n1 c2 in5x6 w3x2 s2 p1:0x0:1 d1 ceil=1",
    "n1 c1 in5x6 w3x3 s3x2 p1 d1 ceil=1 countpad=0",
    "n1 c1 in4x3x3x2 w2x2x1x2 s1x2x1x1 p1x0x0x1:0 d1 countpad=0",
]


def pool_windows(problem):
    """For each element of y: the positions of x in its window, and how many taps an average counts."""
    for n, c, *q in np.ndindex(*problem.y_shape):
        elements, counted = [], 0
        for _, place, reads in window_reads(problem, problem.window, q):
            padded = all(p < size + high for p, size, (_, high) in zip(place, problem.spatial, problem.padding, strict=True))
            counted += padded if problem.count_include_pad else reads is not None
            if reads is not None:
                elements.append((n, c, *reads))
        yield (n, c, *q), elements, counted


def winner(x, elements):
    """The first NaN, else the first of the largest elements."""
    nans = [element for element in elements if np.isnan(x[element])]
    return nans[0] if nans else max(elements, key=lambda element: x[element])


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i8", "u64"])
@pytest.mark.parametrize("case", POOL_CASES)
def test_max_pool_and_its_gradient(case, dtype):
    problem = parse(f"pool max_pool {dtype} {case} indices=1")
    x = integers(problem.x_shape, problem.dtype, limit=2)  # few values, so that many are equal
    if x.dtype.kind not in "iu":
        x.flat[:: x.size // 3] = np.nan
    grad_y = integers(problem.y_shape, problem.dtype, seed=1)
    largest, indices, grad_x = np.empty_like(grad_y), np.empty(problem.y_shape, np.int64), np.zeros(x.shape)
    for out, elements, _ in pool_windows(problem):
        position = winner(x, elements)
        largest[out], indices[out] = x[position], np.ravel_multi_index(position[2:], problem.spatial)
        grad_x[position] += float(grad_y[out])
    y, found = run(problem, x)
    np.testing.assert_array_equal(y.astype(float), largest.astype(float))
    np.testing.assert_array_equal(found, indices)
    np.testing.assert_array_equal(run(problem.replace(indices=False), x).astype(float), largest.astype(float))
    backward = problem.replace(op="max_pool_backward")
    np.testing.assert_array_equal(run(backward, grad_y, indices).astype(float), grad_x)
    np.testing.assert_array_equal(run(backward.replace(indices=False), grad_y, x).astype(float), grad_x)


@pytest.mark.parametrize(
    ("x", "y", "index"),
    [
        ([2, 3, 3], 3, 1),
        ([-np.inf, -np.inf, -np.inf], -np.inf, 0),
        ([np.inf, np.nan, np.nan], np.nan, 1),
        ([np.nan, np.inf, 1], np.nan, 0),
    ],
)
def test_max_pool_by_hand(x, y, index):
    problem = parse("pool max_pool f64 n1 c1 in3 w3 s1 p0 d1 indices=1")
    largest, found = run(problem, np.array([[x]], float))
    np.testing.assert_array_equal(largest.item(), y)
    assert found.item() == index


@pytest.mark.parametrize("case", POOL_CASES)
def test_avg_pool_and_its_gradient(case):
    problem = parse(f"pool avg_pool f32 {case}")
    x, grad_y = integers(problem.x_shape, "float32"), integers(problem.y_shape, "float32", seed=1)
    y, grad_x = np.empty(problem.y_shape, np.float32), np.zeros(problem.x_shape)
    for out, elements, counted in pool_windows(problem):
        y[out] = sum(Fraction(int(x[element])) for element in elements) / counted
        for element in elements:
            grad_x[element] += float(grad_y[out]) / counted
    np.testing.assert_array_equal(run(problem, x), y)
    np.testing.assert_allclose(run(problem.replace(op="avg_pool_backward"), grad_y), grad_x, rtol=1e-6)


@pytest.mark.parametrize(("countpad", "expected"), [(1, [[[1, 2, 2.5]]]), (0, [[[1.5, 2, 2.5]]])])
def test_avg_pool_by_hand(countpad, expected):
    # Windows at -1, 1 and 3 of x: [pad, 1, 2], [2, 3, 1], and with ceil_mode [1, 4], whose last tap lies beyond the padding.
    problem = parse(f"pool avg_pool f32 n1 c1 in5 w3 s2 p1:0 d1 ceil=1 countpad={countpad}")
    assert problem.output == (3,)
    x = np.array([[[1, 2, 3, 1, 4]]], np.float32)
    assert run(problem, x).tolist() == expected


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("case", POOL_CASES)
def test_lp_pool_and_its_gradient(case, p):
    problem = parse(f"pool lp_pool f64 {case}").replace(p=p)
    x, grad_y = integers(problem.x_shape, "float64"), integers(problem.y_shape, "float64", seed=1)
    y, grad_x = np.empty(problem.y_shape), np.zeros(problem.x_shape)
    for out, elements, _ in pool_windows(problem):
        y[out] = sum(abs(x[element]) ** p for element in elements) ** (1 / p)
        for element in elements:
            if x[element]:
                grad_x[element] += grad_y[out] * math.copysign(abs(x[element]) ** (p - 1), x[element]) * y[out] ** (1 - p)
    np.testing.assert_allclose(run(problem, x), y, rtol=1e-13)
    np.testing.assert_allclose(run(problem.replace(op="lp_pool_backward"), grad_y, x), grad_x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_nan_stays_in_its_windows_of_lp_pool(p):
    problem = parse("pool lp_pool f32 n1 c1 in6 w2 s2 p0 d1").replace(p=p)
    x = np.array([[[0, 0, np.nan, 0, 4, 0]]], np.float32)
    np.testing.assert_array_equal(run(problem, x), [[[0, np.nan, 4]]])
    grad_x = run(problem.replace(op="lp_pool_backward"), np.ones((1, 1, 3), np.float32), x)
    np.testing.assert_array_equal(grad_x, [[[0, 0, np.nan, np.nan, 1, 0]]])


def moves(problem):
    """What pad and unfold read for each element of their result, padding zeros left out."""
    columns = np.arange(math.prod(problem.y_shape)).reshape(problem.n, problem.c, *problem.window, *problem.output)
    for n, c, *q in np.ndindex(problem.n, problem.c, *problem.output):
        for tap, _, reads in window_reads(problem, problem.window, q, mode=problem.pad_mode):
            if reads is not None:
                yield np.unravel_index(columns[n, c, *tap, *q], problem.y_shape), (n, c, *reads)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "c64", "i8"])
@pytest.mark.parametrize(
    ("ops", "case"),
    [
        *((("pad", "pad_backward"), f"in3x4 w1x1 s1 p7:2x0:9 d1 pad={mode}") for mode in
          ("zeros", "reflect", "symmetric", "replicate", "circular")),
        (("unfold", "fold"), "in7 w3 s2 p1:2 d2"),
        (("unfold", "fold"), "in4x5x3 w2x3x1 s1x2x1 p1x0:1x0 d2x1x1"),
    ],
)  # fmt: skip
def test_moving_values_and_the_adjoint(ops, case, dtype):
    move, back = (parse(f"window {op} {dtype} n2 c2 {case}") for op in ops)
    x, grad = integers(move.x_shape, move.dtype), integers(move.y_shape, move.dtype, seed=1, limit=1)
    y, grad_x = np.zeros_like(grad), np.zeros(x.shape, object)
    values = grad.astype(object)
    for out, source in moves(move):
        y[out] = x[source]
        grad_x[source] += values[out]
    np.testing.assert_array_equal(run(move, x), y)
    np.testing.assert_array_equal(run(back, grad).astype(complex), grad_x.astype(complex))


def test_folding_back_integers_wraps():
    problem = parse("window pad_backward u8 n1 c1 in1 w1 s1 p1 d1 pad=replicate")
    assert run(problem, np.array([[[100, 100, 100]]], np.uint8)).item() == 300 - 256


def test_unfold_rows_are_channels_then_taps():
    problem = parse("window unfold f32 n1 c2 in3 w2 s1 p0:1 d1")
    x = np.array([[[1, 2, 3], [4, 5, 6]]], np.float32)
    assert run(problem, x).tolist() == [[[1, 2, 3], [2, 3, 0], [4, 5, 6], [5, 6, 0]]]


def test_max_unpool_keeps_the_last_of_two_values_for_one_position():
    problem = parse("window max_unpool f32 n1 c2 in2x2 w1x1 s1 p0 d1 target=1x3")
    y = np.array([[[[1, 2, 3]], [[4, 5, 6]]]], np.float32)
    indices = np.array([[[[3, 0, 3]], [[1, 1, 1]]]])
    assert run(problem, y, indices).tolist() == [[[[2, 0], [0, 3]], [[0, 6], [0, 0]]]]
    backward = problem.replace(op="max_unpool_backward")
    grad_x = np.array([[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]], np.float32)
    assert run(backward, grad_x, indices).tolist() == [[[[0, 1, 4]], [[0, 0, 6]]]]


@pytest.mark.parametrize("index", [-1, 4])
@pytest.mark.parametrize(
    "text",
    [
        "window max_unpool f32 n1 c1 in2x2 w1x1 s1 p0 d1 target=1x1",
        "window max_unpool_backward f32 n1 c1 in2x2 w1x1 s1 p0 d1 target=1x1",
        "pool max_pool_backward f32 n1 c1 in2x2 w2x2 s1 p0 d1 indices=1",
    ],
)
def test_indices_outside_the_volume_are_refused(text, index):
    problem = parse(text)
    values, shape = np.ones(problem.input_shapes[0], np.float32), problem.input_shapes[1]
    with pytest.raises(ProblemError, match=f"indices range from {index} to {index}.* 0 to 3"):
        run(problem, values, np.full(shape, index))


EVERY_OP = [
    *(f"conv {op} f32 n0 c2 k2 g1 in4x5 w2x2 s1 p1 d1 bias={'x' if op == 'input_grad' else 'y'}" for op in CONV_OPS),
    *(f"pool {op} f32 n0 c2 in4x5 w2x2 s1 p0 d1" for op in POOL_OPS),
    *(f"window {op} f32 n0 c2 in4x5 w1x1 s1 p1 d1{' target=2x2' if 'unpool' in op else ''}" for op in WINDOW_OPS),
]


@pytest.mark.parametrize("accuracy", [None, "strict"])
@pytest.mark.parametrize("text", EVERY_OP)
def test_every_operation_is_supported_and_takes_an_empty_batch(text, accuracy):
    problem = parse(text).replace(accuracy=accuracy)
    implementation = IMPLEMENTATIONS[problem.op]
    assert implementation.supports(problem)
    assert implementation.cost(problem) > 0
    second = np.int64 if "unpool" in text else np.float32
    ins = [np.ones(shape, dtype) for shape, dtype in zip(problem.input_shapes, (np.float32, second, np.float32), strict=False)]
    outs = run(problem, *ins)
    for out, shape in zip([outs] if isinstance(outs, np.ndarray) else outs, problem.output_shapes, strict=True):
        assert out.shape == shape
        assert not np.isnan(out).any()


def test_the_backend_keeps_the_protocol():
    assert isinstance(backend, Backend)
    assert (backend.name, backend.device, backend.automatic) == ("reference", "cpu", True)
    assert backend.availability()
    assert backend.implementations() is backend.implementations()


def test_importing_the_plugin_imports_no_kernel():
    code = "import sys, numconv_reference as r; r.backend.availability(); sys.exit('numconv_reference.conv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("mode", "numpys"), [("reflect", "reflect"), ("symmetric", "symmetric"), ("replicate", "edge"), ("circular", "wrap")]
)
def test_sources_of_padding_are_those_of_numpy(mode: str, numpys: Any) -> None:
    for size in (1, 2, 3, 7):
        for low, high in ((0, 0), (1, 2), (5, 9), (30, 17)):
            expected = np.pad(np.arange(size), (low, high), mode=numpys)
            np.testing.assert_array_equal(sources(np.arange(-low, size + high), size, mode), expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_no_table_of_the_padding(mode: str) -> None:
    x, w = np.arange(9.0).reshape(1, 1, 9), np.array([[[1.0, 2.0, 4.0]]])
    y = numconv.conv(x, w, padding=2**40, dilation=2**40, pad_mode=mode, backend="reference")
    assert y.shape == x.shape
    places = (np.arange(9) - 2**40, np.arange(9), np.arange(9) + 2**40)
    parts = [np.where(where < 0, 0, x[0, 0, where]) for where in (sources(each, 9, mode) for each in places)]
    np.testing.assert_array_equal(y[0, 0], parts[0] + 2 * parts[1] + 4 * parts[2])
