"""What plugins for NVIDIA GPUs share: whether there is a device, and other libraries' arrays as CuPy's.

The driver is asked through NVML, which makes no CUDA context, so that a later fork stays intact.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any, NamedTuple

from .arrays import DeviceArray

__all__ = ["NvidiaRates", "cupy_view", "nvidia_devices", "nvidia_rates"]

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


class NvidiaRates(NamedTuple):
    """What a GPU does at most, by its clocks: FLOP/s with a multiply-add counted as two, and bytes a second."""

    multiprocessors: int
    single: float
    double: float
    tf32: float
    """Products of factors rounded to TF32; those of 16 bits are twice as fast."""
    memory: float


_UNKNOWN = NvidiaRates(132, 6.7e13, 3.3e13, 4.9e14, 4.8e12)
"""An H200, on which the shares of these rates were measured."""
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


def cupy_view(array: Any) -> Any:
    """An array of any library on a GPU as CuPy's on the same memory; what is no `DeviceArray` stays what it is.

    The current stream of CuPy is made to wait for the stream on which the array is ready; the host waits for nothing.
    """
    if not isinstance(array, DeviceArray):
        return array
    import cupy

    here = cupy.cuda.get_current_stream()
    if array.stream not in (None, here.ptr or 1):  # 1 is the interface's name of the null stream
        here.wait_event(cupy.cuda.Stream.from_external(_Stream(array.stream)).record())
    steps = [step * (size - 1) for step, size in zip(array.strides, array.shape, strict=True) if size > 1]
    before = -sum(step for step in steps if step < 0)
    reach = before + sum(step for step in steps if step > 0) + array.itemsize
    memory = cupy.cuda.UnownedMemory(array.pointer - before, reach, array.owner)
    return cupy.ndarray(array.shape, array.dtype, cupy.cuda.MemoryPointer(memory, before), strides=array.strides)
