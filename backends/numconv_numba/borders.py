"""Input gradients where the padding is not of zeros: that of the places inside x as if it were, plus what the borders give back.

What windows read in the padding are places of x again, so their gradients are added there: the adjoint of padding. The gradient of
the places inside x is an input_grad with padding of zeros, written where it belongs, by the cheapest of the others. That of the
padding falls into bands, two for each dimension, each an input_grad of the few taps and outputs that reach it. Where planes are so
small that this would be most of the work, the gradient of the padded x is computed instead, some images at a time. Either way one
kernel adds what the borders give back. A sweep of `planewise` adds it meanwhile, where padding is one place wide, as `crosswise`
does on small planes. The gradient of a circular x is a circular convolution of the gradient of y, where both have one size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype

from .compiling.compiler import Address, Tag, helper, kernel
from .dense.base import Adjoint, forward_parts
from .dense.blocked import CALL_SECONDS, Blocked, seconds
from .dense.implicit_gemm import ImplicitGemm
from .dense.tile import RegisterTile
from .depthwise.channelwise import Channelwise
from .depthwise.crosswise import Crosswise, FoldedPlanes
from .depthwise.depthwise import Depthwise
from .depthwise.plane_folds import folded
from .depthwise.plane_plans import plan_for
from .depthwise.planewise import FoldedSweeps, Planewise
from .direct import MEASURED_ERROR, Direct
from .elements import INT64, itemsize
from .geometry import MODES, source_index, span
from .scalar import add, load, pointer, store, wide_vectors
from .spectral.fft import Fft, FftDouble
from .strided.interleaved import Interleaved
from .strided.subpixel import Subpixel
from .threads import parallel_for, run
from .winograd.forward import Winograd

__all__ = ["Borders", "PlainBorders"]

_OTHERS = (
    Channelwise(), Crosswise(), Planewise(), Interleaved(), Subpixel(), Depthwise(), RegisterTile(), Winograd(), ImplicitGemm(),
    Blocked(), Fft(), FftDouble(), Direct(),
)  # fmt: skip
PADDED_BYTES = 2 * 1024 * 1024
"""Gradients of padded images that are held at a time, where that is cheaper than bands."""
BAND_SECONDS, SHORT_ROWS = 15e-6, 2.0
"""Of a call for a band beside the kernel; and what bands take against estimates that were made for whole planes. Measured."""
CACHED_BYTES, LINE_SECONDS = 2 * 1024 * 1024, 3.5e-9
"""Of x and the gradient of y, beyond which a band along the rows finds its places far away, a line of memory each; and of such a
line, on two threads. Measured."""
FOLDED = 0.7
"""What the strips at both ends of a row take more where a sweep adds the padding: their instructions, counted with AVX2."""
KEPT = 64
"""Combinations of strides whose tables an executor keeps."""


class _Side(NamedTuple):
    """The padding at one end of a dimension: what reads it, as an input_grad of that dimension alone.

    Attributes
    ----------
    first, size : int
        Its places, of which those inside x count from 0.
    taps, outputs : slice
        Of the kernel as it is walked, and of y.
    padding : (int, int)
    """

    first: int
    size: int
    taps: slice
    outputs: slice
    padding: tuple[int, int]


class _Band(NamedTuple):
    """Places in the padding.

    Attributes
    ----------
    axes : tuple of int
        The order of the dimensions in its problem: its own one is not the last, along which tiles are long.
    problem : ConvProblem
        That gives their gradient.
    y, w : tuple of slice
        The parts of y and w, with the dimensions as they are.
    first : tuple of int
        The first place per dimension.
    """

    axes: tuple[int, ...]
    problem: ConvProblem
    y: tuple[slice, ...]
    w: tuple[slice, ...]
    first: tuple[int, ...]

    def view(self, array: Any, part: tuple[slice, ...]) -> Any:
        """A part of y or w with the dimensions in the order of the problem."""
        return array[(..., *part)].transpose(0, 1, *(2 + axis for axis in self.axes))

    def as_it_is(self, array: Any) -> Any:
        """The results of the problem with the dimensions as they are."""
        return array.transpose(0, 1, *(2 + self.axes.index(axis) for axis in range(len(self.axes))))

    @property
    def lines(self) -> int:
        """Lines of memory of which it uses a few bytes: along the rows one of x and one of y for each place of the others."""
        along_rows = self.axes != tuple(range(len(self.axes)))
        return 2 * math.prod(self.problem.x_shape) // self.problem.spatial[0] if along_rows else 0

    @property
    def spatial(self) -> tuple[int, ...]:
        """Places per dimension, with the dimensions as they are."""
        return tuple(self.problem.spatial[self.axes.index(axis)] for axis in range(len(self.axes)))


def _sides(problem: ConvProblem, axis: int) -> list[_Side]:
    """The ends of a dimension that some window reads."""
    size, r, q = problem.spatial[axis], problem.kernel[axis], problem.output[axis]
    s, d, low = problem.stride[axis], problem.dilation[axis], problem.padding[axis][0]
    found = []
    if low > 0:
        taps, outputs = slice(0, min(r, -(-low // d))), slice(0, min(q, -(-low // s)))
        found.append(_side(-low, low, taps, outputs, low, s, d))
    beyond = (q - 1) * s + (r - 1) * d - low - (size - 1)
    if beyond > 0:
        last = size + low
        taps = slice(max(0, -(-(last - (q - 1) * s) // d)), r)
        outputs = slice(max(0, -(-(last - (r - 1) * d) // s)), q)
        found.append(_side(size, beyond, taps, outputs, low, s, d))
    return found


def _side(first: int, size: int, taps: slice, outputs: slice, low: int, s: int, d: int) -> _Side:
    before = first + low - outputs.start * s - taps.start * d
    extent = (outputs.stop - outputs.start - 1) * s + (taps.stop - taps.start - 1) * d + 1
    return _Side(first, size, taps, outputs, (before, extent - size - before))


def _inside(problem: ConvProblem) -> ConvProblem:
    """The gradient of the places inside x alone."""
    return problem.replace(pad_mode="zeros")


@functools.lru_cache(maxsize=64)
def _bands(problem: ConvProblem) -> tuple[_Band, ...]:
    """The places outside x: of a dimension, what lies inside x along those before it, and anywhere along those behind it."""
    whole, ndim = (slice(None),) * problem.ndim, problem.ndim
    found = []
    for axis in range(ndim):
        for side in _sides(problem, axis):
            spatial, padding, first = list(problem.spatial), list(problem.padding), [0] * ndim
            kernel, y, w = list(problem.kernel), list(whole), list(whole)
            spatial[axis], padding[axis], first[axis] = side.size, side.padding, side.first
            kernel[axis], y[axis] = side.taps.stop - side.taps.start, side.outputs
            r = problem.kernel[axis]
            w[axis] = slice(r - side.taps.stop, r - side.taps.start) if problem.flip else side.taps
            for other in range(axis + 1, ndim):
                low, high = (max(0, pads) for pads in problem.padding[other])
                spatial[other], first[other] = spatial[other] + low + high, -low
                padding[other] = problem.padding[other][0] - low, problem.padding[other][1] - high
            axes = tuple(range(ndim)) if axis < ndim - 1 else (axis, *range(axis))
            sizes: dict[str, Any] = {
                "spatial": spatial,
                "kernel": kernel,
                "padding": padding,
                "stride": problem.stride,
                "dilation": problem.dilation,
            }
            ordered = {name: tuple(values[other] for other in axes) for name, values in sizes.items()}
            band = problem.replace(**ordered, pad_mode="zeros", bias="", activation=None)
            found.append(_Band(axes, band, tuple(y), tuple(w), tuple(first)))
    return tuple(found)


def _padded(problem: ConvProblem, images: int) -> ConvProblem:
    """The gradient of so many images of the padded x."""
    pads = [(max(0, low), max(0, high)) for low, high in problem.padding]
    spatial = tuple(size + low + high for size, (low, high) in zip(problem.spatial, pads, strict=True))
    left = tuple((low - a, high - b) for (low, high), (a, b) in zip(problem.padding, pads, strict=True))
    return problem.replace(n=images, spatial=spatial, padding=left, pad_mode="zeros", bias="")


def _images(problem: ConvProblem) -> int:
    """Images whose padded gradients are held at a time."""
    each = math.prod(_padded(problem, 1).x_shape) * np_dtype(problem.acc_dtype).itemsize
    return max(1, min(problem.n, PADDED_BYTES // each))


def _turned(problem: ConvProblem) -> ConvProblem | None:
    """The circular convolution that gives the gradient of a circular x, where it is one."""
    if problem.pad_mode != "circular" or max(problem.stride) > 1 or problem.output != problem.spatial:
        return None
    (only,) = forward_parts(_inside(problem))
    return None if only.problem is None else only.problem.replace(pad_mode="circular")


def _costs(problem: ConvProblem) -> tuple[float, float]:
    """Of computing bands, and of computing the gradient of the padded x."""
    bands = _bands(problem)
    added = sum(math.prod(band.problem.x_shape) for band in bands)
    apart = _cheapest(_inside(problem))[0] + sum(_cheapest_band(band)[0] * SHORT_ROWS + BAND_SECONDS for band in bands)
    if (math.prod(problem.x_shape) + math.prod(problem.y_shape)) * np_dtype(problem.acc_dtype).itemsize > CACHED_BYTES:
        apart += sum(band.lines for band in bands) * LINE_SECONDS
    images = _images(problem)
    padded = _padded(problem, images)
    # written and read once more
    whole = -(-problem.n // images) * (_cheapest(padded)[0] + BAND_SECONDS + seconds(math.prod(padded.x_shape) * 0.5))
    return apart + seconds(added * 2), math.inf if problem.bias else whole


def _swept_cost(problem: ConvProblem) -> float:
    """Of a sweep that adds the padding, if there is one."""
    swept = folded(problem)
    if not swept or not Planewise().supports(swept):
        return math.inf
    return Planewise().cost(swept) * (1 + FOLDED * min(1.0, 2 / plan_for(swept).strips))


def _together(problem: ConvProblem) -> tuple[float, Callable[[ConvProblem], Any]]:
    """What adds the padding while it computes, a sweep or planes that are transposed, and its cost; infinite if neither can."""
    swept, turned = _swept_cost(problem), FoldedPlanes.cost(problem)
    return (swept, FoldedSweeps) if swept <= turned else (turned, FoldedPlanes)


@functools.lru_cache(maxsize=256)
def _cheapest(problem: ConvProblem, swept: bool = True) -> tuple[float, Implementation]:
    """Who computes one of these problems, and its estimate; `swept`: whether by sweeping down planes, too."""
    able = [each for each in _OTHERS if problem.level in each.levels and (swept or not isinstance(each, Planewise))]
    able = [each for each in able if problem.op in each.ops and each.supports(problem)]
    # where all need more, the workspace of one tells it
    able = [each for each in able if each.workspace(problem) <= problem.max_workspace // 2] or able
    costs = [each.cost(problem) for each in able]
    return min(costs), able[costs.index(min(costs))]


def _cheapest_band(band: _Band) -> tuple[float, Implementation]:
    """The same of a band, which is no plane to sweep down, one input channel after the other."""
    return _cheapest(band.problem, band.problem.k == band.problem.groups)


# --- kernel --------------------------------------------------------------------------------------------------------------------

# What the kernel knows of a region: where it lies in the buffer, whether it is stored, the bytes from image to image and from
# channel to channel, then five entries a dimension. The last two dimensions are called rows and columns; there may be one row.
START, STORED, IMAGE, CHANNEL, HEAD = 0, 1, 2, 3, 4
COUNT, FIRST, SIZE, X_STEP, STEP, ENTRIES = range(6)


@helper
def entry(v, axis, which):
    """An entry of a dimension."""
    return v[HEAD + axis * ENTRIES + which]


@helper
def place_of(v, axis, i, mode):
    """The byte offset in x, along a dimension, of place i of a band."""
    return source_index(entry(v, axis, FIRST) + i, entry(v, axis, SIZE), mode) * entry(v, axis, X_STEP)


@helper
def add_cells(x, band, count, x_step, step, stored, at):
    """x += band, or = if it is stored, for so many cells that lie evenly spaced."""
    wide_vectors()
    size = itemsize(at)
    if stored & (x_step == size) & (step == size):
        for i in range(count):
            store(x + i * size, load(band + i * size, at), at)
    elif stored:
        for i in range(count):
            store(x + i * x_step, load(band + i * step, at), at)
    elif (x_step == size) & (step == size):
        for i in range(count):
            store(x + i * size, add(load(x + i * size, at), load(band + i * size, at)), at)
    else:
        for i in range(count):
            store(x + i * x_step, add(load(x + i * x_step, at), load(band + i * step, at)), at)


@helper
def add_column(x, band, row, rows, v, mode, at):
    """A column of a band; the places of the dimension of rows that lie inside x together."""
    step, count = entry(v, row, STEP), entry(v, row, COUNT)
    low, high = rows
    if low < high:
        add_cells(x + place_of(v, row, low, mode), band + low * step, high - low, entry(v, row, X_STEP), step, False, at)
    for outside in range(low + count - high):
        i = outside if outside < low else outside - low + high
        add_cells(x + place_of(v, row, i, mode), band + i * step, 1, 0, 0, False, at)


@helper
def add_plane(x, band, row, v, mode, at):
    """The rows and columns of a band at one place of the other dimensions."""
    column = row + 1
    rows = span(0, entry(v, row, COUNT), 1, entry(v, row, FIRST), entry(v, row, SIZE))
    low, high = span(0, entry(v, column, COUNT), 1, entry(v, column, FIRST), entry(v, column, SIZE))
    step, count = entry(v, column, STEP), entry(v, column, COUNT)
    for i in range(entry(v, row, COUNT) if low < high else 0):
        source = band + (i * entry(v, row, STEP) + low * step)
        target = x + (place_of(v, row, i, mode) + place_of(v, column, low, mode))
        add_cells(target, source, high - low, entry(v, column, X_STEP), step, v[STORED] != 0, at)
    for outside in range(low + count - high):
        j = outside if outside < low else outside - low + high
        add_column(x + place_of(v, column, j, mode), band + j * step, row, rows, v, mode, at)


@helper
def _channels(begin, end, args):
    at, buffer, x, x_n, x_c, channels, ndim, mode, bands, vectors, length = args
    for item in range(begin, end):
        n, c = item // channels, item % channels
        target = x + (n * x_n + c * x_c)
        for band in range(bands):
            v = pointer(vectors + 8 * band * length, INT64)
            source, outer = buffer + (v[START] + n * v[IMAGE] + c * v[CHANNEL]), 1
            for axis in range(ndim - 2):
                outer *= entry(v, axis, COUNT)
            for place in range(outer):
                left, offset, start = place, 0, 0
                for axis in range(ndim - 3, -1, -1):
                    i = left % entry(v, axis, COUNT)
                    offset += place_of(v, axis, i, mode)
                    start += i * entry(v, axis, STEP)
                    left //= entry(v, axis, COUNT)
                add_plane(target + offset, source + start, ndim - 2, v, mode, at)


@kernel
def add_regions(
    at: Tag, region: int, workers: int, items: int, buffer: Address, x: Address, x_n: int, x_c: int, channels: int, ndim: int,
    mode: int, bands: int, vectors: Address, length: int,
) -> None:  # fmt: skip
    """x += the regions, each place where the padding has it from, one after the other: an item is a channel of an image."""
    args = at, buffer, x, x_n, x_c, channels, ndim, mode, bands, vectors, length
    parallel_for(region, workers, items, _channels, args)


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Region(NamedTuple):
    """What is added to x, or stored there first: where it lies in a buffer, its images and channels, and its places.

    Attributes
    ----------
    part : ndarray
        ``[N, C, *places]`` in the buffer.
    first : tuple of int
        The first place per dimension.
    stored : bool
    """

    part: Any
    first: tuple[int, ...]
    stored: bool = False


class _Adder:
    """Adds regions of a buffer to x: where the regions lie is fixed, the strides of x come with a call."""

    def __init__(self, problem: ConvProblem, buffer: Any, regions: list[_Region]):
        self._problem, self._elements = problem, buffer.size
        self._kernel = add_regions.specialise(problem.acc_dtype)
        start = buffer.ctypes.data
        self._rows = [
            ([each.part.ctypes.data - start, int(each.stored), *each.part.strides[:2]], each.part.shape[2:], each.first,
             each.part.strides[2:]) for each in regions
        ]  # fmt: skip
        self._tables: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def __call__(self, buffer: Any, x: Any) -> None:
        """Add them to the images of x."""
        table, (n, c, *steps) = self._table(x.strides), x.strides
        run(
            self._kernel, len(x) * self._problem.c, 8 * self._elements, buffer, x, n, c, self._problem.c, max(2, len(steps)),
            MODES[self._problem.pad_mode], len(table), table, table.shape[1],
        )  # fmt: skip

    def _table(self, strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The vectors of all regions for an x of these strides."""
        found = self._tables.get(strides)
        if found is None:
            spatial, rows = self._problem.spatial, []
            for head, counts, first, steps in self._rows:
                entries = list(map(list, zip(counts, first, spatial, strides[2:], steps, strict=True)))
                if len(entries) == 1:
                    entries.insert(0, [1, 0, 1, 0, 0])
                rows.append([*head, *(value for one in entries for value in one)])
            found = np.array(rows, np.int64)
            if len(self._tables) < KEPT:
                self._tables[strides] = found
        return found


