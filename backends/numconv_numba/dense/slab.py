"""Slabs: the part of x that a block of outputs reads, packed for one work item.

A block is a range of images and a box of outputs of one group. Its slab holds, for each image and channel, the positions that its
windows reach, in the dtype of the factors: padding is in place, rows follow each other at one pitch, and where the kernel wants it
the positions are split into phases (every second position, every fourth, ...), each of which lies together. There every output
is an offset and every tap another, whatever the number of dimensions. A slab is sized for the second-level cache, so that all
output channels pass over it there.

Factors have the dtype in which their products are summed; or they are pairs of bfloat16 numbers, of two channels each, of which the
last one may lack its second; or pairs of what two neighbouring results of a row read.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.compiling.compiler import helper
from numconv_numba.geometry import BATCH, DIMS, OUTPUT, part
from numconv_numba.threads import SERIAL_WORK, threads

__all__ = [
    "AXES",
    "BLOCKS",
    "B_STEP",
    "B_UNIT",
    "CHANNEL",
    "COMBINATIONS",
    "IMAGES",
    "IMAGE_BLOCKS",
    "MANY_PIECES",
    "MOST_PHASES",
    "SHARES",
    "WRITE_CYCLES",
    "Block",
    "axis_entry",
    "block_extent",
    "block_image",
    "block_images",
    "block_start",
    "block_vector",
    "cut",
    "pack_cycles",
    "pieces_for",
    "pieces_here",
    "shareable",
    "slab_bytes",
    "steps",
    "tap_offsets",
    "tap_positions",
]


SHARES = 4
"""Blocks that a problem is cut into at least, where it has work for several threads: what they share need not be packed by each."""
FEW_PIECES, MANY_PIECES = 8, 32
"""Pieces that a problem with much work is cut into at least, where that costs little: for up to four threads, and for more."""
PIECE_WORK = 1e6
"""Multiply-adds that are worth a piece."""
MOST_PHASES = 12
"""Phases of a row that are split in registers; a larger stride is packed an element at a time."""


class Block(NamedTuple):
    """How a problem is cut into blocks, and how the slab of one is laid out, in elements.

    Attributes
    ----------
    images, image_blocks : int
        Images of a block, and how many such ranges there are.
    size, blocks : tuple of int
        Outputs of a block and number of blocks, per dimension.
    pitch : tuple of int
        Positions of one phase, per dimension.
    step : tuple of int
        The distance of neighbouring positions of a phase, per dimension.
    unit : tuple of int
        Outputs that a tile computes together, per dimension.
    phases : tuple of tuple of int
        Per dimension the first positions of the phases.
    """

    images: int
    image_blocks: int
    size: tuple[int, ...]
    blocks: tuple[int, ...]
    pitch: tuple[int, ...]
    step: tuple[int, ...]
    unit: tuple[int, ...]
    phases: tuple[Sequence[int], ...]

    @property
    def channel(self) -> int:
        """Elements of the slab for one input channel of one image."""
        return math.prod(self.pitch) * math.prod(map(len, self.phases))

    @property
    def pieces(self) -> int:
        """Blocks of a group."""
        return self.image_blocks * math.prod(self.blocks)

    @property
    def tiles(self) -> int:
        """Tiles of a block."""
        return self.images * math.prod(-(-q // u) for q, u in zip(self.size, self.unit, strict=True))

    @property
    def pixels(self) -> int:
        """Outputs of a block."""
        return self.images * math.prod(self.size)


def steps(pitch: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each dimension."""
    return tuple(math.prod(pitch[axis + 1 :]) for axis in range(len(pitch)))


def tap_positions(problem: ConvProblem) -> list[list[int]]:
    """Per dimension, where each tap lies relative to the first position of its window."""
    return [
        [(r - 1 - tap if problem.flip else tap) * d for tap in range(r)]
        for r, d in zip(problem.kernel, problem.dilation, strict=True)
    ]


