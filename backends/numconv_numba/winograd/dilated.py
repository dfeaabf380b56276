"""Winograd's algorithm for kernels with a dilation along the last two dimensions: tiles of all phases of the dilation.

Outputs a dilation apart read the same inputs, and those between them others: each of these phases is a convolution without
dilation, of an image as many times smaller (see `dense.polyphase`). Phases of one size are one part: they are leading dimensions,
with a kernel of one tap, of views of x and y, so that nothing is copied. 33 pixels at a dilation of 6 are three phases of six
pixels and three of five. All parts are multiplied with the same transformed weights, which are made once.

What is not finite has spread over its tile, so that such images are computed again by `blocked`.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba import geometry
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.base import DenseImplementation, ForwardExecutor, Weights, fill
from numconv_numba.dense.blocked import Blocked, seconds
from numconv_numba.dense.panels import fill_places
from numconv_numba.dense.polyphase import Piece, pieces_along
from numconv_numba.dense.slab import block_image
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import WRITE
from numconv_numba.geometry import DIMS, OPTION, PARTS, PER_C, PER_K, conv_vectors
from numconv_numba.microkernels.emit import host
from numconv_numba.scalar import address, is_null, pointer
from numconv_numba.threads import MAX_THREADS, Areas, area_of, common_area, parallel_items, run, run_with, taken_items, workers

from .forward import LEAST_CHANNELS, Winograd, accepts, block_vector_of, tools_of
from .inputs import (
    GROUP,
    PANEL,
    TAPS,
    element_counts,
    fill_elements,
    input_steps,
    place_steps,
    spread_step,
    transform_inputs,
)  # fmt: skip
from .kernels import (
    AREAS,
    CHUNK,
    M_STEP,
    PLACES,
    RESULTS,
    SLABS,
    SPARE,
    TABLES,
    TRANSFORMED,
    UNPACKED,
    bind_weights,
    element_table,
    fill_term_tables,
    multiply_elements,
    share_weights,
    tile_steps,
    transform_outputs,
)
from .layout import (
    BLOCK_BYTES,
    BOUND_BYTES,
    CHANNELS_AT_ONCE,
    PHASE_BYTES,
    Layout,
    apart,
    areas_of,
    common_of,
    cost_of,
    input_cycles,
    layout_with,
    shared_seconds,
    with_shared_weights,
)
from .tiles import Tiles, direct_terms, tiles_of

__all__ = ["DilatedWinograd"]

SMALL_OUTPUTS = 3
"""Of a tile, beside those that `tiles_of` has: phases of five and six pixels are two of them, with 5 x 5 products for 9 outputs."""
APART_READ, APART_WRITTEN = 1.5, 4.0
"""Where neighbours of a phase lie apart, along the last dimension: of reading and transforming its input, beside what that takes
where they do not, and cycles of writing a result (fitted to six problems, with AVX2)."""
MOST_APART = 32
"""Elements from neighbour to neighbour of a phase along the last dimension: further apart each is in a line, and soon in a page, of
its own, where `polyphase` reads neighbours of all phases."""
STREAMED_RATE = 1e10
"""Bytes a second of transformed weights that no cache holds, for each block."""
ITEMS_OF_THREAD = 2
"""Ranges of channels of all pieces of a round, for each thread: each has a table of its own."""
KEPT = 64


def _split_axes(problem: ConvProblem) -> list[int]:
    """Those of the last two dimensions that have phases."""
    first = max(problem.ndim - 2, 0)
    return [axis for axis in range(first, problem.ndim) if problem.dilation[axis] > 1 < problem.kernel[axis]]


class _Part(NamedTuple):
    """Phases of one size, and how they lie along each dimension; `problem` is None where no tap meets x."""

    problem: ConvProblem | None
    along: tuple[Piece, ...]

    def strides(self, strides: tuple[int, ...], dilation: Sequence[int]) -> tuple[int, ...]:
        """Those of x or y, as the problem has its dimensions."""
        split, own = [stride for piece, stride in zip(self.along, strides[2:], strict=True) if piece.split], []
        for piece, stride, d in zip(self.along, strides[2:], dilation, strict=True):
            own.append(stride * d if piece.split else stride)
        return (*strides[:2], *split, *own)

    def offset(self, strides: tuple[int, ...], of_x: bool) -> int:
        """Of the first position of the first phase, in bytes."""
        firsts = [piece.x_phase if of_x else piece.y_phase for piece in self.along]
        return sum(first * stride for first, stride in zip(firsts, strides[2:], strict=True))

    def results(self, y: Any, dilation: Sequence[int]) -> Any:
        """What the part has of y."""
        firsts = (slice(piece.y_phase, None) for piece in self.along)
        shape = *(piece.phases for piece in self.along if piece.split), *(piece.outputs[1] for piece in self.along)
        return as_strided(y[(..., *firsts)], (*y.shape[:2], *shape), self.strides(y.strides, dilation))


def _part_problem(problem: ConvProblem, pieces: tuple[Piece, ...]) -> ConvProblem | None:
    """The problem of a part: phases first, then the dimensions."""
    if any(piece.inputs[1] == 0 for piece in pieces):
        return None
    split = [piece for piece in pieces if piece.split]
    ones, lead = (1,) * len(split), max(problem.ndim - 2, 0)
    return problem.replace(
        spatial=(*(piece.phases for piece in split), *(piece.inputs[1] for piece in pieces)),
        kernel=(*ones, *problem.kernel),
        stride=(*ones, *problem.stride),
        padding=(*((0, 0) for _ in split), *(piece.padding for piece in pieces)),
        dilation=(*ones, *problem.dilation[:lead], *(1 for _ in pieces[lead:])),
    )


@functools.lru_cache(maxsize=256)
def _parts(problem: ConvProblem) -> tuple[_Part, ...]:
    """All parts, those of the largest phases first."""
    axes = _split_axes(problem)
    along = (pieces_along(problem, axis, axis in axes, False) for axis in range(problem.ndim))
    parts = [_Part(_part_problem(problem, pieces), pieces) for pieces in itertools.product(*along)]
    return tuple(sorted(parts, key=lambda part: -math.prod(part.problem.spatial) if part.problem else 0))


def _tiles(problem: ConvProblem) -> list[Tiles]:
    """The tiles that can be had for a part."""
    found = tiles_of(problem)
    small = (
        tiles._replace(outputs=(min(rows, SMALL_OUTPUTS), min(columns, SMALL_OUTPUTS)))
        for tiles in found
        for rows, columns in [tiles.outputs]
    )
    return list(dict.fromkeys((*found, *small)))


class _Piece(NamedTuple):
    """A block of a group of a part, and where its transformed input and its products lie in the common memory."""

    part: _Part
    problem: ConvProblem
    block: int
    group: int
    places: tuple[int, int]


class _Plan(NamedTuple):
    """How a problem is cut, all parts with the same tiles and panels.

    Attributes
    ----------
    layouts : mapping
        Of the problem of each part.
    seconds : float
        The estimate.
    pieces, rounds : tuple
        All pieces, and the first of each round, followed by their number.
    table : int
        Bytes of the tables of a piece.
    areas : Areas
        A worker's scratch memory.
    common : int
        Bytes that workers have in common: transformed weights, then input and products of a round.
    """

    layouts: Mapping[ConvProblem, Layout]
    seconds: float
    pieces: tuple[_Piece, ...]
    rounds: tuple[int, ...]
    table: int
    areas: Areas
    common: int

    @property
    def workspace(self) -> int:
        """For any number of threads."""
        return MAX_THREADS * self.areas.bytes + self.common


def _apart_seconds(problem: ConvProblem, layout: Layout) -> float:
    """Of elements of a row that lie apart, in x and in y."""
    read = problem.groups * input_cycles(problem, layout) * APART_READ
    return seconds(read + math.prod(problem.y_shape) * APART_WRITTEN, problem.flops / 8)


def _layouts(problem: ConvProblem, tiles: Tiles, budget: int, deep: bool) -> dict[ConvProblem, Layout]:
    """Of each part: with panels of the first one, and passes over as many channels as have their weights near the core."""
    problems = dict.fromkeys(part.problem for part in _parts(problem) if part.problem)
    found = {each: apart(with_shared_weights(each, layout_with(each, tiles, budget, deep))) for each in problems}
    shape = next(iter(found.values())).shape
    line = direct_terms(problem, tiles) * shape.width * np_dtype(problem.acc_dtype).itemsize
    chunk = max(1, host().resident // line // CHANNELS_AT_ONCE) * CHANNELS_AT_ONCE
    if math.prod(tiles.phases) == 1:
        found = {each: layout._replace(chunk=min(layout.chunk, chunk)) for each, layout in found.items()}
    return {each: layout._replace(shape=shape) for each, layout in found.items()}


def _pieces(problem: ConvProblem, layouts: Mapping[ConvProblem, Layout]) -> tuple[list[_Piece], list[int], int]:
    """All pieces, the first of each round, and the bytes that they have in common."""
    pieces: list[_Piece] = []
    rounds, start, most = [0], 0, 0
    for group, part in itertools.product(range(problem.groups), _parts(problem)):
        if part.problem is None:
            continue
        weights, inputs, products = common_of(part.problem, layouts[part.problem])
        start = max(start, weights)
        for block in range(layouts[part.problem].block.pieces):
            if start + inputs + products > weights + PHASE_BYTES and len(pieces) > rounds[-1]:
                rounds.append(len(pieces))
                start = weights
            pieces.append(_Piece(part, part.problem, block, group, (start, start + inputs)))
            start += inputs + products
            most = max(most, start)
    return pieces, [*rounds, len(pieces)], most


def _plan_with(problem: ConvProblem, tiles: Tiles, budget: int, deep: bool) -> _Plan:
    """The plan with these tiles."""
    counted = collections.Counter(part.problem for part in _parts(problem) if part.problem)
    layouts = _layouts(problem, tiles, budget, deep)
    first, layout = next(iter(layouts.items()))
    pieces, rounds, common = _pieces(problem, layouts)
    total, weights = shared_seconds(first, layout), common_of(first, layout).weights
    lone = _split_axes(problem)[-1] == problem.ndim - 1 and problem.layout == "channels_first"
    for each, own in layouts.items():
        lines = _apart_seconds(each, own) if lone else 0.0
        total += counted[each] * (cost_of(each, own) - shared_seconds(each, own) + lines)
    if weights > BOUND_BYTES:
        total += weights / STREAMED_RATE * (len(rounds) - 1)
    areas = [np.diff(areas_of(each, own, weights=False, whole=False).offsets) for each, own in layouts.items()]
    table, *others = np.max(areas, axis=0)
    several = int(max(np.diff(rounds)))
    return _Plan(layouts, total, tuple(pieces), tuple(rounds), int(table) + 64, Areas(several * (int(table) + 64), *others), common)


@functools.lru_cache(maxsize=256)
def _plan(problem: ConvProblem) -> _Plan:
    """The plan with the least cost, of those that there is memory for."""
    first = next(part.problem for part in _parts(problem) if part.problem)
    plans = [
        _plan_with(problem, tiles, budget, deep) for tiles in _tiles(first) for budget in BLOCK_BYTES for deep in (False, True)
    ]
    ordered = sorted(plans, key=lambda plan: plan.seconds)
    return next((plan for plan in ordered if plan.workspace <= problem.max_workspace), ordered[-1])


# --- kernel --------------------------------------------------------------------------------------------------------------------

# A piece: bytes from x and y to its part, the vectors of this part, which block and group of it, and where its transformed input
# and its products lie in the common memory.
AT_X, AT_Y, SIZES, CUTTING, BLOCK, OF_GROUP, AT_INPUTS, AT_PRODUCTS, FRAME = range(9)
# Of all pieces: how w lies, bytes of a piece's tables, ranges into which the channels of its input fall and channels of which these
# are multiples, rounds, and from there on the first piece of each round and the end of the last one.
FORM, TABLE, RANGES, UNIT, ROUNDS, FIRST = range(6)


@helper
def frame_of(frames, one):
    """The entries of a piece, and the vectors of its problem and of its blocks."""
    frame = pointer(frames + 8 * one * FRAME, INT64)
    return frame, pointer(address(frame[SIZES]), INT64), pointer(address(frame[CUTTING]), INT64)


@helper
def _transform(worker, queue, args):
    at, scratch, areas, tools, numbers, frames, x, common = args
    own, size = area_of(scratch, areas, AREAS, worker), itemsize(at)
    for item in taken_items(queue, worker):
        frame, g, b = frame_of(frames, item // numbers[RANGES])
        per_c, xs, one = g[PER_C], geometry.part(g, PARTS), item % numbers[RANGES]
        count, phases = element_counts(g, b)
        elements = element_table(own + areas[TABLES], g, b)
        plane = place_steps(pointer(elements + 8 * count * phases, INT64), g, b, size)
        fill_elements(pointer(elements, INT64), g, b, size)
        units = -(-per_c // numbers[UNIT])
        first = min(per_c, units * one // numbers[RANGES] * numbers[UNIT])
        last = min(per_c, units * (one + 1) // numbers[RANGES] * numbers[UNIT])
        source = x + (frame[AT_X] + block_image(b, g[DIMS], frame[BLOCK]) * g[xs] + frame[OF_GROUP] * g[xs + 1])
        target = common + frame[AT_INPUTS]
        transform_inputs(
            target, own + areas[SLABS], elements, source, per_c, first, last, frame[BLOCK], plane, g, b, tools, at
        )  # fmt: skip


@helper
def fill_tables(tables, frames, pieces, each, tools, at):
    """The tables of all pieces of a round, `each` bytes apart: the number of tiles, where they lie, and the terms."""
    for one in range(pieces):
        frame, g, b = frame_of(frames, one)
        own, size = tables + one * each, itemsize(at)
        count, phases = element_counts(g, b)
        axis_steps = pointer(element_table(own + 64, g, b) + 8 * count * phases, INT64)
        steps = input_steps(g[PER_C], place_steps(axis_steps, g, b, size), g, b, tools)
        fill_term_tables(own + (64 + 8 * b[PLACES]), steps, axis_steps, g, b, size)
        head = pointer(own, INT64)
        head[0] = fill_places(pointer(own + 64, INT64), b[GROUP], steps[0] * size, axis_steps, g, b, frame[BLOCK])
        head[1] = steps[2]


@helper
def _multiply(worker, queue, args):
    at, scratch, areas, tools, numbers, frames, pieces, u, common = args
    size, tables = itemsize(at), area_of(scratch, areas, AREAS, worker) + areas[TABLES]
    fill_tables(tables, frames, pieces, numbers[TABLE], tools, at)
    _, g, b = frame_of(frames, 0)
    count, phases = element_counts(g, b)
    terms, panels = phases * b[TAPS] * b[PANEL] * size, -(-g[PER_K] // b[PANEL])
    step, chunk = spread_step(g[PER_C] * terms), b[CHUNK]
    # what is read of the weights of an element stays in the first-level cache while all pieces are multiplied with it
    for item in taken_items(queue, worker):
        element, panel = item // panels, item % panels
        for first in range(0, g[PER_C], chunk):
            passed, resume = min(chunk, g[PER_C] - first), 1 if first > 0 else 0
            for one in range(pieces):
                frame, each, cutting = frame_of(frames, one)
                own = tables + one * numbers[TABLE]
                head = pointer(own, INT64)
                weights = u + ((frame[OF_GROUP] * panels + panel) * count * step + first * terms)
                inputs = common + (frame[AT_INPUTS] + first * head[1] * size)
                target = common + (frame[AT_PRODUCTS] + panel * count * cutting[M_STEP] * size)
                multiply_elements(
                    target, weights, step, inputs, own + 64, head[0], element, element + 1, passed, resume, each, cutting, tools, at
                )  # fmt: skip


@helper
def _finish(worker, queue, args):
    at, scratch, areas, tools, frames, bias, y, status, common = args
    own, size = area_of(scratch, areas, AREAS, worker), itemsize(at)
    results, spare = own + areas[RESULTS], own + areas[SPARE]
    _, first, of_first = frame_of(frames, 0)
    panels = -(-first[PER_K] // of_first[PANEL])
    for item in taken_items(queue, worker):
        frame, g, b = frame_of(frames, item // panels)
        per_k, ys, k, block = g[PER_K], geometry.part(g, PARTS + 2), item % panels * b[PANEL], frame[BLOCK]
        count, _ = element_counts(g, b)
        source = common + (frame[AT_PRODUCTS] + item % panels * count * b[M_STEP] * size)
        transform_outputs(results, source, tile_steps(g, b, block), spare, block, 1, g, b, tools, at)
        shift = bias if is_null(bias) else bias + (frame[OF_GROUP] * per_k + k) * size
        target = y + (frame[AT_Y] + frame[OF_GROUP] * g[ys + 1] + k * g[ys + 2])
        invoke(
            tools[WRITE], tools, results, b[PANEL] * size, min(per_k - k, b[PANEL]), shift, g[OPTION], target, status, block, g, b
        )  # fmt: skip


@kernel
def winograd_pieces(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, numbers: Address,
    pieces: Address, x: Address, w: Address, bias: Address, y: Address, status: Address,
) -> None:  # fmt: skip
    """y from x and w, some pieces at a time: all workers transform their input, then multiply it, then transform back.

    w is TRANSFORMED, or lies as the vector of the first piece says, and is transformed into the common memory. `status` gets a 1
    for each image of which a sum is not finite.
    """
    tables, offsets, head = pointer(tools, INT64), pointer(areas, INT64), pointer(numbers, INT64)
    common, (_, g, b) = common_area(scratch, offsets, AREAS, workers), frame_of(pieces, 0)
    u, panels, (count, _) = w, -(-g[PER_K] // b[PANEL]), element_counts(g, b)
    if head[FORM] != TRANSFORMED:
        u = common
        share_weights(region, workers, TRANSFORMED, w, u, g, b, tables, at)
    for one in range(head[ROUNDS]):
        some, frames = head[FIRST + one + 1] - head[FIRST + one], pieces + 8 * FRAME * head[FIRST + one]
        shares = some * head[RANGES]
        parallel_items(
            region, workers, shares, _transform, (at, scratch, offsets, tables, head, frames, x, common)
        )  # fmt: skip
        shares = count * panels
        parallel_items(
            region, workers, shares, _multiply, (at, scratch, offsets, tables, head, frames, some, u, common)
        )  # fmt: skip
        shares = some * panels
        parallel_items(
            region, workers, shares, _finish, (at, scratch, offsets, tables, frames, bias, y, status, common)
        )  # fmt: skip


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Frames:
    """What `winograd_pieces` knows of each piece, for arrays of some strides; those seen before are kept."""

    def __init__(self, problem: ConvProblem, plan: _Plan):
        self._problem, self._plan = problem, plan
        option = ACTIVATIONS[problem.activation]
        self._vectors = {each: conv_vectors(each, option) for each in plan.layouts}
        self._blocks = {each: block_vector_of(each, layout) for each, layout in plan.layouts.items()}
        self._made: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}

    def __call__(self, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> tuple[Any, list[Any]]:
        """The frames, and the vectors to which they point."""
        found = self._made.get((x, w, y))
        if found is None:
            found = self._make(x, w, y)
            if len(self._made) < KEPT:
                self._made[x, w, y] = found
        return found

    def _make(self, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> tuple[Any, list[Any]]:
        dilation = self._problem.dilation
        rows: list[list[int]] = []
        vectors: dict[ConvProblem, Any] = {}
        lead = (0,) * len(_split_axes(self._problem))
        for piece in self._plan.pieces:
            part, each = piece.part, piece.problem
            if each not in vectors:
                strides = part.strides(x, dilation), (*w[:2], *lead, *w[2:]), part.strides(y, dilation)
                vectors[each] = self._vectors[each](*strides)
            addresses = vectors[each].ctypes.data, self._blocks[each].ctypes.data
            rows.append([part.offset(x, True), part.offset(y, False), *addresses, piece.block, piece.group, *piece.places])
        return np.array(rows, np.int64), list(vectors.values())


class _Executor(ForwardExecutor):
    """One convolution with a dilation."""

    def __init__(self, problem: ConvProblem):
        plan = _plan(problem)
        super().__init__(problem, math.prod(problem.y_shape))
        self._empty = [part for part in _parts(problem) if part.problem is None]
        first, layout = next(iter(plan.layouts.items()))
        self._plan, self._first, self._layout = plan, first, layout
        self._vectors = _Frames(problem, plan)
        self._panels, self._work = -(-(first.k // first.groups) // layout.shape.width), problem.flops / 8
        self._tools = tools_of(first, layout.tiles, layout.shape, layout.block)

    def packed(self, w: Any) -> Weights:
        """w transformed."""
        first = self._first
        packed = np.empty(common_of(first, self._layout).weights // self._acc.itemsize, self._acc)
        lead, none = (0,) * len(_split_axes(self._problem)), (0,) * (first.ndim + 2)
        vector = conv_vectors(first, 0)(none, (*w.strides[:2], *lead, *w.strides[2:]), none)
        items = self._panels * first.groups * -(-first.c // first.groups // CHANNELS_AT_ONCE)
        block = block_vector_of(first, self._layout)
        run(bind_weights.specialise(self._acc.name), items, packed.size, self._tools, TRANSFORMED, w, packed, vector, block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `winograd_pieces`, and fill what no tap sees."""
        plan, (frames, _), form = self._plan, vector, TRANSFORMED if w.packed else UNPACKED
        unit = self._layout.shape.lanes if self._layout.deep or self._problem.layout == "channels_last" else LEAST_CHANNELS
        units, fewest = -(-(self._problem.c // self._problem.groups) // unit), min(np.diff(plan.rounds))
        ranges = min(units, -(-ITEMS_OF_THREAD * workers(MAX_THREADS, self._work) // int(fewest)))
        numbers = np.array([form, plan.table, ranges, unit, len(plan.rounds) - 1, *plan.rounds], np.int64)
        run_with(
            plan.areas, winograd_pieces.specialise(self._acc.name), self._layout.tiles.elements * self._panels, self._work,
            self._tools, numbers, frames, x, w.array, shift, y, status, common=plan.common,
        )  # fmt: skip
        for part in self._empty:
            view = part.results(y, self._problem.dilation)
            fill(view, () if isinstance(shift, int) else (shift,), self._problem.activation)

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Blocked`, since what is not finite has spread over its tile."""
        executor = Blocked().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class DilatedWinograd(DenseImplementation):
    """Winograd convolution with a dilation along the last two dimensions."""

    name = "dilated_winograd"
    levels = Winograd.levels
    measured_error: ClassVar[Mapping[str, float]] = Winograd.measured_error

    def accepts(self, problem: ConvProblem) -> Verdict:
        """A dilation without a stride there and padding of zeros, whose phases are what `winograd` takes."""
        axes = _split_axes(problem)
        if not axes or max(problem.stride[axis] for axis in axes) > 1:
            return Verdict.no(
                "it computes the phases of a dilation along the last two dimensions, without a stride there, and here are dilation "
                f"{problem.dilation} and stride {problem.stride} of a kernel of {problem.kernel}"
            )
        if axes[-1] == problem.ndim - 1 and problem.dilation[-1] > MOST_APART and problem.layout == "channels_first":
            return Verdict.no(
                f"it reads the elements of a phase one by one, at most {MOST_APART} apart along the last dimension, and here is "
                f"dilation {problem.dilation}"
            )
        if problem.pad_mode != "zeros":
            return Verdict.no(f"a phase does not hold what pad_mode {problem.pad_mode} puts beside it")
        if min(map(min, problem.padding)) < 0:
            return Verdict.no(f"the windows of a phase begin in x or in its padding, and here is padding {problem.padding}")
        problems = dict.fromkeys(part.problem for part in _parts(problem) if part.problem)
        if not problems:
            return Verdict.no(f"no window meets x beside the padding {problem.padding}")
        return next((verdict for verdict in map(accepts, problems) if not verdict), Verdict.yes())

    def forward_cost(self, problem: ConvProblem) -> float:
        """Of all parts, whose weights are transformed once."""
        return _plan(problem).seconds

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread that of the part that needs most; transformed weights; or what `Blocked` needs."""
        return max(_plan(problem).workspace, Blocked().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
