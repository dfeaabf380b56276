"""The CUDA backend where there is no GPU: why it is not available, what it chooses, how it launches, what its kernels need.

What its kernels compute is tested by the contract suite, in the simulator and on devices; the tests marked `simulated` run there.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import subprocess
import sys

import numconv_cuda
import numpy as np
import pytest

import numconv as nc
import numconv.gpu
from numconv.plugin import CONV_OPS, np_dtype, parse
from numconv.testing import check

simulated = pytest.mark.skipif(not numconv_cuda.simulated(), reason="runs in the simulator: NUMBA_ENABLE_CUDASIM=1")
installed = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="the package numba-cuda is not installed")
compiled = pytest.mark.skipif(numconv_cuda.simulated(), reason="the simulator compiles nothing")


# --- availability


@pytest.fixture
def fresh(monkeypatch):
    """A backend that looks again, on a machine that has the packages and no simulator."""
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(numconv_cuda.importlib.util, "find_spec", lambda name: object())
    numconv.gpu._devices.cache_clear()
    yield numconv_cuda.CudaBackend()
    numconv.gpu._devices.cache_clear()


class Nvml:
    """The driver's library, as far as it is asked."""

    def __init__(self, init: int = 0, listing: int = 0, devices: int = 1):
        self.init, self.listing, self.devices, self.ended = init, listing, devices, False
        self.nvmlErrorString = lambda status: f"error {status}".encode()
        self.nvmlInit_v2 = lambda: self.init

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = self.devices
        return self.listing

    def nvmlShutdown(self):
        self.ended = True


def missing(name):
    raise OSError(f"{name}: cannot open shared object file")


def test_no_package(fresh, monkeypatch):
    monkeypatch.setattr(numconv_cuda.importlib.util, "find_spec", lambda name: None if name == "numba_cuda" else object())
    verdict = fresh.availability()
    assert not verdict
    assert verdict.reason == "the package numba-cuda is not installed: python -m pip install 'numconv-nd[cuda]'"


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (missing, "no NVIDIA driver is installed: the library .* is not found"),
        (lambda name: Nvml(init=9), "the NVIDIA driver does not answer: error 9"),
        (lambda name: Nvml(listing=3), "the NVIDIA driver does not list its devices: error 3"),
        (lambda name: Nvml(devices=0), "the NVIDIA driver knows no device"),
    ],
)
def test_no_driver_and_no_device(fresh, monkeypatch, library, reason):
    monkeypatch.setattr(ctypes, "CDLL", library)
    verdict = fresh.availability()
    assert not verdict
    assert re.fullmatch(reason, verdict.reason)


def test_the_driver_is_let_go(fresh, monkeypatch):
    nvml = Nvml(devices=2)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    assert numconv.gpu._devices() == (2, "")
    assert nvml.ended


