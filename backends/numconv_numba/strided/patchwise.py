"""Input gradients whose windows cover x without overlap, so twofold upsampling of U-Nets, and the gradients of patch embeddings.

Each element of x is read by one tap of one window: all taps of all input channels are rows of one matrix product with the gradient
of y, whose results only need their places. A work item gathers a panel of pixels, ``[channel][pixel]``, over which pass the tiles
of some rows; taps along a row of x are woven together as they leave the registers (see `microkernels.patch_product`), so that lines
of x are written once, whole, and nothing is moved afterwards. Weights are packed by tiles: as they lie, terms are pages apart.

The terms of an element form one chain in the order of the "strict" level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, activate, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.base import fill
from numconv_numba.dense.blocked import CALL_SECONDS, MOST_PARTS, parts_for, seconds
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.microkernels import patch_product as job_of
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.patch_product import pack_rows, patch_product
from numconv_numba.microkernels.tiles import Tile, tile_share
from numconv_numba.scalar import as_integer, is_null, pointer
from numconv_numba.threads import MAX_THREADS, Areas, Kept, area_of, parallel_for, parallel_items, run, run_with, taken_items

from .subpixel import Subpixel

__all__ = ["Patchwise"]

PANEL_BYTES = 128 * 1024
"""What is gathered at a time, at most: tiles read it as a stream from the second-level cache, and share it."""
PACK_WORK = 4
"""Multiply-adds that take as long as packing one weight."""
PRODUCT_CYCLES = 1.02
"""Against those that are counted, as in `implicit_gemm`, whose loop this is."""
TILE_CYCLES = 2.5
"""Of the start and the end of each vector of a tile's sums, and of weaving it."""
STORED_CYCLES = 1
"""Of a store of woven taps."""
START_CYCLES = 20
"""Of a tile beside its vectors."""
GATHERED_CYCLES = 1.5
"""Of a piece of a term that is gathered."""
PANEL_CYCLES = 300
"""Of the start of a panel, and of finding its pieces."""
PACKED_CYCLES = 0.6
"""Of packing one weight."""
ACTIVATED_SECONDS = 4e-10
"""Of an element of x that gets its activation in a pass of its own."""
LINE = 64
"""Bytes of a line, which holds weights of several tiles."""


