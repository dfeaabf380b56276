"""The functions that drivers call by address, as one table: each is compiled once, for all drivers and shapes of tiles."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import entries
from .microkernels import transforms
from .microkernels.copies import split
from .microkernels.gemm import multiply
from .microkernels.product import product
from .microkernels.transpose import transpose
from .panels import pack_panel, read_panel, write_panel, write_weights
from .slab import MOST_PHASES, pack_slab

__all__ = ["tools_for"]


@functools.cache
def tools_for(
    dtype: str,
    acc: str,
    lanes: int,
    *,
    phases: int = 1,
    out: str = "",
    product_shape: tuple[int, int] | None = None,
    gemm_shape: tuple[int, ...] | None = None,
    transform_shape: tuple[int, ...] | None = None,
    packs: bool = False,
    reads: bool = False,
) -> np.ndarray[Any, Any]:
    """The table for inputs of `dtype`, sums of `acc` and, where they are given, outputs of `out` and tiles of these shapes.

    `phases`: of a row of the slab. `packs`: whether weights are packed, as they are for products. `reads`: whether panels of
    `dtype` are read and weights written, as for a weight gradient. What is not asked for has the address 0.
    """
    table = np.zeros(entries.COUNT, np.int64)
    table[entries.LANES] = lanes
    table[entries.COPY] = split.address((1, lanes), acc)
    table[entries.SPLIT] = split.address((phases, lanes), acc) if phases <= MOST_PHASES else 0
    table[entries.PACK] = pack_slab.address(dtype, acc)
    if product_shape:
        table[entries.PRODUCT] = product.address((*product_shape, lanes), acc)
    if product_shape or packs:
        table[entries.TRANSPOSE] = transpose.address(lanes, acc)
    if gemm_shape:
        table[entries.MULTIPLY] = multiply.address(gemm_shape, acc)
    if reads:
        table[entries.READ] = read_panel.address(dtype, acc)
        table[entries.WRITE_WEIGHTS] = write_weights.address(out, acc)
    elif product_shape or packs:
        table[entries.PACK_WEIGHTS] = pack_panel.address(dtype, acc)
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