def _array(flat: Any, problem: ConvProblem) -> Any:
    """``[N, C, *S]`` on flat elements; the channels are last where those of x are."""
    n, c, *spatial = problem.x_shape
    if problem.layout == "channels_first":
        return flat.reshape(n, c, *spatial)
    return np.moveaxis(flat.reshape(n, *spatial, c), -1, 1)


class _Apart:
    """An input gradient by bands."""

    def __init__(self, problem: ConvProblem):
        bands, inside = _bands(problem), _inside(problem)
        self._inside = _cheapest(inside)[1].build(inside)
        self._bands = [(band, _cheapest_band(band)[1].build(band.problem)) for band in bands]
        self._ends = np.cumsum([0, *(math.prod(band.problem.x_shape) for band in bands)]).tolist()
        self._dtype = np_dtype(problem.acc_dtype)
        buffer = np.empty(self._ends[-1], self._dtype)
        parts = zip(self._parts(buffer), bands, strict=True)
        self._add = _Adder(problem, buffer, [_Region(band.as_it_is(part), band.first) for part, band in parts])

    def _parts(self, buffer: Any) -> list[Any]:
        """The results of the bands."""
        bounds = zip(self._ends, self._ends[1:], strict=False)
        return [_array(buffer[a:b], band.problem) for (a, b), (band, _) in zip(bounds, self._bands, strict=True)]

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; a bias is added to what lies inside."""
        y, w = ins[:2]
        self._inside(outs, ins)
        if self._bands:
            buffer = np.empty(self._ends[-1], self._dtype)
            for part, (band, executor) in zip(self._parts(buffer), self._bands, strict=True):
                executor((part,), (band.view(y, band.y), band.view(w, band.w)))
            self._add(buffer, outs[0])


class _Whole:
    """An input gradient by that of the padded x, some images at a time."""

    def __init__(self, problem: ConvProblem):
        self._images, self._dtype = _images(problem), np_dtype(problem.acc_dtype)
        self._problems = {count: _padded(problem, count) for count in {self._images, problem.n % self._images or self._images}}
        self._executors = {count: _cheapest(each)[1].build(each) for count, each in self._problems.items()}
        self._adders = {count: self._adder(problem, each) for count, each in self._problems.items()}

    def _adder(self, problem: ConvProblem, padded: ConvProblem) -> _Adder:
        buffer = np.empty(math.prod(padded.x_shape), self._dtype)
        array, lows = _array(buffer, padded), [max(0, low) for low, _ in problem.padding]
        places = [((0,) * problem.ndim, problem.spatial), *((band.first, band.spatial) for band in _bands(problem))]
        regions = []
        for number, (first, counts) in enumerate(places):
            part = tuple(slice(low + f, low + f + count) for low, f, count in zip(lows, first, counts, strict=True))
            regions.append(_Region(array[(..., *part)], first, number == 0))
        return _Adder(problem, buffer, regions)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (x,), (y, w) = outs, ins
        for start in range(0, len(x), self._images):
            images = slice(start, start + self._images)
            count = len(x[images])
            buffer = np.empty(math.prod(self._problems[count].x_shape), self._dtype)
            self._executors[count]((_array(buffer, self._problems[count]),), (y[images], w))
            self._adders[count](buffer, x[images])


class _Together:
    """An input gradient by what adds the padding meanwhile; other orders of memory, and weights not finite, go to another."""

    def __init__(self, problem: ConvProblem, folded: Callable[[ConvProblem], Any], other: Callable[[ConvProblem], Any]):
        self._problem, self._make, self._folded = problem, other, folded(problem)

    @functools.cached_property
    def _other(self) -> Any:
        return self._make(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if not self._folded(outs, ins):
            self._other(outs, ins)


class Borders(Implementation):
    """Input gradients of real floats with a padding mode."""

    name = "borders"
    ops = frozenset(("input_grad",))
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = Winograd.measured_error

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats with a padding mode."""
        if problem.pad_mode == "zeros":
            return Verdict.no("padding of zeros gives nothing back")
        if problem.acc_dtype not in ("float32", "float64") or problem.out_dtype != problem.acc_dtype:
            return Verdict.no(f"it adds to results where they are, and those of {problem.dtype} are {problem.out_dtype}")
        if problem.activation:
            return Verdict.no(f"its results are not complete before {problem.activation} could be applied")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Of all parts, and of adding them."""
        turned = _turned(problem)
        return CALL_SECONDS + (_cheapest(turned)[0] if turned else min(*_costs(problem), _together(problem)[0]))

    def workspace(self, problem: ConvProblem) -> int:
        """The bands or some padded images, and of the part that needs most; what adds meanwhile leaves some arrays to these."""
        turned = _turned(problem)
        if turned:
            return _cheapest(turned)[1].workspace(turned) + math.prod(problem.w_shape) * np_dtype(problem.acc_dtype).itemsize
        apart, whole = _costs(problem)
        if apart <= whole:
            held, inside = [band.problem for band in _bands(problem)], _inside(problem)
            bands = [_cheapest_band(band)[1].workspace(band.problem) for band in _bands(problem)]
            most = max([_cheapest(inside)[1].workspace(inside), *bands])
        else:
            held = [_padded(problem, _images(problem))]
            most = _cheapest(held[0])[1].workspace(held[0])
        most += sum(math.prod(part.x_shape) for part in held) * np_dtype(problem.acc_dtype).itemsize
        return max(most, FoldedPlanes.workspace(problem))

    def build(self, problem: ConvProblem) -> Any:
        """The executor."""
        turned = _turned(problem)
        if turned:
            return Adjoint(problem, forward_parts(_inside(problem)), [_cheapest(turned)[1].build(turned)])
        apart, whole = _costs(problem)
        other = _Apart if apart <= whole else _Whole
        together, folded = _together(problem)
        return _Together(problem, folded, other) if together < min(apart, whole) else other(problem)


class PlainBorders(Borders):
    """The same by plain sums."""

    name = "plain_borders"
    levels = frozenset(("high",))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
