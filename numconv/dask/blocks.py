"""Chunks of x and of y that belong together, and what is computed of each.

Along a spatial axis, output q reads the positions from q s - low to q s - low + d(r - 1). Where y has a border between chunks, at
some q, x has one at q s - low + b, with b, up to low, such that with "same" padding both are at the same place. Beside its own, a
chunk of x needs the last b elements of the one before and the first d(r - 1) + 1 - s - b of the one behind.

Positions of maxima are those in the whole volume, and of a chunk's own in what is computed of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.array.overlap import overlap
from dask.array.utils import meta_from_array

from numconv.context import Context, resumed
from numconv.dispatch import Choice, run
from numconv.errors import ProblemError
from numconv.plugin import activate, check_indices

__all__ = [
    "Axis", "Call", "Frame", "activated", "apart", "as_one", "blockwise", "conv_block", "edges", "folded", "gathered", "haloed",
    "item", "maxima_block", "padded", "pool_block", "share_block", "shared", "spread", "spread_block", "started", "unpool_block",
    "weight_block",
]  # fmt: skip

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Frame:
    """Where the axes of x and y are, all with N, and what `dask.array.blockwise` calls them."""

    ndim: int
    last: bool

    @property
    def channel(self) -> int:
        """The axis of the channels."""
        return self.ndim + 1 if self.last else 1

    @property
    def spatial(self) -> range:
        """The spatial axes."""
        return range(1, self.ndim + 1) if self.last else range(2, self.ndim + 2)

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the spatial axes."""
        return tuple(f"s{i}" for i in range(self.ndim))

    @property
    def window(self) -> tuple[str, ...]:
        """Names of the axes of a kernel."""
        return tuple(f"r{i}" for i in range(self.ndim))

    def axes(self, n: Any, channel: Any, spatial: Iterable[Any]) -> tuple[Any, ...]:
        """What belongs to N, the channels and space, in the order of the axes."""
        return (n, *spatial, channel) if self.last else (n, channel, *spatial)


class Axis(NamedTuple):
    """The chunks along a spatial axis.

    Attributes
    ----------
    outputs : tuple of int
        Chunks of y.
    inputs : tuple of int
        Chunks of x, without what they read of others.
    halo : tuple of int
        How much of the chunk before and of that behind the gathered side reads beside its own.
    edges : tuple of tuples of int
        What each block is told: of x's side its padding (after `started` where it begins too); of y's where its part of the result
        begins, and its length; of both sides all of these, and how much of x it has, as `shared` says.
    """

    outputs: Ints
    inputs: Ints
    halo: tuple[int, int]
    edges: tuple[Ints, ...]


class _Steps(NamedTuple):
    """One spatial axis of a problem."""

    size: int
    outputs: int
    stride: int
    reach: int  # d(r - 1)
    low: int
    high: int

    def cut(self, candidates: Iterable[int], before: int, least_x: int, least_y: int) -> tuple[Ints, Ints]:
        """The chunks of y and x with borders at those outputs that leave so much on both sides."""
        at = [(0, 0)]
        for q in sorted(set(candidates)):
            start = q * self.stride - self.low
            p = start + before
            fits = q - at[-1][0] >= least_y and p - at[-1][1] >= least_x
            room = self.size + self.high - start > self.reach  # for a whole window, which under ceil_mode the last ones are not
            if fits and room and self.outputs - q >= least_y and self.size - p >= least_x:
                at.append((q, p))
        at.append((self.outputs, self.size))
        outputs, inputs = zip(*[(q1 - q0, p1 - p0) for (q0, p0), (q1, p1) in itertools.pairwise(at)], strict=True)
        return outputs, inputs


def _steps(problem: Any, pairs: Pairs, window: Ints) -> list[_Steps]:
    """The spatial axes of a problem, with this padding left to do."""
    sizes = [size + sum(whole) - sum(left) for size, whole, left in zip(problem.spatial, problem.padding, pairs, strict=True)]
    return [
        _Steps(size, q, s, d * (r - 1), low, high)
        for size, q, s, d, r, (low, high) in zip(
            sizes, problem.output, problem.stride, problem.dilation, window, pairs, strict=True
        )
    ]


def _borders(chunks: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(chunks))[:-1]


def gathered(problem: Any, pairs: Pairs, window: Ints, chunks: Sequence[Sequence[int]]) -> list[Axis]:
    """The chunks where blocks read windows of x, which has these `chunks` along space."""
    found = []
    for axis, along, (whole, _) in zip(_steps(problem, pairs, window), chunks, problem.padding, strict=True):
        halo = max(axis.reach + 1 - axis.stride, 0)
        before = min(whole, halo)
        candidates = [round((border + axis.low - before) / axis.stride) for border in _borders(along)]
        outputs, inputs = axis.cut(candidates, before, max(before, halo - before, 1), 1)
        told = [[0, 0] for _ in outputs]
        told[0][0], told[-1][1] = axis.low, axis.high
        found.append(Axis(outputs, inputs, (before, halo - before), tuple((low, high) for low, high in told)))
    return found


