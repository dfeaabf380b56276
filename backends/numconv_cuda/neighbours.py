"""Which elements of a factor are neighbours in memory, so that a thread may load up to 16 bytes of them at once.

A thread loads several terms of a line at once where they follow each other in memory, or the same term of several lines. Either
needs every such run to be whole, aligned, and free of padding: the steps between runs are multiples of one, and so is the address.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from numconv.plugin import np_dtype

from .compiler import SIMULATED
from .gathering import Way
from .gemm import FORWARD, INPUT_GRAD, Operation
from .geometry import Geometry

__all__ = ["copied", "ways_of", "widest"]

BYTES = 16
"""Of the widest load."""
WORD = 4
"""Bytes of the least."""


def ways_of(operation: Operation, tile: Any, g: Geometry, pointers: Sequence[Any]) -> tuple[Way, Way]:
    """How both factors of a product are read, by where their elements lie.

    Parameters
    ----------
    operation : Operation
    tile : Tile or TensorTile
    g : Geometry
    pointers : sequence
        Of the two factors first.
    """
    find = {FORWARD.name: _forward, INPUT_GRAD.name: _input_grad}.get(operation.name, _weight_grad)
    lines = (tile.rows, tile.columns)
    counts = [_most(pointer, count * tile.depth // tile.threads) for pointer, count in zip(pointers[:2], lines, strict=True)]
    found = find(g, *counts)
    return tuple(plain if way is None else way for plain, way in zip(operation.ways, found, strict=True))  # type: ignore[return-value]


def copied(ways: tuple[Way, Way], dtype: str, acc_dtype: str) -> tuple[Way, Way]:
    """The ways of copies that pass no register: 16 bytes of neighbouring lines at once, of numbers that need no conversion."""
    size = 4 if SIMULATED else BYTES // np_dtype(dtype).itemsize

    def narrowed(way: Way) -> Way:
        return way if way.across and way.wide == size and dtype == acc_dtype else Way(way.across)

    return narrowed(ways[0]), narrowed(ways[1])


def widest(operation: Operation, tile: Any, dtype: str) -> Iterator[tuple[Way, Way]]:
    """The pairs of ways with the widest loads there are: for arrays with channels first, and with channels last."""
    lines = (tile.rows, tile.columns)
    wide = [_wide(dtype, count * tile.depth // tile.threads) for count in lines]
    along, across = ([Way(side, each) for each in wide] for side in (False, True))
    if operation.name == FORWARD.name:
        yield along[0], across[1]
        yield along[0], along[1]
    elif operation.name == INPUT_GRAD.name:
        yield across[0], across[1]
        yield across[0], along[1]
    else:
        yield along[0], along[1]
        yield across[0], across[1]
        yield along[0], operation.ways[1]


def _wide(dtype: str, loads: int) -> int:
    """The elements of the widest load of a thread that takes so many of a slice; less than 4 bytes are not worth one."""
    known = np_dtype(dtype)
    found = 1 if known.kind == "c" else math.gcd(BYTES // known.itemsize, loads)
    return found if found * known.itemsize >= WORD else 1


def _most(pointer: Any, loads: int) -> int:
    """The elements of a load of a thread that takes so many of a slice; 1 where the first element is not aligned."""
    if SIMULATED:
        return min(4, loads)  # a pointer there has no address, and a load says when it is not aligned
    return 1 if pointer.address % BYTES else _wide(pointer.dtype, loads)


def _whole(wide: int, *steps: Any) -> bool:
    """Whether runs of so many elements are whole and aligned wherever these steps lead."""
    return wide > 1 and all(int(step) % wide == 0 for step in steps)


def _dense(sizes: Sequence[Any], steps: Sequence[Any]) -> bool:
    """Whether a volume is contiguous, row-major."""
    expected = 1
    for size, step in zip(reversed(sizes), reversed(steps), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= int(size)
    return True


def _in_place(g: Geometry) -> bool:
    """Whether each output of a kernel of one tap lies where its element of x does."""
    return g.size == g.output and set(g.stride) == {1} and not any(g.low)


def _forward(g: Geometry, wide_w: int, wide_x: int) -> tuple[Way | None, Way | None]:
    w, x, first, second = g.w, g.x, None, None
    channels_follow = g.per_c == 1 or w.c == g.taps
    if channels_follow and _dense(g.window, w.spatial) and _whole(wide_w, w.k, w.group, g.per_c * g.taps):
        first = Way(across=False, wide=wide_w)
    if g.taps == 1:
        if _in_place(g) and _dense(g.size, x.spatial) and _whole(wide_x, x.n, x.group, x.channel, g.outputs):
            second = Way(across=True, wide=wide_x)
        elif x.channel == 1 and _whole(wide_x, x.n, x.group, *x.spatial, g.per_c):
            second = Way(across=False, wide=wide_x)
    return first, second


def _input_grad(g: Geometry, wide_w: int, wide_y: int) -> tuple[Way | None, Way | None]:
    w, y, first, second = g.w, g.y, None, None
    if g.taps == 1:
        if w.c == 1 and _whole(wide_w, w.k, w.group, g.per_c):
            first = Way(across=True, wide=wide_w)
        if _in_place(g) and _dense(g.output, y.spatial) and _whole(wide_y, y.n, y.group, y.channel, g.volume):
            second = Way(across=True, wide=wide_y)
        elif y.channel == 1 and _whole(wide_y, y.n, y.group, *y.spatial, g.per_k):
            second = Way(across=False, wide=wide_y)
    return first, second


def _weight_grad(g: Geometry, wide_y: int, wide_x: int) -> tuple[Way | None, Way | None]:
    x, y, first, second = g.x, g.y, None, None
    if _dense(g.output, y.spatial) and _whole(wide_y, y.n, y.group, y.channel, g.outputs):
        first = Way(across=False, wide=wide_y)
    elif y.channel == 1 and _whole(wide_y, y.n, y.group, *y.spatial, g.per_k):
        first = Way(across=True, wide=wide_y)
    if g.taps == 1:
        if _in_place(g) and _dense(g.size, x.spatial) and _whole(wide_x, x.n, x.group, x.channel, g.outputs):
            second = Way(across=False, wide=wide_x)
        elif x.channel == 1 and _whole(wide_x, x.n, x.group, *x.spatial, g.per_c):
            second = Way(across=True, wide=wide_x)
    return first, second
