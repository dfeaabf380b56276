"""From arrays to a launched kernel: addresses, the caller's stream, the size of the grid.

A kernel runs on the stream on which its arrays are ready: the current stream of CuPy or torch, else the one that
``__cuda_array_interface__`` tells. Nothing waits for the device.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numconv.plugin import np_dtype

from .compiler import SIMULATED, Kernel, cuda

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
    from .pointers import Pointer

    return Pointer(_address(array), _name(array.dtype))


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    """The name, which NumPy puts together anew each time."""
    return dtype.name


def _address(array: Any) -> int:
    found: int = array.pointer if hasattr(array, "pointer") else array.data.ptr  # a DeviceArray, or CuPy's
    return found


def zero(dtype: str) -> Any:
    """The zero of a dtype: the argument by whose type a kernel knows in which dtype it computes."""
    return np_dtype(dtype).type(0)


def launch(kernel: Kernel, blocks: Any, threads: Any, arrays: Sequence[Any], *args: Any) -> None:
    """Launch on the stream of the arrays."""
    kernel(blocks, threads, None if SIMULATED else _stream_of(arrays), *args)


def over(kernel: Kernel, items: int, arrays: Sequence[Any], *args: Any) -> None:
    """Launch with a thread an item: the kernel goes through ``range(cuda.grid(1), items, cuda.gridsize(1))``."""
    if items:
        launch(kernel, min(-(-items // THREADS), MAX_BLOCKS), THREADS, arrays, *args)


def _stream_of(arrays: Sequence[Any]) -> Any:
    """The stream of the first array, made to wait for those of the others."""
    first, *others = dict.fromkeys(map(_raw_stream, arrays))
    stream = _stream(first)
    for other in others:
        event = cuda.event(timing=False)
        event.record(_stream(other))
        event.wait(stream)
    return stream


def _raw_stream(array: Any) -> int:
    """The handle of the stream on which the array is ready; 1 is the default stream."""
    owner = getattr(array, "owner", array)
    library = type(owner).__module__.split(".")[0]
    if library == "cupy":
        found = sys.modules["cupy"].cuda.get_current_stream().ptr
    elif library == "torch":
        found = sys.modules["torch"].cuda.current_stream(owner.device).cuda_stream
    else:
        found = array.stream
    return int(found or 1)


@functools.lru_cache(maxsize=64)
def _stream(handle: int) -> Any:
    if handle == 1:
        return cuda.legacy_default_stream()
    return cuda.per_thread_default_stream() if handle == 2 else cuda.external_stream(handle)


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