def spread(problem: Any, pairs: Pairs, window: Ints, chunks: Sequence[Sequence[int]]) -> list[Axis]:
    """The chunks where blocks add up what outputs give to x; y has these `chunks` along space."""
    found = []
    for axis, along in zip(_steps(problem, pairs, window), chunks, strict=True):
        halo = axis.reach // axis.stride
        outputs, inputs = axis.cut(_borders(along), 0, 1, max(halo, 1))
        begins = [axis.low, *[halo * axis.stride] * (len(outputs) - 1)]
        found.append(Axis(outputs, inputs, (halo, 0), tuple(zip(begins, inputs, strict=True))))
    return found


def started(axes: Iterable[Axis]) -> list[Axis]:
    """The axes of `gathered`, whose blocks are told where what they have of x begins too."""
    found = []
    for axis in axes:
        begins = [0, *(border - axis.halo[0] for border in _borders(axis.inputs))]
        edges = tuple((*padding, begin) for padding, begin in zip(axis.edges, begins, strict=True))
        found.append(axis._replace(edges=edges))
    return found


def shared(problem: Any, chunks: Sequence[Sequence[int]]) -> list[Axis]:
    """The chunks where blocks add up what windows give to x, and have all of x that these hold; y has these `chunks` along space.

    The halo is that of x, on y's side it is as many windows as begin in it. A block is told its padding, where its part of the
    result begins and its length, how much of x it has, and where that begins.
    """
    found = []
    for axis, along in zip(_steps(problem, problem.padding, problem.window), chunks, strict=True):
        windows = axis.reach // axis.stride
        before, behind = windows * axis.stride, max(axis.reach + 1 - axis.stride, 0)
        outputs, inputs = axis.cut(_borders(along), 0, max(before, behind, 1), max(windows, 1))
        told, last = [], len(inputs) - 1
        for i, (begin, size) in enumerate(zip([0, *_borders(inputs)], inputs, strict=True)):
            own = before if i else 0
            held = own + size + (0 if i == last else behind)
            told.append((0 if i else axis.low, axis.high if i == last else 0, own, size, held, begin - own))
        found.append(Axis(outputs, inputs, (before, behind), tuple(told)))
    return found


# --- arrays --------------------------------------------------------------------------------------------------------------------


def as_one(x: Any, frame: Frame) -> Any:
    """x with all channels in one chunk; the others become smaller, so that blocks stay of the size that they have."""
    if x.numblocks[frame.channel] == 1:
        return x
    limit = x.dtype.itemsize * int(np.prod([max(chunks) for chunks in x.chunks]))
    return x.rechunk(dict(enumerate(frame.axes(x.chunks[0], -1, ["auto"] * frame.ndim))), block_size_limit=limit)


def apart(x: Any, frame: Frame, each: int) -> tuple[Any, Ints]:
    """x with borders between its groups of `each` channels, and how many groups the chunks have."""
    groups = x.shape[frame.channel] // each
    borders = sorted({round(border / each) for border in _borders(x.chunks[frame.channel])} - {0, groups})
    counts = tuple(b - a for a, b in itertools.pairwise([0, *borders, groups]))
    return x.rechunk({frame.channel: tuple(count * each for count in counts)}), counts


def haloed(array: Any, frame: Frame, axes: Sequence[Axis], chunks: Iterable[Ints]) -> Any:
    """The array in these chunks along space, each with what it reads of its neighbours."""
    array = array.rechunk(dict(zip(frame.spatial, chunks, strict=True)))
    depth = {axis: each.halo for axis, each in zip(frame.spatial, axes, strict=True) if len(each.outputs) > 1 and any(each.halo)}
    if not depth:
        return array
    depth = dict.fromkeys(range(array.ndim), (0, 0)) | depth
    return overlap(array, depth=depth, boundary="none", allow_rechunk=False)


def _sources(positions: Any, size: int, mode: str) -> Any:
    """Where what lies at these positions, beyond the borders, comes from."""
    if mode == "replicate":
        return np.clip(positions, 0, size - 1)
    if mode == "circular":
        return positions % size
    period = 2 * size if mode == "symmetric" else max(2 * size - 2, 1)
    positions = positions % period
    return np.where(positions < size, positions, period - (mode == "symmetric") - positions)


def _slabs(size: int, low: int, high: int, mode: str) -> tuple[Any, Any]:
    """The sources of the padding on both sides."""
    return _sources(np.arange(-low, 0), size, mode), _sources(np.arange(size, size + high), size, mode)


