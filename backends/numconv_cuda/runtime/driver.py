"""Launches by the driver's own function, without what a general library does at each of them.

The parameters of a launch are packed once. A launch rewrites the addresses among them and the stream, and calls the driver.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from numconv.plugin import NumconvError

from .compiler import cuda

__all__ = ["PackedLaunch", "Place", "current_context", "device_of_context"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_SLOT = 8
"""Bytes of a slot, which holds one parameter: kernels take addresses, integers and floats of up to so many."""


@functools.cache
def _driver() -> Any:
    found = ctypes.CDLL(_LIBRARY)
    found.cuLaunchKernelEx.argtypes = [ctypes.c_void_p] * 4
    return found


def current_context() -> int:
    """The context of this thread: where it has none yet, that of the first device is made current."""
    found = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(found)), "tell the current context")
    if not found.value:
        cuda.current_context()
        _check(_driver().cuCtxGetCurrent(ctypes.byref(found)), "tell the current context")
    return found.value or 0


@functools.lru_cache(maxsize=64)
def device_of_context(context: int) -> int:
    """The number of the device of the current context."""
    number: int = cuda.current_context().device.id
    return number


def _check(status: int, asked: str) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise NumconvError(f"the CUDA driver cannot {asked}: error {status}, {(name.value or b'of no name').decode()}")


class Place(NamedTuple):
    """An address among the parameters: that of an array, by its number, moved by so many bytes."""

    array: int
    offset: int


class _Config(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    )


class _Block:
    """What the driver reads at a launch: one thread at a time writes to it."""

    __slots__ = ("at_config", "at_parameters", "config", "parameters", "slots")

    def __init__(self, grid: Sequence[int], threads: int, content: bytes, order: Sequence[int]):
        self.config = _Config((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(threads, 1, 1))
        self.slots = (ctypes.c_char * len(content)).from_buffer_copy(content)
        start = ctypes.addressof(self.slots)
        self.parameters = (ctypes.c_void_p * len(order))(*(start + _SLOT * slot for slot in order))
        self.at_config, self.at_parameters = ctypes.addressof(self.config), ctypes.addressof(self.parameters)


class PackedLaunch:
    """A kernel with its grid and its parameters, but for the addresses of arrays.

    Parameters
    ----------
    compiled : object
        numba-cuda's kernel, which keeps the code loaded.
    grid : sequence of 3 int
    threads : int
        Of a block.
    parameters : sequence of bytes or Place
    """

    __slots__ = ("_addresses", "_blocks", "_compiled", "_content", "_grid", "_handle", "_launch", "_order", "_pack", "_threads")

    def __init__(self, compiled: Any, grid: Sequence[int], threads: int, parameters: Sequence[bytes | Place]):
        places = [each for each in parameters if isinstance(each, Place)]
        others = [each for each in parameters if not isinstance(each, Place)]
        slots = iter(range(len(places))), iter(range(len(places), len(parameters)))
        self._compiled, self._grid, self._threads, self._addresses = compiled, tuple(grid), threads, tuple(places)
        self._order = [next(slots[0 if isinstance(each, Place) else 1]) for each in parameters]
        self._content = bytes(_SLOT * len(places)) + b"".join(each.ljust(_SLOT, b"\0") for each in others)
        self._pack = struct.Struct(f"{len(places)}q").pack_into
        self._handle = int(compiled._codelibrary.get_cufunc().handle)
        self._launch = _driver().cuLaunchKernelEx
        self._blocks: collections.deque[_Block] = collections.deque()

    def __call__(self, stream: int, addresses: Sequence[int]) -> None:
        """Launch on a stream, by its handle, with the arrays at these addresses; nothing waits for the end."""
        try:
            block = self._blocks.pop()
        except IndexError:  # the first launch, or others are under way
            block = _Block(self._grid, self._threads, self._content, self._order)
        self._pack(block.slots, 0, *[addresses[array] + offset for array, offset in self._addresses])
        block.config.stream = stream
        status = self._launch(block.at_config, self._handle, block.at_parameters, None)
        self._blocks.append(block)
        if status:
            name = self._compiled._codelibrary._entry_name
            _check(status, f"launch {name} on a grid of {self._grid} blocks of {self._threads} threads")
