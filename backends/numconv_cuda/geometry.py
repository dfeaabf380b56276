"""Where things lie: the numbers that describe a problem to the kernels, and the index arithmetic on them.

A kernel gets a `Geometry`, a named tuple of integers and of tuples with one integer a spatial dimension, so that the compiler knows
the number of dimensions and unrolls every loop over them. All numbers are of one integer type: 32 bits where every position and
offset of the problem fits, else 64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, PoolProblem, ProblemError, WindowProblem

from .primitives.elements import div, mod, replaced
from .runtime.compiler import device

__all__ = [
    "ACTIVATIONS", "BIASED", "CHANNELS_INNER", "MODES", "STRICT", "Geometry", "Strides", "WeightStrides", "advanced",
    "coordinates", "edges", "elements_of", "geometry", "inner", "offset_of", "output_at",
    "reader", "result_place", "slots", "source_index", "source_offset",
    "source_place", "start_of", "strides_of", "tap_offset", "volume_of", "weight_strides",
]  # fmt: skip

MODES = {"zeros": 0, "reflect": 1, "symmetric": 2, "replicate": 3, "circular": 4}
ACTIVATIONS = {None: 0, "relu": 1, "silu": 2, "gelu": 3}
BIASED, CHANNELS_INNER, STRICT = 4, 8, 16
"""Bits of a geometry's option, above the code of the activation."""


class Strides(NamedTuple):
    """Steps through an array in elements: [N, groups, channels of a group, *spatial]."""

    n: Any
    group: Any
    channel: Any
    spatial: tuple[Any, ...]


class WeightStrides(NamedTuple):
    """Steps through w in elements: [groups, K/G, C/G, *R]."""

    group: Any
    k: Any
    c: Any
    spatial: tuple[Any, ...]


class Geometry(NamedTuple):
    """A problem, with one channel a group for pooling and windows."""

    n: Any
    groups: Any
    per_c: Any
    per_k: Any
    mode: Any
    flip: Any
    option: Any
    size: tuple[Any, ...]
    window: tuple[Any, ...]
    output: tuple[Any, ...]
    stride: tuple[Any, ...]
    low: tuple[Any, ...]
    dilation: tuple[Any, ...]
    volume: Any
    taps: Any
    outputs: Any
    bias: Any  # its step in memory
    x: Strides
    w: Any  # WeightStrides, or the Strides of a second array [N, C, *Q] where there are no weights
    y: Strides


_NO_STRIDES = (0, 0, 0, ())
_NARROW = 2**31 - 2**24
"""Below this number of elements indices have 32 bits; what is left out holds what a grid may run beyond its last item."""


def elements_of(array: Any) -> tuple[int, ...]:
    """The strides of an array in elements."""
    return _elements(array.strides, array.dtype, array.shape)