class _Layout(NamedTuple):
    """How a problem is cut.

    Attributes
    ----------
    tile : Tile
    taps : int
        Of a row of x that are woven together.
    length : int
        Of a piece of pixels, which are neighbours; the last one of a line may overlap the one before.
    pieces : int
        Of all images.
    tiles : int
        Of a group; the last one ends with the last row, and may overlap the one before.
    chunk : int
        Terms of a panel.
    row : int
        Taps of a row of a patch.
    """

    tile: Tile
    taps: int
    length: int
    pieces: int
    tiles: int
    chunk: int
    row: int

    @property
    def vectors(self) -> int:
        """Of pixels of all images."""
        return -(-self.pieces * self.length // self.tile.lanes)

    def vector_cycles(self, depth: int) -> float:
        """Of a vector of pixels: gathering it, its products with all tiles, and its results, of so many terms."""
        pieces, channels = self.tile.lanes // self.length, self.tile.channels
        stores = max(pieces, self.taps) if self.taps == self.row else max(self.tile.lanes, self.taps)
        each = channels * (depth / 2 * PRODUCT_CYCLES + TILE_CYCLES) + channels // self.taps * stores * STORED_CYCLES
        return self.tiles * each + depth * pieces * GATHERED_CYCLES

    @property
    def panels(self) -> int:
        """Of all images."""
        return -(-self.vectors // self.tile.vectors)


def _covers(problem: ConvProblem) -> bool:
    """Whether windows begin with x, and none ends behind it."""
    inside = all(q * s <= size for q, s, size in zip(problem.output, problem.stride, problem.spatial, strict=True))
    return inside and not any(low for low, _ in problem.padding)


def _rows(problem: ConvProblem) -> int:
    """Of the product of a group: input channels with all their taps."""
    return problem.c // problem.groups * math.prod(problem.kernel)


@functools.lru_cache(maxsize=256)
def _tile(problem: ConvProblem) -> tuple[Tile, int] | None:
    """The tile that computes the fewest rows in vain, and how many taps of a row of x it weaves together; None if there is none."""
    rows, found = _rows(problem), []
    for vectors, channels in host().pixel_tiles:
        taps = math.gcd(problem.kernel[-1], channels)
        if channels <= rows and taps > 1 and taps & (taps - 1) == 0:
            share = -(-rows // channels) * channels * tile_share(vectors, channels)
            found.append((share, -taps, Tile(vectors, channels, lanes_of(problem.dtype))))
    if not found:
        return None
    _, taps, tile = min(found)
    return tile, -taps


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    """The layout of a problem, which its cost, its workspace and its executor ask for one after the other."""
    found = _tile(problem)
    assert found is not None, problem
    tile, taps = found
    depth, item = problem.k // problem.groups, np_dtype(problem.dtype).itemsize
    most = max(1, PANEL_BYTES // (tile.vectors * tile.lanes * item))
    chunk = -(-depth // max(1, -(-depth // most)))
    tiles = -(-_rows(problem) // tile.channels)

    def layout(length: int) -> _Layout:
        pieces = problem.n * math.prod(problem.output[:-1]) * -(-problem.output[-1] // length)
        return _Layout(tile, taps, length, pieces, tiles, chunk, problem.kernel[-1])

    lengths = [tile.lanes >> shift for shift in range(1, tile.lanes.bit_length())]
    fitting = [layout(length) for length in lengths if length <= max(1, problem.output[-1])]
    return min(fitting, key=lambda one: one.vectors * one.vector_cycles(depth))


# What the kernel knows of a problem; then three numbers a dimension but the last: windows, and bytes from window to window in y and
# in x; then those of the last one.
(
    DIMS, GROUPS, DEPTH, CHUNK, TILES, CHANNELS, LENGTH, TOGETHER, PER_TILE, PIECES, PANELS, RELU, Y_N, Y_GROUP, Y_C, X_N, X_GROUP,
    AXES,
) = range(18)  # fmt: skip

# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def find_piece(number, g):
    """The byte offsets of a piece of pixels in y and in x."""
    last = AXES + 3 * (g[DIMS] - 1)
    pieces = -(-g[last] // g[LENGTH])
    pixel, left = min(number % pieces * g[LENGTH], g[last] - g[LENGTH]), number // pieces
    source, place = pixel * g[last + 1], pixel * g[last + 2]
    for axis in range(g[DIMS] - 2, -1, -1):
        entry = AXES + 3 * axis
        source += left % g[entry] * g[entry + 1]
        place += left % g[entry] * g[entry + 2]
        left //= g[entry]
    return source + left * g[Y_N], place + left * g[X_N]


@helper
def first_piece(panel, g):
    """The number of the first piece of a panel."""
    vectors = -(-g[PIECES] // g[TOGETHER])
    return vectors * panel // g[PANELS] * g[TOGETHER]


@helper
def find_pieces(sources, places, panel, g):
    """The pieces of a panel; returns how many vectors they make. Panels are about equal, for a vector alone takes longer."""
    first, end = first_piece(panel, g), first_piece(panel + 1, g)
    for piece in range(end - first):
        # of the last vector, which may lack some, the last piece stands for them
        sources[piece], places[piece] = find_piece(min(first + piece, g[PIECES] - 1), g)
    return (end - first) // g[TOGETHER]


# The parts of a worker's scratch memory: the job, the pieces of a panel in y and in x, the panel, sums between its chunks.
JOB, SOURCES, PLACES, PANEL, SUMS, AREAS = range(6)


@helper
def multiply_panel(job, tool, y, following, w, rows, bias, first, last, filled, g, at):
    """The results of a panel for the tiles first .. last; `w`, `rows`, `bias`: of the group. `filled`: whether it is there.

    `following`: the bytes in y at which the next panel begins, which is fetched, or -1.
    """
    size, width, groups = itemsize(at), g[CHANNELS] * itemsize(at), g[PER_TILE]
    numbers = pointer(job, INT64)
    numbers[job_of.TILES], numbers[job_of.W_TILE] = last - first, g[DEPTH] * width
    numbers[job_of.ROWS] = as_integer(rows) + first * groups * 8
    numbers[job_of.BIAS] = 0 if is_null(bias) else as_integer(bias) + first * groups * size
    for term in range(0, g[DEPTH], g[CHUNK]):
        numbers[job_of.TERMS] = min(g[CHUNK], g[DEPTH] - term)
        numbers[job_of.W] = as_integer(w) + (first * g[DEPTH] + term) * width
        numbers[job_of.RESUME], numbers[job_of.FINISH] = min(term, 1), 1 if term + g[CHUNK] >= g[DEPTH] else 0
        numbers[job_of.Y] = 0 if filled else as_integer(y) + term * g[Y_C]
        numbers[job_of.NEXT] = 0 if following < 0 else as_integer(y) + following + term * g[Y_C]
        invoke(tool, job)


@helper
def _panels(worker, queue, args):
    at, scratch, areas, tool, splits, y, w, rows, bias, x, g = args
    own = area_of(scratch, areas, AREAS, worker)
    job, sources, places = own + areas[JOB], pointer(own + areas[SOURCES], INT64), pointer(own + areas[PLACES], INT64)
    numbers, size = pointer(job, INT64), itemsize(at)
    numbers[job_of.PANEL], numbers[job_of.SUMS] = as_integer(own + areas[PANEL]), as_integer(own + areas[SUMS])
    numbers[job_of.PIECES], numbers[job_of.PLACES] = as_integer(own + areas[SOURCES]), as_integer(own + areas[PLACES])
    numbers[job_of.RELU], numbers[job_of.Y_TERM] = g[RELU], g[Y_C]
    numbers[job_of.STEP] = g[AXES + 3 * g[DIMS] - 1]
    found = -1
    for item in taken_items(queue, worker):
        panel, group = item // splits % g[PANELS], item // splits // g[PANELS]
        filled = (found == item // splits) & (g[CHUNK] == g[DEPTH])
        if not filled:
            numbers[job_of.VECTORS] = find_pieces(sources, places, panel, g)
            found = item // splits
        numbers[job_of.X] = as_integer(x) + group * g[X_GROUP]
        first, last = g[TILES] * (item % splits) // splits, g[TILES] * (item % splits + 1) // splits
        shift = bias if is_null(bias) else bias + group * g[TILES] * g[PER_TILE] * size
        part = w + group * g[TILES] * g[DEPTH] * g[CHANNELS] * size
        following = -1
        if (panel + 1 < g[PANELS]) & ((item + 1) % splits == 0):
            following, _ = find_piece(first_piece(panel + 1, g), g)
        multiply_panel(job, tool, y + group * g[Y_GROUP], following, part, rows, shift, first, last, filled, g, at)


@kernel
def patchwise(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tool: int, splits: int, y: Address,
    w: Address, rows: Address, bias: Address, x: Address, g: Address,
) -> None:  # fmt: skip
    """x from y and packed w: an item is a panel of pixels of a group, for some of the tiles of rows.

    `tool`: the address of a `patch_product`. `rows`: for each tile its rows of x, in bytes; `bias`: of each of these and all
    groups, or 0.
    """
    parallel_items(
        region,
        workers,
        items,
        _panels,
        (
            at, scratch, pointer(areas, INT64), tool, splits, y, w, rows, bias, x,
            pointer(g, INT64),
        ),
    )  # fmt: skip


@helper
def _packed(begin, end, args):
    at, tool, together, last, w, w_group, w_step, target, g = args
    size = itemsize(at)
    width, parts = g[CHANNELS] * size, -(-g[TILES] // together)
    for item in range(begin, end):
        group, first = item // parts, item % parts * together
        source, place = w + group * w_group, target + (group * g[TILES] + first) * g[DEPTH] * width
        count = min(together, g[TILES] - first)
        if first + count == g[TILES]:  # the last tile ends with the last row
            count -= 1
            tile = place + count * g[DEPTH] * width
            invoke(tool, source + last * size, w_step, g[DEPTH], 1, tile, 0)
        invoke(tool, source + first * width, w_step, g[DEPTH], count, place, g[DEPTH] * width)


@kernel
def pack_tiles(
    at: Tag, region: int, workers: int, items: int, tool: int, together: int, last: int, w: Address, w_group: int, w_step: int,
    target: Address, g: Address,
) -> None:  # fmt: skip
    """All tiles of w, ``[group][tile][term][row]``: an item is as many as are packed `together`.

    `tool`: the address of a `pack_rows`. `last`: the first row of the last tile. `w_group`, `w_step`: bytes from group to group,
    and from term to term.
    """
    args = at, tool, together, last, w, w_group, w_step, target, pointer(g, INT64)
    parallel_for(region, workers, items, _packed, args)


_kernels = Unit(
    "patchwise.kernels",
    lambda shape, dtype: [(patch_product, (shape, dtype)), (pack_rows, (shape[1], dtype))],
    called=lambda shape, dtype: [(patchwise, (dtype,)), (pack_tiles, (dtype,))],
)


# --- the implementation --------------------------------------------------------------------------------------------------------


def _areas(problem: ConvProblem, layout: _Layout) -> Areas:
    """A worker's scratch memory."""
    tile, tiles, chunk = layout.tile, layout.tiles, layout.chunk
    item, width = np_dtype(problem.dtype).itemsize, tile.vectors * tile.lanes
    parted = chunk < problem.k // problem.groups
    pieces = 8 * tile.vectors * tile.lanes // layout.length
    return Areas(8 * job_of.JOB, pieces, pieces, chunk * width * item, tiles * tile.channels * width * item if parted else 0)


def _packed_bytes(problem: ConvProblem, layout: _Layout) -> int:
    """Of weights in tiles."""
    rows = problem.groups * layout.tiles * layout.tile.channels
    return rows * (problem.k // problem.groups) * np_dtype(problem.dtype).itemsize


_kept = Kept()


class _Executor:
    """One input gradient."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._layout = layout = _layout(problem)
        tile = layout.tile
        self._per_c, self._work = problem.c // problem.groups, problem.flops / 2
        shape = (tile.vectors, tile.channels, tile.lanes, layout.length, layout.taps, int(layout.taps == layout.row))
        self._kernel, self._pack, self._tool, self._pack_tool = _kernels.functions(shape, problem.dtype)
        self._areas = _areas(problem, layout)
        self._together = max(1, LINE // (tile.channels * np_dtype(problem.dtype).itemsize))
        last = _rows(problem) - tile.channels
        firsts = np.minimum(np.arange(layout.tiles) * tile.channels, last)
        self._last = last
        self._rows = (firsts[:, None] + np.arange(0, tile.channels, layout.taps)).ravel()
        self._vectors = functools.lru_cache(maxsize=8)(self._vector)

    @functools.cached_property
    def _apart(self) -> Any:
        """For arrays whose neighbours lie apart."""
        return Subpixel().build(self._problem)

    def _vector(self, y: tuple[int, ...], x: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """What the kernel knows, and the offsets of rows of x, for arrays of these strides."""
        problem, layout = self._problem, self._layout
        tile, per_k = layout.tile, problem.k // problem.groups
        head = [
            problem.ndim, problem.groups, per_k, layout.chunk, layout.tiles, tile.channels, layout.length,
            tile.lanes // layout.length, tile.channels // layout.taps, layout.pieces, layout.panels,
            int(problem.activation == "relu"), y[0], per_k * y[1], y[1], x[0], self._per_c * x[1],
        ]  # fmt: skip
        each = zip(problem.output, y[2:], x[2:], problem.stride, strict=True)
        axes = [value for size, of_y, of_x, s in each for value in (size, of_y, of_x * s)]
        channel, *taps = np.unravel_index(self._rows, (self._per_c, *problem.kernel))
        offsets = channel * x[1] + sum(tap * step for tap, step in zip(taps, x[2:], strict=True))
        return np.array([*head, *axes], np.int64), np.ascontiguousarray(offsets, np.int64)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        size = _packed_bytes(self._problem, self._layout)
        memory = _kept.take(size + LINE)
        start = -memory.ctypes.data % LINE
        self._run(outs, ins, lambda: self._in_tiles(ins[1], memory[start : start + size]))

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, packed."""
        original = w.copy()
        packed = self._in_tiles(original, np.empty(_packed_bytes(self._problem, self._layout), np.uint8))
        return lambda outs, ins: self._run(outs, (ins[0], original, *ins[1:]), lambda: packed)

    def _in_tiles(self, w: Any, target: Any) -> Any:
        """w in tiles of rows, where the taps of all channels of a term are neighbours."""
        if self._problem.flip:
            w = np.flip(w, tuple(range(2, w.ndim)))
        w = np.ascontiguousarray(w)
        items = self._problem.groups * -(-self._layout.tiles // self._together)
        group, step = w.strides[0] * (self._problem.k // self._problem.groups), w.strides[0]
        vector, _ = self._vectors(w.strides, w.strides)
        work = target.size // w.itemsize * PACK_WORK
        run(self._pack, items, work, self._pack_tool, self._together, self._last, w, group, step, target, vector)
        return target

    def _run(self, outs: Any, ins: Any, packed: Any) -> None:
        (x,), y, bias = outs, ins[0], ins[2:]
        if x.strides[-1] != x.itemsize or y.strides[-1] != y.itemsize:
            self._apart(outs, ins)
            return
        problem, layout = self._problem, self._layout
        items = layout.panels * problem.groups
        if items:
            vector, rows = self._vectors(y.strides, x.strides)
            splits = parts_for(items, layout.tiles, self._work)
            run_with(
                self._areas, self._kernel, items * splits, self._work, self._tool, splits, y, packed(), rows,
                self._shift(bias), x, vector,
            )  # fmt: skip
        self._finish(x, bias)

    def _shift(self, bias: Sequence[Any]) -> Any:
        """The bias of each row of x of all tiles and groups, or 0."""
        if not bias:
            return 0
        return bias[0].reshape(self._problem.groups, -1)[:, self._rows // math.prod(self._problem.kernel)].copy()

    def _finish(self, x: Any, bias: Sequence[Any]) -> None:
        """Positions behind the last windows, and activations of a pass of their own."""
        problem = self._problem
        relu = "relu" if problem.activation == "relu" else None
        for axis, (size, q, s) in enumerate(zip(problem.spatial, problem.output, problem.stride, strict=True)):
            if size > q * s:
                fill(x[(..., slice(q * s, None), *[slice(None)] * (problem.ndim - 1 - axis))], bias, relu)
        if not relu:
            activate(x, problem.activation)


class Patchwise(Implementation):
    """The input gradient of a convolution whose stride is its kernel's size."""

    name = "patchwise"
    ops = frozenset(("input_grad",))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """float32 and float64, channels first, windows that cover x from its beginning without overlap."""
        if problem.dtype not in ("float32", "float64") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"its tiles take and give float32, or float64, and here {problem.dtype} becomes {problem.out_dtype}")
        if problem.layout != "channels_first":
            return Verdict.no(f"its lanes are pixels, which are no neighbours with layout {problem.layout}")
        if problem.kernel != problem.stride or max(problem.stride) == 1:
            return Verdict.no(f"windows have to lie side by side, and those of {problem.kernel} begin every {problem.stride}")
        if not _covers(problem):
            return Verdict.no(f"windows have to cover x from its beginning, and padding is {problem.padding}")
        if max(d for d, r in zip(problem.dilation, problem.kernel, strict=True) if r > 1) > 1:
            return Verdict.no(f"dilation {problem.dilation}: taps of a window are no neighbours")
        if _tile(problem) is None:
            return Verdict.no(f"its tiles weave an even number of taps, and rows of windows have {problem.kernel[-1]}")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Products, those of overlaps included; gathering, storing and packing; start-up."""
        layout = _layout(problem)
        depth = problem.k // problem.groups
        # sums that are parted are stored and loaded again
        starts = layout.panels * layout.tiles * START_CYCLES * -(-depth // layout.chunk)
        cycles = problem.groups * (layout.vectors * layout.vector_cycles(depth) + starts + layout.panels * PANEL_CYCLES)
        cycles += math.prod(problem.w_shape) * PACKED_CYCLES
        activated = math.prod(problem.x_shape) * ACTIVATED_SECONDS * (problem.activation not in (None, "relu"))
        return CALL_SECONDS + 4e-6 + activated + seconds(cycles, problem.flops / 2)

    def workspace(self, problem: ConvProblem) -> int:
        """Packed weights, a copy of w, and for each thread a panel; or what `subpixel` needs."""
        layout, item = _layout(problem), np_dtype(problem.dtype).itemsize
        workers = min(MAX_THREADS, max(1, layout.panels * problem.groups * min(layout.tiles, MOST_PARTS)))
        packed = _packed_bytes(problem, layout) + math.prod(problem.w_shape) * item
        tables = problem.groups * layout.tiles * layout.tile.channels * (item + 16)
        return max(packed + tables + workers * _areas(problem, layout).bytes, Subpixel().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
