"""Strips: how problems of few channels are cut, and how the part of x that a strip of results reads is packed.

A work item takes a band of rows of the results of one image and group, and passes over it in strips of columns. For a strip the
rows of x are packed into a slab, one slice after the other: padding in place, phases of the stride apart, so that each column of
the kernel is an offset. A slab is sized for the first-level cache. In one dimension neighbouring outputs are folded into rows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.elements import INT64, itemsize
from numconv_numba.geometry import (
    DILATION,
    DIMS,
    LOW,
    MODE,
    OUTPUT,
    PARTS,
    PER_C,
    SIZE,
    STRIDE,
    part,
    source_index,
)
from numconv_numba.microkernels.activation import dress
from numconv_numba.microkernels.copies import split, spread
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.rows import clear, outer_source
from numconv_numba.scalar import pointer
from numconv_numba.tools import lone_split

from .packing import copy_cells, pack_borders, pack_places

__all__ = [
    "BAND", "BANDS", "CLASSES", "COLUMNS", "EXTRA", "FOLDED", "ITEMS", "KERNEL_ROWS", "LAG", "OUTER_OUTPUTS", "OUTER_TAPS",
    "PACK", "PHASES", "PHASE_ROWS", "PITCH", "REACHED", "ROLLING", "ROWS", "SMOOTH", "SPLIT", "SPREAD", "STRIP", "SUMS_TILE",
    "TILE", "TOTAL", "UINT8", "WIDTH", "Layout", "band_lines", "band_of", "column_places", "entry_table", "first_row_of",
    "layout_vector", "layout_with", "line_bytes_of", "outer_place", "packing_cycles", "short_pixels", "slab_places", "slices_of",
    "strip_of",
]  # fmt: skip

SLAB_BYTES = 32 * 1024
"""The packed strip of an item: it stays in the first-level cache."""
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
    # of those that fit the cheapest, or else the smallest
    return min(layouts, key=lambda layout: (max(slab_places(layout), room), -(-tiles // layout.strip) * packing_cycles(layout)))


def _cut(problem: ConvProblem, draft: Layout, room: int) -> Layout:
    """The layout with bands of whole tiles, as high as a slab of `room` elements allows."""
    reach = max(place for _, place in column_places(problem, draft.columns)) + 1
    bands = draft.bands
    while True:
        band = min(draft.total, -(-draft.total // (bands * draft.rows)) * draft.rows)
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


# What kernels know of a layout.
(
    ROLLING, ROWS, WIDTH, FOLDED, LAG, CLASSES, KERNEL_ROWS, COLUMNS, EXTRA, TOTAL, BAND, BANDS, STRIP, PHASES, PITCH, REACHED,
    PHASE_ROWS, OUTER_TAPS, OUTER_OUTPUTS,
) = range(19)  # fmt: skip
UINT8 = Tag("uint8")


def layout_vector(problem: ConvProblem, layout: Layout) -> np.ndarray[Any, Any]:
    """The vector of a layout; a tile that rolls takes all rows of a band."""
    tile = layout.rolling, layout.band if layout.rolling else layout.rows, layout.width
    kernel = layout.folded, layout.lag, layout.classes, layout.kernel_rows, layout.columns, layout.extra
    cut = layout.total, layout.band, layout.bands, layout.strip, layout.phases, layout.pitch, layout.reached, layout.phase_rows
    return np.array([*tile, *kernel, *cut, math.prod(problem.kernel[:-2]), math.prod(problem.output[:-2])], np.int64)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def band_of(item, g, b):
    """Of an item of one image and group: its first row and the row behind its last, the class of rows, and the outer output."""
    first, left = item % b[BANDS] * b[BAND], item // b[BANDS]
    residue, output, rows = left % b[CLASSES], left // b[CLASSES], b[TOTAL]
    if not b[FOLDED]:
        rows = (g[part(g, OUTPUT) + g[DIMS] - 2] - residue + b[CLASSES] - 1) // b[CLASSES]
    return first, min(first + b[BAND], rows), residue, output


@helper
def line_bytes_of(b, at):
    """Bytes from one line of the slab to the next."""
    return (b[WIDTH] if b[FOLDED] else b[PHASES] * b[PITCH]) * itemsize(at)


@helper
def short_pixels(g, b, end_row):
    """The pixels of the last row before `end_row`, if rows are folded and it is the last one at all; else 0."""
    if b[FOLDED] and end_row == b[TOTAL]:
        return g[part(g, OUTPUT)] - (b[TOTAL] - 1) * b[WIDTH]
    return 0


@helper
def strip_of(g, b, column, first_row):
    """Of the strip at a column of the results: the position of x at which its windows start, and its pixels."""
    axis = g[DIMS] - 1
    if b[FOLDED]:
        return first_row * b[WIDTH] * g[part(g, STRIDE)] - g[part(g, LOW)], b[WIDTH]
    start = column * g[part(g, STRIDE) + axis] - g[part(g, LOW) + axis]
    return start, min(b[STRIP] * b[WIDTH], g[part(g, OUTPUT) + axis] - column)


@helper
def first_row_of(g, b, row, residue):
    """The byte offset in y of a row of results of a class, and the distance of neighbouring ones."""
    ys, axis = part(g, PARTS + 2) + 3, g[DIMS] - 1
    if b[FOLDED]:
        return row * b[WIDTH] * g[ys], b[WIDTH] * g[ys]
    return (residue + row * b[CLASSES]) * g[ys + axis - 1], b[CLASSES] * g[ys + axis - 1]


@helper
def outer_place(g, output):
    """The byte offset in y of an outer output."""
    offset = 0
    for axis in range(g[DIMS] - 3, -1, -1):
        offset += output % g[part(g, OUTPUT) + axis] * g[part(g, PARTS + 2) + 3 + axis]
        output //= g[part(g, OUTPUT) + axis]
    return offset


@helper
def pack_lines(slab, x, start, lines, x_row, g, b, split_at, xt, at):
    """So many rows of x, `x_row` bytes apart, from the position `start` on, all their places, in phases."""
    axis, size = g[DIMS] - 1, itemsize(at)
    step, length, stride = g[part(g, PARTS) + 3 + axis], g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis]
    phase_bytes = b[PITCH] * size
    line_bytes = b[PHASES] * phase_bytes
    even = (step == itemsize(xt)) & (split_at != 0)
    if even:
        invoke(split_at, x, start, length, slab, phase_bytes, b[PITCH], lines, x_row, line_bytes, 1, 0, 0)
    if even and g[MODE] == 0:
        return
    for phase in range(b[PHASES]):
        target, first = slab + phase * phase_bytes, start + phase
        if even:
            pack_borders(target, x, first, stride, b[PITCH], (1, 0, 0), (lines, line_bytes, x_row), g, xt, at)
        else:
            for line in range(lines):
                pack_places(target + line * line_bytes, x + line * x_row, first, stride, b[PITCH], g, xt, at)


@helper
def pack_slice(slab, x, base, first, last, start, g, b, split_at, xt, at):
    """The lines first..last of a slice from the position `start` on; line i is row base + dilation * i of x."""
    low, high, step, dilation, axis = 0, 1, 0, 0, g[DIMS] - 2
    line_bytes = b[PHASES] * b[PITCH] * itemsize(at)
    if not b[FOLDED]:
        dilation, step = g[part(g, DILATION) + axis], g[part(g, PARTS) + 3 + axis]
        inside, beyond = inside_lines(base, dilation, g[part(g, SIZE) + axis], g[MODE])
        low = min(max(first, inside), last)
        high = max(min(last, beyond), low)
        clear(slab, (low - first) * b[PHASES] * b[PITCH], at)
        clear(slab + (high - first) * line_bytes, (last - high) * b[PHASES] * b[PITCH], at)
        slab = slab + (low - first) * line_bytes
    begin, end = low, high
    if not b[FOLDED]:
        inside, beyond = inside_lines(base, dilation, g[part(g, SIZE) + axis], 0)
        begin = min(max(low, inside), high)
        end = max(min(high, beyond), begin)
    # neighbouring rows of x together; those of a border one by one, from where their map leads
    if begin < end:
        source = x + (base + begin * dilation) * step
        pack_lines(slab + (begin - low) * line_bytes, source, start, end - begin, dilation * step, g, b, split_at, xt, at)
    for outside in range(begin - low + high - end):
        line = low + outside if outside < begin - low else outside - (begin - low) + end
        row = source_index(base + line * dilation, g[part(g, SIZE) + axis], g[MODE])
        target, other = slab + (line - low) * line_bytes, (row - base) // dilation
        if begin <= other < end and base + other * dilation == row:
            copy_cells(target, slab + (other - low) * line_bytes, b[PHASES] * b[PITCH], at)
        else:
            pack_lines(target, x + row * step, start, 1, step, g, b, split_at, xt, at)


@helper
def inside_lines(base, dilation, size, mode):
    """The lines that are rows of x: those of padding zeros are left out."""
    if mode != 0:
        return -(1 << 60), 1 << 60
    return max(0, -(base // dilation)), max(0, (size - 1 - base) // dilation + 1)


@helper
def band_lines(first_row, end_row, residue, mode, g, b):
    """Of a band: the row of x that is line 0, the lines inside x (all unless `mode` is zeros), and those that its windows reach."""
    if b[FOLDED]:
        return 0, -(1 << 60), 1 << 60, first_row, end_row
    axis = g[DIMS] - 2
    base = residue * g[part(g, STRIDE) + axis] - g[part(g, LOW) + axis]
    inside, beyond = inside_lines(base, g[part(g, DILATION) + axis], g[part(g, SIZE) + axis], mode)
    origin = max(inside, b[LAG] * first_row)
    return base, inside, beyond, origin, max(origin, min(beyond, b[LAG] * (end_row - 1) + b[REACHED]))


@kernel
def pack_strip(
    xt: Tag, at: Tag, slab: Address, slices: Address, x: Address, output: int, base: int, origin: int, end: int, start: int,
    split_at: int, sizes: Address, cutting: Address,
) -> int:  # fmt: skip
    """Pack the lines origin..end of every slice that lies inside x, from the position `start` on; how many slices.

    `slices` gets a pair of byte offsets for each: where it begins in the slab, and among packed weights. `x` is the address of the
    group in an image, `split_at` that of `split`; `sizes` and `cutting` are the vectors of the problem and of the layout.
    """
    g, b = pointer(sizes, INT64), pointer(cutting, INT64)
    slice_bytes = (1 if b[FOLDED] else end - origin) * b[PHASES] * b[PITCH] * itemsize(at)
    weight_bytes = b[COLUMNS] * b[LAG] * b[PHASE_ROWS] * itemsize(at)
    table, count = pointer(slices, INT64), 0
    for c in range(g[PER_C]):
        for tap in range(b[OUTER_TAPS]):
            inside, offset = outer_source(g, output, tap, g[DIMS] - 2)
            if inside:
                source = x + (c * g[part(g, PARTS) + 2] + offset)
                pack_slice(slab + count * slice_bytes, source, base, origin, end, start, g, b, split_at, xt, at)
                table[2 * count], table[2 * count + 1] = count * slice_bytes, (c * b[OUTER_TAPS] + tap) * weight_bytes
                count += 1
    return count


SPLIT, PACK, TILE, SPREAD, SUMS_TILE, SMOOTH = range(6)
"""The functions that drivers call by address; the tiles are those of the driver: one writes results, the other sums."""


_packing = Unit(
    "strips.packing",
    lambda dtype, acc, lanes: [
        (pack_strip, (dtype, acc)),
        (spread, (lanes, acc)),
        (dress, (lanes, acc)),
        *((split, ((phases, lanes), (dtype, acc))) for phases in (1, 2)),
    ],
)


def entry_table(problem: ConvProblem, tile: int, sums_tile: int = 0) -> np.ndarray[Any, Any]:
    """Their addresses; 0 for a stride whose phases are packed an element at a time."""
    dtype, acc, phases = problem.dtype, problem.acc_dtype, problem.stride[-1]
    lanes = lanes_of(acc)
    pack, spreading, dressed, *splits = _packing.functions(dtype, acc, lanes)
    apart = splits[phases - 1] if phases <= len(splits) else lone_split(phases, lanes, (dtype, acc))
    found = apart, pack, tile, spreading, sums_tile, dressed
    return np.array(found, np.int64)
