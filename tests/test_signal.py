"""`numconv.signal` beside `scipy.signal`: results, dtypes, errors."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

import numconv as nc
from numconv import signal

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=60, database=None)
MODES = ("full", "same", "valid")
DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "complex64",
    "complex128",
)  # fmt: skip
TOLERANCES = {"float16": 2e-2, "float32": 1e-4, "complex64": 1e-4}


def array(rng, shape, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -9, 10, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


def outcome(module, name, *args, **options):
    """The result, or the type and text of the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(module, name)(*args, **options)
        except Exception as error:  # noqa: BLE001 - whatever SciPy raises
            return type(error), str(error)


def agree(name, *args, **options):
    """Assert that both modules do the same."""
    ours, theirs = outcome(signal, name, *args, **options), outcome(scipy.signal, name, *args, **options)
    if isinstance(theirs, tuple):
        assert ours == theirs
        return
    assert not isinstance(ours, tuple), ours
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if theirs.dtype.kind in "biuO":
        np.testing.assert_array_equal(ours, theirs)
    else:
        tolerance = max(TOLERANCES.get(np.asarray(each).dtype.name, 1e-10) for each in args[:2])  # SciPy transforms each as it is
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(theirs).max(initial=0))))


SHAPES = [((9,), (4,)), ((4,), (9,)), ((1,), (5,)), ((5, 6), (3, 2)), ((3, 2), (5, 6)), ((4, 7), (6, 3)), ((3, 4, 5), (2, 3, 2))]


@pytest.mark.parametrize("name", ["convolve", "correlate"])
@pytest.mark.parametrize("method", ["auto", "direct", "fft"])
@pytest.mark.parametrize("mode", MODES)
def test_convolve_and_correlate(name, method, mode, rng):
    for one, other in SHAPES:
        for dtype in ("int32", "float64", "complex64"):
            agree(name, array(rng, one, dtype), array(rng, other, dtype), mode, method)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_dtypes(dtype, other, rng):
    x, k = array(rng, 12, dtype), array(rng, 5, other)
    for name in ("convolve", "correlate", "fftconvolve", "oaconvolve"):
        agree(name, x, k)
    for name in ("convolve2d", "correlate2d"):
        agree(name, x.reshape(3, 4), k[:4].reshape(2, 2))


@pytest.mark.parametrize("dtype", ["object", "longdouble", "clongdouble", "float16"])
def test_dtypes_that_are_left_to_scipy(dtype, rng):
    x, k = array(rng, 12, "float64").astype(dtype), array(rng, 5, "float64").astype(dtype)
    for name in ("convolve", "correlate", "fftconvolve", "oaconvolve"):
        agree(name, x, k)
    agree("convolve2d", x.reshape(3, 4), k[:4].reshape(2, 2))


def test_integers_wrap_as_they_do_in_scipy():
    x = np.array([100, 100, -128, 127], "int8")
    agree("convolve", x, x, method="direct")
    agree("correlate", x, x, method="direct")


def test_long_integers_are_exact(rng):
    """By transforms in double precision where they are exact, else as the definition has them."""
    x, k = rng.integers(-1000, 1000, 30_000), rng.integers(-1000, 1000, 4000)
    np.testing.assert_array_equal(signal.convolve(x, k), np.convolve(x, k))
    assert signal.choose_conv_method(x, k) == "fft"
    large = x * 2**40
    np.testing.assert_array_equal(signal.convolve(large[:500], k[:200], method="fft"), np.convolve(large[:500], k[:200]))
    assert signal.choose_conv_method(large, k) == "direct"
    assert signal.choose_conv_method(x[:20], k[:20]) == "direct"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("boundary", ["fill", "pad", "wrap", "circular", "symm", "symmetric"])
def test_images(mode, boundary, rng):
    for one, other in (((5, 6), (3, 2)), ((4, 5), (4, 5)), ((3, 2), (7, 9)), ((6, 3), (4, 4)), ((1, 4), (2, 3))):
        for dtype in ("int16", "float32", "complex128"):
            x, k = array(rng, one, dtype), array(rng, other, dtype)
            for name in ("convolve2d", "correlate2d"):
                agree(name, x, k, mode, boundary)
                agree(name, x, k, mode, boundary, 3)


@pytest.mark.parametrize("fillvalue", [2.5, np.array([2]), True, 1j, [1, 2], None, "x", np.nan])
def test_values_that_fill(fillvalue, rng):
    for dtype in ("int32", "float64", "complex64"):
        if isinstance(fillvalue, float) and np.isnan(fillvalue) and dtype == "int32":
            continue  # what an integer becomes of NaN is up to the processor
        agree("convolve2d", array(rng, (3, 4), dtype), array(rng, (2, 3), dtype), "same", "fill", fillvalue)


