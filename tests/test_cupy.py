"""The CuPy backend on machines without a GPU: its array operations on NumPy and on array_api_strict, and cuBLAS imitated.

Its kernels are tested in test_cupy_kernels.py; here the reference stands in for the one that computes again what is not finite.
"""

import ctypes
import importlib.util
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from numconv_cupy import CupyBackend
from numconv_cupy.fft import Fft, FftDouble, bands
from numconv_cupy.gemm import _strided_batched, batched_matmul
from numconv_cupy.layouts import layout_of
from numconv_cupy.products import Matmul, Pointwise
from numconv_cupy.slabs import padded_positions
from numconv_cupy.source import NULL

from numconv.plugin import Implementation, Verdict, parse
from numconv.registry import default_registry
from numconv.testing import CONV_PROBLEMS, BackendContract, candidates, check, inputs

needs_strict = pytest.mark.skipif(
    importlib.util.find_spec("array_api_strict") is None, reason="the package array_api_strict is not installed"
)


class StandIn:
    """The implementations of the plugin with something in place of CuPy."""

    device = "cpu"
    automatic = False
    version = "0"

    def __init__(self, name, implementations, reason=""):
        self.name, self._implementations, self._reason = name, implementations, reason

    def availability(self):
        return Verdict.no(self._reason) if self._reason else Verdict.yes()

    def implementations(self):
        return self._implementations


def reference_redo(problem):
    """In place of a kernel, which needs a compiler: the reference, where a flag is set, in a box of positions."""
    reference = next(i for i in default_registry().backend("reference").implementations() if problem.op in i.ops)

    def run(outs, ins, flags=NULL, box=None):
        everything = flags is NULL
        if not (everything or flags.any()):
            return
        results = [np.empty(out.shape, out.dtype) for out in outs]
        reference.build(problem)(results, ins)
        if problem.op == "weight_grad":
            outs[0][...] = results[0]
            return
        first, count = box or ((0,) * problem.ndim, outs[0].shape[2:])
        places = tuple(slice(begin, begin + size) for begin, size in zip(first, count, strict=True))
        for image in range(problem.n):
            if everything or flags[image]:
                outs[0][(image, ..., *places)] = results[0][(image, ..., *places)]

    return run


def by_arrays(redo_of):
    return Pointwise(redo_of), Matmul(redo_of), Fft(redo_of), FftDouble(redo_of)


# --- array operations, on NumPy ------------------------------------------------------------------------------------------------


class TestCupyOnNumpy(BackendContract):
    backend = StandIn("cupy-on-numpy", by_arrays(reference_redo))
    problems = CONV_PROBLEMS
    levels = ("high", "default")
    forms = ("channels-last", "mixed")


# --- array operations, on array_api_strict -------------------------------------------------------------------------------------


class OnStrict(Implementation):
    """An implementation on arrays of array_api_strict that lie on its second device."""

    name, ops = "", frozenset()

    def __init__(self, inner):
        self.inner, self.name, self.ops, self.levels = inner, inner.name, inner.ops, inner.levels

    def supports(self, problem):
        if "float16" in problem.dtype:
            return Verdict.no(f"array_api_strict has no {problem.dtype}")
        if problem.activation == "gelu":
            return Verdict.no("the array API has no erfc")
        return self.inner.supports(problem)

    def cost(self, problem):
        return self.inner.cost(problem)

    def workspace(self, problem):
        return self.inner.workspace(problem)

    def build(self, problem):
        import array_api_strict as xp

        executor = self.inner.build(problem)

        def run(outs, ins):
            moved = [[xp.asarray(a, device=xp.Device("device1"), copy=True) for a in arrays] for arrays in (outs, ins)]
            executor(*moved)
            for out, result in zip(outs, moved[0], strict=True):
                out[...] = result._array

        return run


def strict_redo(problem):
    """A kernel reads the memory of a device; this one the arrays behind those of array_api_strict."""
    run = reference_redo(problem)
    return lambda outs, ins, flags=NULL, box=None: run(
        [a._array for a in outs], [a._array for a in ins], flags if flags is NULL else flags._array, box
    )


