"""The CPU backend of numconv: Numba kernels on all cores.

This module is light: Numba and the kernels are imported when the first problem asks for them.
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
    from .blocked import Blocked
    from .borders import Borders, PlainBorders
    from .channelwise import Channelwise
    from .channelwise_weights import ChannelwiseWeights
    from .col2im import Col2im
    from .connected_gradients import ConnectedGradients
    from .crosswise import Crosswise
    from .crosswise_pooling import CrosswisePool
    from .depthwise import Depthwise
    from .depthwise_weights import DepthwiseWeights
    from .direct import Direct
    from .embedded import FloatProducts, RealProducts
    from .fft import Fft, FftDouble, FftDoubleWeights, FftWeights
    from .flat_pooling import FlatPool
    from .flat_unpooling import FlatUnpool
    from .found_scatter import FoundScatter
    from .implicit_gemm import ImplicitGemm
    from .inner_product import InnerProduct
    from .interleaved import Interleaved
    from .paired import PairedBlocked, PairedGemm, PairedWeights
    from .plane_weights import PlanewiseWeights
    from .planewise import Planewise
    from .polyphase import Polyphase, PolyphaseWeights
    from .pooling import Pool
    from .separable import Separable
    from .subpixel import Subpixel
    from .tile import RegisterTile
    from .tiled_gemm import TiledGemm
    from .tiled_weights import TiledWeights
    from .vector_gather import VectorGather
    from .vector_pooling import VectorPool
    from .vector_scatter import VectorScatter
    from .vector_windows import VectorWindows
    from .weights import BlockedWeights
    from .wide_pooling import WidePool
    from .windows import Windows
    from .winograd import Winograd
    from .winograd_weights import WinogradWeights
    from .woven import Woven

    return (
        Separable(),
        Channelwise(),
        ChannelwiseWeights(),
        Planewise(),
        PlanewiseWeights(),
        Crosswise(),
        Woven(),
        Interleaved(),
        Subpixel(),
        Col2im(),
        Polyphase(),
        PolyphaseWeights(),
        Depthwise(),
        DepthwiseWeights(),
        InnerProduct(),
        ConnectedGradients(),
        RegisterTile(),
        Winograd(),
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
        CrosswisePool(),
        FlatPool(),
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
        from .amx import availability
        from .cache import FILES
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
