"""The CuPy backend of numconv: cuBLAS, cuFFT and own CUDA C++ kernels on arrays of a GPU.

This module is light: CuPy and the kernels are imported when the first problem asks for them.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

from numconv.plugin import Implementation, Verdict, __version__, nvidia_devices

__all__ = ["CupyBackend", "backend"]


@functools.cache
def _implementations() -> tuple[Implementation, ...]:
    from .device import CupyDevice
    from .direct import Direct, redo
    from .fft import Fft, FftDouble
    from .launching import CupyKernels
    from .planes import Depthwise, FewChannels
    from .pooling import Pool
    from .products import Matmul, Pointwise
    from .tiled import TensorCores, Tiled
    from .windows import Windows
    from .winograd import Winograd

    kernels, device = CupyKernels(), CupyDevice()
    again = functools.partial(redo, kernels)
    return (
        Pointwise(again, device),
        Matmul(again, device),
        Fft(again, device),
        FftDouble(again),
        Winograd(device),
        Depthwise(kernels),
        FewChannels(kernels),
        TensorCores(kernels),
        Tiled(kernels),
        Direct(kernels),
        Pool(kernels),
        Windows(kernels),
    )


class CupyBackend:
    """The plugin: needs CuPy and an NVIDIA driver."""

    name = "cupy"
    device = "gpu"
    automatic = True
    version = __version__

    def availability(self) -> Verdict:
        """Whether CuPy is installed and there is a GPU."""
        if importlib.util.find_spec("cupy") is None:
            return Verdict.no("the package cupy is not installed: python -m pip install 'numconv-nd[cupy]'")
        count, reason = nvidia_devices()
        return Verdict.yes() if count else Verdict.no(reason)

    def implementations(self) -> Sequence[Implementation]:
        """The special ones first, the general ones last."""
        return _implementations()


backend = CupyBackend()
