"""Whether there is an NVIDIA GPU, asked through NVML: it makes no CUDA context, so a later fork stays intact."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

__all__ = ["nvidia_devices"]

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


def nvidia_devices() -> tuple[int, str]:
    """The number of NVIDIA GPUs that this process may use, and the reason if there is none.

    Returns
    -------
    (int, str)

    Examples
    --------
    >>> from numconv.driver import nvidia_devices
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
