"""Weight gradients on matrix tiles (AMX): `blocked` with pairs of neighbouring results as factors, in layers for float32.

See `tiled_gemm` for products and layers. A gradient with a sum that is not finite is computed again by `direct`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from numconv.plugin import ConvProblem, Verdict
from numconv_numba.dense.blocked import CALL_SECONDS, Shape, seconds
from numconv_numba.dense.slab import WRITE_CYCLES
from numconv_numba.dense.weights import BlockedWeights, Layout, WeightsExecutor, layout_with
from numconv_numba.entries import PRODUCT
from numconv_numba.microkernels.amx import EMULATED, ROWS
from numconv_numba.microkernels.amx_gemm import STRIPS, layers_of
from numconv_numba.microkernels.amx_product import product_tiles
from numconv_numba.scalar import ROW_PAIRS

from .amx import body
from .layers import keeps_layers, layer_tables
from .tiled_gemm import (
    BLOCK_CYCLES,
    EMULATION,
    LEVELS,
    MEASURED_ERROR,
    PRODUCT_CYCLES,
    layer_cycles,
    products_of,
    supported,
)

__all__ = ["TiledWeights"]

VECTORS = 4
"""Registers for the sums of 16 taps."""


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> Layout:
    """The layout of a problem: output channels in equal panels."""
    vectors = -(-problem.k // problem.groups // ROWS)
    shape = Shape(-(-vectors // -(-vectors // VECTORS)), ROWS, ROWS)
    return layout_with(problem, shape, True, False, layers_of(products_of(problem)), ROWS)


class _Executor(WeightsExecutor):
    """One weight gradient on matrix tiles."""

    def __init__(self, problem: ConvProblem):
        self._products = products_of(problem)
        super().__init__(problem, _layout(problem), ROW_PAIRS)
        # layers of grad_y are not summed again to what it is
        self._sums_bias &= self._products == 1

    def tools(self, shape: Shape) -> Any:
        """A table for each layer."""
        problem, kind = self._problem, body()
        entries = {PRODUCT: product_tiles.address((shape.vectors, self._products), kind)}
        options = {"factor": ROW_PAIRS, "out": problem.out_dtype, "reads": True}
        return layer_tables(problem.dtype, layers_of(self._products), kind, STRIPS * ROWS, entries, **options)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; at the level "high" by `direct` where tiles would flush what counts."""
        if self._problem.level == "high" and not all(map(keeps_layers, ins)):
            self._direct(outs, ins)
        else:
            super().__call__(outs, ins)

    def is_lost(self, y: Any, x: Any) -> bool:
        """A product of a layer with the zero of another one may not be finite, nor one of a step with what completes it."""
        return True


class TiledWeights(BlockedWeights):
    """Weight gradients of bfloat16 and float32 on matrix tiles, with the lanes over output channels."""

    name = "blocked_amx"
    levels = LEVELS
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
    paired = True

    def supports(self, problem: ConvProblem) -> Verdict:
        """See `supported`."""
        return supported(problem)

    def layout(self, problem: ConvProblem) -> Layout:
        """See `_layout`."""
        return _layout(problem)

    def cost(self, problem: ConvProblem) -> float:
        """Products, those of what is added to fill tiles included; starts and ends of sums; gathering, packing, reading."""
        shape, block, _, layers, *_ = _layout(problem)
        per_c, per_k, taps = problem.c // problem.groups, problem.k // problem.groups, math.prod(problem.kernel)
        panels, tiles, steps = -(-per_k // shape.width), -(-per_c * taps // ROWS), -(-block.tiles // ROWS)
        # pairs are gathered by loads and a shuffle where they are neighbours
        row = 4 if max(problem.stride) == 1 and block.size[-1] >= 2 * ROWS else 20
        each = shape.vectors * products_of(problem) * PRODUCT_CYCLES + layers * ROWS * row
        products = problem.groups * panels * tiles * block.pieces * (steps * each + BLOCK_CYCLES)
        packed = panels * layer_cycles(block, problem.c, layers)
        read = layers * problem.groups * panels * block.pieces * block.pixels * shape.width * 1.4
        cycles = products + packed + read + math.prod(problem.w_shape) * WRITE_CYCLES
        return (CALL_SECONDS + 2e-6 + seconds(cycles)) * (EMULATION if body() == EMULATED else 1)

    def build(self, problem: ConvProblem) -> WeightsExecutor:
        """The executor."""
        return _Executor(problem)
