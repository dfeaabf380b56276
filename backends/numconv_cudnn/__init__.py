"""NVIDIA's cuDNN as a backend of numconv, through the package nvidia-cudnn-frontend.

This module is light: neither the frontend nor CuPy is imported before the first problem asks for them. It computes only when asked
for: whether cuDNN has an engine for a problem is known when a graph is built, too late for another backend to take over.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import sysconfig
from collections.abc import Sequence

from numconv.plugin import Implementation, Verdict, __version__, nvidia_devices

__all__ = ["CudnnBackend", "backend"]

_PIP = "python -m pip install 'numconv-nd[cudnn]'"


@functools.cache
def _implementations() -> tuple[Implementation, ...]:
    from .convolution import Convolution, Transforms
    from .driver import Driver

    driver = Driver()
    return (Transforms(driver), Convolution(driver))


@functools.cache
def _has_library() -> bool:
    """Whether libcudnn is where the frontend looks for it: LD_LIBRARY_PATH, the wheel nvidia-cudnn-cu13, the system."""
    wheel = pathlib.Path(sysconfig.get_path("purelib"), "nvidia", "cudnn", "lib")
    if any(wheel.glob("libcudnn.so.*[0-9]")):
        return True
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError:
        return False
    return True


class CudnnBackend:
    """The plugin: needs nvidia-cudnn-frontend, libcudnn, CuPy and an NVIDIA driver."""

    name = "cudnn"
    device = "gpu"
    automatic = False
    version = __version__

    def availability(self) -> Verdict:
        """Whether the packages, the library and a GPU are there; nothing is imported."""
        for package, what in (("cudnn", "nvidia-cudnn-frontend"), ("cupy", "cupy")):
            if importlib.util.find_spec(package) is None:
                return Verdict.no(f"the package {what} is not installed: {_PIP}")
        count, reason = nvidia_devices()
        if not count:
            return Verdict.no(reason)
        if not _has_library():
            return Verdict.no(f"the library libcudnn.so.9 is not found: {_PIP}")
        return Verdict.yes()

    def implementations(self) -> Sequence[Implementation]:
        """Two: one that may transform, for gradients of x, and one for all operations."""
        return _implementations()


backend = CudnnBackend()
