"""Panels: what register tiles with the lanes over channels read and write.

Weights are packed into panels of as many output channels as a tile has lanes, ``[panel][c][tap][lane]``. Results come out as rows
of one panel a pixel, ``[pixel][lane]``, and are transposed on the way to y. A pixel is any output of a block: a table holds where
its window starts in what the tile reads.
"""

from __future__ import annotations

import numpy as np

from numconv_numba.activations import activate_run, rectified
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.elements import INT64, arithmetic, held, in_rows, itemsize, memory, release, same, scratch
from numconv_numba.entries import COPY, DRESS, LANES, READ_ROWS, READ_SQUARES, READ_WORDS, WRITE_SQUARES
from numconv_numba.geometry import DILATION, DIMS, FLIPPED, PARTS, PER_C, STRIDE, WINDOW, part
from numconv_numba.rows import clear, outer_offset
from numconv_numba.scalar import add, address, is_null, load, move, pointer, prefetch, store, wide_vectors, zero

from .slab import B_STEP, B_UNIT, axis_entry, block_extent, block_image, block_images, block_start

__all__ = [
    "PACK_WORK",
    "fill_places",
    "fill_terms",
    "is_not_finite",
    "lines_of",
    "pack_panel",
    "read_panel",
    "run_offset",
    "runs_of",
    "tiles_along",
    "weight_run",
    "write_panel",
    "write_weights",
]


UINT8, UINT32, BFLOAT = Tag("uint8"), Tag("uint32"), Tag("bfloat16")
SMOOTHED = 64
"""Pixels that get their silu or gelu together."""
AHEAD = 4
"""Input channels whose weights are fetched before they are packed: those of an input_grad lie far apart."""
PACK_WORK = 20
"""Multiply-adds that take as long as packing one weight."""
SHORT_RUN = 1024
"""Bytes of a run of weights that is too short to train a prefetcher: what follows it is fetched, since that is packed next."""
SPARSE, TURNED_BYTES = 5, 32 * 1024
"""Taps of a larger kernel, one of so many at least, are picked from whole ones, so many bytes of which are turned at a time."""
PAIRED_TAPS = 16
"""Taps up to which as many pairs of channels are packed together as make whole squares of vectors."""

# --- tables --------------------------------------------------------------------------------------------------------------------


