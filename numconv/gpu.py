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

__all__ = ["cupy_view", "nvidia_devices"]

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
