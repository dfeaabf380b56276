"""Where strips lie: from a geometry to the strips of its arrays, and from the number of a thread to its strip.

Threads are numbered through the strips of a row, the rows of strips, and channels and images; with channels last, through the
channels first. A number is taken apart by divisors (`numconv_cuda.strips.strips.Divisor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numconv.plugin import np_dtype
from numconv_cuda.geometry import CHANNELS_INNER, Geometry, Strides, start_of
from numconv_cuda.primitives.elements import replaced
from numconv_cuda.runtime.compiler import SIMULATED, Kernel, device

from .strip_terms import split
from .strips import RUN_BYTES, Divisor, Strip, longest_run

__all__ = ["Launch", "addresses_of", "coarse_of", "divisors", "last_two", "lifted", "locator", "outer", "outer_offset", "run_along",
           "strip_place", "strip_shape", "typed"]  # fmt: skip

RESULTS, MANY = 16, 2**20
"""The most results of a strip; half of it where there are fewer results than this in all."""


# --- in kernels ----------------------------------------------------------------------------------------------------------------


@device
def outer(sizes):
    """The sizes without the last two axes, which count 1."""
    return replaced(replaced(sizes, len(sizes) - 1, 1), len(sizes) - 2, 1)


@device
def last_two(values):
    """Of the last two axes."""
    return values[len(values) - 2], values[len(values) - 1]


@device
def outer_offset(position, steps):
    """The offset of a position of all but the last two axes."""
    offset = 0
    for axis in range(len(steps) - 2):
        offset += position[axis] * steps[axis]
    return offset


@device
def strip_place(index, coarse):
    """(what is left, the position) of a flat index in a volume of strips, whose sizes are divisors."""
    place = start_of(coarse[0])
    for axis in range(len(coarse[0]) - 1, -1, -1):
        index, found = split(index, Divisor(coarse[0][axis], coarse[1][axis], coarse[2][axis]))
        place = replaced(place, axis, found)
    return index, place


def locator(option: int) -> Any:
    """The device function that gives (n, channel, place) of a strip; neighbouring threads write neighbours in memory."""
    if option & CHANNELS_INNER:

        @device
        def locate(item, coarse, channels):
            item, channel = split(item, channels)
            n, place = strip_place(item, coarse)
            return n, channel, place
    else:

        @device
        def locate(item, coarse, channels):
            item, place = strip_place(item, coarse)
            n, channel = split(item, channels)
            return n, channel, place

    return locate


# --- from a problem to a launch ------------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    """A kernel and its arguments behind the pointers, but for the zero."""

    kernel: Kernel
    blocks: Any
    threads: int
    arguments: tuple[Any, ...]


def lifted(g: Geometry) -> Geometry:
    """The geometry with a first axis of one position, if it has but one axis."""
    if len(g.size) > 1:
        return g
    none, one = type(g.n)(0), type(g.n)(1)
    found: dict[str, Any] = {name: (one, *getattr(g, name)) for name in ("size", "window", "output", "stride", "dilation")}
    found |= {name: getattr(g, name)._replace(spatial=(none, *getattr(g, name).spatial)) for name in ("x", "w", "y")}
    return g._replace(**found, low=(none, *g.low))


def run_along(address: int, steps: Strides, size: Any, dtype: str, count: int) -> int:
    """The elements of the widest loads of an array's rows of so many elements, where `count` are from one strip to the next."""
    if steps.spatial[-1] != 1:
        return 1
    apart = steps.n, steps.group, steps.channel, *steps.spatial[:-1], size
    return longest_run(address, np_dtype(dtype).itemsize, count, list(map(int, apart)))


def strip_shape(sizes: Sequence[int], total: int) -> tuple[int, int]:
    """The rows and columns of strips of an array: few results are left over, and as many as can be lie together.

    Parameters
    ----------
    sizes : sequence of int
        Of the array's spatial axes.
    total : int
        Of its elements: where there are few, strips are smaller, so that every multiprocessor has some.
    """
    rows, columns = (1, *map(int, sizes))[-2:]
    width = next(count for count in (4, 2, 1) if columns % count == 0)
    most = min(rows, (RESULTS if total >= MANY else RESULTS // 2) // width, 8)
    if rows <= 8:
        return -(-rows // -(-rows // most)), width
    fewer = most == 8 and -(-rows // 7) * 7 < -(-rows // 8) * 8  # each height is a kernel to compile
    return (7 if fewer else most), width


def coarse_of(sizes: Sequence[Any], strip: Strip) -> tuple[int, ...]:
    """The sizes in strips."""
    return (*map(int, sizes[:-2]), -(-int(sizes[-2]) // strip.height), -(-int(sizes[-1]) // strip.width))


def divisors(sizes: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    """The numbers, factors and shifts of divisors."""
    return tuple(zip(*map(Divisor.of, sizes), strict=True))


def typed(values: Sequence[int], g: Geometry) -> tuple[Any, ...]:
    """Numbers of the type of a geometry's."""
    return tuple(type(g.n)(value) for value in values)


def addresses_of(*pointers: Any) -> tuple[int, ...]:
    """The addresses, of which alignment alone matters; a pointer of the simulator has none."""
    return tuple(0 if SIMULATED else pointer.address % RUN_BYTES for pointer in pointers)