def tap_offsets(problem: ConvProblem, block: Block) -> list[int]:
    """The offset of each tap in a channel's part of the slab."""
    stride, places, plane, ndim = problem.stride, steps(block.pitch), math.prod(block.pitch), problem.ndim
    taps = []
    for tap in itertools.product(*tap_positions(problem)):
        combination = 0
        for axis in range(ndim):
            combination = combination * len(block.phases[axis]) + block.phases[axis].index(tap[axis] % stride[axis])
        taps.append(combination * plane + sum(tap[a] // stride[a] * places[a] for a in range(ndim)))
    return taps


def cut(
    problem: ConvProblem,
    step: Sequence[int],
    positions: Sequence[Sequence[int]],
    units: Sequence[int],
    fits: Callable[[Block], bool],
    images: int,
) -> Block:
    """The largest block that fits; ranges of images are cut first, then the outer dimensions.

    Parameters
    ----------
    step : sequence of int
        The distance of neighbouring positions of a phase, per dimension.
    positions : sequence of sequence of int
        Per dimension, what a window reads relative to its first position.
    units : sequence of int
        Outputs that a tile computes together, per dimension: sizes of blocks are multiples of them.
    fits : callable
        Whether a block is small enough.
    images : int
        Images that a block may have at most.
    """
    phases = tuple(
        range(s) if unit > 1 else tuple(sorted({p % s for p in found}))
        for found, s, unit in zip(positions, step, units, strict=True)
    )
    lasts = list(map(max, positions))  # of half a million taps, too long to be found for every block
    whole = (images, *problem.output)

    def block(size: Sequence[int]) -> Block:
        inner = tuple(size[1:])
        whole_tiles = [-(-q // unit) * unit for q, unit in zip(inner, units, strict=True)]
        reach = [(q - 1) * s + last for q, s, last in zip(whole_tiles, problem.stride, lasts, strict=True)]
        pitch = tuple(r // s + 1 for r, s in zip(reach, step, strict=True))
        counts = tuple(-(-q // b) for q, b in zip(problem.output, inner, strict=True))
        return Block(size[0], -(-problem.n // max(size[0], 1)), inner, counts, pitch, tuple(step), tuple(units), phases)

    size = list(whole)
    for axis, unit in enumerate((1, *units)):
        if not fits(block(size)):
            small = functools.partial(_fits_with, size, axis, block, fits)
            size[axis] = _length(size[axis], unit, _parts(size[axis], unit, small))
    return block(size)


def shareable(problem: ConvProblem, block: Block) -> bool:
    """Whether threads can share the blocks evenly, or there is little to share."""
    return block.pieces * problem.groups >= SHARES or problem.flops / 2 < SHARES * SERIAL_WORK


def pieces_for(work: float, most: int) -> int:
    """Into how many pieces, up to `most`, to cut a problem of so many multiply-adds at least."""
    return max(1, min(most, int(work / PIECE_WORK)))


def pieces_here() -> int:
    """Of a large problem, for the threads there are: blocks may depend on them, since no sum is parted."""
    return FEW_PIECES if threads() <= FEW_PIECES // 2 else MANY_PIECES


def _fits_with(
    size: Sequence[int], axis: int, block: Callable[[Sequence[int]], Block], fits: Callable[[Block], bool], length: int
) -> bool:
    """Whether a block fits that has another length along one axis."""
    return fits(block([*size[:axis], length, *size[axis + 1 :]]))


def _length(whole: int, unit: int, parts: int) -> int:
    """Of the parts of an axis: equal multiples of a unit."""
    most = -(-whole // unit)
    return min(whole, -(-most // parts) * unit)


def _parts(whole: int, unit: int, fits: Callable[[int], bool]) -> int:
    """Into how many parts to cut an axis: as few as fit, but then a multiple of four, which threads share evenly."""
    most = max(1, -(-whole // unit))
    parts = 1
    while parts < most and not fits(_length(whole, unit, parts)):
        parts = min(most, parts + max(1, parts // 4))
    even = -(-parts // 4) * 4
    return even if parts > 1 and even <= most // 2 else parts


# What kernels know of a block: a head, then seven entries a dimension, then the phases.
IMAGES, IMAGE_BLOCKS, CHANNEL, BLOCKS, COMBINATIONS, EXTRA, AXES = 0, 1, 2, 3, 4, 5, 19
B_SIZE, B_BLOCKS, B_PITCH, B_PHASES, B_PLACE, B_STEP, B_UNIT = range(7)


def block_vector(block: Block, *extra: int) -> np.ndarray[Any, Any]:
    """The vector of a block; up to fourteen numbers of the kernel's own start at EXTRA."""
    combinations = math.prod(map(len, block.phases))
    head = [block.images, block.image_blocks, block.channel, block.pieces, combinations, *extra, *[0] * (AXES - EXTRA - len(extra))]
    places: list[int] = []
    values: list[int] = []
    for one in block.phases:
        places.append(len(values))
        values.extend(one)
    rows = [*block.size, *block.blocks, *block.pitch, *map(len, block.phases), *places, *block.step, *block.unit]
    return np.array([*head, *rows, *values], np.int64)


@helper
def axis_entry(b, ndim, which, axis):
    """An entry of a dimension in a block's vector."""
    return b[AXES + which * ndim + axis]


@helper
def block_start(b, ndim, block, axis):
    """The first output of a block along a dimension."""
    for other in range(ndim - 1, axis, -1):
        block //= axis_entry(b, ndim, B_BLOCKS, other)
    return block % axis_entry(b, ndim, B_BLOCKS, axis) * axis_entry(b, ndim, B_SIZE, axis)


@helper
def block_extent(g, b, block, axis):
    """The number of outputs of a block along a dimension: the last block may be short."""
    start = block_start(b, g[DIMS], block, axis)
    return min(axis_entry(b, g[DIMS], B_SIZE, axis), g[part(g, OUTPUT) + axis] - start)


@helper
def block_image(b, ndim, block):
    """The first image of a block."""
    for axis in range(ndim):
        block //= axis_entry(b, ndim, B_BLOCKS, axis)
    return block * b[IMAGES]


@helper
def block_images(g, b, block):
    """The number of images of a block."""
    return min(b[IMAGES], g[BATCH] - block_image(b, g[DIMS], block))


def pack_cycles(block: Block, channels: int) -> float:
    """Of packing so many channels of every block: elements, and rows, whose ends take masks.

    Where some phases of a row are not wanted, the others are packed an element at a time.
    """
    rows, phases = math.prod(block.pitch[:-1]) * math.prod(map(len, block.phases[:-1])), len(block.phases[-1])
    each = 0.3 if phases == block.step[-1] and phases <= MOST_PHASES else 2.5
    return block.pieces * block.images * channels * (block.channel * each + rows * 6)


WRITE_CYCLES = 0.8
"""Of transposing and storing one result."""


def slab_bytes(problem: ConvProblem, block: Block, depth: int = 0) -> int:
    """Of the slab of a block, for so many channels, or pairs of them; for all of a group by default."""
    return block.images * (depth or problem.c // problem.groups) * block.channel * np_dtype(problem.acc_dtype).itemsize
