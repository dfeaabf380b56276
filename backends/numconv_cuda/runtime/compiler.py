"""The only module that imports numba-cuda: what kernels are compiled with, and what the simulator needs in its place.

numba-cuda is in maintenance, and its successor numba-cuda-mlir has the same names; a move to it happens here.

In the simulator (``NUMBA_ENABLE_CUDASIM=1``) a kernel and the device functions that it calls run as plain Python.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from numconv.plugin import BackendUnavailableError
from numconv_cuda import simulated

if not hasattr(np, "row_stack"):  # numba-cuda up to 0.30 asks for the name that NumPy 2.5 has dropped
    setattr(np, "row_stack", np.vstack)  # noqa: B010 - mypy's NumPy has the name

with contextlib.suppress(ImportError):
    # Puts numba-cuda in the place of numba's own cuda; a .pth file does it too, where the package is in a site directory.
    importlib.import_module("_numba_cuda_redirector")

import numba.cuda

if not hasattr(numba.cuda, "types"):
    raise BackendUnavailableError(
        f"numba.cuda comes from {numba.cuda.__file__}, which is numba's own, not numba-cuda's: import numconv's backend before it"
    )

cuda: Any = numba.cuda  # untyped, as are its types
types: Any = numba.cuda.types
extending: Any = None if simulated() else importlib.import_module("numba.cuda.extending")

__all__ = ["SIMULATED", "Kernel", "cuda", "device", "extending", "kernel", "ptx", "type_of", "types"]

SIMULATED = simulated()


def device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call; it is inlined."""
    if SIMULATED:
        return function
    compiled: Callable[..., Any] = cuda.jit(function, device=True)
    return compiled


class Kernel:
    """A kernel: compiled for the types of its arguments when it is first launched with them.

    Parameters
    ----------
    function : callable
        Its source. It takes pointers (`numconv_cuda.runtime.launching.pointer`), named tuples of integers and NumPy scalars.
    bounds : tuple of int, optional
        The threads of a block, and how many blocks a multiprocessor must have registers for.
    """

    def __init__(self, function: Callable[..., Any], bounds: tuple[int, int] | None = None):
        self.function, self.bounds = function, bounds
        self.name = function.__name__
        self._dispatcher = self._uncompiled()

    def _uncompiled(self) -> Any:
        if SIMULATED:
            return cuda.jit(self.function)
        from .cache import KernelCache

        dispatcher = cuda.jit(self.function, launch_bounds=self.bounds)
        dispatcher._cache = KernelCache(self.name)
        return dispatcher

    def simulate(self, blocks: int | tuple[int, ...], threads: int, *args: Any) -> None:
        """Run in the simulator."""
        from .simulating import simulation

        with simulation():
            self._dispatcher[blocks, threads](*args)

    def compiled(self, args: Sequence[Any]) -> Any:
        """numba-cuda's kernel for the types of these arguments."""
        return self._dispatcher.compile(tuple(map(type_of, args)))


@contextlib.contextmanager
def _compiling_for(capability: tuple[int, int]) -> Iterator[None]:
    """Device functions compile for the current device; without one, for this compute capability."""
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    found = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = found


def ptx(kernel: Kernel, types: Sequence[Any], capability: tuple[int, int]) -> str:
    """The PTX of a kernel for arguments of these types: needs the toolkit, but neither a device nor its driver."""
    with _compiling_for(capability):
        found: str = cuda.compile_ptx(kernel.function, tuple(types), cc=capability, launch_bounds=kernel.bounds)[0]
    return found


def type_of(value: Any) -> Any:
    """Numba's type of an argument."""
    from numba.cuda.typing.typeof import typeof

    return typeof(value)


def kernel(function: Callable[..., Any], bounds: tuple[int, int] | None = None) -> Kernel:
    """Decorate the source of a kernel."""
    return Kernel(function, bounds)
