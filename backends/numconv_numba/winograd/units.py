"""The kernels of forward convolutions, which are compiled together."""

from __future__ import annotations

from numconv_numba.compiling.compiler import Unit
from numconv_numba.microkernels.fused_product import FUSED_SHAPE, is_fused

from .fused_kernels import fused_winograd
from .inputs import transform_pixels
from .kernels import bind_weights, winograd

__all__ = ["KERNELS"]

KERNELS = Unit(
    "winograd.kernels",
    lambda dtype, acc: [(transform_pixels, (dtype, acc))],
    called=lambda dtype, acc: [
        (winograd, (acc,)),
        (bind_weights, (acc,)),
        *([(fused_winograd, (acc,))] if is_fused(FUSED_SHAPE) else ()),
    ],
)
