"""The functions that drivers call by address, as one table: each is compiled once, for all drivers and shapes of tiles."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import entries
from .microkernels import transforms
from .microkernels.activation import dress
from .microkernels.copies import join_neighbours, split
from .microkernels.dots import dots
from .microkernels.emit import host
from .microkernels.gemm import multiply
from .microkernels.lines import write_lines
from .microkernels.memory import FLUSHED
from .microkernels.product import product
from .microkernels.transpose import transpose
from .packing import pack_slab
from .panels import pack_panel, read_panel, write_panel, write_weights
from .scalar import PAIRS, ROW_PAIRS
from .slab import MOST_PHASES

__all__ = ["dot_tools", "tools_for"]


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
    packs: bool = False,
    reads: bool = False,
    lines: bool = False,
) -> np.ndarray[Any, Any]:
    """The table for inputs of `dtype`, sums of `acc` and, where they are given, outputs of `out` and tiles of these shapes.

    `factor`: the dtype of factors, where it is not that of sums. `phases`: of a row of the slab. `packs`: whether weights are
    packed, as they are for products. `reads`: whether panels of `dtype` are read and weights written, as for a weight gradient.
    `lines`: whether sums are written by lines.
    What is not asked for has the address 0.
    """
    factor = factor or acc
    # products of pairs are flushed already
    stored = FLUSHED if factor in (PAIRS, ROW_PAIRS) and out == "bfloat16" and host().pairs else out
    table = np.zeros(entries.COUNT, np.int64)
    table[entries.LANES] = lanes
    table[entries.COPY] = split.address((1, lanes), (acc, acc))
    if factor == ROW_PAIRS:
        table[entries.SPLIT] = join_neighbours.address(lanes, dtype)
        table[entries.READ_WORDS] = transpose.address(lanes, (acc, acc))
    else:
        table[entries.SPLIT] = split.address((phases, lanes), (dtype, factor)) if phases <= MOST_PHASES else 0
    table[entries.PACK] = pack_slab.address(dtype, factor)
    table[entries.READ_ROWS] = split.address((1, lanes), (dtype, acc))
    table[entries.READ_SQUARES] = transpose.address(lanes, (dtype, acc))
    table[entries.WRITE_SQUARES] = transpose.address(lanes, (acc, stored or acc))
    table[entries.DRESS] = dress.address(lanes, acc)
    if lines:
        table[entries.LINES] = write_lines.address(lanes, (acc, out))
    if product_shape:
        table[entries.PRODUCT] = product.address((*product_shape, lanes), factor)
    if gemm_shape:
        table[entries.MULTIPLY] = multiply.address(gemm_shape, (factor, stored))
    if reads:
        table[entries.READ] = read_panel.address(dtype, factor)
        table[entries.WRITE_WEIGHTS] = write_weights.address(out, acc)
    elif product_shape or packs:
        table[entries.PACK_WEIGHTS] = pack_panel.address(dtype, factor)
        table[entries.WRITE] = write_panel.address(out, acc) if out else 0
    if transform_shape:
        shape = *transform_shape, lanes
        table[entries.INPUT] = transforms.transform_input.address(shape, acc)
        if reads:
            table[entries.GRADIENT] = transforms.transform_gradient.address(shape, acc)
            table[entries.KERNEL] = transforms.transform_kernel.address(shape, acc)
        else:
            table[entries.WEIGHT] = transforms.transform_weight.address(shape, acc)
            table[entries.OUTPUT] = transforms.transform_output.address(shape, acc)
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
