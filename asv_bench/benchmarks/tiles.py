"""Register tiles of the numba backend on data in the first-level cache: their share of the peak measured in the same process."""

import functools

import numpy as np
from numconv_numba.measuring import multiply_add_rate
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.gemm import multiply
from numconv_numba.microkernels.product import product

from . import seconds

TERMS = 128
SHAPES = [f"{vectors}x{positions}" for vectors, positions in host().channel_tiles]
PANELS = [f"{vectors}x{channels}" for vectors, channels in host().pixel_tiles]


class Product:
    """Lanes over channels: (vectors, positions)."""

    params = (SHAPES, ["float32", "float64"])
    param_names = ("shape", "dtype")

    def setup(self, shape, dtype):
        vectors, positions = map(int, shape.split("x"))
        lanes, groups, item = lanes_of(dtype), 4, np.dtype(dtype).itemsize
        a, b = np.ones((TERMS, vectors * lanes), dtype), np.ones((positions, TERMS), dtype)
        y = np.empty((groups * positions, vectors * lanes), dtype)
        places = np.tile(np.arange(positions) * TERMS * item, groups).astype(np.int64)
        offsets = np.arange(TERMS, dtype=np.int64) * item
        compiled = product.specialise((vectors, positions, lanes), dtype)
        step = vectors * lanes * item
        self.call = functools.partial(compiled, a, b, places, y, groups * positions, TERMS, offsets, step, 0)
        self.call()
        if not (y == TERMS).all():
            raise ValueError(f"tile {shape} in {dtype}: a sum of {TERMS} ones is not {TERMS}")
        self.flops = 2 * y.size * TERMS

    def track_share_of_peak(self, shape, dtype):
        return self.flops / seconds(self.call) / multiply_add_rate(dtype, 1)

    track_share_of_peak.unit = "ratio"


class Multiply(Product):
    """Lanes over gathered pixels: (vectors, channels)."""

    params = (PANELS, ["float32", "float64"])

    def setup(self, shape, dtype):
        vectors, channels = map(int, shape.split("x"))
        lanes, tiles, item = lanes_of(dtype), 4, np.dtype(dtype).itemsize
        panel, w = np.ones((TERMS, vectors * lanes), dtype), np.ones((tiles * channels, TERMS), dtype)
        y, none = np.empty((tiles * channels, vectors * lanes), dtype), np.zeros(1, np.int64)
        places = np.arange(vectors) * lanes * item
        compiled = multiply.specialise((vectors, channels, lanes), (dtype, dtype))
        k, pixels = TERMS * item, vectors * lanes
        weights, sums, target = (w, item, k, channels * k, tiles), (y, 0, 1), (y, pixels * item, places, pixels, 0, 0)
        self.call = functools.partial(compiled, vectors, panel, TERMS, *weights, *sums, *target, panel, none, none, 0, 0)
        self.call()
        if not (y == TERMS).all():
            raise ValueError(f"tile {shape} in {dtype}: a sum of {TERMS} ones is not {TERMS}")
        self.flops = 2 * y.size * TERMS
