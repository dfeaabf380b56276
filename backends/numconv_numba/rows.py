"""Rows of results: which rows of x they read, and how their sums are written.

All dimensions but the last are "outer" ones, whose indices are taken together as one flat index.
"""

from __future__ import annotations

from .activations import activate_run, rectified
from .compiling.compiler import helper
from .elements import itemsize
from .geometry import DILATION, DIMS, FLIPPED, LOW, MODE, OUTPUT, PARTS, SIZE, STRIDE, WINDOW, part, source_index
from .scalar import add, is_null, load, store, wide_vectors, zero

__all__ = ["clear", "finish_row", "outer_offset", "outer_rows", "outer_size", "outer_source", "tap_position"]


@helper
def outer_size(g, which):
    """The product of a part's entries without the last dimension."""
    product, first = 1, part(g, which)
    for axis in range(g[DIMS] - 1):
        product *= g[first + axis]
    return product


@helper
def outer_offset(g, flat, which, strides):
    """The byte offset of a flat index over all but the last dimension of a part, in the array with these strides."""
    offset, sizes, steps = 0, part(g, which), part(g, strides) + 3
    for axis in range(g[DIMS] - 2, -1, -1):
        offset += flat % g[sizes + axis] * g[steps + axis]
        flat //= g[sizes + axis]
    return offset


@helper
def tap_position(g, axis, tap):
    """Where a tap lies relative to the first position of its window."""
    last = g[part(g, WINDOW) + axis] - 1
    return (last - tap if g[part(g, FLIPPED) + axis] else tap) * g[part(g, DILATION) + axis]


@helper
def outer_source(g, output, tap, axes):
    """Whether a tap of an output lies inside x along the first `axes` dimensions, both flat, and the byte offset there."""
    offset = 0
    for axis in range(axes - 1, -1, -1):
        windows, outputs = g[part(g, WINDOW) + axis], g[part(g, OUTPUT) + axis]
        position = output % outputs * g[part(g, STRIDE) + axis] + tap_position(g, axis, tap % windows) - g[part(g, LOW) + axis]
        index = source_index(position, g[part(g, SIZE) + axis], g[MODE])
        if index < 0:
            return False, 0
        offset += index * g[part(g, PARTS) + 3 + axis]
        output //= outputs
        tap //= windows
    return True, offset


@helper
def outer_rows(g, output, taps, rows, inside):
    """Which rows of x the outer taps read: `outer_source` for each."""
    for tap in range(taps):
        inside[tap], rows[tap] = outer_source(g, output, tap, g[DIMS] - 1)


@helper
def clear(row, count, at):
    """Set a row to zero."""
    for q in range(count):
        store(row + q * itemsize(at), zero(at), at)


@helper
def finish_row(acc, y, count, step, bias, channel, code, yt, at):
    """Write a row of sums of one channel: bias (in the accumulation dtype), activation, rounding."""
    wide_vectors()
    biased = not is_null(bias)
    shift = load(bias + channel * itemsize(at), at) if biased else zero(at)
    if code == 0 and step == itemsize(yt):
        for q in range(count):
            value = load(acc + q * itemsize(at), at)
            store(y + q * itemsize(yt), add(value, shift) if biased else value, yt)
    elif code <= 1:
        for q in range(count):
            value = load(acc + q * itemsize(at), at)
            store(y + q * step, rectified(add(value, shift) if biased else value, code), yt)
    else:
        for q in range(count):
            place = acc + q * itemsize(at)
            store(place, add(load(place, at), shift), at)
        activate_run(acc, count, code, at)
        for q in range(count):
            store(y + q * step, load(acc + q * itemsize(at), at), yt)
