"""What is handed to CuPy, seen by an imitation that only takes notes: there is no GPU."""

import contextlib
import ctypes
import importlib.util
import sys
from types import SimpleNamespace

import numconv_cudnn
import numconv_cupy
import numpy as np
import pytest
from numconv_cupy import launching
from numconv_cupy.direct import Direct
from numconv_cupy.launching import CupyKernels
from numconv_cupy.source import _layout

import numconv.gpu
from numconv.plugin import DeviceArray, cupy_stream, cupy_view, parse

# --- availability ---------------------------------------------------------------------------------------------------------------


class Nvml:
    """The driver's library with one device."""

    nvmlErrorString = SimpleNamespace()

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 1
        return 0

    def nvmlShutdown(self):
        return 0


@pytest.fixture
def machine(monkeypatch):
    """A machine of which a test says what it has."""
    has = SimpleNamespace(packages={"cupy", "cudnn"}, libraries={numconv.gpu._LIBRARY, "libcudnn.so.9"})

    def load(name):
        if name not in has.libraries:
            raise OSError(name)
        return Nvml()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in has.packages else None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    caches = (numconv.gpu._devices, numconv_cudnn._has_library)
    for cache in caches:
        cache.cache_clear()
    yield has
    for cache in caches:
        cache.cache_clear()


def test_all_is_there(machine):
    assert numconv_cupy.backend.availability().ok
    assert numconv_cudnn.backend.availability().ok


@pytest.mark.parametrize("missing", ["cupy", "cudnn"])
def test_a_missing_package_is_named_with_its_command(machine, missing):
    machine.packages.remove(missing)
    reason = numconv_cudnn.backend.availability().reason
    package = {"cupy": "cupy", "cudnn": "nvidia-cudnn-frontend"}[missing]
    assert reason == f"the package {package} is not installed: python -m pip install 'numconv-nd[cudnn]'"
    if missing == "cupy":
        assert "python -m pip install 'numconv-nd[cupy]'" in numconv_cupy.backend.availability().reason


def test_a_missing_library_or_driver_is_named(machine, monkeypatch):
    machine.libraries.remove("libcudnn.so.9")
    monkeypatch.setattr(numconv_cudnn.sysconfig, "get_path", lambda name: "/nowhere")
    assert numconv_cudnn.backend.availability().reason.startswith("the library libcudnn.so.9 is not found: python -m pip install")
    assert numconv_cupy.backend.availability().ok
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides the 1 devices" in numconv_cupy.backend.availability().reason


# --- CuPy -----------------------------------------------------------------------------------------------------------------------


class Stream:
    """CuPy's current stream."""

    ptr = 7

    def __init__(self):
        self.waited = []

    def wait_event(self, event):
        self.waited.append(event)


