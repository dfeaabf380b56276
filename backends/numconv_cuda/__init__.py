"""The backend of numconv for NVIDIA GPUs: kernels written in Python with Numba CUDA, for the arrays of any library.

This module is light: numba-cuda and the kernels are imported when the first problem asks for them, and the driver is asked through
NVML, which makes no CUDA context and so leaves a later fork intact.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence

from numconv.plugin import Implementation, Verdict, __version__, nvidia_devices

__all__ = ["CudaBackend", "backend", "simulated"]


def simulated() -> bool:
    """Whether NUMBA_ENABLE_CUDASIM makes numba-cuda run kernels as Python threads on NumPy arrays."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0").strip() not in ("", "0")


def _toolkit() -> Verdict:
    """Whether the library is found that compiles NVVM IR; looking for it makes no CUDA context."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("nvvm")
    except Exception as error:  # noqa: BLE001 - the finder has errors of its own for each of its ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Verdict.no(
            f"no CUDA toolkit is found ({reason}): python -m pip install 'numba-cuda[cu13]', or cu12 for older drivers"
        )
    return Verdict.yes()


@functools.cache
def _implementations() -> tuple[Implementation, ...]:
    from .direct import Direct
    from .gemm.implicit_gemm import ImplicitGemm
    from .pooling import Pool
    from .strips.depthwise import Depthwise
    from .tensor_cores.tensor_cores import TensorCores
    from .windows import Windows

    return (Depthwise(), TensorCores(), ImplicitGemm(), Direct(), Pool(), Windows())


class CudaBackend:
    """The plugin: needs numba-cuda, an NVIDIA driver and a device, or the simulator, which is used only when asked for."""

    name = "cuda"
    version = __version__

    @property
    def device(self) -> str:
        """Where its arrays live: in the simulator they are NumPy's."""
        return "cpu" if simulated() else "gpu"

    @property
    def automatic(self) -> bool:
        """Whether it takes part in the automatic choice: never in the simulator."""
        return not simulated()

    def availability(self) -> Verdict:
        """Whether there are packages, a driver and a device; nothing of numba is imported."""
        for package in ("numba", "numba_cuda"):
            if importlib.util.find_spec(package) is None:
                return Verdict.no(
                    f"the package {package.replace('_', '-')} is not installed: python -m pip install 'numconv-nd[cuda]'"
                )
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            return Verdict.no("NUMBA_DISABLE_JIT is set, and its kernels are machine code only: unset it")
        if simulated():
            return Verdict.yes("simulated on NumPy arrays, because NUMBA_ENABLE_CUDASIM is set")
        count, reason = nvidia_devices()
        if not count:
            return Verdict.no(reason)
        return _toolkit()

    def implementations(self) -> Sequence[Implementation]:
        """The special ones first, the general ones last."""
        return _implementations()

    def information(self) -> Mapping[str, str]:
        """What `numconv info` shows of this backend."""
        from .runtime.launching import device_facts

        if simulated():
            return device_facts()
        from .runtime.cache import FILES

        return {**device_facts(), "cache": str(FILES.info())}


backend = CudaBackend()
