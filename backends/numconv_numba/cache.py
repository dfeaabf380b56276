"""The cache of compiled kernels: one file for each kernel, signature and processor, see `KernelFiles`."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from numconv.plugin import KernelFiles

__all__ = ["FILES", "KernelCache"]

FILES = KernelFiles(pathlib.Path(__file__).parent)


class KernelCache(NullCache):
    """The cache of one kernel's dispatcher.

    Parameters
    ----------
    name : str
        The kernel's name, unique in the package.
    function : function
        The kernel. A change of the file that defines it is noticed even outside the package.

    Attributes
    ----------
    loaded : int
        Number of signatures found on disk by this process.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._source = pathlib.Path(function.__code__.co_filename)
        self.loaded = 0

    @property
    def cache_path(self) -> str | None:
        """The folder that is written to."""
        folder = FILES.folders.writable
        return None if folder is None else str(folder)

    @functools.cached_property
    def _stamp(self) -> str:
        inside = self._source.is_relative_to(FILES.package) or not self._source.is_file()
        return "" if inside else hashlib.sha256(self._source.read_bytes()).hexdigest()

    def _file(self, signature: Any, codegen: Any) -> str:
        versions = numba.__version__, sys.implementation.cache_tag
        return FILES.file(self._name, *versions, codegen.magic_tuple(), str(signature), self._stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel of this signature, or None."""
        target_context.refresh()
        for content in FILES.read(self._file(sig, target_context.codegen())):
            try:
                found = CompileResult._rebuild(target_context, *pickle.loads(content))
            except Exception:  # noqa: BLE001 a damaged file, which can raise anything: compile and write it again
                continue
            self.loaded += 1
            return found
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled kernel."""
        if not data.library.has_dynamic_globals:
            FILES.write(self._file(sig, data.codegen), dumps(data._reduce()))
