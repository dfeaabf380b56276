"""How a block of `tensor_products` cuts its part of a product, and where its elements lie in shared memory.

A unit is 16 bytes: eight numbers of 16 bits, or four of 32. A stage of shared memory holds a slice of both factors, first those of
the first. A factor is *along* the terms of the product where its units hold neighbouring terms of one line: the line then has
`UNITS` of them. It is *across* them where a unit holds neighbouring lines for one term: the slice then has a row of units for each
term. The units of a row are permuted, so that eight that an instruction reads at once lie in different banks.
"""

from __future__ import annotations

from typing import NamedTuple

from numconv_cuda.runtime.compiler import SIMULATED

__all__ = ["ITEMSIZE", "UNITS", "Form", "Tile"]

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element; float32 is multiplied as TF32."""
UNITS = 4
"""Units of a line, of a factor along the terms."""


class Tile(NamedTuple):
    """The part of the product that a block computes, over how many warps, and how many stages of its slices are on the way."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    stages: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warp_rows * self.warp_columns

    @property
    def blocks(self) -> tuple[int, int]:
        """How many pieces of 16 rows and of 8 columns a warp has."""
        return self.rows // self.warp_rows // 16, self.columns // self.warp_columns // 8

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}_{self.warp_rows}x{self.warp_columns}x{self.stages}"


class Form(NamedTuple):
    """A tile of elements of a dtype."""

    tile: Tile
    dtype: str
    across: tuple[bool, bool]
    """Whether the units of each factor lie across the terms."""
    packed: bool
    """Whether the factors are packed: else those of 32 bits are rounded to TF32 when they are loaded from shared memory."""

    @property
    def each(self) -> int:
        """Elements of a unit."""
        return 16 // ITEMSIZE[self.dtype]

    @property
    def depth(self) -> int:
        """Terms of a slice."""
        return UNITS * self.each

    @property
    def stage(self) -> int:
        """Units of a stage."""
        return (self.tile.rows + self.tile.columns) * UNITS

    @property
    def pitch(self) -> int:
        """From one row of results in shared memory to the next."""
        return self.tile.columns + (0 if SIMULATED else 8)

    @property
    def blocks(self) -> int:
        """That a multiprocessor shall have registers for; factors across the terms need more of them."""
        threads = 128 if SIMULATED else 384 if all(self.across) else 512
        return -(-threads // self.tile.threads)

    @property
    def part(self) -> int:
        """Rows of results that are in shared memory at a time: those of a row of warps."""
        return self.tile.rows // self.tile.warp_rows

    @property
    def words(self) -> int:
        """Numbers of 32 bits in shared memory: the stages, or afterwards a part of the results and the places of the columns."""
        return max(self.tile.stages * self.stage * 4, self.part * self.pitch + 2 * self.tile.columns)

    def swizzle(self, which: int) -> tuple[int, int, int]:
        """(shift, mask, step): a unit of a factor lies at ``unit ^ (line >> shift & mask) * step`` of its row.

        Matrices are loaded by ``ldmatrix``, eight units of eight rows at a time; but numbers of 32 bits across the terms one by
        one, by a warp from four rows, eight neighbours from each.
        """
        if not self.across[which]:
            return 1, UNITS - 1, 1
        units = self.tile[which] // self.each
        return (0, max(min(3, units // 2 - 1), 0), 2) if self.each == 4 else (0, min(7, units - 1), 1)