@needs_strict
class TestCupyOnArrayApiStrict(BackendContract):
    """Nothing may ask for a value on the host: what would wait for a GPU is an error here."""

    backend = StandIn("cupy-on-strict", tuple(map(OnStrict, by_arrays(strict_redo))))
    problems = CONV_PROBLEMS[::3]
    levels = ("high", "default")
    forms = ("C-contiguous",)

    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch):
        import array_api_strict as xp

        for method in ("__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__buffer__", "__dlpack__"):
            monkeypatch.setattr(xp._array_object.Array, method, _refuse, raising=False)


def _refuse(array, *args, **kwargs):
    raise AssertionError("a value was asked for on the host")


@needs_strict
def test_asking_for_a_value_is_seen(monkeypatch):
    import array_api_strict as xp

    TestCupyOnArrayApiStrict._no_waiting.__wrapped__(None, monkeypatch)
    array = xp.asarray([1.0], device=xp.Device("device1"))
    for ask in (lambda: bool(array[0] > 0), lambda: float(array[0]), lambda: np.asarray(array)):
        with pytest.raises(AssertionError, match="a value was asked for on the host"):
            ask()


# --- blocks ---------------------------------------------------------------------------------------------------------------------

ON_NUMPY = TestCupyOnNumpy.backend
BLOCKED = (
    "conv {op} f32 n3 c4 k5 g1 in33x21 w3x3 s1 p1 d1 bias={side}",
    "conv {op} f32 n2 c4 k6 g2 in29x17 w4x3 s3x2 p2:0x1 d2x1",
    "conv {op} f64 n2 c3 k3 g3 in301 w9 s2 p0 d3 flip=1",
    "conv {op} c64 n2 c2 k3 g1 in25x23 w5x5 s2 p0 d1",
    "conv {op} f32 n1 c2 k2 g1 in40x31 w2x2 s5x3 p0 d1",
)


@pytest.mark.parametrize("limit", [16_000, 60_000])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", BLOCKED)
def test_blocks_under_a_small_limit(geometry, op, limit):
    side = {"forward": "y", "input_grad": "x", "weight_grad": "y"}[op]
    problem = parse(geometry.format(op=op, side=side)).replace(max_workspace=limit)
    rows = [row for row in candidates(problem, ON_NUMPY) if row.verdict]
    if limit > 50_000:
        assert {"matmul", "fft"} <= {row.algorithm for row in rows} | ({"fft"} if problem.acc_dtype == "float64" else set())
    for row in rows:
        check(problem, ON_NUMPY, row.algorithm, rng=np.random.default_rng(8))


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", [
    "conv {} f32 n2 c6 k9 g1 in40x32 w3x3 s1 p1 d1", "conv {} f32 n2 c6 k6 g2 in9000 w33 s1 p16 d1",
    "conv {} c64 n2 c3 k4 g1 in40x44 w9x9 s2 p0 d1", "conv {} f16 n4 c6 k8 g1 in40x32 w1x1 s1 p0 d1",
])  # fmt: skip
def test_working_memory_is_what_was_said(geometry, op):
    """Measured on NumPy, whose temporaries are CuPy's."""
    problem = parse(geometry.format(op)).replace(max_workspace=1 << 19)
    arrays = inputs(problem, np.random.default_rng(9))
    outs = [np.empty(shape, problem.out_dtype) for shape in problem.output_shapes]
    measured = []
    for each in by_arrays(lambda problem: lambda outs, ins, flags=NULL, box=None: None):
        if problem.op not in each.ops or not each.supports(problem) or each.workspace(problem) > problem.max_workspace:
            continue
        executor = each.build(problem)
        executor(outs, arrays)
        tracemalloc.start()
        executor(outs, arrays)
        measured.append((each.name, tracemalloc.get_traced_memory()[1] / each.workspace(problem)))
        tracemalloc.stop()
    assert measured
    assert max(share for _, share in measured) <= 1.1, measured


def test_a_signal_is_cut_into_blocks_that_share_one_spectrum_of_the_weights():
    problem = parse("conv forward f32 n1 c1 k1 g1 in1000000 w1025 s1 p512 d1").replace(max_workspace=1 << 20)
    layout = layout_of(problem, "float32")
    assert layout.bytes <= 1 << 20
    assert 1 < layout.blocks < 1000
    assert layout.steps[0] > 1025, "blocks are longer than what they overlap"


