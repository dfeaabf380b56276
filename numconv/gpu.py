"""What plugins for NVIDIA GPUs share: whether there is a device, on which stream arrays are ready, and foreign arrays as CuPy's.

The driver is asked through NVML, which makes no CUDA context, so that a later fork stays intact.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .arrays import DeviceArray, library_of, span_of

__all__ = [
    "NvidiaRates", "cupy_stream", "cupy_view", "device_number", "nvidia_devices", "nvidia_rates", "streams_of",
]  # fmt: skip

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


def nvidia_devices() -> tuple[int, str]:
    """The number of NVIDIA GPUs that this process may use, and the reason if there is none.

    Returns
    -------
    (int, str)

    Examples
    --------
    >>> from numconv.gpu import nvidia_devices
    >>> count, reason = nvidia_devices()
    >>> (count > 0) == (reason == "")
    True
    """
    count, reason = _devices()
    if count and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return 0, f"CUDA_VISIBLE_DEVICES hides the {count} devices of this machine: unset it"
    return count, reason


@functools.cache
def _devices() -> tuple[int, str]:
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return 0, f"no NVIDIA driver is installed: the library {_LIBRARY} is not found"
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    status = nvml.nvmlInit_v2()
    if status:
        return 0, f"the NVIDIA driver does not answer: {nvml.nvmlErrorString(status).decode()}"
    try:
        count = ctypes.c_uint()
        status = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        if status:
            return 0, f"the NVIDIA driver does not list its devices: {nvml.nvmlErrorString(status).decode()}"
        return count.value, "" if count.value else "the NVIDIA driver knows no device"
    finally:
        nvml.nvmlShutdown()


DEFAULT_STREAM = 1
"""As the driver and the interface call it."""


def streams_of(arrays: Sequence[Any]) -> list[int]:
    """The handles of the CUDA streams on which arrays are ready.

    Parameters
    ----------
    arrays : sequence of DeviceArray or of CuPy's arrays
        On one device.

    Returns
    -------
    list of int
        Each once, that of the first array first. Of torch and CuPy their current stream, of other libraries the one that
        ``__cuda_array_interface__`` told; 1 is the default stream, where none is told too.
    """
    found: dict[int, None] = {}
    asked: Any = None
    for array in arrays:
        owner = array.owner if isinstance(array, DeviceArray) else array
        if type(owner) is not asked:
            found[_told_stream(array) or DEFAULT_STREAM] = None
            asked = type(owner) if library_of(owner) in ("torch", "cupy") else asked
    return list(found)


def _told_stream(array: Any) -> int | None:
    owner = array.owner if isinstance(array, DeviceArray) else array
    library = library_of(owner)
    if library == "torch":
        return _torch_streams()(owner.get_device()) or DEFAULT_STREAM
    if library == "cupy":
        return sys.modules["cupy"].cuda.get_current_stream().ptr or DEFAULT_STREAM
    found: int | None = array.stream
    return found


@functools.cache
def _torch_streams() -> Callable[[int], int]:
    """torch's current streams as handles: what its compiled graphs call, for `current_stream` makes an object each time."""
    found: Callable[[int], int] = sys.modules["torch"]._C._cuda_getCurrentRawStream
    return found


def device_number(array: Any) -> int | None:
    """The number of the GPU on which an array of torch or CuPy lives; None for those of other libraries, which do not tell it."""
    owner = array.owner if isinstance(array, DeviceArray) else array
    library = library_of(owner)
    if library == "torch":
        return owner.get_device()  # type: ignore[no-any-return]
    return owner.data.device_id if library == "cupy" else None


class NvidiaRates(NamedTuple):
    """What a GPU does at most, by its clocks: FLOP/s with a multiply-add counted as two, and bytes a second."""

    multiprocessors: int
    single: float
    double: float
    tf32: float
    """Products of factors rounded to TF32; those of 16 bits are twice as fast."""
    memory: float


