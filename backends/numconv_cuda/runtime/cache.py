"""The cache of kernels compiled for devices: one file for each kernel, signature and compute capability, see `KernelFiles`.

numba-cuda's own cache (``cache=True``) takes kernels made by a factory for different ones in each process: it hashes the device
functions that they close over with their random identities.
"""

from __future__ import annotations

import pathlib
import pickle
import sys
import zlib
from importlib import metadata
from typing import Any

from numba.cuda.core.caching import NullCache
from numba.cuda.dispatcher import _Kernel
from numba.cuda.serialize import dumps

from numconv.plugin import KernelFiles

__all__ = ["FILES", "KernelCache"]

FILES = KernelFiles(pathlib.Path(__file__).parents[1])
VERSIONS = tuple(metadata.version(name) for name in ("numba-cuda", "numba"))


class KernelCache(NullCache):  # type: ignore[misc] # untyped
    """The cache of one kernel's dispatcher, which asks it before it compiles.

    Parameters
    ----------
    name : str
        The kernel's name, unique in the package.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def _file(self, signature: Any) -> str:
        from .launching import capability

        return FILES.file(self._name, *VERSIONS, sys.implementation.cache_tag, capability(), str(signature))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel of these arguments, or None."""
        for content in FILES.read(self._file(sig)):
            try:
                return _Kernel._rebuild(**pickle.loads(zlib.decompress(content)))
            except Exception:  # noqa: BLE001 - a damaged file, which can raise anything: compile and write it again
                continue
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled kernel, with what it was compiled from: a device of another capability needs that."""
        FILES.write(self._file(sig), zlib.compress(dumps(data._reduce_states()), level=1))
