"""Convolution of few channels on sliding register tiles: depthwise, image filters, long filters of sound, for real floats.

A work item takes some rows of the results of one image and group. It passes over them in strips of columns as wide as the tile: the
part of x that a strip reads is packed, padding in place and phases of the stride apart, and the tile of `microkernels.sliding`
walks over its rows. Rows of padding zeros are left out. In one dimension neighbouring outputs are folded into rows of the tile.

The terms of an output form one chain in the order of the "strict" level; a flipped kernel is walked backwards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype

from .blocked import CALL_SECONDS, seconds
from .compiler import Address, Tag, helper, invoke, kernel
from .dense import DenseImplementation, accumulated, redo
from .direct import MEASURED_ERROR, clear, conv_vectors, finish_row, tap_position
from .elements import ACTIVATIONS, INT64, itemsize, same
from .geometry import (
    BATCH,
    DILATION,
    DIMS,
    FLIPPED,
    GROUPS,
    LOW,
    MODE,
    OPTION,
    OUTPUT,
    PARTS,
    PER_C,
    PER_K,
    SIZE,
    STRIDE,
    WINDOW,
    part,
    source_index,
    span,
)
from .microkernels.copies import split_strip
from .microkernels.emit import host, lanes_of
from .microkernels.rolling import roll
from .microkernels.sliding import (
    BIAS,
    COUNT,
    FIRST,
    JOB,
    LAST,
    LEFT,
    RELU,
    SCHEDULE,
    SHORT,
    SLICES,
    USED,
    USED_ROWS,
    W_COLUMN,
    X_ROW,
    Y_ROW,
    W,
    X,
    Y,
    slide,
)
from .microkernels.sliding import COLUMNS as JOB_COLUMNS
from .microkernels.sliding import PLACES as JOB_PLACES
from .scalar import address, as_integer, is_null, load, pointer, store, zero
from .slab import pack_places
from .threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area

__all__ = [
    "ITEMS", "Depthwise", "Layout", "column_places", "first_row_of", "inside_lines", "layout_vector", "layout_with", "outer_place",
    "pack_strip", "packing_cycles", "slab_places", "slices_of",
]  # fmt: skip

SLAB_BYTES = 32 * 1024
"""The packed strip of an item: it stays in the first-level cache."""
WEIGHT_BYTES = 512 * 1024
"""The packed weights of a group."""
ITEMS = 16
"""Work items that a problem is cut into at least, where it has so many rows: threads share them evenly."""


class Layout(NamedTuple):
    """How a problem is cut and what a tile sees of it.

    A *line* is a row of x that a tile reads: output row u of a class reads the lines lag * u + a, one for each row a of the kernel.
    With dilation there are several *classes* of output rows that share no line.

    Attributes
    ----------
    rolling : bool
        Whether the tile is that of `microkernels.rolling`, else that of `microkernels.sliding`.
    rows, vectors, lanes : int
        The tile; `rows` is 1 for one that rolls.
    folded : bool
        One dimension, of which a row of the tile's width is one row.
    lag, classes : int
    kernel_rows, columns, extra : int
        The kernel as the tile sees it: taps of a last, short row are `extra`.
    total, band, bands : int
        Output rows of a class, those of an item, items of a class.
    strip : int
        Tiles side by side for which x is packed together.
    phases, pitch : int
        Of a line in the slab: phases of the stride, and places of each.
    """

    rolling: bool
    rows: int
    vectors: int
    lanes: int
    folded: bool
    lag: int
    classes: int
    kernel_rows: int
    columns: int
    extra: int
    total: int
    band: int
    bands: int
    strip: int
    phases: int
    pitch: int

    @property
    def width(self) -> int:
        """Pixels of a row of the tile."""
        return self.vectors * self.lanes

    @property
    def reached(self) -> int:
        """Rows of the kernel, the short one included."""
        return self.kernel_rows + (self.extra > 0)

    @property
    def phase_rows(self) -> int:
        """Rows of the kernel in one phase of the lag."""
        return -(-self.reached // self.lag)

    @property
    def lines(self) -> int:
        """Lines of the slab for one slice."""
        return 1 if self.folded else self.lag * (self.band - 1) + self.kernel_rows

    @property
    def slice_weights(self) -> int:
        """Packed weights of one slice."""
        return self.columns * self.lag * self.phase_rows


def slices_of(problem: ConvProblem) -> int:
    """Slices of a window: what a tile reads of one input channel at one place of the outer dimensions."""
    return problem.c // problem.groups * math.prod(problem.kernel[:-2])


def _kernel_rows(problem: ConvProblem, width: int) -> tuple[int, int, int]:
    """Rows, columns, and taps of a short last row, of the kernel as the tile sees it."""
    taps = problem.kernel[-1]
    if problem.ndim > 1:
        return problem.kernel[-2], taps, 0
    columns, uneven = divmod(width * problem.stride[0], problem.dilation[0])
    if uneven or columns >= taps:
        return 1, taps, 0
    return taps // columns, columns, taps % columns


def column_places(problem: ConvProblem, columns: int) -> list[tuple[int, int]]:
    """The phase and the place of each column of the kernel."""
    stride, dilation, taps = problem.stride[-1], problem.dilation[-1], problem.kernel[-1]
    positions = [(taps - 1 - t if problem.flip else t) * dilation for t in range(columns)]
    return [(position % stride, position // stride) for position in positions]


def _schedule(rows: int, lag: int, kernel_rows: int, columns: int, extra: int) -> list[tuple[int, int, int, int, int, int]]:
    """What a tile does with each line: (line, first column, last column, place of the weights, first row, last row)."""
    reached = kernel_rows + (extra > 0)
    phase_rows = -(-reached // lag)
    parts = [(0, extra, reached), (extra, columns, kernel_rows)] if extra else [(0, columns, kernel_rows)]
    found = []
    for line in range(lag * (rows - 1) + reached):
        weights = line % lag * phase_rows + line // lag
        for begin, end, count in parts:
            found.append((line, begin, end, weights, max(0, (line - count) // lag + 1), min(rows, line // lag + 1)))
    return found


def _tile_cycles(rows: int, vectors: int, schedule: list[tuple[int, int, int, int, int, int]]) -> float:
    """Of one slice: two multiply-adds or two loads a cycle, where a load across two lines of memory counts twice."""
    cycles = 0.0
    for _, begin, end, _, low, high in schedule:
        active = max(0, high - low)
        if active:
            cycles += 11 + (end - begin) * (max(active * vectors, active + 1.9 * vectors) / 2 + 0.5)
    return cycles


ROLLING_ROWS = 8
"""Rows of the kernel up to which tiles roll."""


def _rolling_vectors(problem: ConvProblem) -> list[int]:
    """The widths of tiles that can roll down the rows of this problem: sums, pixels and a weight fit the registers."""
    if problem.ndim != 2 or problem.c > problem.groups or problem.kernel[0] > ROLLING_ROWS:
        return []
    lag = problem.stride[0] // math.gcd(problem.stride[0], problem.dilation[0])
    sums = -(-problem.kernel[0] // lag)
    return [v for v in (4, 3, 2, 1) if (sums + 1) * v + 1 < host().registers] if lag <= 2 else []


@functools.lru_cache(maxsize=256)
def layout_for(problem: ConvProblem) -> Layout:
    """The layout of a forward problem: the tile that needs the fewest cycles, and bands of rows that fit the cache."""
    shapes = [(False, *shape) for shape in host().sliding_tiles] + [(True, 1, vectors) for vectors in _rolling_vectors(problem)]
    return min((layout_with(problem, *shape) for shape in shapes), key=lambda layout: _cycles(problem, layout))


def layout_with(problem: ConvProblem, rolling: bool, rows: int, vectors: int) -> Layout:
    """The layout with a given tile."""
    lanes, folded = lanes_of(problem.acc_dtype), problem.ndim == 1
    width = vectors * lanes
    kernel_rows, columns, extra = _kernel_rows(problem, width)
    if folded:
        lag, classes, total = 1, 1, -(-problem.output[0] // width)
    else:
        common = math.gcd(problem.stride[-2], problem.dilation[-2])
        lag, classes = problem.stride[-2] // common, problem.dilation[-2] // common
        total = -(-problem.output[-2] // classes)
    tiles = 1 if folded else -(-problem.output[-1] // width)
    shape = rolling, rows, vectors, lanes, folded, lag, classes, kernel_rows, columns, extra, total
    others = max(1, problem.n * problem.groups * math.prod(problem.output[:-2]) * classes)
    bands = max(1, min(-(-total // rows), -(-ITEMS // others)))
    room = SLAB_BYTES // (np_dtype(problem.acc_dtype).itemsize * slices_of(problem))
    halvings = [-(-tiles >> i) for i in range(tiles.bit_length())]
    layouts = [_cut(problem, Layout(*shape, total, bands, strip, problem.stride[-1], 0), room) for strip in halvings]
    return min(layouts, key=lambda layout: -(-tiles // layout.strip) * packing_cycles(layout))


def _cut(problem: ConvProblem, draft: Layout, room: int) -> Layout:
    """The layout with bands of whole tiles, as high as a slab of `room` elements allows."""
    reach = max(place for _, place in column_places(problem, draft.columns)) + 1
    bands = draft.bands
    while True:
        band = min(draft.total, -(-(-(-draft.total // bands)) // draft.rows) * draft.rows)
        last = (band + draft.reached - 2) * draft.width if draft.folded else 0
        pixels = draft.width if draft.folded else min(draft.strip * draft.width, problem.output[-1])
        pitch = -(-(pixels + reach - 1 + last) // draft.lanes) * draft.lanes
        layout = draft._replace(band=band, bands=-(-draft.total // band), pitch=pitch)
        if band <= draft.rows or slab_places(layout) <= room:
            return layout
        bands += max(1, bands // 4)


def packing_cycles(layout: Layout) -> float:
    """Of one slice, in one strip of all bands."""
    return layout.bands * (layout.lines * (layout.phases * layout.pitch / layout.lanes * 1.5 + 2) + 100)


def slab_places(layout: Layout) -> int:
    """Elements of the slab for one slice."""
    return layout.lines * layout.phases * layout.pitch


def _cycles(problem: ConvProblem, layout: Layout) -> float:
    """Of all tiles and of packing what they read."""
    slices, per_k = slices_of(problem), problem.k // problem.groups
    tiles = 1 if layout.folded else -(-problem.output[-1] // layout.width)
    others = problem.n * problem.groups * math.prod(problem.output[:-2]) * layout.classes
    if layout.rolling:
        products = tiles * per_k * (_rolling_cycles(layout) * (layout.total + layout.bands) + layout.bands * 100)
    else:
        shape = layout.rows, layout.lag, layout.kernel_rows, layout.columns, layout.extra
        whole, left = divmod(layout.total, layout.rows)
        tile = _tile_cycles(layout.rows, layout.vectors, _schedule(*shape))
        last = _tile_cycles(left, layout.vectors, _schedule(left, *shape[1:])) if left else 0.0
        stored = 100 + layout.rows * layout.vectors * 2
        products = tiles * per_k * (slices * (whole * tile + last) + (whole + (left > 0)) * stored)
    return others * (products + slices * -(-tiles // layout.strip) * packing_cycles(layout))


def _rolling_cycles(layout: Layout) -> float:
    """Of one row of results."""
    products = layout.vectors * layout.kernel_rows / 2
    loads = (layout.lag * 1.9 * layout.vectors + layout.kernel_rows) / 2
    return layout.columns * (max(products, loads) + layout.lag * 0.5) + layout.lag * 3 + layout.vectors


# What the kernel knows of a layout.
(
    ROLLING, ROWS, WIDTH, FOLDED, LAG, CLASSES, KERNEL_ROWS, COLUMNS, EXTRA, TOTAL, BAND, BANDS, STRIP, PHASES, PITCH, REACHED, PHASE_ROWS, LINES,
    OUTER_TAPS, OUTER_OUTPUTS,
) = range(20)  # fmt: skip
UINT8 = Tag("uint8")


def layout_vector(problem: ConvProblem, layout: Layout) -> np.ndarray[Any, Any]:
    return np.array(
        [
            layout.rolling, layout.band if layout.rolling else layout.rows, layout.width, layout.folded, layout.lag, layout.classes,
            layout.kernel_rows, layout.columns, layout.extra,
            layout.total, layout.band, layout.bands, layout.strip, layout.phases, layout.pitch, layout.reached, layout.phase_rows, layout.lines,
            math.prod(problem.kernel[:-2]), math.prod(problem.output[:-2]),
        ],
        np.int64,
    )  # fmt: skip


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def pack_weights(target, w, g, b, at):
    """The kernels of a group, [k][slice][column][phase][row of the phase]; returns whether one is not finite."""
    ndim, ws, size = g[DIMS], part(g, PARTS + 1), itemsize(at)
    column, bad = b[LAG] * b[PHASE_ROWS] * size, zero(at)
    row_step = g[ws + 3] * b[COLUMNS] if b[FOLDED] else g[ws + 1 + ndim]
    column_step, place = g[ws + 2 + ndim], target
    for k in range(g[PER_K]):
        for c in range(g[PER_C]):
            for tap in range(b[OUTER_TAPS]):
                source, left = w + (k * g[ws + 1] + c * g[ws + 2]), tap
                for axis in range(ndim - 3, -1, -1):
                    source = source + left % g[part(g, WINDOW) + axis] * g[ws + 3 + axis]
                    left //= g[part(g, WINDOW) + axis]
                for row in range(b[REACHED]):
                    into = place + (row % b[LAG] * b[PHASE_ROWS] + row // b[LAG]) * size
                    line = source + row * row_step
                    for t in range(b[EXTRA] if row == b[KERNEL_ROWS] else b[COLUMNS]):
                        value = load(line + t * column_step, at)
                        bad += abs(value - value)
                        store(into + t * column, value, at)
                place = place + b[COLUMNS] * column
    return bad != 0


@helper
def slice_source(g, output, tap):
    """Whether an outer tap of an outer output lies inside x, and the byte offset of its plane; both flat, without the last two."""
    offset = 0
    for axis in range(g[DIMS] - 3, -1, -1):
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
def pack_lines(slab, x, start, lines, x_row, g, b, split_at, xt, at):
    """So many rows of x, `x_row` bytes apart, from the position `start` on, all their places, in phases."""
    axis, size = g[DIMS] - 1, itemsize(at)
    step, length, stride = g[part(g, PARTS) + 3 + axis], g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis]
    phase_bytes = b[PITCH] * size
    line_bytes = b[PHASES] * phase_bytes
    even = same(xt, at) & (step == itemsize(xt)) & ((stride <= 2) | (stride == 4))
    if even:
        invoke(split_at, stride, x, start, length, slab, phase_bytes, b[PITCH], lines, x_row, line_bytes)
    if even and g[MODE] == 0:
        return
    for line in range(lines):
        for phase in range(b[PHASES]):
            target, source, first = slab + (line * line_bytes + phase * phase_bytes), x + line * x_row, start + phase
            if even:
                low, high = span(0, b[PITCH], stride, first, length)
                pack_places(target, source, first, stride, low, False, g, xt, at)
                pack_places(target + high * size, source, first + high * stride, stride, b[PITCH] - high, False, g, xt, at)
            else:
                pack_places(target, source, first, stride, b[PITCH], False, g, xt, at)


@helper
def pack_slice(slab, x, base, first, last, start, g, b, split_at, xt, at):
    """The lines first..last of a slice from the position `start` on; line i is row base + dilation * i of x."""
    if b[FOLDED]:
        pack_lines(slab, x, start, 1, 0, g, b, split_at, xt, at)
        return
    axis = g[DIMS] - 2
    dilation, step = g[part(g, DILATION) + axis], g[part(g, PARTS) + 3 + axis]
    line_bytes = b[PHASES] * b[PITCH] * itemsize(at)
    if g[MODE] == 0:
        inside, beyond = inside_lines(base, dilation, g[part(g, SIZE) + axis], 0)
        low = min(max(first, inside), last)
        high = max(min(last, beyond), low)
        clear(slab, (low - first) * b[PHASES] * b[PITCH], at)
        clear(slab + (high - first) * line_bytes, (last - high) * b[PHASES] * b[PITCH], at)
        row = x + (base + low * dilation) * step
        pack_lines(slab + (low - first) * line_bytes, row, start, high - low, dilation * step, g, b, split_at, xt, at)
        return
    for line in range(first, last):
        index = source_index(base + line * dilation, g[part(g, SIZE) + axis], g[MODE])
        pack_lines(slab + (line - first) * line_bytes, x + index * step, start, 1, 0, g, b, split_at, xt, at)


@helper
def inside_lines(base, dilation, size, mode):
    """The lines that are rows of x: those of padding zeros are left out."""
    if mode != 0:
        return -(1 << 60), 1 << 60
    return max(0, -(base // dilation)), max(0, (size - 1 - base) // dilation + 1)


@helper
def tile_lines(first_row, count, inside, beyond, g, b):
    """For `count` rows of results from one on: the line at which the tile starts, and its first and last line counted from there."""
    flipped = g[part(g, FLIPPED)] != 0
    if b[FOLDED]:
        return first_row + (count - 1 if flipped else 0), 0, count - 1 + b[REACHED]
    top, lines = b[LAG] * first_row, b[LAG] * (count - 1) + b[KERNEL_ROWS]
    first, last = max(0, inside - top), min(lines, beyond - top)
    if flipped:
        return top + lines - 1, lines - last, lines - first
    return top, first, last


@helper
def first_row_of(g, b, row, residue):
    """The byte offset in y of a row of results of a class, and the distance of neighbouring ones."""
    ys, axis = part(g, PARTS + 2) + 3, g[DIMS] - 1
    if b[FOLDED]:
        return row * b[WIDTH] * g[ys], b[WIDTH] * g[ys]
    return (residue + row * b[CLASSES]) * g[ys + axis - 1], b[CLASSES] * g[ys + axis - 1]


@helper
def multiply_rows(source, line_bytes, first, last, slices, w, channel, y, y_row, count, used, short, left, frame, yt, at):
    """`count` rows of results of one output channel; y is the address of the first one. See `slide`."""
    g, b, tables, areas, bias = frame
    axis, size = g[DIMS] - 1, itemsize(at)
    entries, columns, schedule = tables
    _, _, places, sums, fields = areas
    y_step, flipped, each = g[part(g, PARTS + 2) + 3 + axis], g[part(g, FLIPPED)] != 0, 2 if b[EXTRA] > 0 else 1
    inline = same(yt, at) & (g[OPTION] <= 1) & (y_step == itemsize(yt))
    target, row_bytes, shift, relu = sums, b[WIDTH] * size, address(0), 0
    if inline:
        target, row_bytes, relu = y, y_row, g[OPTION]
        shift = bias if is_null(bias) else bias + channel * size
    place = short
    if flipped:
        place = count - 1 - short
        target, row_bytes, line_bytes = target + (count - 1) * row_bytes, -row_bytes, -line_bytes
    job = pointer(fields, INT64)
    job[X], job[X_ROW], job[FIRST], job[LAST] = as_integer(source), line_bytes, first * each, max(last, first) * each
    job[JOB_PLACES], job[SLICES], job[JOB_COLUMNS] = as_integer(places), slices, as_integer(columns)
    job[W], job[W_COLUMN], job[SCHEDULE] = as_integer(w), b[LAG] * b[PHASE_ROWS] * size, as_integer(schedule)
    job[BIAS], job[RELU], job[Y], job[Y_ROW] = as_integer(shift), relu, as_integer(target), row_bytes
    job[USED_ROWS], job[USED], job[SHORT], job[LEFT] = count, used, place, left
    job[COUNT] = b[COLUMNS]
    invoke(entries[TILE], fields)
    if not inline:
        for row in range(count):
            pixels = left if row == short else used
            finish_row(sums + row * b[WIDTH] * size, y + row * y_row, pixels, y_step, bias, channel, g[OPTION], yt, at)


@helper
def multiply_strip(slices, group, first_row, end_row, residue, origin, inside, beyond, y, used, frame, yt, at):
    """The rows first_row..end_row of a strip, for all output channels of a group; the slab starts with the line `origin`."""
    g, b, _, areas, _ = frame
    slab, weights, _, _, _ = areas
    size, per_k, ys = itemsize(at), g[PER_K], part(g, PARTS + 2)
    line_bytes = b[WIDTH] * size if b[FOLDED] else b[PHASES] * b[PITCH] * size
    kernel_bytes = g[PER_C] * b[OUTER_TAPS] * b[COLUMNS] * b[LAG] * b[PHASE_ROWS] * size
    for row in range(first_row, end_row, b[ROWS]):
        count = min(b[ROWS], end_row - row)
        start, first, last = tile_lines(row, count, inside, beyond, g, b)
        offset, y_row = first_row_of(g, b, row, residue)
        short, left = -1, 0
        if b[FOLDED] and row + count == b[TOTAL]:
            short, left = count - 1, g[part(g, OUTPUT)] - (b[TOTAL] - 1) * b[WIDTH]
        for column in range(0, used, b[WIDTH]):
            source, pixels = slab + ((start - origin) * line_bytes + column * size), min(b[WIDTH], used - column)
            for k in range(per_k):
                target = y + (k * g[ys + 2] + offset + column * g[ys + 2 + g[DIMS]])
                multiply_rows(
                    source, line_bytes, first, last, slices, weights + k * kernel_bytes, group * per_k + k, target, y_row, count,
                    pixels, short, left, frame, yt, at,
                )  # fmt: skip


@helper
def pack_strip(x, output, base, origin, end, start, frame, split_at, xt, at):
    """Pack the lines origin..end of every slice that lies inside x, list where they begin in the slab and in w; how many."""
    g, b, _, areas, _ = frame
    slab, _, places, _, _ = areas
    lines = 1 if b[FOLDED] else end - origin
    slice_bytes = lines * b[PHASES] * b[PITCH] * itemsize(at)
    weight_bytes = b[COLUMNS] * b[LAG] * b[PHASE_ROWS] * itemsize(at)
    table, count = pointer(places, INT64), 0
    for c in range(g[PER_C]):
        for tap in range(b[OUTER_TAPS]):
            inside, offset = slice_source(g, output, tap)
            if inside:
                source = x + (c * g[part(g, PARTS) + 2] + offset)
                pack_slice(slab + count * slice_bytes, source, base, origin, end, start, g, b, split_at, xt, at)
                table[2 * count] = count * slice_bytes
                table[2 * count + 1] = (c * b[OUTER_TAPS] + tap) * weight_bytes
                count += 1
    return count


@helper
def outer_place(g, output):
    """The byte offset in y of an outer output."""
    offset = 0
    for axis in range(g[DIMS] - 3, -1, -1):
        offset += output % g[part(g, OUTPUT) + axis] * g[part(g, PARTS + 2) + 3 + axis]
        output //= g[part(g, OUTPUT) + axis]
    return offset


@helper
def band_strips(x, y, group, output, residue, first_row, end_row, frame, xt, yt, at):
    """A band of rows of results, strip by strip; x and y are the addresses of the group in an image."""
    g, b, tables, _, _ = frame
    entries, _, _ = tables
    axis = g[DIMS] - 1
    low, stride, length = g[part(g, LOW) + axis], g[part(g, STRIDE) + axis], g[part(g, OUTPUT) + axis]
    base, inside, beyond, origin, end = 0, 0, 0, first_row, end_row
    if not b[FOLDED]:
        base = residue * g[part(g, STRIDE) + axis - 1] - g[part(g, LOW) + axis - 1]
        # a tile that rolls reads the rows of padding zeros too
        mode = 1 if b[ROLLING] else g[MODE]
        inside, beyond = inside_lines(base, g[part(g, DILATION) + axis - 1], g[part(g, SIZE) + axis - 1], mode)
        origin = max(inside, b[LAG] * first_row)
        end = max(origin, min(beyond, b[LAG] * (end_row - 1) + b[KERNEL_ROWS]))
    for column in range(0, 1 if b[FOLDED] else length, b[STRIP] * b[WIDTH]):
        start = (first_row * b[WIDTH] if b[FOLDED] else column) * stride - low
        used = b[WIDTH] if b[FOLDED] else min(b[STRIP] * b[WIDTH], length - column)
        slices = pack_strip(x, output, base, origin, end, start, frame, entries[SPLIT], xt, at)
        target = y + column * g[part(g, PARTS + 2) + 3 + axis]
        multiply_strip(slices, group, first_row, end_row, residue, origin, inside, beyond, target, used, frame, yt, at)


# The parts of a worker's scratch memory, and the functions called by address.
SLAB, WEIGHTS, PLACES, SUMS, FIELDS, AREAS = range(6)
SPLIT, TILE = range(2)


@helper
def _bands(begin, end, args):
    xt, yt, at, items, workers, scratch, areas, tables, x, w, bias, y, status, g, b = args
    own = worker_area(scratch, areas, AREAS, workers, items, begin)
    memory = own + areas[SLAB], own + areas[WEIGHTS], own + areas[PLACES], own + areas[SUMS], own + areas[FIELDS]
    frame = g, b, tables, memory, bias
    xs, ys, packed = part(g, PARTS), part(g, PARTS + 2), -1
    for item in range(begin, end):
        first_row, left = item % b[BANDS] * b[BAND], item // b[BANDS]
        residue, left = left % b[CLASSES], left // b[CLASSES]
        output, left = left % b[OUTER_OUTPUTS], left // b[OUTER_OUTPUTS]
        group, n = left % g[GROUPS], left // g[GROUPS]
        if group != packed:
            packed = group
            if pack_weights(memory[WEIGHTS], w + group * g[part(g, PARTS + 1)], g, b, at):
                store(status, np.uint8(1), UINT8)
        rows = b[TOTAL]
        if not b[FOLDED]:
            rows = (g[part(g, OUTPUT) + g[DIMS] - 2] - residue + b[CLASSES] - 1) // b[CLASSES]
        target = y + (n * g[ys] + group * g[ys + 1] + outer_place(g, output))
        source, end_row = x + (n * g[xs] + group * g[xs + 1]), min(first_row + b[BAND], rows)
        band_strips(source, target, group, output, residue, first_row, end_row, frame, xt, yt, at)


@kernel
def depthwise(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, entries: Address,
    columns: Address, schedule: Address, x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a band of rows of one image and group.

    `status` gets a 1 if a weight is not finite. Weights and bias are in the accumulation dtype.
    """
    parallel_for(
        region,
        workers,
        items,
        _bands,
        (
            xt, yt, at, items, workers, scratch, pointer(areas, INT64), (pointer(entries, INT64), columns, schedule), x, w, bias, y,
            status, pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


# --- the implementation --------------------------------------------------------------------------------------------------------


def _areas(problem: ConvProblem, layout: Layout) -> Areas:
    """A worker's scratch memory."""
    item, slices, per_k = np_dtype(problem.acc_dtype).itemsize, slices_of(problem), problem.k // problem.groups
    rows = layout.band if layout.rolling else layout.rows
    # the last pixels of a tile lie beyond the strip, and are read
    slab = slices * slab_places(layout) + 2 * layout.width
    return Areas(slab * item, per_k * slices * layout.slice_weights * item, 16 * slices, rows * layout.width * item, 8 * JOB)


class _Executor:
    """One convolution."""

    def __init__(self, problem: ConvProblem):
        layout = layout_for(problem)
        self._problem = problem
        self._items = problem.n * problem.groups * math.prod(problem.output[:-2]) * layout.classes * layout.bands
        self._work = problem.flops / 2
        self._padded = problem.pad_mode == "zeros" and any(low > 0 or high > 0 for low, high in problem.padding)
        self._vectors = conv_vectors(problem, ACTIVATIONS[problem.activation])
        self._acc = np_dtype(problem.acc_dtype)
        item = self._acc.itemsize
        places = [phase * layout.pitch + place for phase, place in column_places(problem, layout.columns)]
        self._columns = np.array(places, np.int64) * item
        rows = _schedule(layout.rows, layout.lag, layout.kernel_rows, layout.columns, layout.extra)
        self._schedule = np.array(rows, np.int64) * np.array([1, 1, 1, item, 1, 1])
        self._block = layout_vector(problem, layout)
        self._areas = _areas(problem, layout)
        if layout.rolling:
            tile = roll.address((layout.vectors, layout.kernel_rows, layout.lag, layout.lanes), problem.acc_dtype)
        else:
            tile = slide.address((layout.rows, layout.vectors, layout.lanes), problem.acc_dtype)
        self._entries = np.array([split_strip.address(layout.lanes, problem.acc_dtype), tile], np.int64)
        self._kernel = depthwise.specialise(problem.dtype, problem.out_dtype, problem.acc_dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; weights of a narrower dtype are widened first."""
        w = ins[1]
        self._run(outs[0], ins, w if w.dtype is self._acc else np.asarray(w, self._acc))

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, in the accumulation dtype."""
        original = w.copy()
        wide = accumulated(original, self._acc)
        return lambda outs, ins: self._run(outs[0], (ins[0], original, *ins[1:]), wide)

    def _run(self, y: Any, ins: Any, w: Any) -> None:
        if not self._items:
            return
        x, bias = ins[0], ins[2:]
        vector = self._vectors(x.strides, w.strides, y.strides)
        shift = accumulated(bias[0], self._acc) if bias else 0
        status = np.zeros(1, np.uint8)
        run_with(
            self._areas, self._kernel, self._items, self._work, self._entries, self._columns, self._schedule, x, w, shift, y,
            status, vector, self._block,
        )  # fmt: skip
        if self._padded and status[0]:
            redo(self._problem, y, ins, range(self._problem.n))


class Depthwise(DenseImplementation):
    """Convolution of real floats in groups of few channels."""

    name = "depthwise"
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Where the weights of a group fit the cache."""
        size = math.prod(problem.w_shape) // max(problem.groups, 1) * np_dtype(problem.acc_dtype).itemsize
        if size > WEIGHT_BYTES:
            return Verdict.no(f"the weights of a group take {size} bytes, and it packs at most {WEIGHT_BYTES}")
        return Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """Tiles, packing, weights."""
        layout = layout_for(problem)
        weights = problem.k * slices_of(problem) * layout.slice_weights * 1.5
        return CALL_SECONDS + seconds(_cycles(problem, layout) + weights)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, the weights of a group, and tables; weights in the accumulation dtype."""
        item = np_dtype(problem.acc_dtype).itemsize
        widened = 0 if problem.dtype == problem.acc_dtype else math.prod(problem.w_shape) * item
        return MAX_THREADS * _areas(problem, layout_for(problem)).bytes + widened

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