_UNKNOWN = NvidiaRates(132, 6.7e13, 3.3e13, 4.9e14, 4.8e12)
"""An H200 by its clocks: on one were the runs after which the costs of the GPU backends were set."""
_LANES = {(6, 0): 64, (7, 0): 64, (7, 5): 64, (8, 0): 64}
"""Multiply-adds in single precision of a multiprocessor and clock by compute capability, where they are not 128."""
_WITH_DOUBLE = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
"""Capabilities of which double precision has half of the rate of single; others have 1/64."""
_TENSOR_CORES = 7.4, 2.0
"""Rates of TF32 beside those of single precision: of the GPUs of computing centres, and of others."""
_MULTIPROCESSOR_CLOCK, _MEMORY_CLOCK = 1, 2


@functools.cache
def nvidia_rates() -> NvidiaRates:
    """The rates of the first NVIDIA GPU, read from its driver's library; of an H200 where there is none that tells.

    Returns
    -------
    NvidiaRates

    Examples
    --------
    >>> from numconv.gpu import nvidia_rates
    >>> nvidia_rates().single > nvidia_rates().double > 0
    True
    """
    if not nvidia_devices()[0]:
        return _UNKNOWN
    nvml = ctypes.CDLL(_LIBRARY)
    if nvml.nvmlInit_v2():
        return _UNKNOWN
    try:
        return _told_rates(nvml)
    except (OSError, AttributeError):  # an older driver, or a virtual device
        return _UNKNOWN
    finally:
        nvml.nvmlShutdown()


def _told_rates(nvml: Any) -> NvidiaRates:
    device = ctypes.c_void_p()
    _told(nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)))

    def number(function: Any, *arguments: int) -> int:
        found = ctypes.c_uint()
        _told(function(device, *arguments, ctypes.byref(found)))
        return found.value

    major, minor = ctypes.c_int(), ctypes.c_int()
    _told(nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)))
    capability = major.value, minor.value
    cores = number(nvml.nvmlDeviceGetNumGpuCores)
    single = 2.0 * cores * 1e6 * number(nvml.nvmlDeviceGetMaxClockInfo, _MULTIPROCESSOR_CLOCK)
    memory = 2.0 * 1e6 * number(nvml.nvmlDeviceGetMaxClockInfo, _MEMORY_CLOCK) * number(nvml.nvmlDeviceGetMemoryBusWidth) / 8
    has_double = capability in _WITH_DOUBLE
    multiprocessors = cores // _LANES.get(capability, 128)
    return NvidiaRates(multiprocessors, single, single / (2 if has_double else 64), single * _TENSOR_CORES[not has_double], memory)


def _told(status: int) -> None:
    if status:
        raise OSError(f"the driver's library answers {status}")


class _Stream(NamedTuple):
    """A stream of another library, by the protocol that `cupy.cuda.Stream.from_external` reads."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _cupy_stream(handle: int) -> Any:
    return sys.modules["cupy"].cuda.Stream.from_external(_Stream(handle))


def cupy_stream(array: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which CuPy's current stream is that on which an array of another library is ready.

    Parameters
    ----------
    array : DeviceArray or any array
        One that is no `DeviceArray`, or tells no stream, changes nothing.
    """
    told = _told_stream(array) if isinstance(array, DeviceArray) else None
    if told is None:
        return contextlib.nullcontext()
    import cupy

    return contextlib.nullcontext() if told == (cupy.cuda.get_current_stream().ptr or DEFAULT_STREAM) else _cupy_stream(told)


def cupy_view(array: Any) -> Any:
    """An array of any library on a GPU as CuPy's on the same memory; what is no `DeviceArray` stays what it is.

    The current stream of CuPy is made to wait for the stream on which the array is ready; the host waits for nothing.
    """
    if not isinstance(array, DeviceArray):
        return array
    import cupy

    here, told = cupy.cuda.get_current_stream(), _told_stream(array)
    if told not in (None, here.ptr or DEFAULT_STREAM):
        here.wait_event(_cupy_stream(told).record())
    before, behind = span_of(array.shape, array.strides, array.itemsize)
    device = device_number(array)
    memory = cupy.cuda.UnownedMemory(array.pointer - before, before + behind, array.owner, -1 if device is None else device)
    return cupy.ndarray(array.shape, array.dtype, cupy.cuda.MemoryPointer(memory, before), strides=array.strides)