def padded(x: Any, problem: Any, frame: Frame) -> tuple[Any, Pairs]:
    """x with the padding that is read from x itself, and what is left to do: zeros, which are no terms, are left to the blocks.

    What no window of a paired convolution reads, behind x's end, is padding below 0: it is left out.
    """
    zeros = problem.pad_mode == "zeros"
    for axis, (low, high) in zip(frame.spatial, problem.padding, strict=True):
        if not zeros:
            before, behind = _slabs(x.shape[axis], low, high, problem.pad_mode)
            x = da.concatenate([da.take(x, before, axis), x, da.take(x, behind, axis)], axis)
        if high < 0:
            x = x[(*[slice(None)] * axis, slice(0, high))]
    return x, tuple((low, max(high, 0)) for low, high in problem.padding) if zeros else ((0, 0),) * frame.ndim


def folded(grad: Any, problem: Any, frame: Frame) -> Any:
    """The adjoint of `padded`."""
    if problem.pad_mode == "zeros":
        return grad
    for axis, (low, high), size in reversed(list(zip(frame.spatial, problem.padding, problem.spatial, strict=True))):
        parts = (slice(0, low), slice(low + size, low + size + high))
        slabs = zip(parts, _slabs(size, low, high, problem.pad_mode), strict=True)
        before = (slice(None),) * axis
        inner = grad[(*before, slice(low, low + size))]
        for part, sources in slabs:
            if sources.size:
                inner = inner + _put_back(grad[(*before, part)], sources, axis, size)
        grad = inner
    return grad


def _put_back(slab: Any, sources: Any, axis: int, size: int) -> Any:
    """The slab added up at its sources, among zeros."""
    first, last = int(sources.min()), int(sources.max()) + 1
    slab = slab.rechunk({axis: -1})
    chunks = (*slab.chunks[:axis], (last - first,), *slab.chunks[axis + 1 :])
    sums = slab.map_blocks(_add_up, sources - first, axis, last - first, chunks=chunks, dtype=slab.dtype, meta=slab._meta)
    return da.pad(sums, [(first, size - last) if each == axis else (0, 0) for each in range(slab.ndim)])


def _add_up(slab: Any, sources: Any, axis: int, size: int) -> Any:
    moved = np.moveaxis(slab, axis, 0)
    sums = np.zeros_like(moved, shape=(size, *moved.shape[1:]))
    for source, each in zip(sources.tolist(), moved, strict=True):
        sums[source] += each
    return np.moveaxis(sums, 0, axis)


def edges(axes: Sequence[Axis], frame: Frame) -> list[tuple[Any, tuple[Any, ...]]]:
    """What each block is told of each axis, as arrays beside the others."""
    return [
        (da.from_array(np.array(each.edges), chunks=(1, -1)), (name, f"e{name}"))
        for each, name in zip(axes, frame.space, strict=True)
    ]


def blockwise(
    block: Callable[..., Any],
    result: Sequence[Any],
    inputs: Iterable[tuple[Any, Any]],
    chunks: dict[Any, Any],
    dtype: Any,
    new_axes: dict[Any, Any] | None = None,
) -> Any:
    """The block computed for all chunks of the inputs that have the same names of axes; the result has these `chunks`."""
    given = list(inputs)
    meta = meta_from_array(given[0][0], len(result), dtype=dtype)
    return da.blockwise(
        block, tuple(result), *itertools.chain(*given), adjust_chunks=chunks, new_axes=new_axes, align_arrays=False, dtype=dtype,
        meta=meta,
    )  # fmt: skip


# --- what is computed of one chunk ---------------------------------------------------------------------------------------------


def _only(array: Any) -> Any:
    """The array of an axis that is summed over, which Dask gives as a list of its one chunk."""
    while isinstance(array, list):
        (array,) = array
    return array


class Call(NamedTuple):
    """What all blocks share: the options of the whole, of a convolution or a pooling, who computes, the settings in force."""

    op: str
    options: Any
    choice: Choice
    context: Context

    def run(self, arrays: tuple[Any, ...], x: Any, w: Any, bias: bool = False, **changed: Any) -> Any:
        """Compute, as `numconv.dispatch.run`, with options changed."""
        with resumed(self.context):
            return run(self.op, arrays, x, w, tuple(self.options._replace(**changed)), self.choice, None, bias)


def _told(given: Iterable[Any]) -> tuple[Ints, ...]:
    return tuple(tuple(map(int, row)) for (row,) in map(_only, given))


def conv_block(call: Call, frame: Frame, *given: Any) -> Any:
    """The outputs that begin in a chunk of x, of as many groups as the chunk has."""
    arrays = tuple(map(_only, given[: -frame.ndim]))
    groups = arrays[0].shape[frame.channel] // arrays[1].shape[1]
    return call.run(arrays, 0, 1, len(arrays) > 2, padding=_told(given[-frame.ndim :]), groups=groups)


