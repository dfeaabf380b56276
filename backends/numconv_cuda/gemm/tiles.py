"""Tiles of matrix products: what a block computes, and what a kernel is made for."""

from __future__ import annotations

from typing import NamedTuple

from numconv.plugin import np_dtype
from numconv_cuda.runtime.compiler import SIMULATED

from .neighbours import Way

__all__ = ["GAP", "LARGEST", "QUAD", "TILES", "Recipe", "Tile", "tiles_of"]

GAP = 4
"""Numbers between the rows of a slice in shared memory, so that writing a column of it meets different banks."""
QUAD = 4
"""Numbers that a thread takes from shared memory at once, and writes."""
LARGEST = 256
"""Threads of a block."""


class Tile(NamedTuple):
    """The part of the product that a block computes, the depth of a slice, the part of a thread, and the arrangement of lanes.

    Numbers of rows and columns are multiples of 4, those of lanes even, or 1.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    lane_rows: int
    lane_columns: int
    stages: int = 4

    @property
    def threads(self) -> int:
        """Of a block."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)

    @property
    def warp(self) -> tuple[int, int]:
        """Rows and columns of a warp's tile."""
        return self.thread_rows * self.lane_rows, self.thread_columns * self.lane_columns

    @property
    def residents(self) -> int:
        """Blocks for which a multiprocessor must have registers: 65,536, of which a thread gets 128, and more in a small block."""
        return max(512 // self.threads - (self.threads < 128), 1)


TILES: dict[int, tuple[Tile, ...]]
if SIMULATED:  # a thread of the simulator is one of Python's
    TILES = dict.fromkeys((4, 8, 16), (Tile(16, 8, 4, 8, 4, 2, 2, 3), Tile(8, 8, 4, 4, 4, 2, 2, 3), Tile(4, 16, 4, 4, 4, 1, 2, 3)))
else:
    TILES = {
        4: (Tile(128, 128, 8, 8, 8, 4, 8), Tile(64, 128, 8, 8, 8, 4, 8), Tile(64, 64, 8, 8, 8, 4, 8),
            Tile(32, 128, 8, 8, 8, 4, 8), Tile(16, 256, 8, 8, 8, 2, 16), Tile(4, 512, 4, 4, 8, 1, 32, 3)),
        8: (Tile(64, 128, 8, 4, 8, 4, 8, 3), Tile(32, 128, 8, 4, 8, 4, 8, 3)),
        16: (Tile(32, 64, 4, 4, 4, 4, 8, 3), Tile(16, 64, 4, 4, 4, 4, 8, 3)),
    }  # fmt: skip
"""By the bytes of a number, the largest first. A thread's tile has up to 64 registers."""


def tiles_of(dtype: str) -> tuple[Tile, ...]:
    """The tiles of numbers of an accumulation dtype."""
    return TILES[max(np_dtype(dtype).itemsize, 4)]


class Recipe(NamedTuple):
    """What a kernel is made for."""

    tile: Tile
    dtype: str
    """Of accumulation."""
    ways: tuple[Way, Way]
    """How both factors are copied."""
    ndim: int
    folded: bool = False
    """Whether padding copies values."""
    phased: bool = False
    """Whether it computes a strided gradient of x by phases."""
    converted: bool = False
    """Whether elements are of another dtype in memory."""
    index_dtype: str = "int32"

    def __str__(self) -> str:
        tile, ways = self.tile, "_".join(map(str, self.ways))
        shape = f"{tile.rows}x{tile.columns}x{tile.depth}_{tile.thread_rows}x{tile.thread_columns}_{tile.stages}"
        kind = f"{'_folded' * self.folded}{'_phased' * self.phased}{'_converted' * self.converted}"
        return f"{shape}_{self.dtype}_{ways}_{self.ndim}d{kind}_{self.index_dtype}"

    @property
    def residents(self) -> int:
        """Blocks for which a multiprocessor must have registers: fewer where there is more to hold than a thread's tile."""
        most = self.tile.residents
        if self.index_dtype != "int32":
            return max(most // 2, 1)
        more = self.phased or self.converted or (np_dtype(self.dtype).itemsize > QUAD and self.tile.threads < LARGEST)
        return max(most - max(most // 4, 1), 1) if more else most

    @property
    def entry(self) -> int:
        """Numbers of an entry of the tables: an offset and a position, a multiple of 4 of them."""
        return -(-(1 + self.ndim) // QUAD) * QUAD
