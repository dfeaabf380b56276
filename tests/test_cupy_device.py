"""What is handed to CuPy, seen by an imitation that only takes notes: there is no GPU."""

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
from numconv.plugin import DeviceArray, cupy_view, parse

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
        return lambda grid, block, arguments: launches.append((name, options, grid, block, arguments))

    cuda = SimpleNamespace(
        get_current_stream=lambda: stream,
        Stream=SimpleNamespace(from_external=lambda other: SimpleNamespace(record=other.__cuda_stream__)),
        UnownedMemory=lambda pointer, size, owner: (pointer, size, owner),
        MemoryPointer=lambda memory, offset: (memory, offset),
        runtime=SimpleNamespace(getDevice=lambda: 0),
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
    assert view.memory == ((1000, 120, "owner"), 0)
    assert (view.shape, view.strides, view.dtype) == ((5, 6), (24, 4), np.float32)
    backwards = cupy_view(device_array(strides=(-24, 4)))
    assert backwards.memory == ((904, 120, "owner"), 96)
    plain = np.zeros(3)
    assert cupy_view(plain) is plain


@pytest.mark.parametrize(("stream", "waited"), [(None, []), (7, []), (9, [(0, 9)]), (1, [(0, 1)])])
def test_a_stream_waits_for_the_one_where_the_array_is_ready(cupy, stream, waited):
    cupy_view(device_array(stream=stream))
    assert cupy.stream.waited == waited


def test_a_launch_passes_macros_the_geometry_by_value_and_null_pointers(cupy):
    problem = parse("conv forward f32 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1")
    x, w, y = (np.zeros(shape, np.float32) for shape in (*problem.input_shapes, problem.y_shape))
    Direct(CupyKernels()).build(problem)([y], [x, w])
    ((name, options, grid, block, arguments),) = cupy.launches
    assert name == "conv_forward"
    assert {"-DIN=float", "-DACC=float", "-DOUT=float", "-DNDIM=2", "-DKT=1", "-DCONV_FORWARD=1"} <= set(options)
    assert (grid, block) == ((-(-2 * 4 * 72 // 128),), (128,))
    record, *others = arguments
    assert record.shape == (1,), "a record of one element is passed by value"
    assert record.dtype == _layout(2)
    assert f"-DGEOMETRY_BYTES={record.dtype.itemsize}" in options
    assert record["spatial"].tolist() == [[9, 8]]
    assert others[0] is x
    assert others[2].dtype == others[4].dtype == np.uint64, "a null pointer takes eight bytes"


def test_nothing_is_launched_for_a_batch_of_none(cupy):
    problem = parse("conv forward f32 n0 c3 k4 g1 in9 w3 s1 p1 d1")
    Direct(CupyKernels()).build(problem)(
        [np.zeros((0, 4, 9), np.float32)], [np.zeros((0, 3, 9), np.float32), np.zeros((4, 3, 3), "f4")]
    )
    assert cupy.launches == []
