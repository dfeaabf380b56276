"""How a forward convolution by Winograd's algorithm is cut into blocks, and what it costs."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.dense.blocked import (
    CALL_SECONDS,
    Shape,
    divided,
    most_workers,
    pack_weight_cycles,
    panel_shape,
    seconds,
    tile_cycles,
)
from numconv_numba.dense.slab import (
    FEW_PIECES,
    MANY_PIECES,
    WRITE_CYCLES,
    Block,
    pack_cycles,
    pieces_for,
    pieces_here,
)
from numconv_numba.microkernels.emit import host
from numconv_numba.threads import MAX_THREADS, Areas

from .tiles import (
    PACKED_BYTES,
    Inputs,
    Tiles,
    channel_inputs_of,
    cut_tiles,
    deep_cycles,
    direct_terms,
    input_places,
    inputs_of,
    lead_axes,
    spread,
    tile_rows,
    tiles_of,
)  # fmt: skip

__all__ = [
    "BLOCK_BYTES", "BOUND_BYTES", "CHANNELS_AT_ONCE", "PHASE_BYTES", "Layout", "apart", "areas_of", "common_of", "cost_of",
    "input_cycles", "layout_for", "layout_here", "layout_with", "lines_seconds", "shared_seconds", "steps_of", "ways_of",
    "with_shared_weights", "workspace_of",
]  # fmt: skip

BLOCK_BYTES = (640 * 1024, 1280 * 1024, 1920 * 1024, 3840 * 1024)
"""What the transformed input of a block and the products of a panel may take: of the second-level cache, or, for many channels, of
the third: each element of all tiles is read once for a whole panel."""
RESULT_BYTES = 512 * 1024
"""The sums of a block for a panel."""
WEIGHT_BYTES = 1024 * 1024
"""Transformed weights that are multiplied in one pass over a block."""
PASS_TERMS = 320
"""Of a sum in one pass, where there are phases: these are summed one after the other, so that the order of a sum follows from its
passes, which are the same for any layout therefore."""
KEPT_BYTES = 4 * 1024 * 1024
"""Transformed weights that a worker keeps from block to block."""
FEW_TILES = 32
"""Of a block that is not cut further for more threads."""
BOUND_BYTES = 24 * 1024 * 1024
"""Transformed weights of a bound plan, or of all threads: more than a last-level cache holds would come from memory for every
block of tiles."""
PHASE_BYTES = 16 * 1024 * 1024
"""Transformed input and products of all blocks on which threads work together, one phase after the other: they share it too."""
CHANNELS_AT_ONCE = 8
"""Input channels whose weights are packed before they are transformed: transposing runs of neighbours is cheaper in one go."""


OTHERS_CYCLES, STREAMED_CYCLES = 16.0, 1.0
"""Of shared weights, for each vector: what another thread has written, and reading it again for a block."""


class Layout(NamedTuple):
    """How a forward problem is cut.

    Also channels of a pass, whether each thread keeps transformed weights, whether the lanes of the input's transform are channels,
    what places of a row of transformed input are a multiple of, and whether even few threads share transformed weights.
    """

    tiles: Tiles
    shape: Shape
    block: Block
    chunk: int
    kept: bool
    deep: bool
    row: int = 1
    shared: bool = False

    @property
    def rows(self) -> int:
        """See `tile_rows`."""
        return tile_rows(self.tiles, self.block, self.row)

    @property
    def places(self) -> int:
        """Tiles of a block, rounded up to register tiles."""
        return -(-self.block.tiles // self.shape.positions) * self.shape.positions

    def inputs(self, problem: ConvProblem) -> Inputs:
        """How the input of a block is packed and transformed."""
        per_c = problem.c // problem.groups
        if self.deep:
            return channel_inputs_of(problem, self.tiles, self.block, per_c)
        return inputs_of(problem, self.tiles, self.block, per_c, self.rows)


def layout_with(problem: ConvProblem, tiles: Tiles, budget: int, deep: bool, pieces: int = 1) -> Layout:
    """The layout with these tiles; `pieces`: blocks of all groups, as far as they have some tiles."""
    item, per_c, per_k = np_dtype(problem.acc_dtype).itemsize, problem.c // problem.groups, problem.k // problem.groups
    terms = direct_terms(problem, tiles)
    width = panel_shape(problem.acc_dtype, per_k, 1 << 20).width * item

    def fits(block: Block) -> bool:
        transformed = tiles.elements * (input_places(problem, tiles, block, per_c, deep) * item + block.tiles * width)
        shared = block.pieces * problem.groups >= pieces or block.tiles <= FEW_TILES
        # blocks that threads cannot share evenly, they share by panels
        panels = per_k * item > width
        return (
            transformed <= budget and block.pixels * width <= RESULT_BYTES and shared and (panels or divided(problem, block, width))
        )

    block = cut_tiles(problem, tiles, fits)
    shape = panel_shape(problem.acc_dtype, per_k, block.tiles)
    each = tiles.elements * terms * shape.width * item
    own = problem.max_workspace // most_workers(problem, block, shape.width)
    allowed = min(KEPT_BYTES, own - budget - RESULT_BYTES - PACKED_BYTES)
    kept = -(-per_k // shape.width) * per_c * each <= allowed and block.pieces * problem.groups > 1
    chunk = per_c if kept else min(per_c, max(1, WEIGHT_BYTES // each // CHANNELS_AT_ONCE) * CHANNELS_AT_ONCE)
    if math.prod(tiles.phases) > 1:
        chunk = min(per_c, -(-PASS_TERMS // (terms * CHANNELS_AT_ONCE)) * CHANNELS_AT_ONCE)
    return Layout(tiles, shape, block, chunk, kept, deep)


def apart(layout: Layout) -> Layout:
    """With rows in whole vectors, whose ends are in no other row: threads write neighbouring channels at the same time."""
    return layout._replace(row=layout.shape.lanes)


def _tiles_of_blocks(problem: ConvProblem, block: Block) -> Any:
    """Of each block, in their order: those that end a dimension may be short."""
    along = []
    for whole, size, unit in zip((problem.n, *problem.output), (block.images, *block.size), (1, *block.unit), strict=True):
        starts = np.arange(0, whole, max(size, 1))
        along.append(-(-np.minimum(size, whole - starts) // unit))
    return functools.reduce(np.multiply.outer, along).ravel()


def cost_of(problem: ConvProblem, layout: Layout) -> float:
    """Cycles of the products and of the transforms, counted in vectors; the factors are fitted to 25 problems, with AVX-512."""
    tiles, shape, block, *_ = layout
    blocks = _tiles_of_blocks(problem, block)
    every, groups = (problem.groups * int(each.sum()) for each in (blocks, -(-blocks // shape.positions)))
    per_c, per_k, pieces = problem.c // problem.groups, problem.k // problem.groups, block.pieces * problem.groups
    panels = -(-per_k // shape.width)
    leads = math.prod(problem.kernel[: lead_axes(problem)])
    passes = -(-per_c // layout.chunk)
    multiplied = tiles.products * per_c * leads * tile_cycles(shape.vectors, shape.positions) + tiles.elements * passes * 60
    products = panels * groups * multiplied
    # loads, stores and about as many multiply-adds for each element of a transform; packing and transposing. Where two threads
    # share the panels of a block, both transform its input; weights that are kept, each thread transforms for itself.
    odd = pieces % 2 / max(pieces, 1)
    uneven = 1 + odd * (panels % 2 / panels)
    if pieces % 2 == 0 and problem.groups % 2 and pieces:
        # the last blocks may be short: the first thread has more to do
        uneven += (2 * int(blocks[: block.pieces // 2].sum()) * problem.groups / max(every, 1) - 1) / problem.groups
    inputs = (1 + odd) * problem.groups * input_cycles(problem, layout)
    inputs *= every / max(pieces * block.tiles, 1) if layout.deep else 1
    output = (tiles.elements * 1.4 + math.prod(tiles.outputs) * 1.7) * host().moving
    outputs = panels * shape.vectors * every * output
    weights, vectors = weight_cycles(problem, layout)
    if layout.shared:
        weights = problem.groups * weights + vectors * (problem.groups * OTHERS_CYCLES + pieces * STREAMED_CYCLES)
    else:
        weights *= 2 * problem.groups if layout.kept else pieces
    results = math.prod(problem.y_shape) * WRITE_CYCLES * 0.5
    return CALL_SECONDS + 3e-6 + seconds(uneven * (products * 1.05 + outputs + weights + results) + inputs, problem.flops / 8)


def weight_cycles(problem: ConvProblem, layout: Layout) -> tuple[float, float]:
    """Of packing and transforming the weights of a group, and their vectors."""
    shape, per_c = layout.shape, problem.c // problem.groups
    panels = -(-problem.k // problem.groups // shape.width)
    vectors = panels * shape.vectors * per_c * direct_terms(problem, layout.tiles) * layout.tiles.elements * host().moving
    return pack_weight_cycles(problem, panels * shape.width * per_c) + vectors * 3.3, vectors


def shared_seconds(problem: ConvProblem, layout: Layout) -> float:
    """What shared weights take in `cost_of`, but for reading them for each block."""
    weights, vectors = weight_cycles(problem, layout)
    return seconds(problem.groups * (weights + vectors * OTHERS_CYCLES), problem.flops / 8)


def input_cycles(problem: ConvProblem, layout: Layout) -> float:
    """Of packing and transforming the input of all blocks of a group."""
    tiles, shape, block, *_ = layout
    per_c = problem.c // problem.groups
    if layout.deep:
        return deep_cycles(problem, tiles, block, per_c)
    vectors = block.pieces * block.images * per_c * math.prod(tiles.phases) * tile_rows(tiles, block, shape.lanes) / shape.lanes
    vectors *= math.prod(block.pitch[:-2]) * host().moving
    return pack_cycles(block, per_c) * 2 + vectors * tiles.elements * 9.5


def lines_seconds(problem: ConvProblem, layout: Layout) -> float:
    """What a problem that is `turned` takes beside `cost_of`: lines of x and y are no neighbours, so that each is moved by itself.

    Input takes twice as long, and writing results three times (fitted to seven problems).
    """
    inputs = problem.groups * input_cycles(problem, layout)
    return seconds(inputs + math.prod(problem.y_shape) * WRITE_CYCLES, problem.flops / 8)


def _may_share(problem: ConvProblem, layout: Layout) -> bool:
    """Whether each block would transform all weights, and there is memory for those of all."""
    several = not layout.kept and layout.block.pieces * problem.groups > 1
    return several and common_of(problem, layout).weights <= BOUND_BYTES and _ways(problem, layout)[0].shared


def with_shared_weights(problem: ConvProblem, layout: Layout) -> Layout:
    """Weights are there already, so that one pass may take all channels."""
    one = math.prod(layout.tiles.phases) == 1
    return layout._replace(shared=True, chunk=problem.c // problem.groups if one else layout.chunk)


@functools.lru_cache(maxsize=256)
def layout_for(problem: ConvProblem) -> Layout:
    """The layout with the least cost, of those that there is memory for, whatever the number of threads."""
    candidates = dict.fromkeys(
        layout_with(problem, tiles, budget, deep) for tiles in tiles_of(problem) for budget in BLOCK_BYTES for deep in (False, True)
    )
    shared = [with_shared_weights(problem, layout) for layout in candidates if _may_share(problem, layout)]
    ordered = sorted((*candidates, *shared), key=lambda layout: cost_of(problem, layout))
    return next((layout for layout in ordered if _ways(problem, layout)[1] <= problem.max_workspace), ordered[-1])


@functools.lru_cache(maxsize=256)
def fine_layout(problem: ConvProblem) -> Layout:
    """A layout with the same tiles in many blocks, which more threads can share."""
    layout = layout_for(problem)
    if layout.block.tiles <= FEW_TILES:
        return layout
    return layout_with(problem, layout.tiles, min(BLOCK_BYTES), layout.deep, pieces_for(problem.flops / 8, MANY_PIECES))


def layout_here(problem: ConvProblem) -> Layout:
    """The layout for the threads there are."""
    return layout_for(problem) if pieces_here() == FEW_PIECES else fine_layout(problem)


def steps_of(problem: ConvProblem, layout: Layout) -> tuple[int, int, int, int]:
    """V_STEP, M_STEP, V_ROWS, U_STEP."""
    line = 64 // np_dtype(problem.acc_dtype).itemsize
    channels = problem.c // problem.groups if layout.kept else layout.chunk
    return (
        # whole vectors are stored, whose ends are overwritten by what follows: the last one goes beyond
        spread(layout.inputs(problem).places + layout.shape.lanes, line),
        spread(layout.places * layout.shape.width, line),
        layout.rows,
        spread(channels * direct_terms(problem, layout.tiles) * layout.shape.width, line),
    )


def areas_of(problem: ConvProblem, layout: Layout, *, weights: bool = True, whole: bool = True) -> Areas:
    """A worker's scratch memory: with `weights` that it transforms itself; `whole`: if it takes a block through all phases."""
    tiles, shape, block, item, taps = *layout[:3], np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)
    v_step, m_step, _, u_step = steps_of(problem, layout)
    panels, elements = -(-(problem.k // problem.groups) // shape.width), tiles.elements
    terms = (layout.chunk + problem.c // problem.groups % layout.chunk) * direct_terms(problem, tiles)
    tables = 8 * (layout.places + terms + elements * math.prod(tiles.phases) + problem.ndim)
    sizes = (
        layout.inputs(problem).elements,
        elements * v_step * whole,
        elements * m_step * whole,
        block.pixels * shape.width,
        CHANNELS_AT_ONCE * taps * shape.width,
        math.prod(tiles.outputs) * shape.width,
        elements * u_step * (panels if layout.kept else 1) * weights,
    )
    return Areas(tables, *(count * item for count in sizes), panels)


class Common(NamedTuple):
    """What workers can have in common, in bytes: all transformed weights; transformed input and products of a block."""

    weights: int
    inputs: int
    products: int


def common_of(problem: ConvProblem, layout: Layout) -> Common:
    """Its sizes."""
    tiles, shape, item = layout.tiles, layout.shape, np_dtype(problem.acc_dtype).itemsize
    v_step, m_step, _, _ = steps_of(problem, layout)
    per_c, panels = problem.c // problem.groups, -(-(problem.k // problem.groups) // shape.width)
    weights = spread(per_c * direct_terms(problem, tiles) * shape.width, 64 // item)
    sizes = problem.groups * panels * weights, v_step, panels * m_step
    return Common(*(tiles.elements * size * item for size in sizes))


class Ways(NamedTuple):
    """What several threads may do: share transformed weights, and, with scratch memory of this kind, all phases of a block."""

    shared: bool
    phases: Areas | None


def _ways(problem: ConvProblem, layout: Layout) -> tuple[Ways, int]:
    """The ways that there is memory for, and how much they take."""
    common, blocks = common_of(problem, apart(layout)), layout.block.pieces * problem.groups
    workers = most_workers(problem, layout.block, layout.shape.width)
    most = workers * areas_of(problem, layout).bytes
    if common.weights > BOUND_BYTES:
        return Ways(False, None), most
    small, of_blocks = areas_of(problem, apart(layout), weights=False, whole=False), (common.inputs + common.products) * blocks
    shared = workers * areas_of(problem, layout, weights=False).bytes + common.weights
    phases = MAX_THREADS * small.bytes + common.weights + of_blocks
    may_share, may_follow = shared <= problem.max_workspace, of_blocks <= PHASE_BYTES and phases <= problem.max_workspace
    return Ways(may_share, small if may_follow else None), max(most, shared * may_share, phases * may_follow)


def ways_of(problem: ConvProblem, layout: Layout) -> Ways:
    """The ways that there is memory for."""
    return _ways(problem, layout)[0]


def workspace_of(problem: ConvProblem) -> int:
    """Working memory, whatever the number of threads."""
    return max(_ways(problem, layout)[1] for layout in (layout_for(problem), fine_layout(problem)))
