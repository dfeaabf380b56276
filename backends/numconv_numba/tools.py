"""The functions that drivers call by address, as one table: each is compiled once, for all drivers and shapes of tiles.

Those that come together are units: one run of the compiler, one file on disk.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import entries
from .compiling.compiler import Unit
from .dense.packing import pack_slab
from .dense.panels import pack_panel, read_panel, write_panel, write_weights
from .dense.slab import MOST_PHASES
from .microkernels.activation import dress
from .microkernels.copies import join_neighbours, split
from .microkernels.dots import dots
from .microkernels.emit import host
from .microkernels.fused_product import fused_product, is_fused
from .microkernels.gemm import multiply
from .microkernels.memory import FLUSHED
from .microkernels.product import products
from .microkernels.transforms import TRANSFORMS, shapes_for
from .microkernels.transpose import transpose
from .scalar import PAIRS, ROW_PAIRS

__all__ = ["dot_tools", "lone_split", "split_address", "tools_for"]

USUAL_PHASES = {PAIRS: (1,), ROW_PAIRS: ()}
"""Phases of a row whose splits are compiled together, by the dtype of factors; of single ones `SINGLE_PHASES`."""
SINGLE_PHASES = 1, 2, 4
USUAL_STRIDES = 1, 2
"""Those of layers whose transforms are compiled together."""

_slab = Unit(
    "tools.slab",
    lambda dtype, acc, factor, lanes: [
        (pack_slab, (dtype, factor)),
        (transpose, (lanes, (dtype, acc))),
        (dress, (lanes, acc)),
        *((split, ((phases, lanes), (dtype, factor))) for phases in USUAL_PHASES.get(factor, SINGLE_PHASES)),
    ],
)
_panels = Unit(
    "tools.panels",
    lambda dtype, factor, out, acc, lanes: [
        (pack_panel, (dtype, factor)),
        (write_panel, (out, acc)),
        *products(lanes, factor),
    ],
)
_gradients = Unit(
    "tools.gradients",
    lambda dtype, factor, out, acc, lanes: [
        (read_panel, (dtype, factor)),
        (write_weights, (out, acc)),
        *(products(lanes, factor) if lanes else ()),
    ],
)
_gemm = Unit(
    "tools.gemm",
    lambda shape, dtype, factor, stored: [(pack_panel, (dtype, factor)), (multiply, (shape, (factor, stored)))],
)
_transforms = Unit(
    "tools.transforms",
    lambda taps, lanes, dtype, acc: [
        *((each, ((*shape, lanes), acc)) for shape in shapes_for(*taps) for each in TRANSFORMS),
        *((split, ((phases, lanes), (dtype, acc))) for phases in _many_phases(taps)),
        *((fused_product, ((*shape, lanes), acc)) for shape in shapes_for(*taps) if is_fused(shape)),
    ],
)


def _many_phases(taps: tuple[int, int]) -> list[int]:
    """Phases of a row that tiles for so many taps leave apart with a usual stride, for which `_slab` has no split."""
    found = dict.fromkeys(stride * columns for stride in USUAL_STRIDES for *_, columns, _ in shapes_for(*taps))
    return [phases for phases in found if phases not in SINGLE_PHASES and phases <= MOST_PHASES]


def _transforms_for(shape: tuple[int, ...], phases: int, lanes: int, dtype: str, acc: str) -> tuple[tuple[int, ...], int, int]:
    """The addresses of `TRANSFORMS` for tiles of a shape, of the split for so many phases of a row, and of `fused_product`."""
    taps = shape[1], shape[3]
    shapes, many = shapes_for(*taps), _many_phases(taps)
    if shape not in shapes:
        alone = tuple(each.address((*shape, lanes), acc) for each in TRANSFORMS)
        return alone, split_address(phases, dtype, acc, acc, lanes), 0
    found = _transforms.functions(taps, lanes, dtype, acc)
    one, splits = shapes.index((shape[0], shape[1], shape[2], shape[3])), len(TRANSFORMS) * len(shapes)
    apart = found[splits + many.index(phases)] if phases in many else split_address(phases, dtype, acc, acc, lanes)
    fused = found[-1] if is_fused(shape) else 0
    return found[len(TRANSFORMS) * one : len(TRANSFORMS) * (one + 1)], apart, fused


def lone_split(phases: int, lanes: int, dtypes: tuple[str, str]) -> int:
    """A `split` that is compiled by itself; 0 for more phases than are parted in registers."""
    return int(split.address((phases, lanes), dtypes)) if phases <= MOST_PHASES else 0


def split_address(phases: int, dtype: str, acc: str, factor: str, lanes: int) -> int:
    """A `split` of rows of `dtype` that are packed as `factor` for sums of `acc`; 0 for too many phases."""
    _, _, _, *together = _slab.functions(dtype, acc, factor, lanes)
    usual = dict(zip(USUAL_PHASES.get(factor, SINGLE_PHASES), together, strict=True))
    return int(usual.get(phases) or lone_split(phases, lanes, (dtype, factor)))


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
) -> np.ndarray[Any, Any]:
    """The table for inputs of `dtype`, sums of `acc` and, where they are given, outputs of `out` and tiles of these shapes.

    `factor`: the dtype of factors, where it is not that of sums. `phases`: of a row of the slab. `packs`: whether weights are
    packed, as they are for products. `reads`: whether panels of `dtype` are read and weights written, as for a weight gradient.
    What is not asked for has the address 0.
    """
    factor = factor or acc
    # products of pairs are flushed already
    stored = FLUSHED if factor in (PAIRS, ROW_PAIRS) and out == "bfloat16" and host().pairs else out
    panels, of_products = _gradients if reads else _panels, lanes if product_shape else 0
    _slab.begin(dtype, acc, factor, lanes)
    taps = (transform_shape[1], transform_shape[3]) if transform_shape else None
    if taps and transform_shape in shapes_for(*taps):
        _transforms.begin(taps, lanes, dtype, acc)
    if reads or product_shape:
        panels.begin(dtype, factor, out, acc, of_products)
    elif gemm_shape:
        _gemm.begin(gemm_shape, dtype, factor, stored)
    table = np.zeros(entries.COUNT, np.int64)
    table[entries.LANES] = lanes
    packed, squares, dressed, *_ = _slab.functions(dtype, acc, factor, lanes)

    def copy(source: str, target: str) -> int:
        known = (source, target) == (dtype, factor)
        return split_address(1, dtype, acc, factor, lanes) if known else split.address((1, lanes), (source, target))

    table[[entries.PACK, entries.READ_SQUARES, entries.DRESS]] = packed, squares, dressed
    if factor == ROW_PAIRS:
        table[entries.SPLIT] = join_neighbours.address(lanes, dtype)
        table[entries.READ_WORDS] = transpose.address(lanes, (acc, acc))
    elif transform_shape:
        places = [entries.INPUT, entries.WEIGHT, entries.OUTPUT, entries.GRADIENT, entries.KERNEL]
        table[places], table[entries.SPLIT], table[entries.FUSED] = _transforms_for(transform_shape, phases, lanes, dtype, acc)
    else:
        table[entries.SPLIT] = split_address(phases, dtype, acc, factor, lanes)
    table[entries.COPY] = copy(acc, acc)
    table[entries.READ_ROWS] = copy(dtype, acc)
    written = stored or acc
    table[entries.WRITE_SQUARES] = squares if (acc, written) == (dtype, acc) else transpose.address(lanes, (acc, written))
    if reads or product_shape:
        first, write, *tiles = panels.functions(dtype, factor, out, acc, of_products)
        places = [entries.READ, entries.WRITE_WEIGHTS] if reads else [entries.PACK_WEIGHTS, entries.WRITE]
        table[places] = first, write
    elif gemm_shape:
        table[[entries.PACK_WEIGHTS, entries.MULTIPLY]] = _gemm.functions(gemm_shape, dtype, factor, stored)
    elif packs:
        table[entries.PACK_WEIGHTS] = pack_panel.address(dtype, factor)
    if product_shape:
        table[entries.PRODUCT] = tiles[host().channel_tiles.index(product_shape)]
    return table


@functools.cache
def dot_tools(dtype: str, lanes: int) -> np.ndarray[Any, Any]:
    """The table for products along the terms, all of one dtype."""
    table = np.zeros(entries.COUNT, np.int64)
    table[entries.LANES] = lanes
    _, squares, dressed, *_ = _slab.functions(dtype, dtype, dtype, lanes)
    table[[entries.READ_SQUARES, entries.WRITE_SQUARES]] = squares
    table[[entries.DRESS, entries.COPY]] = dressed, split_address(1, dtype, dtype, dtype, lanes)
    table[entries.DOTS] = dots.address(lanes, dtype)
    return table