BROADCAST = [
    ((4, 9), (4, 3), 1), ((4, 9), (1, 3), -1), ((1, 9), (4, 3), 1), ((4, 9), (4, 3), (1,)), ((9, 4), (3, 4), 0),
    ((9, 4), (3, 1), [0]), ((2, 1, 9), (1, 3, 4), 2), ((2, 8, 3, 1), (1, 5, 3, 4), 1), ((5, 6, 7), (1, 4, 3), (2, 1)),
    ((3, 8, 2), (3, 5, 2), [1]), ((4,), (1,), 0), ((1, 1), (1, 1), None), ((6, 7), (3, 4), None), ((3, 4), (6, 7), None),
    ((1, 5), (4, 1), None), ((1, 6), (5, 4), None), ((3, 9), (3, 9), None),
]  # fmt: skip


@pytest.mark.parametrize("name", ["fftconvolve", "oaconvolve"])
@pytest.mark.parametrize(("one", "other", "axes"), BROADCAST)
def test_axes(name, one, other, axes, rng):
    for mode in MODES:
        for dtype in ("int64", "float32", "complex128"):
            agree(name, array(rng, one, dtype), array(rng, other, dtype), mode, axes)


ERRORS = [
    ("convolve", [1.0, 2.0], [1.0], "x"), ("convolve", [1.0, 2.0], [1.0], 1), ("convolve", [1.0, 2.0], [1.0], "full", "x"),
    ("convolve", [1.0, 2.0], [[1.0]]), ("convolve", np.ones((4, 3)), np.ones((3, 4)), "valid"), ("convolve", [], [1.0]),
    ("convolve", 3, 4), ("convolve", np.ones((0, 2)), np.ones((3, 2))), ("correlate", [1.0], [1.0], "x"), ("correlate", 3, 4j),
    ("correlate", [1.0], [1.0], "full", "x"), ("correlate", [1.0, 2.0], [[1.0]]),
    ("correlate", np.ones((4, 3)), np.ones((3, 4)), "valid"), ("fftconvolve", [1.0], [[1.0]]), ("fftconvolve", [], [1.0]),
    ("fftconvolve", 3, 4), ("fftconvolve", [1.0, 2.0], [1.0, 2.0], "x"),
    ("fftconvolve", np.ones((4, 3)), np.ones((3, 4)), "valid"), ("fftconvolve", np.ones((4, 3)), np.ones((3, 4)), "full", 0),
    ("fftconvolve", np.ones((4, 3)), np.ones((3, 3)), "full", []), ("fftconvolve", np.ones((4, 3)), np.ones((3, 3)), "full", 2),
    ("fftconvolve", np.ones((4, 3)), np.ones((3, 3)), "full", (0, 0)),
    ("fftconvolve", np.ones((4, 3)), np.ones((3, 3)), "full", 0.5),
    ("fftconvolve", np.ones((4, 3)), np.ones((3, 3)), "full", "a"), ("oaconvolve", [1.0], [[1.0]]), ("oaconvolve", [], [1.0]),
    ("oaconvolve", np.ones((4, 3)), np.ones((3, 4)), "valid"), ("convolve2d", [1.0], [1.0]),
    ("convolve2d", [[1.0]], [[1.0]], "x"), ("convolve2d", [[1.0]], [[1.0]], "full", "x"),
    ("convolve2d", [[1.0]], [[1.0]], "full", "reflect"), ("convolve2d", np.ones((4, 3)), np.ones((3, 4)), "valid"),
    ("convolve2d", np.ones((3, 4), "uint32"), np.ones((2, 2), "uint32"), "same", "fill", -3),
    ("convolve2d", np.ones((0, 3)), np.ones((2, 2))), ("convolve2d", np.ones((0, 3)), np.ones((2, 2)), "same", "wrap"),
    ("correlate2d", [1.0], [1.0]), ("correlate2d", [[1.0]], [[1.0]], "x"), ("choose_conv_method", [1.0], [1.0], "x"),
    ("convolve", ["a"], ["b"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args"), [(name, args) for name, *args in ERRORS])
def test_errors_and_odd_inputs(name, args):
    ours, theirs = outcome(signal, name, *args), outcome(scipy.signal, name, *args)
    if isinstance(theirs, tuple):
        assert ours == theirs
    else:
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


@pytest.mark.parametrize("name", ["convolve2d", "correlate2d"])
@pytest.mark.parametrize("boundary", ["wrap", "symm"])
def test_an_empty_image_has_nothing_to_repeat(name, boundary):
    """SciPy ends the process."""
    with pytest.raises(nc.ProblemError, match=r"in1 has the shape \(0, 3\): there is nothing that boundary='(wrap|symm)'"):
        getattr(signal, name)(np.ones((0, 3)), np.ones((2, 2)), boundary=boundary)


@st.composite
def pairs(draw):
    """(rng, shapes, dtypes, mode) of any two arrays."""
    ndim = draw(st.integers(1, 3))
    shapes = [tuple(draw(st.integers(1, 7)) for _ in range(ndim)) for _ in range(2)]
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in range(2)]
    return np.random.default_rng(draw(st.integers(0, 1000))), shapes, dtypes, draw(st.sampled_from(MODES))


@given(pairs(), st.sampled_from(["convolve", "correlate", "fftconvolve", "oaconvolve"]))
@EXAMPLES
def test_any_pair(pair, name):
    rng, shapes, dtypes, mode = pair
    x, k = (array(rng, shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    if np.result_type(x, k).kind == "b" and x.ndim > 1:
        return  # SciPy combines booleans in one dimension only
    agree(name, x[..., ::-1], k, mode)


@given(pairs(), st.sampled_from(["fill", "wrap", "symm"]), st.integers(0, 2))
@EXAMPLES
def test_any_images(pair, boundary, fillvalue):
    rng, shapes, dtypes, mode = pair
    x, k = (array(rng, (shape * 2)[:2], dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    agree("convolve2d", x, k.T, mode, boundary, fillvalue)
    agree("correlate2d", x.T, k, mode, boundary, fillvalue)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from("abcdx"), st.integers(2, 5), st.integers(2, 5)), min_size=1, max_size=4),
)
@EXAMPLES
def test_any_axes(seed, kinds):
    """Along an axis the signal, the kernel or both have length one, or both are equal, or they are convolved."""
    rng = np.random.default_rng(seed)
    one = tuple({"a": 1, "b": m, "c": m, "d": 1, "x": m}[kind] for kind, m, _ in kinds)
    other = tuple({"a": n, "b": 1, "c": m, "d": 1, "x": n}[kind] for kind, m, n in kinds)
    axes = [axis for axis, (kind, *_) in enumerate(kinds) if kind == "x" or (kind != "c" and seed % 2)]
    for mode in MODES:
        agree("fftconvolve", array(rng, one, "float64"), array(rng, other, "float64"), mode, axes or None)


# --- what differs


def test_what_is_not_finite_stays_local(rng):
    x, k = rng.standard_normal(5000), rng.standard_normal(501)
    x[2500] = np.nan
    assert np.isnan(signal.convolve(x, k)).sum() == 501
    assert np.isnan(signal.fftconvolve(x, k)).sum() == 501


def test_booleans_and_halves_in_any_dimension(rng):
    x, k = array(rng, (6, 7), "bool"), array(rng, (2, 3), "bool")
    want = scipy.signal.convolve(x.astype(int), k.astype(int)) > 0
    np.testing.assert_array_equal(signal.convolve(x, k), want)
    half = signal.convolve(x.astype("float16"), k.astype("float16"), method="direct")
    assert half.dtype == np.float16


def test_measured_choice(rng):
    method, times = signal.choose_conv_method(rng.standard_normal(200), rng.standard_normal(20), measure=True)
    assert set(times) == {"direct", "fft"}
    assert method == min(times, key=times.get)


def test_estimated_choice(rng):
    assert signal.choose_conv_method(rng.standard_normal(20_000), rng.standard_normal(3)) == "direct"
    assert signal.choose_conv_method(rng.standard_normal(200_000), rng.standard_normal(20_000)) == "fft"
    assert signal.choose_conv_method(array(rng, 20_000, "bool"), array(rng, 9_000, "bool")) == "direct"


def test_other_backends_compute_too(rng):
    x, k = rng.standard_normal(60), rng.standard_normal(40)
    with nc.using(backend="reference"):
        np.testing.assert_allclose(signal.convolve(x, k, method="fft"), np.convolve(x, k), rtol=0, atol=1e-12)


def test_importing_it_loads_no_scipy():
    code = "import sys, numconv; numconv.signal.convolve; print(any(m.split('.')[0] == 'scipy' for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_examples_of_the_documentation():
    text = (ROOT / "docs" / "signal.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```\n\nIt prints:\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python")
    for code, said in blocks:
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == said
