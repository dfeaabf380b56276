"""Executors that are run once for each form of their arrays, and whose launches are then played again.

An executor of this backend finds geometries, kernels and grids from the problem, from the strides of its arrays and from the
alignment of their addresses, and does nothing but launch kernels. So it is run with stand-ins that have these, at made-up addresses
that tell which array an address among the parameters of a kernel belongs to. Its launches, packed for the driver, are kept; a call
with arrays of the same form writes the real addresses into them and launches.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import DeviceArray, device_number, scratch, streams_of

from .compiler import SIMULATED, Kernel, cuda
from .driver import PackedLaunch, Place, current_context, device_of_context
from .pointers import Pointer

__all__ = ["Recording", "recorded"]

ALIGNED = 256
"""Bytes to which fresh memory is aligned, on every device; an executor sees addresses modulo this."""
_APART = 1 << 44
"""Bytes between the made-up addresses: more than any offset from one."""
_KEPT = 64
"""Forms of arrays for which an executor keeps its launches; the oldest makes room."""


class _StandIn(DeviceArray):
    """An array without memory, which a recording owns."""

    __slots__ = ()

    def scratch(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Working memory, which is allocated anew at each call."""
        found: DeviceArray = self.owner.scratch(shape, np.dtype(dtype))
        return found


class _Launch(NamedTuple):
    kernel: Kernel
    grid: tuple[int, ...]
    threads: int
    args: tuple[Any, ...]


class Recording:
    """What an executor asks for: working memory and launches.

    Parameters
    ----------
    arrays : sequence of array
        Of which shapes, strides, dtypes and alignment are taken.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.launches: list[_Launch] = []
        self.memory: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        self._count = 0
        self.arrays = [self._stand_in(each.shape, each.strides, each.dtype, address(each) % ALIGNED) for each in arrays]

    def _stand_in(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], low: int = 0) -> _StandIn:
        self._count += 1
        return _StandIn(self, self._count * _APART + low, tuple(shape), tuple(strides), dtype)

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _StandIn:
        """A stand-in for working memory of this shape."""
        self.memory.append((shape, dtype))
        strides = tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return self._stand_in(shape, strides, dtype)

    def launch(self, kernel: Kernel, blocks: int | tuple[int, ...], threads: int, args: tuple[Any, ...]) -> None:
        """Note a launch."""
        grid = (blocks, 1, 1) if isinstance(blocks, int) else (*blocks, 1, 1)[:3]
        self.launches.append(_Launch(kernel, grid, threads, args))

    def place(self, made_up: int) -> Place:
        """The array to which a made-up address belongs, and how far from its first element it lies."""
        number = (made_up + _APART // 2) // _APART
        low = self.arrays[number - 1].pointer % ALIGNED if number <= len(self.arrays) else 0
        return Place(number - 1, made_up - number * _APART - low)


def address(array: Any) -> int:
    """Of the first element of a `DeviceArray`, or of CuPy's array."""
    found: int = array.pointer if isinstance(array, DeviceArray) else array.data.ptr
    return found


def recorded(run: Callable[[Sequence[Any], Sequence[Any]], None]) -> Callable[[Sequence[Any], Sequence[Any]], None]:
    """An executor that plays the launches of `run` again; in the simulator `run` itself."""
    return run if SIMULATED else _Recorded(run)


class _Program(NamedTuple):
    """The launches of an executor for arrays of one form in one context, and the working memory that they share."""

    memory: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    launches: tuple[PackedLaunch, ...]

    def run(self, arrays: Sequence[Any], addresses: list[int]) -> None:
        held = [scratch(shape, dtype, arrays[0]) for shape, dtype in self.memory]
        addresses += [address(each) for each in held]
        stream = _common_stream(arrays)
        for launch in self.launches:
            launch(stream, addresses)


class _Recorded:
    """See `recorded`."""

    def __init__(self, run: Callable[[Sequence[Any], Sequence[Any]], None]) -> None:
        self._run = run
        self._programs: dict[tuple[Any, ...], _Program] = {}
        self._recording = threading.Lock()

    def __call__(self, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        arrays = (*outs, *ins)
        context, device = current_context(), device_number(arrays[0])
        if device in (None, device_of_context(context)):
            self._execute(context, arrays, len(outs))
        else:
            with cuda.gpus[device]:
                self._execute(current_context(), arrays, len(outs))

    def _execute(self, context: int, arrays: Sequence[Any], count: int) -> None:
        addresses = [each.pointer if type(each) is DeviceArray else address(each) for each in arrays]
        form = (context, *[each.strides for each in arrays], *[each % ALIGNED for each in addresses])
        program = self._programs.get(form)
        if program is None:
            with self._recording:
                program = self._programs.get(form) or self._record(form, arrays, count)
        program.run(arrays, addresses)

    def _record(self, form: tuple[Any, ...], arrays: Sequence[Any], count: int) -> _Program:
        recording = Recording(arrays)
        self._run(recording.arrays[:count], recording.arrays[count:])
        found = _Program(tuple(recording.memory), tuple(_packed(recording, each) for each in recording.launches))
        while len(self._programs) >= _KEPT:
            del self._programs[next(iter(self._programs))]
        self._programs[form] = found
        return found


def _packed(recording: Recording, launch: _Launch) -> PackedLaunch:
    compiled = launch.kernel.compiled(launch.args)
    parameters = list(_parameters(recording, compiled, compiled.argument_types, launch.args))
    return PackedLaunch(compiled, launch.grid, launch.threads, parameters)


def _parameters(recording: Recording, compiled: Any, kinds: Any, values: Sequence[Any]) -> Iterator[bytes | Place]:
    """The parameters of a kernel in the driver's order: those of tuples one by one, complex numbers in two parts."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(value, Pointer):
            yield recording.place(value.address)
        elif isinstance(value, tuple):
            yield from _parameters(recording, compiled, kind, value)
        else:
            numbers: list[Any] = []
            compiled._prepare_args(kind, value, 0, [], numbers)
            yield from map(bytes, numbers)


def _common_stream(arrays: Sequence[Any]) -> int:
    """The stream of the first array, made to wait for those of the others."""
    first, *others = streams_of(arrays)
    for other in others:
        event = cuda.event(timing=False)
        event.record(_numba_stream(other))
        event.wait(_numba_stream(first))
    return first


def _numba_stream(handle: int) -> Any:
    if handle == 1:
        return cuda.legacy_default_stream()
    return cuda.per_thread_default_stream() if handle == 2 else cuda.external_stream(handle)
