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
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence

from numconv.plugin import Implementation, Rates, Verdict, __version__

__all__ = ["NumbaBackend", "backend"]


@functools.cache
def _implementations() -> tuple[Implementation, ...]:
    from .borders import Borders, PlainBorders
    from .dense.blocked import Blocked
    from .dense.connected_gradients import ConnectedGradients
    from .dense.implicit_gemm import ImplicitGemm
    from .dense.inner_product import InnerProduct
    from .dense.paired import PairedBlocked, PairedGemm, PairedWeights
    from .dense.polyphase import Polyphase, PolyphaseWeights
    from .dense.tile import RegisterTile
    from .dense.weights import BlockedWeights
    from .depthwise.channelwise import Channelwise
    from .depthwise.channelwise_weights import ChannelwiseWeights
    from .depthwise.crosswise import Crosswise
    from .depthwise.depthwise import Depthwise
    from .depthwise.depthwise_weights import DepthwiseWeights
    from .depthwise.plane_weights import PlanewiseWeights
    from .depthwise.planewise import Planewise
    from .depthwise.separable import Separable
    from .direct import Direct
    from .embedded import FloatProducts, RealProducts
    from .matrix_tiles.tiled_gemm import TiledGemm
    from .matrix_tiles.tiled_weights import TiledWeights
    from .pooling.box_pooling import BoxPool
    from .pooling.channelwise_pooling import ChannelwisePool
    from .pooling.crosswise_pooling import CrosswisePool
    from .pooling.flat_pooling import FlatPool
    from .pooling.flat_unpooling import FlatUnpool
    from .pooling.found_scatter import FoundScatter
    from .pooling.inside_pooling import InsidePool
    from .pooling.pool import Pool
    from .pooling.vector_gather import VectorGather
    from .pooling.vector_pooling import VectorPool
    from .pooling.vector_scatter import VectorScatter
    from .pooling.vector_windows import VectorWindows
    from .pooling.wide_pooling import WidePool
    from .pooling.windows import Windows
    from .spectral.fft import Fft, FftDouble, FftDoubleWeights, FftWeights
    from .strided.col2im import Col2im
    from .strided.interleaved import Interleaved
    from .strided.patchwise import Patchwise
    from .strided.subpixel import Subpixel
    from .strided.woven import Woven
    from .winograd.dilated import DilatedWinograd
    from .winograd.forward import Winograd
    from .winograd.fused import FusedWinograd
    from .winograd.rows import WinogradRows
    from .winograd.weights import WinogradWeights

    return (
        Separable(),
        Channelwise(),
        ChannelwiseWeights(),
        Planewise(),
        PlanewiseWeights(),
        Crosswise(),
        Woven(),
        Interleaved(),
        Patchwise(),
        Subpixel(),
        Col2im(),
        Polyphase(),
        PolyphaseWeights(),
        Depthwise(),
        DepthwiseWeights(),
        InnerProduct(),
        ConnectedGradients(),
        RegisterTile(),
        FusedWinograd(),
        WinogradRows(),
        Winograd(),
        DilatedWinograd(),
        WinogradWeights(),
        TiledGemm(),
        PairedGemm(),
        ImplicitGemm(),
        PairedBlocked(),
        Blocked(),
        TiledWeights(),
        PairedWeights(),
        BlockedWeights(),
        Borders(),
        PlainBorders(),
        Fft(),
        FftDouble(),
        FftWeights(),
        FftDoubleWeights(),
        FloatProducts(),
        RealProducts(),
        Direct(),
        BoxPool(),
        ChannelwisePool(),
        CrosswisePool(),
        FlatPool(),
        InsidePool(),
        VectorPool(),
        WidePool(),
        VectorGather(),
        VectorScatter(),
        FoundScatter(),
        Pool(),
        VectorWindows(),
        FlatUnpool(),
        Windows(),
    )


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
        """The special ones first, the general ones last."""
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
