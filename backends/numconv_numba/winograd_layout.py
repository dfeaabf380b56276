"""How a forward convolution by Winograd's algorithm is cut into blocks, and what it costs."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from numconv.plugin import ConvProblem, np_dtype

from .blocked import CALL_SECONDS, Shape, divided, pack_weight_cycles, panel_shape, seconds, tile_cycles
from .slab import WRITE_CYCLES, Block, pack_cycles
from .threads import MAX_THREADS, Areas
from .winograd_tiles import PACKED_BYTES, Tiles, cut_tiles, direct_terms, packed_together, spread, tile_rows, tiles_of

__all__ = ["CHANNELS_AT_ONCE", "Layout", "areas_of", "cost_of", "layout_for", "steps_of"]

BLOCK_BYTES = (640 * 1024, 1280 * 1024, 1920 * 1024)
"""What the transformed input of a block and the products of a panel may take of the second-level cache."""
RESULT_BYTES = 512 * 1024
"""The sums of a block for a panel."""
WEIGHT_BYTES = 512 * 1024
"""Transformed weights that are multiplied in one pass over a block."""
KEPT_BYTES = 4 * 1024 * 1024
"""Transformed weights that a worker keeps from block to block."""
CHANNELS_AT_ONCE = 8
"""Input channels whose weights are packed before they are transformed: transposing runs of neighbours is cheaper in one go."""


class Layout(NamedTuple):
    """How a forward problem is cut: also channels of a pass, whether weights are kept, channels of a slab."""

    tiles: Tiles
    shape: Shape
    block: Block
    chunk: int
    kept: bool
    slab_channels: int

    @property
    def rows(self) -> int:
        """See `tile_rows`."""
        return tile_rows(self.tiles, self.block, 1)

    @property
    def places(self) -> int:
        """Tiles of a block, rounded up to register tiles."""
        return -(-self.block.tiles // self.shape.positions) * self.shape.positions

    @property
    def plane(self) -> int:
        """Places of a transformed channel."""
        return self.rows * math.prod(self.block.pitch[:-2])


def _layout_with(problem: ConvProblem, tiles: Tiles, budget: int) -> Layout:
    item, per_c, per_k = np_dtype(problem.acc_dtype).itemsize, problem.c // problem.groups, problem.k // problem.groups
    terms, phases = direct_terms(problem, tiles), math.prod(tiles.phases)
    width = panel_shape(problem.acc_dtype, per_k, 1 << 20).width * item

    def fits(block: Block) -> bool:
        wide = math.prod(block.pitch[:-2]) * tile_rows(tiles, block, 1)
        transformed = tiles.elements * (block.images * per_c * phases * wide * item + block.tiles * width)
        return transformed <= budget and block.pixels * width <= RESULT_BYTES and divided(problem, block, width)

    block = cut_tiles(problem, tiles, fits)
    shape = panel_shape(problem.acc_dtype, per_k, block.tiles)
    each = tiles.elements * terms * shape.width * item
    allowed = min(KEPT_BYTES, problem.max_workspace // MAX_THREADS - budget - RESULT_BYTES - PACKED_BYTES)
    kept = -(-per_k // shape.width) * per_c * each <= allowed and block.pieces * problem.groups > 1
    chunk = per_c if kept else min(per_c, max(1, WEIGHT_BYTES // each))
    return Layout(tiles, shape, block, chunk, kept, packed_together(problem, block, per_c))


def cost_of(problem: ConvProblem, layout: Layout) -> float:
    """Cycles of the products and of the transforms, counted in vectors; the factors are fitted to 25 problems of all kinds."""
    tiles, shape, block, *_ = layout
    per_c, per_k, pieces = problem.c // problem.groups, problem.k // problem.groups, block.pieces * problem.groups
    panels, terms = -(-per_k // shape.width), per_c * direct_terms(problem, tiles)
    groups = -(-block.tiles // shape.positions)
    products = tiles.elements * pieces * panels * groups * (terms * tile_cycles(shape.vectors, shape.positions) + 60)
    # loads, stores and about as many multiply-adds for each element of a transform; packing and transposing. Where one block is
    # shared, both of two threads transform its input; weights that are kept, each thread transforms for itself.
    shared = 2 if pieces == 1 else 1
    vectors = pieces * block.images * per_c * math.prod(tiles.phases) * tile_rows(tiles, block, shape.lanes) / shape.lanes
    vectors *= math.prod(block.pitch[:-2])
    inputs = shared * (pack_cycles(block, problem.c) * 2 + vectors * tiles.elements * 9.5)
    outputs = pieces * panels * shape.vectors * block.tiles * (tiles.elements * 1.4 + math.prod(tiles.outputs) * 1.7)
    times = 2 * problem.groups if layout.kept else pieces
    transformed = panels * shape.vectors * terms * tiles.elements * 3.3
    weights = times * (pack_weight_cycles(problem, panels * shape.width * per_c) + transformed)
    results = math.prod(problem.y_shape) * WRITE_CYCLES * 0.5
    return CALL_SECONDS + 3e-6 + seconds(products * 1.05 + inputs + outputs + weights + results)


@functools.lru_cache(maxsize=256)
def layout_for(problem: ConvProblem) -> Layout:
    """The layout with the least cost."""
    candidates = (_layout_with(problem, tiles, budget) for tiles in tiles_of(problem) for budget in BLOCK_BYTES)
    return min(candidates, key=lambda layout: cost_of(problem, layout))


def steps_of(problem: ConvProblem, layout: Layout) -> tuple[int, int, int, int]:
    """V_STEP, M_STEP, V_ROWS, U_STEP."""
    line, phases = 64 // np_dtype(problem.acc_dtype).itemsize, math.prod(layout.tiles.phases)
    return (
        # whole vectors are stored, whose ends are overwritten by what follows: the last one goes beyond
        spread(layout.block.images * (problem.c // problem.groups) * phases * layout.plane + layout.shape.lanes, line),
        spread(layout.places * layout.shape.width, line),
        layout.rows,
        spread(layout.chunk * direct_terms(problem, layout.tiles) * layout.shape.width, line),
    )


def areas_of(problem: ConvProblem, layout: Layout) -> Areas:
    """A worker's scratch memory."""
    tiles, shape, block, item, taps = *layout[:3], np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)
    v_step, m_step, _, u_step = steps_of(problem, layout)
    panels, elements = -(-(problem.k // problem.groups) // shape.width), tiles.elements
    terms = layout.chunk * direct_terms(problem, tiles)
    tables = 8 * (layout.places + terms + elements * math.prod(tiles.phases) + problem.ndim)
    sizes = (
        layout.slab_channels * block.channel + 2 * shape.lanes,  # tiles are read in whole vectors, beyond the last position
        elements * v_step,
        elements * m_step,
        block.pixels * shape.width,
        CHANNELS_AT_ONCE * taps * shape.width,
        math.prod(tiles.outputs) * shape.width,
        elements * u_step * (panels if layout.kept else 1),
    )
    return Areas(tables, *(count * item for count in sizes), panels)
