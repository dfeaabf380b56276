"""Columns of x, one for each result: all that the result reads, gathered in the order of its terms."""

from __future__ import annotations

from numconv_numba.compiling.compiler import helper, invoke
from numconv_numba.elements import itemsize
from numconv_numba.entries import COPY, READ_SQUARES
from numconv_numba.geometry import DILATION, DIMS, FLIPPED, LOW, MODE, OUTPUT, PARTS, PER_C, SIZE, STRIDE, WINDOW, part, span
from numconv_numba.rows import outer_source
from numconv_numba.scalar import address, load, store, zero

__all__ = ["CHANNELS", "IMAGES", "READY", "TAPS", "WINDOWS", "even_run", "fill_columns", "image_size", "line_offset", "step_of"]

# What columns are: images as they lie, the channels of pixels, windows, of which rows are copied, or elements; or gathered before.
IMAGES, CHANNELS, WINDOWS, TAPS, READY = range(5)
TOGETHER = 32
"""Channels whose windows are gathered together: what they are read from stays in the first-level cache from row to row."""


@helper
def step_of(g, strides, scaled, axis):
    """The bytes from output to output along a dimension, in y, or in x where strides are `scaled` by that of the convolution."""
    step = g[part(g, strides) + 3 + axis]
    return step * g[part(g, STRIDE) + axis] if scaled else step


@helper
def even_run(g, strides, scaled):
    """(dimensions before a run, outputs of a run): dimensions that follow each other evenly in an image make one run."""
    inner = g[DIMS] - 1
    step, run = step_of(g, strides, scaled, inner), g[part(g, OUTPUT) + inner]
    while inner > 0 and step_of(g, strides, scaled, inner - 1) == run * step:
        inner -= 1
        run *= g[part(g, OUTPUT) + inner]
    return inner, run


@helper
def line_offset(g, strides, scaled, inner, line):
    """The byte offset of a run in its image."""
    offset = 0
    for axis in range(inner - 1, -1, -1):
        size = g[part(g, OUTPUT) + axis]
        offset += line % size * step_of(g, strides, scaled, axis)
        line //= size
    return offset


@helper
def image_size(g):
    """Outputs of an image."""
    size = 1
    for axis in range(g[DIMS]):
        size *= g[part(g, OUTPUT) + axis]
    return size


@helper
def gather(panel, pitch, x, first, count, g, tools, at):
    """The columns of pixels first .. first + count of kernels of one tap, ``[pixel][channel]``; x at the group's first channel."""
    xs, size, image = part(g, PARTS), itemsize(at), image_size(g)
    inner, run = even_run(g, PARTS, True)
    step, done = step_of(g, PARTS, True, g[DIMS] - 1), 0
    while done < count:
        n, q = (first + done) // image, (first + done) % image
        length = min(run - q % run, count - done)
        source = x + (n * g[xs] + line_offset(g, PARTS, True, inner, q // run) + q % run * step)
        target = panel + done * pitch
        if step == size and length > 1:
            invoke(tools[READ_SQUARES], source, g[xs + 2], g[PER_C], length, address(0), 0, target, pitch)
        else:
            for one in range(length):
                for c in range(g[PER_C]):
                    store(target + (one * pitch + c * size), load(source + (one * step + c * g[xs + 2]), at), at)
        done += length


@helper
def gather_rows(panel, x, q, g, tools, at):
    """The column of output q of an image, of windows whose rows lie in one piece; x at the group's first channel."""
    xs, size, inner, window = part(g, PARTS), itemsize(at), g[DIMS] - 1, g[part(g, WINDOW) + g[DIMS] - 1]
    width, length, planes = g[part(g, OUTPUT) + inner], g[part(g, SIZE) + inner], 1
    start, line = q % width * g[part(g, STRIDE) + inner] - g[part(g, LOW) + inner], q // width
    rows, low, high, first, step = 1, 0, 1, 0, 0  # of one dimension
    if inner > 0:
        axis, height = inner - 1, g[part(g, OUTPUT) + inner - 1]
        rows, dilation, step = g[part(g, WINDOW) + axis], g[part(g, DILATION) + axis], g[xs + 3 + axis]
        first = line % height * g[part(g, STRIDE) + axis] - g[part(g, LOW) + axis]
        low, high = span(0, rows, dilation, first, g[part(g, SIZE) + axis])
        first, step, line = first * step, dilation * step, line // height
    for axis in range(inner - 1):
        planes *= g[part(g, WINDOW) + axis]
    taps = planes * rows * window
    for plane in range(planes):
        inside, offset = outer_source(g, line, plane, inner - 1)
        for c in range(0, g[PER_C], TOGETHER):
            channels, target = min(TOGETHER, g[PER_C] - c), panel + (c * taps + plane * rows * window) * size
            # the rows before x, those in it, and those behind it
            for begin, end in ((0, low), (low, high), (high, rows)):
                there = inside & (begin == low) & (end == high)
                source = x + (c * g[xs + 2] + (offset + first + begin * step if there else 0))
                if begin < end:
                    invoke(
                        tools[COPY], source, start if there else 0, length if there else 0, target + begin * window * size, 0,
                        window, channels, g[xs + 2], taps * size, end - begin, step, window * size,
                    )  # fmt: skip


@helper
def gather_taps(panel, x, q, taps, g, at):
    """The column of output q of an image, of any window, an element at a time; x at the group's first channel."""
    xs, size = part(g, PARTS), itemsize(at)
    for tap in range(taps):
        inside, offset = outer_source(g, q, tap, g[DIMS])
        for c in range(g[PER_C]):
            value = load(x + (c * g[xs + 2] + offset), at) if inside else zero(at)
            store(panel + (c * taps + tap) * size, value, at)


@helper
def gather_windows(panel, pitch, in_rows, x, first, count, g, tools, at):
    """The columns of pixels first .. first + count, ``[pixel][channel][tap]``; x at the group's first channel.

    `in_rows`: rows of a window that lie in one piece are copied so.
    """
    xs, inner, taps, image = part(g, PARTS), g[DIMS] - 1, 1, image_size(g)
    for axis in range(g[DIMS]):
        taps *= g[part(g, WINDOW) + axis]
    in_rows &= (g[part(g, DILATION) + inner] == 1) & (g[part(g, FLIPPED) + inner] == 0) & (g[MODE] == 0)
    for one in range(count):
        n, q, target = (first + one) // image, (first + one) % image, panel + one * pitch
        if in_rows & (g[xs + 3 + inner] == itemsize(at)):
            gather_rows(target, x + n * g[xs], q, g, tools, at)
        else:
            gather_taps(target, x + n * g[xs], q, taps, g, at)


@helper
def copy_images(panel, pitch, x, first, count, terms, g, at):
    """The columns of images first .. first + count that are columns as they lie."""
    size = itemsize(at)
    for one in range(count):
        source, target = x + (first + one) * g[part(g, PARTS)], panel + one * pitch
        for term in range(terms):
            store(target + term * size, load(source + term * size, at), at)


@helper
def fill_columns(panel, pitch, kind, x, first, count, terms, g, tools, at):
    """The columns of pixels first .. first + count, `pitch` bytes apart; x at the group's first channel."""
    if kind == IMAGES:
        copy_images(panel, pitch, x, first, count, terms, g, at)
    elif (kind == WINDOWS) | (kind == TAPS):
        gather_windows(panel, pitch, kind == WINDOWS, x, first, count, g, tools, at)
    else:
        gather(panel, pitch, x, first, count, g, tools, at)
