"""Tiles of Winograd's algorithm: which there are for a problem, and how they lie in a block of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from numconv.plugin import ConvProblem, np_dtype

from .microkernels.emit import lanes_of
from .slab import Block, cut, tap_positions

__all__ = [
    "Tiles", "cut_tiles", "direct_terms", "inner_taps", "lead_axes", "packed_together", "spread", "tile_rows", "tiles_of",
]  # fmt: skip

ELEMENTS = 6, 4
"""Of a tile along a dimension."""
PACKED_BYTES = 64 * 1024
"""Packed input that is transformed in one go: it stays near the first-level cache."""


class Tiles(NamedTuple):
    """What tiles are along the last two dimensions; the first of them is trivial in one dimension.

    Attributes
    ----------
    outputs, taps : (int, int)
        m and r of F(m, r); 1 and 1 stand for no transform.
    strides, phases : (int, int)
        Of the input, and how many of its phases the kernel reads.
    """

    outputs: tuple[int, int]
    taps: tuple[int, int]
    strides: tuple[int, int]
    phases: tuple[int, int]

    @property
    def elements(self) -> int:
        """Of a transformed tile."""
        return math.prod(m + r - 1 for m, r in zip(self.outputs, self.taps, strict=True))

    @property
    def transform(self) -> tuple[int, int, int, int]:
        """The shape of the transforms."""
        return self.outputs[0], self.taps[0], self.outputs[1], self.taps[1]


def lead_axes(problem: ConvProblem) -> int:
    """The number of dimensions that are summed directly."""
    return max(problem.ndim - 2, 0)


def inner_taps(problem: ConvProblem) -> list[int]:
    """The taps of a phase along the last two dimensions."""
    return [-(-r // s) for r, s in zip(problem.kernel[-2:], problem.stride[-2:], strict=True)]


def tiles_of(problem: ConvProblem) -> list[Tiles]:
    """The tiles that can be had, those with the fewest multiplications first."""
    taps, strides = inner_taps(problem), problem.stride[-2:]
    phases = [min(r, s) for r, s in zip(problem.kernel[-2:], strides, strict=True)]
    trivial, found = [1] * (2 - len(taps)), []
    for elements in ELEMENTS:
        outputs = [1 if r == 1 else elements - r + 1 for r in taps]
        if all(m > 1 or r == 1 for m, r in zip(outputs, taps, strict=True)):
            m, r, s, p = ((*trivial, *each) for each in (outputs, taps, strides, phases))
            found.append(Tiles(m, r, s, p))
    return found


def cut_tiles(problem: ConvProblem, tiles: Tiles, fits: Callable[[Block], bool]) -> Block:
    """The block, for tiles along the last two dimensions."""
    lead, inner = lead_axes(problem), -min(problem.ndim, 2)
    units = (*[1] * lead, *tiles.outputs[inner:])
    steps = (*[1] * lead, *(m * s for m, s in zip(tiles.outputs[inner:], tiles.strides[inner:], strict=True)))
    # all taps of every phase, also those that only some phases have
    reach = [
        [a + s * i for a in range(p) for i in range(r)]
        for r, s, p in zip(tiles.taps[inner:], tiles.strides[inner:], tiles.phases[inner:], strict=True)
    ]
    return cut(problem, steps, [*tap_positions(problem)[:lead], *reach], units, fits, problem.n)


def tile_rows(tiles: Tiles, block: Block, lanes: int) -> int:
    """Places of a block's tiles at one position along the leading dimensions: rows at the pitch of the slab, in whole vectors."""
    rows = -(-block.size[-2] // tiles.outputs[0]) if len(block.size) > 1 else 1
    return -(-rows * block.pitch[-1] // lanes) * lanes


def direct_terms(problem: ConvProblem, tiles: Tiles) -> int:
    """Terms of a sum between the transforms, for each input channel: phases and taps of the leading dimensions."""
    return int(math.prod(tiles.phases) * math.prod(problem.kernel[: lead_axes(problem)]))


def packed_together(problem: ConvProblem, block: Block, channels: int) -> int:
    """Channels of a slab: as many as stay near the first-level cache; of channels that are last whole vectors."""
    count = PACKED_BYTES // (block.channel * np_dtype(problem.acc_dtype).itemsize)
    if problem.layout == "channels_last":
        lanes = lanes_of(problem.acc_dtype)
        count = max(lanes, count // lanes * lanes)
    return min(channels, max(1, count))


def spread(size: int, line: int) -> int:
    """A size in elements rounded up to an odd number of cache lines, so that what lies so far apart falls into different sets."""
    return (-(-size // line) | 1) * line