def test_hidden_devices_and_no_toolkit(fresh, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(devices=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert fresh.availability().reason == "CUDA_VISIBLE_DEVICES hides the 2 devices of this machine: unset it"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    assert "no CUDA toolkit is found" in fresh.availability().reason
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert "NUMBA_DISABLE_JIT is set" in fresh.availability().reason


def test_the_simulator_is_on_demand(fresh, monkeypatch):
    assert (fresh.device, fresh.automatic) == ("gpu", True)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert (fresh.device, fresh.automatic) == ("cpu", False)
    assert fresh.availability().reason == "simulated on NumPy arrays, because NUMBA_ENABLE_CUDASIM is set"


# --- what is chosen


@installed
@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("conv {} f32 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "implicit_gemm"),
        ("conv {} f64 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "implicit_gemm"),
        ("conv {} bf16 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "tensor_cores"),
        ("conv {} f16 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1 accuracy=high", "implicit_gemm"),
        ("conv {} f16 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1 out=f32", "implicit_gemm"),
        ("conv {} f32 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1 accuracy=fast", "tensor_cores"),
        ("conv {} f32 n8 c64 k64 g64 in56x56 w3x3 s1 p1 d1", "depthwise"),
        ("conv {} f32 n1 c1 k1 g1 in512x512 w11x11 s1 p5 d1", "depthwise"),
        ("conv {} i32 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "implicit_gemm"),
        ("conv {} c64 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1", "implicit_gemm"),
    ],
)
def test_the_order_by_class_of_problem(text, algorithm, monkeypatch):
    from numconv_cuda.tensor_cores import tensor_cores

    monkeypatch.setattr(tensor_cores, "capability", lambda: (9, 0))
    for op in CONV_OPS:
        problem = parse(text.format(op))
        every = [each for each in numconv_cuda.backend.implementations() if op in each.ops and problem.level in each.levels]
        able = [each for each in every if each.supports(problem)]
        assert min(able, key=lambda each: each.cost(problem)).name == algorithm


@installed
def test_devices_without_tensor_cores(monkeypatch):
    from numconv_cuda.tensor_cores import tensor_cores

    monkeypatch.setattr(tensor_cores, "capability", lambda: (7, 5))
    verdict = tensor_cores.TensorCores().supports(parse("conv forward f16 n8 c64 k64 g1 in56x56 w3x3 s1 p1 d1"))
    assert verdict.reason == "needs compute capability 8.0, and the device has 7.5"


@installed
def test_the_split_of_a_sum_depends_on_the_problem_alone():
    from numconv_cuda.gemm.schedule import schedule_of, shape_of

    for op in CONV_OPS:
        problem = parse(f"conv {op} f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1")
        assert schedule_of(problem) == schedule_of(problem.replace(layout="channels_last"))
        assert schedule_of(problem).parts > 1
        assert schedule_of(problem.replace(accuracy="strict")).parts == 1
        tile = schedule_of(problem.replace(n=32)).tile
        assert tile.rows <= 64 < shape_of(problem)[0] + 1


@installed
def test_working_memory_is_bounded():
    """No buffer grows with batch, channels and volume."""
    for op in CONV_OPS:
        small = parse(f"conv {op} f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1 bias=y")
        small = small if op == "weight_grad" else small.replace(bias="")
        for each in numconv_cuda.backend.implementations():
            if op in each.ops and each.supports(small):
                assert each.workspace(small.replace(n=4096, spatial=(224, 224))) < 64 * 2**20


# --- geometry and launches


@installed
def test_indices_are_as_wide_as_they_must_be():
    from numconv_cuda.geometry import geometry

    problem, strides = parse("pool avg_pool f32 n2 c3 in8x8 w2x2 s2 p0 d1"), (192, 64, 64, (8, 1))
    assert type(geometry(problem, [np.empty((2, 3, 8, 8))], strides).n) is np.int32
    assert type(geometry(problem.replace(n=2**25), [np.empty(1)], strides).n) is np.int64
    far = np.lib.stride_tricks.as_strided(np.empty(1), (2, 3, 8, 8), (2**35, 8, 8, 8))
    assert type(geometry(problem, [far], strides).n) is np.int64


@installed
def test_strides_between_elements():
    from numconv_cuda.geometry import elements_of

    records = np.zeros(4, [("a", np.complex128), ("b", np.float64)])["a"]
    with pytest.raises(nc.ProblemError, match=r"strides .* no multiples of its 16 bytes"):
        elements_of(records)
    assert elements_of(np.zeros((3, 4))[:, ::-2]) == (4, -2)


CHILD = """
from numba.cuda import codegen, dispatcher
from numconv_cuda.runtime import cache, compiler, launching
from numconv_cuda import resources
launching.capability = lambda: (9, 0)
codegen.CUDACodeLibrary._ensure_cc = lambda self, cc: cc or (9, 0, "a")
variant = next(v for v in resources.variants("float32", 2) if v.kernel.name.startswith("forward_"))
store = variant.kernel._dispatcher._cache
found = store.load_overload(variant.types, None)
if found is None:
    with compiler._compiling_for((9, 0)):
        kernel = dispatcher._Kernel(variant.kernel.function, variant.types, **variant.kernel._dispatcher.targetoptions)
    kernel._codelibrary._cubin_cache[9, 0, "a"] = b"machine code"
    store.save_overload(variant.types, kernel)
    print("compiled", kernel.entry_name, len(kernel._codelibrary.get_asm_str()), cache.FILES.info().files)
else:
    assert found.argument_types == variant.types
    assert found._codelibrary.get_cubin() == b"machine code"
    print("loaded", found.entry_name, len(found._codelibrary.get_asm_str()), cache.FILES.info().files)
"""


@installed
@compiled
def test_another_process_finds_compiled_kernels_on_disk(tmp_path):
    from numconv_cuda.resources import toolkit_reason

    if reason := toolkit_reason():
        pytest.skip(reason)

    def child():
        environment = os.environ | {"NUMCONV_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first, second = child(), child()
    assert (first[0], second[0]) == ("compiled", "loaded")
    assert first[1:] == second[1:]
    (file,) = tmp_path.rglob("*.kernel")
    file.write_bytes(file.read_bytes()[:1000])
    assert child()[0] == "compiled", "a damaged file is written anew"
    assert child()[0] == "loaded"


@installed
@compiled
@pytest.mark.parametrize(
    ("folder", "name", "used"),
    [
        ("primitives", "copies", "copies"),
        ("primitives", "elements", "elements"),
        ("primitives", "fragments", "fragments"),
        ("strips", "pools", "pool_terms"),
        ("strips", "strips", "strip_terms"),
    ],
)
def test_the_compiler_and_the_simulator_have_the_same_functions(folder, name, used):
    modules = (f"numconv_cuda.{folder}.{each}" for each in (f"device_{name}", f"host_{name}", used))
    device, host, common = map(importlib.import_module, modules)
    assert device.__all__ == host.__all__
    assert all(getattr(common, each) is getattr(device, each) for each in device.__all__)


# --- what the simulator shows beyond the contract


@simulated
@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize("algorithm", ["direct", "implicit_gemm", "depthwise"])
@pytest.mark.parametrize(
    "geometry",
    [
        "f32 n2 c4 k6 g2 in5x4 w3x2 s1 p1 d1",
        "f32 n1 c2 k2 g1 in6 w3 s1 p2 d1 flip=1",
        "f64 n2 c2 k2 g1 in5 w2 s1 p1 d2",
        "f32 n2 c2 k2 g1 in7x4 w3x2 s2x3 p1:0x2 d1",
    ],
)
def test_strict(op, algorithm, geometry, rng):
    """The same bits from every implementation."""
    problem = parse(f"conv {op} {geometry} accuracy=strict")
    able = {each.name: each for each in numconv_cuda.backend.implementations() if op in each.ops}
    if not (verdict := able[algorithm].supports(problem)):
        pytest.skip(verdict.reason)
    check(problem, "cuda", algorithm, rng=rng, integer=False)
    arrays = nc.testing.inputs(problem, rng, False)
    found = [np.empty(s, problem.dtype) for s in problem.output_shapes]
    able[algorithm].build(problem)(found, arrays)
    expected = [np.empty_like(out) for out in found]
    able["direct"].build(problem)(expected, arrays)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@simulated
@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_tensor_cores(op, dtype, rng):
    problem = parse(f"conv {op} {dtype} n1 c5 k17 g1 in3 w4 s1 p2 d1 accuracy=fast")
    check(problem, "cuda", "tensor_cores", rng=rng, integer=False)


@simulated
@pytest.mark.parametrize(
    "text",
    [
        "conv forward f16 n1 c3 k2 g1 in7x6 w3x2 s2x3 p1:2 d2x3 pad=reflect",  # what is not read is not packed
        "conv forward bf16 n1 c18 k2 g2 in2x1x2 w2x1x2 s1 p1:0 d1",
        "conv input_grad f16 n1 c2 k3 g1 in4x5 w3x2 s2x3 p1 d2x3",  # phases that no tap reaches, and a dilation across them
        "conv input_grad f32 n1 c4 k6 g2 in5 w3 s2 p0 d1 accuracy=fast",
        "conv weight_grad f16 n2 c9 k4 g1 in3x2 w2x1 s2 p1 d1",
        "conv weight_grad f32 n1 c4 k36 g2 in5 w3 s1 p1 d2 accuracy=fast",
    ],
)
def test_packed_factors(text, rng):
    check(parse(text), "cuda", "tensor_cores", rng=rng)


@simulated
@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_factors_of_one_tap_are_read_as_they_lie(op, dtype, rng, monkeypatch):
    from numconv_cuda.tensor_cores import tensor_cores

    def packed(*args):
        raise AssertionError("packed")

    problem = parse(f"conv {op} {dtype} n2 c8 k3 g1 in2x4 w1x1 s1 p0 d1 accuracy=fast")
    check(problem, "cuda", "tensor_cores", rng=rng, integer=False)
    arrays = nc.testing.inputs(problem, rng, False)
    found = [np.empty(shape, problem.dtype) for shape in problem.output_shapes]
    monkeypatch.setattr(tensor_cores, "_packing", packed)
    tensor_cores.TensorCores().build(problem)(found, arrays)
    wide = problem.replace(spatial=(3, 3))
    arrays = nc.testing.inputs(wide, rng, False)
    with pytest.raises(AssertionError, match="packed"):
        tensor_cores.TensorCores().build(wide)([np.empty(shape, wide.dtype) for shape in wide.output_shapes], arrays)


@simulated
@pytest.mark.parametrize("op", CONV_OPS)
def test_as_many_images_are_packed_as_memory_allows(op, rng):
    from numconv_cuda.tensor_cores.tensor_cores import TensorCores
    from numconv_cuda.tensor_cores.tensor_cuts import memory_of

    problem = parse(f"conv {op} f32 n3 c4 k4 g1 in6 w3 s1 p1 d1 accuracy=fast")
    room = TensorCores().workspace(problem)
    small = problem.replace(max_workspace=room - 1)
    assert memory_of(problem).images == 3 > memory_of(small).images
    assert TensorCores().workspace(small) < room
    check(small, "cuda", "tensor_cores", rng=rng)
    verdict = TensorCores().supports(problem.replace(max_workspace=64))
    assert "packs an image at a time at least, in" in verdict.reason


@simulated
def test_units_of_tensor_cores(rng):
    """Rounded to nearest: TF32 ties away from zero, half types ties to even; what is not finite stays so."""
    from numconv_cuda.primitives.fragments import store_unit
    from numconv_cuda.runtime.launching import HostPointer

    values = np.array([1 + 2**-11, 1 + 2**-12, -1 - 2**-11, np.inf, 3e38, -0.0, np.nan, 7], np.float32)
    found = np.empty(8, np.float32)
    for unit in range(2):
        store_unit(HostPointer.to(found), unit, tuple(values[4 * unit : 4 * unit + 4]))
    np.testing.assert_array_equal(found[:4], np.array([1 + 2**-10, 1, -1 - 2**-10, np.inf], np.float32))
    assert np.signbit(found[5])
    assert np.isnan(found[6])
    for dtype in ("float16", "bfloat16"):
        halves, known = np.empty(8, np_dtype(dtype)), np.where(values == np.float32(3e38), np.float32(2), values)
        store_unit(HostPointer.to(halves), 0, tuple(known))
        np.testing.assert_array_equal(halves.astype(np.float32), known.astype(np_dtype(dtype)).astype(np.float32))


@simulated
def test_indices_that_stray_from_their_windows(rng):
    """`max_pool_backward` adds what is given at any index, as the reference does."""
    grad, x = rng.integers(-4, 5, (2, 2, 3, 3)).astype(np.float32), np.zeros((2, 2, 6, 6), np.float32)
    indices = rng.integers(0, 36, (2, 2, 3, 3))
    expected = nc.max_pool_backward(grad, x, 2, indices=indices, backend="reference")
    np.testing.assert_array_equal(nc.max_pool_backward(grad, x, 2, indices=indices, backend="cuda"), expected)
    with pytest.raises(nc.ProblemError, match="indices range from"):
        nc.max_pool_backward(grad, x, 2, indices=indices + 36, backend="cuda")


@simulated
def test_unpooling_some_channels_at_a_time(rng, monkeypatch):
    from numconv_cuda import windows

    monkeypatch.setattr(windows, "OWNERS", 50)
    for text in (
        "max_unpool f32 n3 c2 in5x4 w1x1 s1 p0 d1 target=3x2",
        "max_unpool_backward f32 n3 c2 in5x4 w1x1 s1 p0 d1 target=3x2",
    ):
        check(parse(f"window {text}"), "cuda", rng=rng)


@simulated
def test_wide_indices_and_bound_weights(rng, monkeypatch):
    from numconv_cuda import geometry

    monkeypatch.setattr(geometry, "_NARROW", 0)
    geometry._geometry.cache_clear()
    check(parse("conv forward f32 n2 c3 k4 g1 in5x4 w3x3 s1 p1 d1"), "cuda", "implicit_gemm", rng=rng)
    geometry._geometry.cache_clear()


# --- what kernels need of a multiprocessor


@installed
@compiled
def test_no_kernel_of_the_table_spills():
    from numconv_cuda.resources import CAPABILITIES, read_table

    rows = read_table()
    assert {row.capability for row in rows} == set(CAPABILITIES)
    assert [row for row in rows if row.spilled] == []
    assert max(row.registers for row in rows) <= 255
    assert max(row.shared for row in rows) <= 48 * 1024  # of a block, on every device


@installed
@compiled
def test_the_table_names_every_kernel():
    from numconv_cuda.resources import DTYPES, read_table, variants

    expected = {(variant.kernel.name, dtype, ndim) for dtype, ndim in [*((d, 2) for d in DTYPES), ("float32", 1), ("float32", 3)]
                for variant in variants(dtype, ndim)}  # fmt: skip
    assert {(row.kernel, row.dtype, row.ndim) for row in read_table()} == expected


@installed
@compiled
@pytest.mark.parametrize("part", range(3))
def test_the_table_holds(part):
    """A sixth of the kernels for float32 in two dimensions, compiled anew: no spills, and about the registers of the table."""
    from numconv_cuda.resources import assemble, read_table, toolkit_reason, variants

    if reason := toolkit_reason():
        pytest.skip(reason)
    known = {(row.kernel, row.dtype, row.ndim, row.capability): row for row in read_table()}
    for variant in list(variants("float32", 2))[part::6]:
        for row in assemble(variant):
            told = known[row[:4]]
            assert row.spilled == 0
            assert row.shared == told.shared
            assert row.registers <= told.registers + 16, "run python -m numconv_cuda.resources"  # toolkits differ a little