@pytest.fixture
def cupy(monkeypatch):
    """CuPy as far as numconv asks it, without a device."""
    stream, launches = Stream(), []

    def raw_kernel(source, name, options):
        return lambda grid, block, arguments, shared_mem: launches.append((name, options, grid, block, arguments))

    cuda = SimpleNamespace(
        get_current_stream=lambda: stream,
        Stream=SimpleNamespace(from_external=lambda other: SimpleNamespace(record=other.__cuda_stream__)),
        UnownedMemory=lambda pointer, size, owner, device: (pointer, size, owner, device),
        MemoryPointer=lambda memory, offset: (memory, offset),
        runtime=SimpleNamespace(getDevice=lambda: 0),
        function=SimpleNamespace(CNumpyArray=lambda value: value, CIntptr=np.uint64),
    )
    module = SimpleNamespace(
        cuda=cuda, RawKernel=raw_kernel, uint8="uint8", launches=launches, stream=stream,
        empty=lambda size, dtype: SimpleNamespace(data=SimpleNamespace(ptr=900), size=size),
        ndarray=lambda shape, dtype, memory, strides: SimpleNamespace(shape=shape, dtype=dtype, memory=memory, strides=strides),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", module)
    launching._compiled.cache_clear()
    yield module
    launching._compiled.cache_clear()


def device_array(strides=(24, 4), stream=None):
    return DeviceArray("owner", 1000, (5, 6), strides, np.dtype(np.float32), stream)


def test_another_librarys_array_is_seen_on_its_own_memory(cupy):
    view = cupy_view(device_array())
    assert view.memory == ((1000, 120, "owner", -1), 0)
    assert (view.shape, view.strides, view.dtype) == ((5, 6), (24, 4), np.float32)
    backwards = cupy_view(device_array(strides=(-24, 4)))
    assert backwards.memory == ((904, 120, "owner", -1), 96)
    plain = np.zeros(3)
    assert cupy_view(plain) is plain


@pytest.mark.parametrize(("stream", "waited"), [(None, []), (7, []), (9, [(0, 9)]), (1, [(0, 1)])])
def test_a_stream_waits_for_the_one_where_the_array_is_ready(cupy, stream, waited):
    cupy_view(device_array(stream=stream))
    assert cupy.stream.waited == waited


@pytest.mark.parametrize(("told", "entered"), [(None, False), (7, False), (9, True)])
def test_work_on_other_librarys_arrays_runs_on_their_stream(cupy, monkeypatch, told, entered):
    """CuPy's current one where it is the same, or none is told."""
    log = []

    @contextlib.contextmanager
    def entering(other):
        log.append(other.__cuda_stream__())
        yield

    monkeypatch.setattr(cupy.cuda.Stream, "from_external", entering)
    with cupy_stream(device_array(stream=told)):
        assert log == [(0, told)] * entered


def test_a_launch_passes_macros_the_geometry_by_value_and_null_pointers(cupy):
    problem = parse("conv forward f32 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1")
    x, w, y = (np.zeros(shape, np.float32) for shape in (*problem.input_shapes, problem.y_shape))
    Direct(CupyKernels()).build(problem)([y], [x, w])
    ((name, options, grid, block, arguments),) = cupy.launches
    assert name == "conv_forward"
    assert {"-DIN=float", "-DACC=float", "-DOUT=float", "-DNDIM=2", "-DCONV_FORWARD=1"} <= set(options)
    assert (grid, block) == ((-(-2 * 4 * 72 // 128),), (128,))
    record, *others = arguments
    assert record.shape == (1,), "a record of one element is passed by value"
    assert record.dtype == _layout(2)
    assert f"-DGEOMETRY_BYTES={record.dtype.itemsize}" in options
    assert record["spatial"].tolist() == [[9, 8]]
    assert others[0] is x
    assert others[2].dtype == others[4].dtype == np.uint64, "a null pointer takes eight bytes"


def test_what_a_launch_needs_but_addresses_is_prepared_once_for_each_set_of_strides(cupy):
    problem = parse("conv forward f32 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1")
    executor = Direct(CupyKernels()).build(problem)
    x, w, y = (np.zeros(shape, np.float32) for shape in (*problem.input_shapes, problem.y_shape))
    other = np.zeros((9, 8, 2, 3), np.float32).transpose(2, 3, 0, 1)
    for each in (x, x.copy(), other, x):
        executor([y], [each, w])
    records = [arguments[0] for *_, arguments in cupy.launches]
    assert records[0] is records[1] is records[3]
    assert records[2] is not records[0]
    assert [arguments[1] for *_, arguments in cupy.launches][1] is not x


def test_of_other_libraries_arrays_kernels_take_the_addresses(cupy):
    problem = parse("conv forward f32 n1 c1 k1 g1 in5x6 w3x3 s1 p1 d1")
    arrays = [
        DeviceArray("owner", address, shape, tuple(4 * s for s in (30, 30, shape[3], 1)), np.dtype(np.float32))
        for address, shape in ((1000, (1, 1, 5, 6)), (2000, (1, 1, 3, 3)), (3000, (1, 1, 5, 6)))
    ]
    Direct(CupyKernels()).build(problem)(arrays[2:], arrays[:2])
    (*_, (_, x, w, _, y, _)) = cupy.launches[0]
    assert [x, w, y] == [1000, 2000, 3000]
    assert x.dtype == np.uint64


def test_nothing_is_launched_for_a_batch_of_none(cupy):
    problem = parse("conv forward f32 n0 c3 k4 g1 in9 w3 s1 p1 d1")
    Direct(CupyKernels()).build(problem)(
        [np.zeros((0, 4, 9), np.float32)], [np.zeros((0, 3, 9), np.float32), np.zeros((4, 3, 3), "f4")]
    )
    assert cupy.launches == []


# --- rates ----------------------------------------------------------------------------------------------------------------------


class TellingNvml(Nvml):
    """The driver's library of an A100, or one that does not know its clocks."""

    def __init__(self, capability=(8, 0), status=0):
        self.capability, self.status = capability, status
        self.nvmlErrorString = SimpleNamespace()

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, device, major, minor):
        major._obj.value, minor._obj.value = self.capability
        return 0

    def nvmlDeviceGetNumGpuCores(self, device, found):
        found._obj.value = 6912
        return 0

    def nvmlDeviceGetMaxClockInfo(self, device, kind, found):
        found._obj.value = {1: 1410, 2: 1215}[kind]
        return self.status

    def nvmlDeviceGetMemoryBusWidth(self, device, found):
        found._obj.value = 5120
        return 0


@pytest.mark.parametrize(("capability", "multiprocessors", "double"), [((8, 0), 108, 2), ((8, 6), 54, 64)])
def test_rates_are_those_of_the_clocks(machine, monkeypatch, capability, multiprocessors, double):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: TellingNvml(capability))
    rates = numconv.gpu.nvidia_rates.__wrapped__()
    assert rates.multiprocessors == multiprocessors
    assert rates.single == pytest.approx(19.49e12, rel=1e-3), "as its data sheet says"
    assert rates.memory == pytest.approx(1.555e12, rel=1e-3)
    assert rates.single / rates.double == double


@pytest.mark.parametrize("library", [TellingNvml(status=3), Nvml()])
def test_a_driver_that_does_not_tell_gives_the_rates_of_a_known_gpu(machine, monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert numconv.gpu.nvidia_rates.__wrapped__() == numconv.gpu._UNKNOWN
