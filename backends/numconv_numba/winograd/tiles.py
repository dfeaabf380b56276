"""Tiles of Winograd's algorithm: which there are for a problem, and how they lie in a block of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.dense.slab import Block, cut, tap_positions
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.transforms import shapes_for

__all__ = [
    "MOST_TAPS", "Inputs", "Tiles", "channel_inputs_of", "cut_tiles", "deep_cycles", "direct_terms", "inner_taps",
    "input_places", "inputs_of", "is_halved", "lead_axes", "pixels_of", "spread", "tile_rows", "tiles_of",
]  # fmt: skip

PIXEL_CYCLES, VECTOR_CYCLES, ENTRY_CYCLES = 6.0, 5.0, 3.0
"""With the lanes over channels: of packing a vector of channels of a pixel, of an element of a tile for each of them, and of its
entry in a table."""
MOST_TAPS = 5
"""Of a phase: more would need points at which the error grows."""
PACKED_BYTES = 64 * 1024
"""Packed input that is transformed in one go: it stays near the first-level cache."""


class Tiles(NamedTuple):
    """What tiles are along the last two dimensions; the first of them is trivial in one dimension.

    Attributes
    ----------
    outputs, taps : (int, int)
        m and r of F(m, r); 1 and 1 stand for no transform.
    strides, phases, apart, full : (int, int)
        Of the input, how many of its phases the kernel reads, how far their first positions are from each other, and of how many of
        these it has r taps; of others it has one less.
    """

    outputs: tuple[int, int]
    taps: tuple[int, int]
    strides: tuple[int, int]
    phases: tuple[int, int]
    apart: tuple[int, int]
    full: tuple[int, int]

    @property
    def elements(self) -> int:
        """Of a transformed tile."""
        return math.prod(m + r - 1 for m, r in zip(self.outputs, self.taps, strict=True))

    @property
    def products(self) -> int:
        """Elements of all phases that are multiplied: of a phase with one tap less the one at infinity is left out."""
        each = zip(self.outputs, self.taps, self.phases, self.full, strict=True)
        return math.prod((m + r - 1) * p - (p - f) for m, r, p, f in each)

    @property
    def spans(self) -> tuple[int, ...]:
        """Positions from the first of the first phase to the first of the last one."""
        return tuple((p - 1) * a + 1 for p, a in zip(self.phases, self.apart, strict=True))

    @property
    def transform(self) -> tuple[int, int, int, int]:
        """The shape of the transforms."""
        return self.outputs[0], self.taps[0], self.outputs[1], self.taps[1]


def lead_axes(problem: ConvProblem) -> int:
    """The number of dimensions that are summed directly."""
    return max(problem.ndim - 2, 0)


def is_halved(window: int, stride: int) -> bool:
    """Whether the taps along a dimension, too many for one tile, are its first and its second half, of x and of x further on."""
    return stride == 1 and window > MOST_TAPS


def phases_of(window: int, stride: int) -> tuple[int, int, int]:
    """Taps of a phase, phases, and from phase to phase: tap i of phase a is at ``apart * a + stride * i``."""
    if is_halved(window, stride):
        return -(-window // 2), 2, -(-window // 2)
    return -(-window // stride), min(window, stride), 1


def inner_taps(problem: ConvProblem) -> list[int]:
    """The taps of a phase along the last two dimensions."""
    return [phases_of(*each)[0] for each in zip(problem.kernel[-2:], problem.stride[-2:], strict=True)]


def tiles_of(problem: ConvProblem) -> list[Tiles]:
    """The tiles that can be had, those with the fewest multiplications first."""
    trivial = [1] * (2 - min(problem.ndim, 2))
    kernel, strides = (*trivial, *problem.kernel[-2:]), (*trivial, *problem.stride[-2:])
    taps, phases, apart = zip(*(phases_of(*each) for each in zip(kernel, strides, strict=True)), strict=True)
    full = [window - (r - 1) * count for window, r, count in zip(kernel, taps, phases, strict=True)]
    return [
        Tiles((rows, columns), taps, (strides[0], strides[1]), phases, apart, (full[0], full[1]))
        for rows, _, columns, _ in shapes_for(*taps)
    ]


def cut_tiles(problem: ConvProblem, tiles: Tiles, fits: Callable[[Block], bool]) -> Block:
    """The block, for tiles along the last two dimensions."""
    lead, inner = lead_axes(problem), -min(problem.ndim, 2)
    units = (*[1] * lead, *tiles.outputs[inner:])
    steps = (*[1] * lead, *(m * s for m, s in zip(tiles.outputs[inner:], tiles.strides[inner:], strict=True)))
    # all taps of every phase, also those that only some phases have
    reach = [
        [apart * a + s * i for a in range(p) for i in range(r)]
        for r, s, p, apart in zip(tiles.taps[inner:], tiles.strides[inner:], tiles.phases[inner:], tiles.apart[inner:], strict=True)
    ]
    return cut(problem, steps, [*tap_positions(problem)[:lead], *reach], units, fits, problem.n)


def tile_rows(tiles: Tiles, block: Block, lanes: int) -> int:
    """Places of a block's tiles at one position along the leading dimensions: rows at the pitch of the slab, in whole vectors."""
    rows = -(-block.size[-2] // tiles.outputs[0]) if len(block.size) > 1 else 1
    return -(-rows * block.pitch[-1] // lanes) * lanes


class Inputs(NamedTuple):
    """How the input of a block is packed and transformed.

    Attributes
    ----------
    channels, elements : int
        Channels that are packed together, and elements of their slab, the tables behind it included.
    places : int
        Of all transformed tiles, for one of their elements.
    tile : int
        From tile to tile of these; 0 where the lanes are tiles, which are neighbours.
    """

    channels: int
    elements: int
    places: int
    tile: int


def inputs_of(problem: ConvProblem, tiles: Tiles, block: Block, channels: int, rows: int) -> Inputs:
    """For so many input channels, with the lanes over tiles; `rows`: see `tile_rows`."""
    packed, lanes = packed_together(problem, block.channel, channels), lanes_of(problem.acc_dtype)
    plane = rows * math.prod(block.pitch[:-2]) * math.prod(tiles.phases)
    return Inputs(packed, packed * block.channel + 2 * lanes, block.images * channels * plane, 0)


def channel_inputs_of(problem: ConvProblem, tiles: Tiles, block: Block, channels: int) -> Inputs:
    """For so many input channels, with the lanes over channels."""
    lanes, item = lanes_of(problem.acc_dtype), np_dtype(problem.acc_dtype).itemsize
    pixels = pixels_of(problem, tiles, block) + 1
    packed = packed_together(problem, pixels, -(-channels // lanes) * lanes, lanes)
    tile = block.images * math.prod(tiles.phases) * -(-channels // lanes) * lanes
    tile += lanes * (tile * item % 1024 == 0)  # neighbouring tiles lie in different sets of a cache
    table = math.prod(tiles.phases) * tiles.elements * plane_tiles(block)
    # and the rows and columns that tiles read, beside which there is one of dimensions that are not there
    size, unit = ((1, *each)[-2:] for each in (block.size, block.unit))
    axes = zip(size, unit, tiles.taps, tiles.strides, tiles.spans, strict=True)
    table += sum((-(-q // m) * m + r - 2) * s + span for q, m, r, s, span in axes)
    return Inputs(packed, packed * pixels + table * 8 // item, math.prod(block.pitch[:-2]) * plane_tiles(block) * tile, tile)


def plane_tiles(block: Block) -> int:
    """Tiles of an image at one position along the leading dimensions."""
    return math.prod(-(-q // unit) for q, unit in zip(block.size[-2:], block.unit[-2:], strict=True))


def input_places(problem: ConvProblem, tiles: Tiles, block: Block, channels: int, deep: bool) -> int:
    """Places of the transformed tiles of a block at least, for one of their elements; `deep`: with the lanes over channels."""
    lead, phases = block.images * math.prod(block.pitch[:-2]), math.prod(tiles.phases)
    if deep:
        lanes = lanes_of(problem.acc_dtype)
        return lead * plane_tiles(block) * phases * -(-channels // lanes) * lanes
    return lead * channels * phases * tile_rows(tiles, block, 1)


def pixels_of(problem: ConvProblem, tiles: Tiles, block: Block) -> int:
    """What the tiles of a block read of a channel, along the last two dimensions: all if padding may come from anywhere."""
    spatial = problem.spatial[-2:]
    if problem.pad_mode != "zeros":
        return math.prod(spatial)
    inner = (each[-len(spatial) :] for each in (block.size, block.unit, tiles.taps, tiles.strides, tiles.spans))
    axes = zip(spatial, *inner, strict=True)
    return math.prod(min(size, (-(-q // unit) * unit + taps - 2) * s + span) for size, q, unit, taps, s, span in axes)


def deep_cycles(problem: ConvProblem, tiles: Tiles, block: Block, channels: int) -> float:
    """Of packing and transforming the input of all blocks with the lanes over channels."""
    vectors = -(-channels // lanes_of(problem.acc_dtype)) * host().moving
    elements = tiles.elements * math.prod(tiles.phases) * plane_tiles(block)
    transformed = block.images * elements * vectors * VECTOR_CYCLES
    packed = block.images * pixels_of(problem, tiles, block) * vectors * PIXEL_CYCLES
    return block.pieces * (math.prod(block.pitch[:-2]) * (packed + transformed) + elements * ENTRY_CYCLES)


def direct_terms(problem: ConvProblem, tiles: Tiles) -> int:
    """Terms of a sum between the transforms, for each input channel: phases and taps of the leading dimensions."""
    return int(math.prod(tiles.phases) * math.prod(problem.kernel[: lead_axes(problem)]))


def packed_together(problem: ConvProblem, each: int, channels: int, unit: int = 1) -> int:
    """Channels of a slab, of `each` elements: as many as stay near the first-level cache, a multiple of `unit`.

    Those that are last are counted in vectors.
    """
    count = PACKED_BYTES // (each * np_dtype(problem.acc_dtype).itemsize)
    unit = lanes_of(problem.acc_dtype) if problem.layout == "channels_last" else unit
    return min(channels, max(unit, count // unit * unit))


def spread(size: int, line: int) -> int:
    """A size in elements rounded up to an odd number of cache lines, so that what lies so far apart falls into different sets."""
    return (-(-size // line) | 1) * line
