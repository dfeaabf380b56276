"""The functions that drivers call by address, as one table: each is compiled once, for all drivers and shapes of tiles."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .entries import COUNT, LANES, MULTIPLY, PACK, PACK_WEIGHTS, PRODUCT, READ, SPLIT, TRANSPOSE, WRITE, WRITE_WEIGHTS
from .microkernels.copies import split
from .microkernels.gemm import multiply
from .microkernels.product import product
from .microkernels.transpose import transpose
from .panels import pack_panel, read_panel, write_panel, write_weights
from .slab import pack_slab

__all__ = ["tools_for"]


@functools.cache
def tools_for(
    dtype: str,
    acc: str,
    lanes: int,
    *,
    out: str = "",
    product_shape: tuple[int, int] | None = None,
    gemm_shape: tuple[int, ...] | None = None,
    reads: bool = False,
) -> np.ndarray[Any, Any]:
    """The table for inputs of `dtype`, sums of `acc` and, where they are given, outputs of `out` and products of these shapes.

    `reads`: whether panels of `dtype` are read and weights written, as for a weight gradient. What is not asked for has the
    address 0.
    """
    table = np.zeros(COUNT, np.int64)
    table[LANES] = lanes
    table[SPLIT] = split.address(lanes, acc)
    table[PACK] = pack_slab.address(dtype, acc)
    if product_shape:
        table[PRODUCT] = product.address((*product_shape, lanes), acc)
        table[TRANSPOSE] = transpose.address(lanes, acc)
    if gemm_shape:
        table[MULTIPLY] = multiply.address(gemm_shape, acc)
    if reads:
        table[READ] = read_panel.address(dtype, acc)
        table[WRITE_WEIGHTS] = write_weights.address(out, acc)
    elif product_shape:
        table[PACK_WEIGHTS] = pack_panel.address(dtype, acc)
        table[WRITE] = write_panel.address(out, acc) if out else 0
    return table