@helper
def tiles_along(g, b, block, axis):
    """Tiles of a block along a dimension."""
    unit = axis_entry(b, g[DIMS], B_UNIT, axis)
    return -(-block_extent(g, b, block, axis) // unit)


@helper
def tile_step(g, b, axis_steps, axis):
    """The bytes from tile to tile along a dimension, where neighbouring positions of a phase lie `axis_steps` apart."""
    positions = axis_entry(b, g[DIMS], B_UNIT, axis) * g[part(g, STRIDE) + axis]
    return axis_steps[axis] * (positions // axis_entry(b, g[DIMS], B_STEP, axis))


@helper
def fill_places(places, group, image_step, axis_steps, g, b, block):
    """The offset of each tile's window, images first, then row-major; padded with the last one to a multiple of `group`.

    A tile is a single output where the block's units are 1. `axis_steps` holds the byte distance of neighbouring positions of a
    phase per dimension. Returns the number of tiles.
    """
    axis, lines, filled = g[DIMS] - 1, block_images(g, b, block), 0
    for other in range(axis):
        lines *= tiles_along(g, b, block, other)
    length, step = tiles_along(g, b, block, axis), tile_step(g, b, axis_steps, axis)
    for line in range(lines):
        offset, left = 0, line
        for other in range(axis - 1, -1, -1):
            size = tiles_along(g, b, block, other)
            offset += left % size * tile_step(g, b, axis_steps, other)
            left //= size
        offset += left * image_step
        for q in range(length):
            places[filled] = offset + q * step
            filled += 1
    for more in range(filled, -(-filled // group) * group):
        places[more] = places[filled - 1]
    return filled


@helper
def fill_terms(table, channels, channel, axes, axis_steps, g):
    """The offset of each term in a window: of every tap along the first `axes` dimensions, in the order of w, in each channel."""
    taps = 1
    for axis in range(axes):
        taps *= g[part(g, WINDOW) + axis]
    for tap in range(taps):
        offset, left = 0, tap
        for axis in range(axes - 1, -1, -1):
            window = g[part(g, WINDOW) + axis]
            place = window - 1 - left % window if g[part(g, FLIPPED) + axis] else left % window
            offset += place * g[part(g, DILATION) + axis] * axis_steps[axis]
            left //= window
        for c in range(channels):
            table[c * taps + tap] = offset + c * channel


# --- weights -------------------------------------------------------------------------------------------------------------------


@helper
def weight_run(g, taps, size):
    """Into how long runs of neighbours the taps and channels of a kernel fall: 1, all taps, or taps of all channels (-1)."""
    run, ws = 1, part(g, PARTS + 1)
    for axis in range(g[DIMS] - 1, -1, -1):
        window = g[part(g, WINDOW) + axis]
        if window > 1 and g[ws + 3 + axis] != run * size:
            return 1
        run *= window
    return -1 if g[ws + 2] == taps * size else taps


@helper
def fetch_lines(start, size):
    """Bring so many bytes into the caches; they may lie beyond an array."""
    for line in range(0, size, 64):
        prefetch(start + line)


@helper
def pack_lanes(target, w, rows, columns, width, tools, w_k):
    """target[j, lane] = w[lane, j] for j < columns: a run of neighbours of `rows` channels, a panel of `width` bytes wide."""
    invoke(tools[READ_SQUARES], w, w_k, rows, columns, address(0), 0, target, width)


@helper
def kernel_reach(g):
    """Bytes from the first to the last tap of a kernel; too many where some step leads back."""
    reach, ws = 0, part(g, PARTS + 1)
    for axis in range(g[DIMS]):
        window, step = g[part(g, WINDOW) + axis], g[ws + 3 + axis]
        if window > 1:
            reach += (window - 1) * step if step > 0 else 1 << 40
    return reach


@helper
def pack_sparse(target, w, rows, first, count, taps, width, reach, tools, g, xt, at):
    """What `pack_terms` does for taps that are some of a larger kernel: all from the first to the last of them are turned.

    `reach`: the bytes of these. Of channels that follow each other closely, some are turned together.
    """
    ws, size, axis = part(g, PARTS + 1), itemsize(xt), g[DIMS] - 1
    w_c, window, step = g[ws + 2], g[part(g, WINDOW) + axis], g[ws + 3 + axis] if taps > 1 else 0
    several = max(1, TURNED_BYTES // (w_c // size * width)) if reach <= w_c <= SPARSE * taps * size else 1
    several = min(several, count)
    turned = scratch(((several - 1) * w_c + reach) // size * width)
    lines = memory(turned)
    for c in range(0, count, several):
        together = min(several, count - c)
        columns = ((together - 1) * w_c + reach) // size
        pack_lanes(lines, w + (first + c) * w_c, rows, columns, width, tools, g[ws + 1])
        for outer in range(taps // window):
            source = lines + outer_offset(g, outer, WINDOW, PARTS + 1) // size * width
            invoke(
                tools[COPY], source, 0, rows, target + (c * taps + outer * window) * width, 0, rows, window, step // size * width,
                width, together, w_c // size * width, taps * width,
            )  # fmt: skip
    release(turned)


@helper
def pack_terms(target, w, rows, first, count, taps, width, tools, g, xt, at):
    """The input channels first .. first + count of a panel of `rows` output channels, in the dtype of sums."""
    ws, size = part(g, PARTS + 1), itemsize(xt)
    w_k, w_c = g[ws + 1], g[ws + 2]
    run = weight_run(g, taps, size)
    if (w_k == size) & (taps == 1):
        invoke(tools[READ_ROWS], w + first * w_c, 0, rows, target, 0, rows, count, w_c, width, 1, 0, 0)
        return
    if run < 0 or (taps == 1 and w_c == size):
        if count * taps * size <= SHORT_RUN:
            for k in range(rows):
                fetch_lines(w + ((first + count) * w_c + k * w_k), count * taps * size)
        pack_lanes(target, w + first * w_c, rows, count * taps, width, tools, w_k)
        return
    reach, most = kernel_reach(g) + size, SPARSE * taps * size
    if (reach <= w_c <= most) | ((run == 1) & (taps > 1) & (reach <= most)):
        pack_sparse(target, w, rows, first, count, taps, width, reach, tools, g, xt, at)
        return
    if run != 1 or taps == 1:
        for c in range(count):
            if w_k == taps * size:
                fetch_lines(w + (first + c + AHEAD) * w_c, rows * taps * size)
            pack_lanes(target + c * taps * width, w + (first + c) * w_c, rows, taps, width, tools, w_k)
        return
    axis = g[DIMS] - 1
    window, step = g[part(g, WINDOW) + axis], g[ws + 3 + axis]
    for c in range(count):
        for tap in range(taps):
            source = w + ((first + c) * w_c + outer_offset(g, tap // window, WINDOW, PARTS + 1) + tap % window * step)
            place = target + (c * taps + tap) * width
            for k in range(rows):
                store(place + k * itemsize(at), load(source + k * w_k, xt, at), at)


@helper
def join_words(target, first, second, count):
    """The upper halves of two rows of float32 numbers, which are bfloat16 numbers, as pairs."""
    wide_vectors()
    for i in range(count):
        low, high = load(first + 4 * i, UINT32), load(second + 4 * i, UINT32)
        store(target + 4 * i, np.uint32(low >> np.uint32(16)) | np.uint32(high & np.uint32(0xFFFF0000)), UINT32)


@helper
def pack_pairs(target, w, rows, first, count, taps, width, tools, g, xt, at):
    """So many pairs of input channels from the pair `first` on; a channel that is not there is zero."""
    several = tools[LANES] // 2 if taps <= PAIRED_TAPS else 1
    row = taps * width
    words = scratch(2 * several * row)
    place = memory(words)
    clear(place, 2 * several * row // itemsize(at), at)
    for begin in range(first, first + count, several):
        pairs = min(several, first + count - begin)
        channels = min(2 * pairs, g[PER_C] - 2 * begin)
        if channels < 2 * pairs:
            clear(place + channels * row, row // itemsize(at), at)
        pack_terms(place, w, rows, 2 * begin, channels, taps, width, tools, g, xt, at)
        for pair in range(pairs):
            join_words(target + (begin - first + pair) * row, place + 2 * pair * row, place + (2 * pair + 1) * row, row // 4)
    release(words)


@kernel
def pack_panel(
    xt: Tag, at: Tag, table: Address, target: Address, w: Address, rows: int, first: int, count: int, taps: int, width: int,
    sizes: Address,
) -> None:  # fmt: skip
    """The input channels first .. first + count of a panel of `rows` output channels, at `w`; `width`: bytes of its rows.

    Channels are counted in pairs where the factors, of dtype `at`, are pairs.
    """
    tools, g = pointer(table, INT64), pointer(sizes, INT64)
    if rows * itemsize(at) < width:
        clear(target, count * taps * width // itemsize(at), at)
    if held(at) == 2:
        pack_pairs(target, w, rows, first, count, taps, width, tools, g, xt, arithmetic(at))
    else:
        pack_terms(target, w, rows, first, count, taps, width, tools, g, xt, arithmetic(at))


# --- results -------------------------------------------------------------------------------------------------------------------


@helper(fastmath={"reassoc"})
def is_not_finite(sums, count, at):
    """Whether one of these sums is NaN or an infinity."""
    wide_vectors()
    bad = zero(at)
    for j in range(count):
        total = load(sums + j * itemsize(at), at)
        bad += abs(total - total)
    return bad != zero(at)


@helper
def finish_lanes(sums, y, columns, step, bias, code, yt, at):
    """One pixel of a run, for any dtype, stride and activation; returns whether a sum is not finite."""
    wide_vectors()
    biased = not is_null(bias)
    if code <= 1 and step == itemsize(yt):
        for j in range(columns):
            total = load(sums + j * itemsize(at), at)
            shifted = add(total, load(bias + j * itemsize(at), at)) if biased else total
            store(y + j * itemsize(yt), rectified(shifted, code), yt)
        return is_not_finite(sums, columns, at)
    bad = is_not_finite(sums, columns, at)
    for j in range(columns):
        place = sums + j * itemsize(at)
        total = load(place, at)
        store(place, rectified(add(total, load(bias + j * itemsize(at), at)) if biased else total, code), at)
    if code > 1:
        activate_run(sums, columns, code, at)
    for j in range(columns):
        store(y + j * step, load(sums + j * itemsize(at), at), yt)
    return bad


@helper
def write_apart(sums, width, count, columns, bias, code, y, k_step, q_step, spare, tools, yt, at):
    """What `write_run` does where pixels have gaps in y: through a spare square; returns whether a sum is not finite."""
    bad, size, item, square = 0, itemsize(at), itemsize(yt), tools[LANES]
    for j in range(0, columns, square):
        shift = bias if is_null(bias) else bias + j * size
        for q in range(0, count, square):
            rows, lanes = min(count - q, square), min(columns - j, square)
            source = sums + (q * width + j * size)
            bad |= invoke(tools[WRITE_SQUARES], source, width, rows, lanes, shift, code, spare, square * item)
            for lane in range(lanes):
                for one in range(rows):
                    move(y + ((j + lane) * k_step + (q + one) * q_step), spare + (lane * square + one) * item, yt)
    return bad != 0


@helper
def write_squares(sums, width, count, columns, bias, code, y, k_step, q_step, spare, tools, yt, at):
    """A run of pixels, square by square, for a code of at most 1; returns whether a sum is not finite."""
    if q_step == itemsize(yt):
        return invoke(tools[WRITE_SQUARES], sums, width, count, columns, bias, code, y, k_step) != 0
    return write_apart(sums, width, count, columns, bias, code, y, k_step, q_step, spare, tools, yt, at)


@helper
def write_run(sums, width, count, columns, bias, code, y, k_step, q_step, spare, tools, yt, at):
    """A run of pixels, evenly spaced in y, for `columns` channels; returns whether a sum is not finite."""
    bad, size = False, itemsize(yt)
    if (k_step == size) & ((columns > 1) | (q_step != size)):
        if same(yt, at):
            return invoke(tools[DRESS], sums, width, count, columns, bias, 0, code, y, q_step) != 0
        for q in range(count):
            bad |= finish_lanes(sums + q * width, y + q * q_step, columns, k_step, bias, code, yt, at)
        return bad
    if code <= 1:
        return write_squares(sums, width, count, columns, bias, code, y, k_step, q_step, spare, tools, yt, at)
    # some pixels at a time, which the activation leaves in the first-level cache
    for q in range(0, count, SMOOTHED):
        source, pixels = sums + q * width, min(SMOOTHED, count - q)
        bad |= invoke(tools[DRESS], source, width, pixels, columns, bias, 0, code, source, width) != 0
        write_squares(source, width, pixels, columns, address(0), 0, y + q * q_step, k_step, q_step, spare, tools, yt, at)
    return bad


@helper
def runs_of(g, b, block, strides):
    """(dimensions before a run, pixels of a run): dimensions that follow each other without a gap in y make one run."""
    axis = g[DIMS] - 1
    first, run, inner = part(g, strides) + 3, block_extent(g, b, block, axis), axis
    while inner > 0 and g[first + inner - 1] == run * g[first + axis]:
        inner -= 1
        run *= block_extent(g, b, block, inner)
    return inner, run


@helper
def run_offset(line, inner, g, b, block):
    """The byte offset in y of a run of a block, in its image."""
    ndim, first, offset = g[DIMS], part(g, PARTS + 2) + 3, 0
    for axis in range(inner, ndim):
        offset += block_start(b, ndim, block, axis) * g[first + axis]
    for axis in range(inner - 1, -1, -1):
        size = block_extent(g, b, block, axis)
        offset += (block_start(b, ndim, block, axis) + line % size) * g[first + axis]
        line //= size
    return offset


@helper
def lines_of(inner, g, b, block):
    """Runs of a block in an image."""
    lines = 1
    for axis in range(inner):
        lines *= block_extent(g, b, block, axis)
    return lines


@kernel
def write_panel(
    yt: Tag, at: Tag, table: Address, sums: Address, width: int, columns: int, bias: Address, code: int,
    y: Address, status: Address, block: int, sizes: Address, cutting: Address,
) -> None:  # fmt: skip
    """The results of a block for the channels of a panel; images with a sum that is not finite get a 1 in `status`.

    `y` and `bias` are the addresses of the panel's first channel.
    """
    tools, g, b, flags = pointer(table, INT64), pointer(sizes, INT64), pointer(cutting, INT64), pointer(status, UINT8)
    ndim, ys = g[DIMS], part(g, PARTS + 2)
    k_step, q_step, n = g[ys + 2], g[ys + 3 + ndim - 1], block_image(b, ndim, block)
    inner, run = runs_of(g, b, block, PARTS + 2)
    lines = lines_of(inner, g, b, block)
    square = scratch(tools[LANES] * tools[LANES] * itemsize(at))
    for line in range(block_images(g, b, block) * lines):
        place = y + ((n + line // lines) * g[ys] + run_offset(line % lines, inner, g, b, block))
        source = sums + line * run * width
        if write_run(source, width, run, columns, bias, code, place, k_step, q_step, memory(square), tools, yt, at):
            flags[n + line // lines] = 1
    release(square)


@helper
def read_run(target, width, count, columns, y, k_step, q_step, tools, yt, at):
    """A run of pixels of y for `columns` channels: [pixel][lane]."""
    size = itemsize(yt)
    if q_step == size:
        pack_lanes(target, y, columns, count, width, tools, k_step)
    elif k_step == size:
        invoke(tools[READ_ROWS], y, 0, columns, target, 0, columns, count, q_step, width, 1, 0, 0)
    else:
        for q in range(count):
            for j in range(columns):
                store(target + (q * width + j * itemsize(at)), load(y + (q * q_step + j * k_step), yt, at), at)


@helper
def read_pairs(target, words, width, count, columns, y, k_step, q_step, tools, yt, at):
    """A run of pixels of y as pairs of neighbours, [pair][lane]; what the last one lacks is zero."""
    whole = 0
    if same(yt, BFLOAT) and q_step == itemsize(yt):
        # neighbours in memory are pairs already
        whole = count // 2
        invoke(tools[READ_WORDS], y, k_step, columns, whole, address(0), 0, target, width)
    for first in range(whole, (count + 1) // 2, tools[LANES]):
        pixels = min(2 * tools[LANES], count - 2 * first)
        read_run(words, width, pixels, columns, y + 2 * first * q_step, k_step, q_step, tools, yt, at)
        clear(words + pixels * width, pixels % 2 * width // itemsize(at), at)
        for pair in range((pixels + 1) // 2):
            join_words(target + (first + pair) * width, words + 2 * pair * width, words + (2 * pair + 1) * width, width // 4)


@kernel
def read_panel(
    yt: Tag, at: Tag, table: Address, target: Address, width: int, columns: int, y: Address, block: int, sizes: Address,
    cutting: Address,
) -> None:  # fmt: skip
    """The pixels of a block for the channels of a panel, [pixel][lane]: the reverse of `write_panel`.

    Where the factors, of dtype `at`, are pairs of neighbours, they are [row][pair][lane].
    """
    tools, g, b = pointer(table, INT64), pointer(sizes, INT64), pointer(cutting, INT64)
    ndim, ys = g[DIMS], part(g, PARTS + 2)
    k_step, q_step, n = g[ys + 2], g[ys + 3 + ndim - 1], block_image(b, ndim, block)
    inner, run = runs_of(g, b, block, PARTS + 2)
    if in_rows(at) and block_extent(g, b, block, ndim - 1) % 2:
        # no pair reaches into the next row
        inner, run = ndim - 1, block_extent(g, b, block, ndim - 1)
    lines = lines_of(inner, g, b, block)
    spare = 2 * tools[LANES] * width if in_rows(at) else 0
    words = scratch(spare)
    clear(memory(words), spare // itemsize(at), at)
    for line in range(block_images(g, b, block) * lines):
        place = y + ((n + line // lines) * g[ys] + run_offset(line % lines, inner, g, b, block))
        if in_rows(at):
            into = target + line * ((run + 1) // 2) * width
            read_pairs(into, memory(words), width, run, columns, place, k_step, q_step, tools, yt, arithmetic(at))
        else:
            read_run(target + line * run * width, width, run, columns, place, k_step, q_step, tools, yt, arithmetic(at))
    release(words)


@kernel
def write_weights(
    yt: Tag, at: Tag, table: Address, sums: Address, width: int, columns: int, w: Address, first: int, last: int, taps: int,
    spare: Address, sizes: Address,
) -> int:  # fmt: skip
    """The sums of the taps first .. last, [tap][lane], to the kernels of a panel at w; returns 1 if one is not finite, else 0.

    Kernels have `taps` taps, which are counted through the input channels; `spare` has room for a square of lanes.
    """
    tools, g = pointer(table, INT64), pointer(sizes, INT64)
    ws, size, axis, bad = part(g, PARTS + 1), itemsize(yt), g[DIMS] - 1, False
    # of kernels of one tap all lie evenly spaced
    run, c_step = (last - first, g[ws + 2]) if taps == 1 else (last - first if weight_run(g, taps, size) < 0 else 1, size)
    window, step = g[part(g, WINDOW) + axis], g[ws + 3 + axis]
    for tap in range(first, last, run):
        inner = tap % taps
        place = tap // taps * g[ws + 2] + outer_offset(g, inner // window, WINDOW, PARTS + 1) + inner % window * step
        row = sums + (tap - first) * width
        bad |= write_run(row, width, run, columns, address(0), 0, w + place, g[ws + 1], c_step, spare, tools, yt, at)
    return 1 if bad else 0
