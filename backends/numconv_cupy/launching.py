"""Kernels on CuPy: compiled by NVRTC once for each set of macros, launched on the caller's current stream."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

from .source import Kernel, source_of

__all__ = ["THREADS", "CupyKernels", "Launcher"]

THREADS = 128
"""Threads of a block. No kernel shares anything between them, so the number only has to fill a multiprocessor."""


class Launcher(Protocol):
    """What runs kernels: CuPy, or in tests a loop over the same source compiled for the host."""

    def launch(self, kernel: Kernel, threads: int, arguments: Sequence[Any]) -> None:
        """Run `threads` threads; the arguments are arrays, NumPy scalars and a record from `source.geometry`."""


class CupyKernels:
    """Launches on the current device and stream, without waiting."""

    def launch(self, kernel: Kernel, threads: int, arguments: Sequence[Any]) -> None:
        """Run `threads` threads in blocks of `THREADS`; none if it is 0."""
        if threads:
            _compiled(kernel)((-(-threads // THREADS),), (THREADS,), tuple(arguments))


@functools.lru_cache(maxsize=1024)
def _compiled(kernel: Kernel) -> Any:
    """The function, which CuPy compiles at its first launch on a device and keeps in its cache on disk."""
    import cupy

    return cupy.RawKernel(source_of(kernel.name), kernel.name, options=("--std=c++17", *kernel.options))