def test_sums_at_the_border_that_are_short_are_boxes():
    problem = parse("conv forward f32 n1 c1 k1 g1 in100x80 w31x31 s1 p30 d1")
    (first, last, *others) = bands(problem)
    assert first == ((0, 0), (3, 110))
    assert last == ((127, 0), (3, 110))
    assert len(others) == 2
    assert bands(parse("conv forward f32 n1 c1 k1 g1 in100x80 w3x3 s1 p1 d1")) is None
    assert bands(parse("conv input_grad f64 n1 c9 k2 g1 in17x5 w5x1 s2x1 p3 d2x1")) is None, "every second position has no terms"


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_padded_positions_are_those_of_numpy(mode, size):
    name = {"replicate": "edge", "circular": "wrap"}.get(mode, mode)
    expected = np.pad(np.arange(size), 13, mode=name)
    assert padded_positions(np, np.arange(-13, size + 13), size, mode).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("geometry", ["n1 c1 k1 g1 in30000 w1025 s1 p0 d1", "n1 c3 k2 g1 in60x60 w31x31 s1 p0 d1"])
def test_errors_are_below_those_stated(geometry, dtype):
    problem = parse(f"conv forward f32 {geometry}").replace(dtype=dtype, out_dtype=dtype)
    arrays = inputs(problem, np.random.default_rng(10), integer=False)
    windows = np.lib.stride_tricks.sliding_window_view(arrays[0], problem.kernel, axis=tuple(range(2, 2 + problem.ndim)))
    taps = tuple(range(-problem.ndim, 0))
    axes = ([1, *(windows.ndim + tap for tap in taps)], list(range(1, 2 + problem.ndim)))
    wide = np.longdouble if dtype == "float64" else np.float64
    exact = np.moveaxis(np.tensordot(windows.astype(wide), arrays[1].astype(wide), axes), -1, 1)
    sizes = np.moveaxis(np.tensordot(np.abs(windows).astype(float), np.abs(arrays[1]).astype(float), axes), -1, 1)
    for each in by_arrays(reference_redo):
        if problem.level in each.levels and each.supports(problem):
            out = np.empty(problem.y_shape, dtype)
            each.build(problem)([out], arrays)
            assert np.max(np.abs(out - exact) / sizes) <= each.measured_error[dtype], each.name


# --- cuBLAS ---------------------------------------------------------------------------------------------------------------------


class Cublas:
    """What the library's documentation says of gemmStridedBatchedEx, on the memory of NumPy arrays."""

    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F = "32F", "TF32", "64F"
    CUBLAS_GEMM_DEFAULT, CUBLAS_POINTER_MODE_HOST = -1, 0
    kinds = {0: np.float32, 1: np.float64, 4: np.complex64, 5: np.complex128}  # noqa: RUF012 - a stand-in

    def __init__(self):
        self.mode, self.computed = 1, []

    def getPointerMode(self, handle):
        return self.mode

    def setPointerMode(self, handle, mode):
        self.mode = mode

    def gemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, a, kind_a, lda, step_a, b, kind_b, ldb, step_b, beta, c, kind_c, ldc, step_c,
        batch, compute, algo,
    ):  # fmt: skip
        assert self.mode == self.CUBLAS_POINTER_MODE_HOST
        assert self.at(alpha, kind_a, 1, 1, 1)[0, 0] == 1
        assert self.at(beta, kind_a, 1, 1, 1)[0, 0] == 0
        assert lda >= (k if transa else m)
        assert ldb >= (n if transb else k)
        assert ldc >= m
        for i in range(batch):
            left = self.at(a, kind_a, lda, *((k, m) if transa else (m, k)), i * step_a)
            right = self.at(b, kind_b, ldb, *((n, k) if transb else (k, n)), i * step_b)
            self.at(c, kind_c, ldc, m, n, i * step_c)[...] = (left.T if transa else left) @ (right.T if transb else right)
        self.computed.append(compute)

    def at(self, pointer, kind, leading, rows, columns, offset=0):
        """The column-major matrix at an address."""
        item = np.dtype(self.kinds[kind])
        size = leading * (columns - 1) + rows
        memory = (ctypes.c_char * (size * item.itemsize)).from_address(pointer + offset * item.itemsize)
        return np.lib.stride_tricks.as_strided(
            np.frombuffer(memory, item), (rows, columns), (item.itemsize, leading * item.itemsize), writeable=True
        )


