"""Where compiled kernels live: one file for each kernel, signature and processor, in a folder named by the sources' hash.

Numba's own on-disk cache keeps an index for each function, stamped with the hash of one file only: it misses changes in other
modules, and two processes that compile at the same time can overwrite each other's entries. Here the file's name is the whole key.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from numconv.plugin import __version__, cache_dir

__all__ = ["CacheInfo", "KernelCache", "cache_info"]

_PACKAGE = pathlib.Path(__file__).resolve().parent
_KEPT_SECONDS = 30 * 24 * 3600


class CacheInfo(NamedTuple):
    """The state of the cache of compiled kernels."""

    path: pathlib.Path | None
    """The folder that new kernels are written to; None: they live in memory only."""
    files: int
    bytes: int
    reason: str
    """Why `path` is not the intended folder; empty if it is."""


class _Folders(NamedTuple):
    readable: tuple[pathlib.Path, ...]
    writable: pathlib.Path | None
    reason: str


def source_hash(package: pathlib.Path = _PACKAGE) -> str:
    """Hash of all Python sources of the package, in an order that does not depend on the file system."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _check_writable(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    os.utime(folder)


def _temporary_root() -> pathlib.Path:
    """A folder of this user alone: cached kernels are machine code, so nobody else may write there."""
    if not hasattr(os, "getuid"):
        return pathlib.Path(tempfile.gettempdir()) / "numconv"
    root = pathlib.Path(tempfile.gettempdir()) / f"numconv-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{root} belongs to, or is writable by, another user")
    return root


@functools.cache
def _folders() -> _Folders:
    """The folders to read from and the one to write to; a folder that cannot be written may still hold kernels."""
    readable: list[pathlib.Path] = []
    reasons: list[str] = []
    for root in (cache_dir, _temporary_root):
        try:
            folder = root() / "kernels" / f"{_PACKAGE.name}-{__version__}-{source_hash()}"
            readable.append(folder)
            _check_writable(folder)
        except (OSError, RuntimeError) as error:
            reasons.append(str(error))
        else:
            return _Folders(tuple(readable), folder, "; ".join(reasons))
    return _Folders(tuple(readable), None, "; ".join(reasons))


@functools.cache
def _remove_unused(current: pathlib.Path) -> None:
    """Remove the folders of other versions of this package that nobody opened for 30 days."""
    pattern = re.compile(re.escape(_PACKAGE.name) + r"-[^-]+-[0-9a-f]{12}")
    limit = time.time() - _KEPT_SECONDS
    with contextlib.suppress(OSError):
        for folder in current.parent.iterdir():
            if folder != current and pattern.fullmatch(folder.name) and folder.stat().st_mtime < limit:
                shutil.rmtree(folder, ignore_errors=True)


class KernelCache(NullCache):
    """The cache of one kernel's dispatcher. No failure of the file system reaches the caller: the kernel is compiled instead.

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
        folder = _folders().writable
        return None if folder is None else str(folder)

    @functools.cached_property
    def _stamp(self) -> str:
        inside = self._source.is_relative_to(_PACKAGE) or not self._source.is_file()
        return "" if inside else hashlib.sha256(self._source.read_bytes()).hexdigest()

    def _file(self, signature: Any, codegen: Any) -> str:
        key = (numba.__version__, sys.implementation.cache_tag, codegen.magic_tuple(), str(signature), self._stamp)
        return f"{self._name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.kernel"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel of this signature, or None."""
        target_context.refresh()
        file = self._file(sig, target_context.codegen())
        for folder in _folders().readable:
            try:
                found = CompileResult._rebuild(target_context, *pickle.loads((folder / file).read_bytes()))
            except Exception:  # noqa: BLE001 no file, or a damaged one, which can raise anything: compile and write it again
                continue
            self.loaded += 1
            return found
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled kernel; readers see the whole file or none."""
        folder = _folders().writable
        if folder is None or data.library.has_dynamic_globals:
            return
        target = folder / self._file(sig, data.codegen)
        partial = target.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        content = dumps(data._reduce())
        try:
            _remove_unused(folder)
            partial.write_bytes(content)
            partial.replace(target)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def cache_info() -> CacheInfo:
    """Where compiled kernels are kept, and how many there are."""
    folders = _folders()
    try:
        sizes = [path.stat().st_size for path in folders.writable.glob("*.kernel")] if folders.writable else []
    except OSError:
        sizes = []
    return CacheInfo(folders.writable, len(sizes), sum(sizes), folders.reason)
