"""The functions that drivers call by address, as one table: each is compiled once, for all drivers and shapes of tiles.

Those that come together are units: one run of the compiler, one file on disk.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from . import entries
from .compiler import Unit
from .microkernels.activation import dress
from .microkernels.copies import join_neighbours, split
from .microkernels.dots import dots
from .microkernels.emit import host
from .microkernels.gemm import multiply
from .microkernels.lines import write_lines
from .microkernels.memory import FLUSHED
from .microkernels.product import product_address
from .microkernels.transforms import transforms
from .microkernels.transpose import transpose
from .packing import pack_slab
from .panels import pack_panel, read_panel, write_panel, write_weights
from .scalar import PAIRS, ROW_PAIRS
from .slab import MOST_PHASES
from .winograd_inputs import transform_pixels

__all__ = ["dot_tools", "row_tools", "split_address", "tools_for"]

SPLIT_TOGETHER = {PAIRS: 1, ROW_PAIRS: 0}
"""Phases of a row up to which splits are compiled together, by the dtype of factors; of single ones 2, as most strides have."""

_rows = Unit(
    "tools.rows",
    lambda dtype, acc, factor, lanes: [
        (transpose, (lanes, (dtype, acc))),
        (dress, (lanes, acc)),
        *((split, ((phases, lanes), (dtype, factor))) for phases in range(1, SPLIT_TOGETHER.get(factor, 2) + 1)),
    ],
)
_panels = Unit("tools.panels", lambda dtype, factor, out, acc: [(pack_panel, (dtype, factor)), (write_panel, (out, acc))])
_gradients = Unit("tools.gradients", lambda dtype, factor, out, acc: [(read_panel, (dtype, factor)), (write_weights, (out, acc))])


class RowTools(NamedTuple):
    """What serves rows of all kinds: addresses of the `transpose` that reads squares, `dress`, and `split` for 1, 2, ... phases."""

    squares: int
    dress: int
    splits: tuple[int, ...]


def row_tools(dtype: str, acc: str, factor: str, lanes: int) -> RowTools:
    """Of rows of `dtype` that are packed as `factor` for sums of `acc`."""
    squares, dressed, *splits = _rows.functions(dtype, acc, factor, lanes)
    return RowTools(squares, dressed, tuple(splits))


def split_address(phases: int, dtype: str, acc: str, factor: str, lanes: int) -> int:
    """The `split` of `row_tools` for so many phases; 0 for more than are parted in registers."""
    splits = row_tools(dtype, acc, factor, lanes).splits
    if phases <= len(splits):
        return splits[phases - 1]
    return int(split.address((phases, lanes), (dtype, factor))) if phases <= MOST_PHASES else 0


@functools.cache
def tools_for(
    dtype: str,
    acc: str,
    lanes: int,
    *,
    factor: str = "",
    phases: int = 1,
    out: str = "",
    product_shape: tuple[int, int] | None = None,
    gemm_shape: tuple[int, ...] | None = None,
    transform_shape: tuple[int, ...] | None = None,
    pixels: bool = False,
    packs: bool = False,
    reads: bool = False,
    lines: bool = False,
) -> np.ndarray[Any, Any]:
    """The table for inputs of `dtype`, sums of `acc` and, where they are given, outputs of `out` and tiles of these shapes.

    `factor`: the dtype of factors, where it is not that of sums. `phases`: of a row of the slab. `packs`: whether weights are
    packed, as they are for products. `reads`: whether panels of `dtype` are read and weights written, as for a weight gradient.
    `pixels`: whether the lanes of a transform of inputs are channels. `lines`: whether sums are written by lines.
    What is not asked for has the address 0.
    """
    factor = factor or acc
    # products of pairs are flushed already
    stored = FLUSHED if factor in (PAIRS, ROW_PAIRS) and out == "bfloat16" and host().pairs else out
    table = np.zeros(entries.COUNT, np.int64)
    table[entries.LANES] = lanes
    squares, dressed, _ = row_tools(dtype, acc, factor, lanes)

    def copy(source: str, target: str) -> int:
        known = (source, target) == (dtype, factor)
        return split_address(1, dtype, acc, factor, lanes) if known else split.address((1, lanes), (source, target))

    table[[entries.PACK, entries.READ_SQUARES, entries.DRESS]] = pack_slab.address(dtype, factor), squares, dressed
    if factor == ROW_PAIRS:
        table[entries.SPLIT] = join_neighbours.address(lanes, dtype)
        table[entries.READ_WORDS] = transpose.address(lanes, (acc, acc))
    else:
        table[entries.SPLIT] = split_address(phases, dtype, acc, factor, lanes)
    table[entries.COPY] = copy(acc, acc)
    table[entries.READ_ROWS] = copy(dtype, acc)
    written = stored or acc
    table[entries.WRITE_SQUARES] = squares if (acc, written) == (dtype, acc) else transpose.address(lanes, (acc, written))
    if lines:
        table[entries.LINES] = write_lines.address(lanes, (acc, out))
    if product_shape:
        table[entries.PRODUCT] = product_address(product_shape, lanes, factor)
    if gemm_shape:
        table[entries.MULTIPLY] = multiply.address(gemm_shape, (factor, stored))
    if reads:
        table[[entries.READ, entries.WRITE_WEIGHTS]] = _gradients.functions(dtype, factor, out, acc)
    elif (product_shape or packs) and out:
        table[[entries.PACK_WEIGHTS, entries.WRITE]] = _panels.functions(dtype, factor, out, acc)
    elif product_shape or packs:
        table[entries.PACK_WEIGHTS] = pack_panel.address(dtype, factor)
    if transform_shape:
        places = [entries.INPUT, entries.WEIGHT, entries.OUTPUT, entries.GRADIENT, entries.KERNEL]
        table[places] = transforms.functions((*transform_shape, lanes), acc)
    if pixels:
        table[entries.PIXELS] = transform_pixels.address(dtype, acc)
    return table


@functools.cache
def dot_tools(dtype: str, lanes: int) -> np.ndarray[Any, Any]:
    """The table for products along the terms, all of one dtype."""
    table = np.zeros(entries.COUNT, np.int64)
    table[entries.LANES] = lanes
    table[entries.READ_SQUARES] = table[entries.WRITE_SQUARES] = transpose.address(lanes, (dtype, dtype))
    table[entries.DRESS] = dress.address(lanes, dtype)
    table[entries.DOTS] = dots.address(lanes, dtype)
    return table
