"""The CPU backend of numconv: Numba kernels on all cores.

This module is light: Numba and the kernels are imported when the first problem asks for them. What there is, each line on top of
those before:

``compiling``
    Functions on raw addresses, compiled in units and kept on disk.
``scalar``, ``elements``, ``halves``, ``geometry``, ``threads``
    What all kernels are written with: typed loads and arithmetic, the vector that describes a problem, the parallel loop.
``microkernels``
    The innermost loops, emitted as vector code.
``activations``, ``rows``, ``results``, ``direct``, ``direct_gradients``
    Every convolution, a row at a time: what the others leave out, and what they fall back on where numbers are not finite.
``sliding``, ``pooling``
    Pooling and windows.
``dense``, ``matrix_tiles``, ``winograd``, ``strided``, ``depthwise``, ``spectral``
    Convolutions. ``tools`` is the table of compiled functions, with its ``entries``, by which the drivers of dense ones call.
``borders``, ``embedded``
    Made of the others: input gradients with padding modes; integers and complex numbers by way of real floats.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence

from numconv.plugin import Implementation, Rates, Verdict, __version__

__all__ = ["NumbaBackend", "backend"]


_IMPLEMENTATIONS = (
    "depthwise.separable:Separable",
    "depthwise.channelwise:Channelwise",
    "depthwise.channelwise_weights:ChannelwiseWeights",
    "depthwise.planewise:Planewise",
    "depthwise.plane_weights:PlanewiseWeights",
    "depthwise.crosswise:Crosswise",
    "strided.woven:Woven",
    "strided.interleaved:Interleaved",
    "strided.patchwise:Patchwise",
    "strided.subpixel:Subpixel",
    "strided.col2im:Col2im",
    "dense.polyphase:Polyphase",
    "dense.polyphase:PolyphaseWeights",
    "depthwise.depthwise:Depthwise",
    "depthwise.depthwise_weights:DepthwiseWeights",
    "dense.inner_product:InnerProduct",
    "dense.connected_gradients:ConnectedGradients",
    "dense.tile:RegisterTile",
    "winograd.fused:FusedWinograd",
    "winograd.rows:WinogradRows",
    "winograd.forward:Winograd",
    "winograd.dilated:DilatedWinograd",
    "winograd.weights:WinogradWeights",
    "matrix_tiles.tiled_gemm:TiledGemm",
    "dense.paired:PairedGemm",
    "dense.implicit_gemm:ImplicitGemm",
    "dense.paired:PairedBlocked",
    "dense.blocked:Blocked",
    "matrix_tiles.tiled_weights:TiledWeights",
    "dense.paired:PairedWeights",
    "dense.weights:BlockedWeights",
    "borders:Borders",
    "borders:PlainBorders",
    "spectral.fft:Fft",
    "spectral.fft:FftDouble",
    "spectral.fft:FftWeights",
    "spectral.fft:FftDoubleWeights",
    "embedded:FloatProducts",
    "embedded:RealProducts",
    "direct:Direct",
    "pooling.box_pooling:BoxPool",
    "pooling.channelwise_pooling:ChannelwisePool",
    "pooling.crosswise_pooling:CrosswisePool",
    "pooling.flat_pooling:FlatPool",
    "pooling.inside_pooling:InsidePool",
    "pooling.vector_pooling:VectorPool",
    "pooling.wide_pooling:WidePool",
    "pooling.vector_gather:VectorGather",
    "pooling.vector_scatter:VectorScatter",
    "pooling.found_scatter:FoundScatter",
    "pooling.pool:Pool",
    "pooling.vector_windows:VectorWindows",
    "pooling.flat_unpooling:FlatUnpool",
    "pooling.windows:Windows",
)
"""The special ones first, the general ones last: ``module:class``, imported when the first problem asks for them."""


@functools.cache
def _implementations() -> tuple[Implementation, ...]:
    places = (place.split(":") for place in _IMPLEMENTATIONS)
    return tuple(getattr(importlib.import_module(f".{module}", __name__), name)() for module, name in places)


class NumbaBackend:
    """The plugin: needs the package numba."""

    name = "numba"
    device = "cpu"
    automatic = True
    version = __version__

    def availability(self) -> Verdict:
        """Whether the package numba is there; it is not imported."""
        if importlib.util.find_spec("numba") is None:
            return Verdict.no("the package numba is not installed: python -m pip install numba")
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            return Verdict.no("NUMBA_DISABLE_JIT is set, and its kernels are machine code only: unset it")
        return Verdict.yes()

    def implementations(self) -> Sequence[Implementation]:
        """One object each."""
        return _implementations()

    def information(self) -> Mapping[str, str]:
        """What `numconv info` shows of this backend."""
        from .compiling.cache import FILES
        from .matrix_tiles.amx import availability
        from .threads import layer, quota, threads

        return {
            "threads": str(threads()),
            "threading layer": layer(),
            "CPU quota": "none" if math.isinf(quota()) else f"{quota():g}",
            "matrix tiles": availability().reason or "AMX",
            "cache": str(FILES.info()),
        }

    def measurements(self) -> Mapping[str, str]:
        """What `numconv info --measure` shows: rates measured here and now."""
        from .measuring import measurements

        return measurements()

    def rates(self, dtype: str, size: int) -> Rates:
        """The limits of this machine, measured here and now; for reports only."""
        from .measuring import rates

        return rates(dtype, size)


backend = NumbaBackend()
