"""How executors launch kernels: pointers to arrays, the size of the grid; and what there is to know of the device.

An executor that `recording` runs does not launch at once; in the simulator it does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numconv.plugin import np_dtype

from .compiler import SIMULATED, Kernel, cuda
from .pointers import Pointer

__all__ = ["MAX_BLOCKS", "THREADS", "HostPointer", "capability", "device_facts", "launch", "over", "pointer", "zero"]

THREADS = 2 if SIMULATED else 256
"""Of a block of a kernel whose threads are independent; in the simulator they are Python's."""
MAX_BLOCKS = 2 if SIMULATED else 2**31 - 1
"""Of a grid in its first dimension, on every device since compute capability 3.0; beyond it a thread takes several items."""


class HostPointer:
    """What a pointer is in the simulator: an element of NumPy memory and its neighbours."""

    __slots__ = ("_base", "_flat")

    def __init__(self, flat: np.ndarray[Any, Any], base: int):
        self._flat, self._base = flat, base

    @classmethod
    def to(cls, array: np.ndarray[Any, Any]) -> HostPointer:
        """The pointer to the first element of an array of any strides."""
        if not array.size:
            return cls(array.reshape(-1), 0)
        back = sum(step * (size - 1) for step, size in zip(array.strides, array.shape, strict=True) if step < 0 and size)
        ahead = sum(step * (size - 1) for step, size in zip(array.strides, array.shape, strict=True) if step > 0 and size)
        first = array[(*(size - 1 if step < 0 else 0 for step, size in zip(array.strides, array.shape, strict=True)), ...)]
        count = (ahead - back) // array.itemsize + 1
        flat = np.lib.stride_tricks.as_strided(first, (count,), (array.itemsize,))
        return cls(flat, -back // array.itemsize)

    def shifted(self, offset: int) -> HostPointer:
        """The pointer moved by so many elements."""
        return HostPointer(self._flat, self._base + int(offset))

    def viewed(self, dtype: np.dtype[Any]) -> HostPointer:
        """The pointer to the same memory, as elements of another dtype."""
        return HostPointer(self._flat.view(dtype), self._base * self._flat.itemsize // dtype.itemsize)

    def _place(self, index: Any) -> int:
        place = self._base + int(index)
        if not 0 <= place < self._flat.size:
            raise IndexError(f"a kernel reaches element {place} of {self._flat.size}")
        return place

    def __getitem__(self, index: Any) -> Any:
        return self._flat[self._place(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._flat[self._place(index)] = value


def pointer(array: Any) -> Any:
    """An array's first element as an argument of a kernel."""
    if SIMULATED:
        return HostPointer.to(array)
    return Pointer(array.pointer, _name(array.dtype))


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    """The name, which NumPy puts together anew each time."""
    return dtype.name


def zero(dtype: str) -> Any:
    """The zero of a dtype: the argument by whose type a kernel knows in which dtype it computes."""
    return np_dtype(dtype).type(0)


def launch(kernel: Kernel, blocks: int | tuple[int, ...], threads: int, arrays: Sequence[Any], *args: Any) -> None:
    """Launch a kernel on the stream of the executor's arrays, of which `arrays` are some; see `recording`."""
    if SIMULATED:
        kernel.simulate(blocks, threads, *args)
        return
    recording: Any = getattr(arrays[0], "owner", None)
    if not hasattr(recording, "launch"):
        raise TypeError(f"{kernel.name} is launched outside of a recording: build(problem) must return recorded(run)")
    recording.launch(kernel, blocks, threads, args)


def over(kernel: Kernel, items: int, arrays: Sequence[Any], *args: Any) -> None:
    """Launch with a thread an item: the kernel goes through ``range(cuda.grid(1), items, cuda.gridsize(1))``."""
    if items:
        launch(kernel, min(-(-items // THREADS), MAX_BLOCKS), THREADS, arrays, *args)


def capability() -> tuple[int, int]:
    """The compute capability of the current device; (0, 0) without one."""
    if SIMULATED:
        return (9, 0)
    try:
        major, minor = cuda.get_current_device().compute_capability
    except Exception:  # noqa: BLE001 - the driver's own errors, where there is none
        return (0, 0)
    return int(major), int(minor)


def device_facts() -> Mapping[str, str]:
    """What there is to say of the current device."""
    if SIMULATED:
        return {"device": "simulated by numba-cuda on NumPy arrays"}
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    return {
        "device": str(name),
        "compute capability": ".".join(map(str, device.compute_capability)),
        "multiprocessors": str(device.MULTIPROCESSOR_COUNT),
        "shared memory of a block": f"{device.MAX_SHARED_MEMORY_PER_BLOCK} bytes",
    }