def weight_block(call: Call, frame: Frame, kernel: Ints, per_group: int, grad_y: Any, x: Any, *told: Any) -> Any:
    """What a chunk of outputs adds to the gradient, with an axis of length 1 for each that is summed over.

    With groups, of `per_group` channels of x, the chunk has several of them; else any of the channels.
    """
    channels = x.shape[frame.channel]
    groups = channels // per_group if call.options.groups > 1 else 1
    w_shape = (grad_y.shape[frame.channel], channels // groups, *kernel)
    part = call.run((grad_y, x), 1, w_shape, padding=_told(told), groups=groups)
    return part[(None,) * (1 + len(kernel))]


def spread_block(call: Call, frame: Frame, per_group: int, grad_y: Any, w: Any, *told: Any) -> Any:
    """What outputs give to a chunk of x: all that they reach, of which the chunk is a part, and zeros where nothing reaches.

    A group has `per_group` channels of grad_y.
    """
    grad_y, w = _only(grad_y), _only(w)
    groups = grad_y.shape[frame.channel] // per_group
    steps = zip(frame.spatial, call.options.stride, call.options.dilation, w.shape[2:], strict=True)
    spans = [(grad_y.shape[axis] - 1) * s + d * (r - 1) + 1 for axis, s, d, r in steps]
    x_shape = frame.axes(grad_y.shape[0], w.shape[1] * groups, spans)
    reached = call.run((grad_y, w), x_shape, 1, padding=0, groups=groups)
    parts = _told(told)
    part = reached[frame.axes(slice(None), slice(None), [slice(begin, begin + size) for begin, size in parts])]
    missing = [size - part.shape[axis] for axis, (_, size) in zip(frame.spatial, parts, strict=True)]
    if not any(missing):
        return part
    return np.pad(part, frame.axes((0, 0), (0, 0), [(0, each) for each in missing]))


def activated(y: Any, activation: str) -> Any:
    """A chunk of y with the activation applied."""
    y = y.copy()
    activate(y, activation)
    return y


def pool_block(call: Call, window: Ints, x: Any, *told: Any) -> Any:
    """The windows that begin in a chunk of x."""
    return call.run((x,), 0, window, padding=_told(told))


def maxima_block(call: Call, frame: Frame, window: Ints, volume: Ints, x: Any, *told: Any) -> Any:
    """The same for maxima with their positions in the whole, which has this `volume`."""
    edges = _told(told)
    y, indices = call.run((x,), 0, window, padding=tuple((low, high) for low, high, _ in edges))
    places = np.unravel_index(indices, [x.shape[axis] for axis in frame.spatial])
    moved = [each + begin for each, (_, _, begin) in zip(places, edges, strict=True)]
    return y, np.ravel_multi_index(moved, volume)


def item(several: Any, which: int) -> Any:
    """One of the results of a block."""
    return several[which]


def share_block(call: Call, frame: Frame, window: Ints, volume: Ints, grad_y: Any, *given: Any) -> Any:
    """What windows give to a chunk of x: to all that they hold, of which the chunk is a part."""
    others, edges = given[: -frame.ndim], _told(given[-frame.ndim :])
    lows, highs, begins, sizes, held, starts = zip(*edges, strict=True)
    if call.options.indices:
        others = (_moved(others[0], volume, held, starts),)
    x_shape = frame.axes(grad_y.shape[0], grad_y.shape[frame.channel], held)
    reached = call.run((grad_y, *others), x_shape, window, padding=tuple(zip(lows, highs, strict=True)))
    parts = [slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)]
    return reached[frame.axes(slice(None), slice(None), parts)]


def _moved(indices: Any, volume: Ints, held: Ints, starts: Ints) -> Any:
    """Positions in the whole as those in the part that a block has."""
    check_indices("max_pool_backward", indices, math.prod(volume))
    places = [each - start for each, start in zip(np.unravel_index(indices, volume), starts, strict=True)]
    for axis, (place, size, start) in enumerate(zip(places, held, starts, strict=True)):
        if place.size and (place.min() < 0 or place.max() >= size):
            raise ProblemError(
                f"numconv.dask.max_pool_backward: indices of a chunk reach from {place.min() + start} to {place.max() + start} "
                f"along spatial dimension {axis}, where its windows hold {start} to {start + size - 1}; pass the indices that "
                "max_pool(..., return_indices=True) returned for this x, window and padding"
            )
    return np.ravel_multi_index(places, held)


def unpool_block(call: Call, frame: Frame, spatial: Ints, array: Any, indices: Any) -> Any:
    """Maxima of a chunk of images and channels put back, or taken again, where the volume has the shape `spatial`."""
    return call.run((array, indices), frame.axes(array.shape[0], array.shape[frame.channel], spatial), 1)
