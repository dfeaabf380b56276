"""Kernels on CuPy: compiled by NVRTC once for each set of macros, launched on the caller's current stream.

What a launch needs but the addresses follows from the problem and the strides of its arrays. It is prepared at the first call with
such arrays, see `by_strides`; later ones look it up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from numconv.plugin import DeviceArray, Executor, cupy_stream, cupy_view

from .namespaces import Arrays, empty_like
from .source import NULL, Kernel, source_of

__all__ = ["MOST_MEMORY", "THREADS", "CupyKernels", "Launch", "Launcher", "Run", "by_strides", "remembered", "scratch"]

THREADS = 128
"""Threads of a block of a kernel that shares nothing between them, where the number only has to fill a multiprocessor."""
MOST_MEMORY = 46 << 10
"""Bytes that a block can share on every device without being asked for, less what kernels declare besides."""
_KEPT = 64
"""Prepared launches of an executor."""

Run = Callable[..., None]
"""What runs on (outs, ins), or on (outs, ins, flags)."""
Launch = Callable[..., None]
"""Runs a kernel on its arguments: arrays, null pointers, NumPy scalars and a record from `source.geometry`."""


class Launcher(Protocol):
    """What runs kernels: CuPy, or in tests a loop over the same source compiled for the host."""

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability of the device."""

    def constant(self, value: Any) -> Any:
        """A record or a number in the form in which arguments are passed the quickest."""

    def prepare(self, kernel: Kernel, threads: int, block: int = THREADS, memory: int = 0) -> Launch:
        """What runs `threads` threads in blocks of `block`, none if it is 0.

        `memory` is how many bytes a block shares besides what the kernel declares, at most `MOST_MEMORY`.
        """


class CupyKernels:
    """Launches on the current device and stream, without waiting."""

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability of the current device."""
        import cupy

        digits = cupy.cuda.Device().compute_capability
        return int(digits[:-1]), int(digits[-1])

    def constant(self, value: Any) -> Any:
        """What points at the value: CuPy would make one of each number at each launch."""
        import cupy

        return cupy.cuda.function.CNumpyArray(np.atleast_1d(value))

    def prepare(self, kernel: Kernel, threads: int, block: int = THREADS, memory: int = 0) -> Launch:
        """What runs `threads` threads in blocks of `block`; none if it is 0."""
        if not threads:
            return _nothing
        import cupy

        function, grid, shape = _compiled(kernel), (-(-threads // block),), (block,)
        null, address = cupy.cuda.function.CIntptr(0), cupy.cuda.function.CIntptr

        def launch(*arguments: Any) -> None:
            passed = [address(each.pointer) if type(each) is DeviceArray else null if each is NULL else each for each in arguments]
            function(grid, shape, passed, shared_mem=memory)

        return launch


def _nothing(*_: Any) -> None:
    """A launch of no threads."""


@functools.lru_cache(maxsize=1024)
def _compiled(kernel: Kernel) -> Any:
    """The function, which CuPy compiles at its first launch on a device and keeps in its cache on disk."""
    import cupy

    return cupy.RawKernel(source_of(kernel.name), kernel.name, options=("--std=c++17", *kernel.options))


def _ready(array: Any) -> Any:
    """Of other libraries' arrays kernels take the addresses; to wait for a stream takes a view of CuPy."""
    return array if type(array) is not DeviceArray or array.stream is None else cupy_view(array)


def remembered(prepare: Callable[..., Run]) -> Callable[..., Run]:
    """`prepare`, a function of (outs, ins, *also), called once for the strides of the arrays and for what else it is given."""
    known: dict[tuple[Any, ...], Run] = {}

    def find(outs: Arrays, ins: Arrays, *also: Any) -> Run:
        key = (*also, *[each.strides for each in outs], *[each.strides for each in ins])
        run = known.get(key)
        if run is None:
            if len(known) >= _KEPT:
                known.clear()
            run = known[key] = prepare(outs, ins, *also)
        return run

    return find


def by_strides(prepare: Callable[[Arrays, Arrays], Run]) -> Executor:
    """An executor from what prepares one for arrays of the strides of its arguments."""
    find = remembered(prepare)

    def executor(outs: Arrays, ins: Arrays) -> None:
        if type(ins[0]) is not DeviceArray:
            find(outs, ins)(outs, ins)
            return
        with cupy_stream(outs[0]):
            outs, ins = [_ready(each) for each in outs], [_ready(each) for each in ins]
            find(outs, ins)(outs, ins)

    return executor


def scratch(array: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Working memory on the device of an array."""
    if type(array) is DeviceArray:
        import cupy

        return cupy.empty(shape, dtype)
    return empty_like(array, shape, dtype)