class Held(np.ndarray):
    """An array of NumPy with the address where CuPy's arrays have it."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


HELD = SimpleNamespace(
    ascontiguousarray=lambda array: np.ascontiguousarray(array).view(Held), empty=lambda *args: np.empty(*args).view(Held)
)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("form_a", ["plain", "transposed", "spread", "shared"])
@pytest.mark.parametrize("form_b", ["plain", "transposed", "spread", "one row"])
def test_cublas_gets_matrices_as_they_lie(dtype, form_a, form_b, rng):
    cublas, batch, i, j, k = Cublas(), 3, 4, 5, 1 if form_b == "one row" else 6

    def array(form, rows, columns):
        values = rng.integers(-4, 5, (1 if form == "shared" else batch, rows, columns)).astype(dtype)
        if form == "transposed":
            return np.ascontiguousarray(values.transpose(0, 2, 1)).view(Held).transpose(0, 2, 1)
        if form == "spread":
            wide = np.zeros((batch, rows, 2 * columns), dtype).view(Held)
            wide[:, :, ::2] = values
            return wide[:, :, ::2]
        return values.view(Held)

    a, b = array(form_a, i, j), array(form_b, j, k)
    found = _strided_batched(HELD, cublas, 1, a, b, fast=False)
    np.testing.assert_array_equal(found, np.matmul(a, b))
    assert found.dtype == dtype
    assert cublas.computed == ["64F" if dtype in ("float64", "complex128") else "32F"]
    assert cublas.mode == 1, "the handle is left as it was"


def test_tf32_is_for_fast_products_alone():
    cublas, a = Cublas(), np.ones((1, 2, 2), np.float32).view(Held)
    for fast in (True, False):
        _strided_batched(HELD, cublas, 1, a, a, fast=fast)
    assert cublas.computed == ["TF32", "32F"]


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("f32 n1 c3 k4 g1 in9 w3 s1 p0 d1", False), ("f32 n1 c3 k4 g1 in9 w3 s1 p0 d1 accuracy=high", False),
        ("f32 n1 c3 k4 g1 in9 w3 s1 p0 d1 accuracy=fast", True), ("f16 n1 c3 k4 g1 in9 w3 s1 p0 d1 accuracy=high", True),
        ("f64 n1 c3 k4 g1 in9 w3 s1 p0 d1 accuracy=fast", False),
    ],
)  # fmt: skip
def test_the_accuracy_level_decides_about_tf32(text, fast, monkeypatch):
    import numconv_cupy.products as module

    asked = []
    monkeypatch.setattr(module, "batched_matmul", lambda a, b, *, fast: asked.append(fast) or batched_matmul(a, b))
    check(parse(f"conv forward {text}"), ON_NUMPY, "matmul", rng=np.random.default_rng(1))
    assert set(asked) == {fast}


# --- the choice -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("f32 n8 c64 k256 g1 in56x56 w1x1 s1 p0 d1", "pointwise"),
        ("f32 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "winograd"),
        ("f32 n8 c64 k64 g64 in56x56 w3x3 s1 p1 d1", "depthwise"),
        ("f32 n8 c3 k64 g1 in224x224 w7x7 s2 p3 d1", "matmul"),
        ("f32 n1 c1 k1 g1 in1000000 w1025 s1 p512 d1", "fft"),
        ("f32 n1 c16 k16 g1 in512x512 w31x31 s1 p15 d1", "fft"),
        ("i32 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "tiled"),
        ("f32 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1 accuracy=strict", "tiled"),
    ],
)
def test_what_is_chosen_by_class(text, chosen):
    """The table of docs/cupy.md."""
    problem = parse(f"conv forward {text}")
    rows = candidates(problem, StandIn("cupy", CupyBackend().implementations()))
    assert rows[0].algorithm == chosen, [(row.algorithm, row.cost, row.verdict.reason) for row in rows]


def test_availability_says_what_is_missing():
    verdict = CupyBackend().availability()
    if verdict:
        pytest.skip("there is a GPU")
    assert any(
        words in verdict.reason for words in ("cupy is not installed: python -m pip install", "NVIDIA driver", "CUDA_VISIBLE")
    )