@functools.lru_cache(maxsize=1024)
def _elements(strides: tuple[int, ...], dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    size = dtype.itemsize
    # along an axis of one element nothing is a step away, and its stride may be any number
    strides = tuple(0 if length == 1 and step % size else step for step, length in zip(strides, shape, strict=True))
    if any(step % size for step in strides):
        raise ProblemError(
            f"an array of shape {tuple(shape)} and dtype {dtype} has the strides {tuple(strides)}, which are no "
            f"multiples of its {size} bytes an element; copy it"
        )
    return tuple(step // size for step in strides)


def strides_of(array: Any, per_group: int) -> tuple[Any, ...]:
    """(n, group, channel, spatial) of an array [N, C, *S]."""
    n, channel, *spatial = elements_of(array)
    return (n, channel * per_group, channel, tuple(spatial))


def weight_strides(array: Any, per_k: int) -> tuple[Any, ...]:
    """(group, k, c, spatial) of w [K, C/G, *R]."""
    k, c, *spatial = elements_of(array)
    return (k * per_k, k, c, tuple(spatial))


def geometry(
    problem: ConvProblem | PoolProblem | WindowProblem,
    arrays: Sequence[Any],
    x: tuple[Any, ...] = _NO_STRIDES,
    w: tuple[Any, ...] = _NO_STRIDES,
    y: tuple[Any, ...] = _NO_STRIDES,
    option: int = 0,
    bias: int = 0,
) -> Geometry:
    """The geometry of a problem for arrays of these strides; `arrays` are all that the kernel indexes."""
    return _geometry(problem, max(map(_extent, arrays)), x, w, y, option, bias)


@functools.lru_cache(maxsize=1024)
def _geometry(problem: Any, extent: int, x: Any, w: Any, y: Any, option: int, bias: int) -> Geometry:
    conv = isinstance(problem, ConvProblem)
    kernel = problem.kernel if conv else problem.window
    groups = problem.groups if conv else problem.c
    per_c, per_k = (problem.c // groups, problem.k // groups) if conv else (1, 1)
    mode = "zeros" if isinstance(problem, PoolProblem) else problem.pad_mode
    reach = max([extent, *(math.prod(shape) for shape in (*problem.input_shapes, *problem.output_shapes))])
    number = np.int32 if reach < _NARROW else np.int64
    values = (
        problem.n, groups, per_c, per_k, MODES[mode], int(conv and problem.flip), option, problem.spatial, kernel, problem.output,
        problem.stride, tuple(low for low, _ in problem.padding), problem.dilation, math.prod(problem.spatial), math.prod(kernel),
        math.prod(problem.output), bias,
    )  # fmt: skip
    steps = (Strides(*_typed(x, number)), (WeightStrides if conv else Strides)(*_typed(w, number)), Strides(*_typed(y, number)))
    return Geometry(*_typed(values, number), *steps)


def inner(out: Any) -> int:
    """The option by which neighbouring threads write neighbouring elements."""
    _, channel, *spatial = (abs(step) for step in out.strides)
    return CHANNELS_INNER if channel < spatial[-1] else 0


def _typed(values: Any, number: Any) -> Any:
    return tuple(_typed(each, number) if isinstance(each, tuple) else number(each) for each in values)


def _extent(array: Any) -> int:
    """The distance in elements between the first and the last of an array in memory."""
    return sum(abs(step) * (size - 1) for step, size in zip(elements_of(array), array.shape, strict=True) if size > 1)


@device
def coordinates(flat, sizes):
    """The position of a flat index in a volume."""
    found = sizes
    for axis in range(len(sizes) - 1, -1, -1):
        found = replaced(found, axis, mod(flat, sizes[axis]))
        flat = div(flat, sizes[axis])
    return found


@device
def advanced(position, sizes):
    """The next position in row-major order; behind the last one the first."""
    found = position
    carry = 1
    for axis in range(len(sizes) - 1, -1, -1):
        value = position[axis] + carry
        carry = 1 if value == sizes[axis] else 0
        found = replaced(found, axis, 0 if carry else value)
    return found


@device
def start_of(sizes):
    """The first position of a volume."""
    found = sizes
    for axis in range(len(sizes)):
        found = replaced(found, axis, 0)
    return found


@device
def volume_of(sizes):
    """The number of positions."""
    product = 1
    for axis in range(len(sizes)):
        product *= sizes[axis]
    return product


@device
def offset_of(position, steps):
    """The offset of a position in an array with these steps."""
    offset = 0
    for axis in range(len(steps)):
        offset += position[axis] * steps[axis]
    return offset


@device
def source_index(position, size, mode):
    """The index that a padded position reads, as np.pad has it at any width; -1 for a padding zero."""
    if 0 <= position < size:
        return position
    if mode == 0:
        return -1
    if mode == 3:
        return 0 if position < 0 else size - 1
    period = size
    if mode == 2:
        period = 2 * size
    elif mode == 1:
        period = max(2 * size - 2, 1)
    folded = position % period
    if folded >= size:
        folded = period - 1 - folded if mode == 2 else period - folded
    return folded


@device
def tap_offset(g, axis, tap):
    """Where a tap of the kernel lies relative to the first position of its window."""
    return (g.window[axis] - 1 - tap if g.flip else tap) * g.dilation[axis]


@device
def source_offset(g, output, tap):
    """The offset in x of what a tap of an output reads, -1 for padding (offsets of views may be negative, so: and whether)."""
    offset = 0
    inside = True
    for axis in range(len(g.size)):
        position = output[axis] * g.stride[axis] + tap_offset(g, axis, tap[axis]) - g.low[axis]
        index = source_index(position, g.size[axis], g.mode)
        inside = inside and index >= 0
        offset += index * g.x.spatial[axis]
    return inside, offset


@device
def source_place(g, output, tap):
    """Whether a tap of an output lies inside x, its offset there, and its flat position in the volume of a channel."""
    place = 0
    offset = 0
    inside = True
    for axis in range(len(g.size)):
        position = output[axis] * g.stride[axis] + tap_offset(g, axis, tap[axis]) - g.low[axis]
        inside = inside and 0 <= position < g.size[axis]
        offset += position * g.x.spatial[axis]
        place = place * g.size[axis] + position
    return inside, offset, place


@device
def edges(g, axis, tap):
    """How many outputs read through a tap the low padding of an axis, and how many do not read the high one; 0, 1 without folds."""
    if g.mode == 0:
        return 0, 0
    first = tap_offset(g, axis, tap) - g.low[axis]
    stride, outputs = g.stride[axis], g.output[axis]
    low = min(max(-first + stride - 1, 0) // stride, outputs)
    high = min((g.size[axis] - 1 - first) // stride + 1, outputs) if g.size[axis] > first else 0
    return low, max(high, low)


@device
def output_at(g, axis, tap, index, slot):
    """The output that reads an index of x through a tap, -1 for none.

    Inside x there is at most one. Padding that copies values adds outputs at either edge, which are tried one by one: the slots
    below `low` are outputs that read the low padding, the next is the one inside, the others read the high padding.
    """
    low, high = edges(g, axis, tap)
    first = tap_offset(g, axis, tap) - g.low[axis]
    if slot == low:
        distance = index - first
        output = distance // g.stride[axis]
        if distance < 0 or output * g.stride[axis] != distance or output >= g.output[axis]:
            output = -1
        return output
    output = slot if slot < low else high + slot - low - 1
    if source_index(output * g.stride[axis] + first, g.size[axis], g.mode) != index:
        output = -1
    return output


@device
def slots_of(g, axis, tap):
    """How many slots `output_at` has for a tap of an axis."""
    low, high = edges(g, axis, tap)
    return low + 1 + (g.output[axis] - high if g.mode else 0)


@device
def slots(g, tap):
    """How many slots a tap has on each axis, see `output_at`."""
    found = g.window
    for axis in range(len(g.window)):
        found = replaced(found, axis, slots_of(g, axis, tap[axis]))
    return found


@device
def reader(g, tap, index, slot):
    """Whether an output reads an index of x through a tap in these slots, and the offset of that output in y."""
    offset = 0
    found = True
    for axis in range(len(g.size)):
        output = output_at(g, axis, tap[axis], index[axis], slot[axis])
        found = found and output >= 0
        offset += output * g.y.spatial[axis]
    return found, offset


@device
def result_place(item, channels, positions, volume, option):
    """(n, channel, coordinates) of an item; neighbouring threads take neighbours in memory."""
    if option & CHANNELS_INNER:
        channel, rest = mod(item, channels), div(item, channels)
        return div(rest, volume), channel, coordinates(mod(rest, volume), positions)
    rest = div(item, volume)
    return div(rest, channels), mod(rest, channels), coordinates(mod(item, volume), positions)
