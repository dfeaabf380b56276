"""Where plugins keep compiled kernels: one file each, whose name is the whole key, in a folder named by the sources' hash.

Numba's own on-disk cache keeps an index for each function, stamped with the hash of one file only: it misses changes in other
modules, and two processes that compile at the same time can overwrite each other's entries.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from . import __version__

__all__ = ["CacheInfo", "KernelFiles", "cache_dir", "source_hash"]

_KEPT_SECONDS = 30 * 24 * 3600
SUFFIX = ".kernel"


class CacheInfo(NamedTuple):
    """The state of a cache of compiled kernels."""

    path: pathlib.Path | None
    """The folder that new kernels are written to; None: they live in memory only."""
    files: int
    bytes: int
    reason: str
    """Why `path` is not the intended folder; empty if it is."""

    def __str__(self) -> str:
        where = f"{self.path} ({self.files} files, {self.bytes} bytes)" if self.path else "memory only"
        return where + (f": {self.reason}" if self.reason else "")


class _Folders(NamedTuple):
    readable: tuple[pathlib.Path, ...]
    writable: pathlib.Path | None
    reason: str


def cache_dir() -> pathlib.Path:
    """The folder for compiled kernels and tuning results: NUMCONV_CACHE_DIR, else the user's cache folder."""
    given = os.environ.get("NUMCONV_CACHE_DIR")
    if given:  # no shell reads what an image or a service sets, so ~ may be left in it
        return pathlib.Path(given).expanduser().absolute()
    from numba.misc.appdirs import user_cache_dir

    return pathlib.Path(user_cache_dir("numconv"))  # type: ignore[no-untyped-call]


def source_hash(package: pathlib.Path) -> str:
    """Hash of all Python sources of a package, in an order that does not depend on the file system."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def check_writable(folder: pathlib.Path) -> None:
    """Make a folder and a file in it, or raise OSError."""
    import tempfile

    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    os.utime(folder)


def temporary_root() -> pathlib.Path:
    """A folder of this user alone: cached kernels are machine code, so nobody else may write there."""
    import tempfile

    if not hasattr(os, "getuid"):
        return pathlib.Path(tempfile.gettempdir()) / "numconv"
    root = pathlib.Path(tempfile.gettempdir()) / f"numconv-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{root} belongs to, or is writable by, another user")
    return root


class KernelFiles:
    """The compiled kernels of one package on disk. No failure of the file system reaches the caller: it compiles instead.

    Parameters
    ----------
    package : pathlib.Path
        The folder of the package's sources.
    """

    def __init__(self, package: pathlib.Path) -> None:
        self.package = package.resolve()

    @functools.cached_property
    def folders(self) -> _Folders:
        """The folders to read from and the one to write to; a folder that cannot be written may still hold kernels."""
        readable: list[pathlib.Path] = []
        reasons: list[str] = []
        for root in (cache_dir, temporary_root):
            try:
                folder = root() / "kernels" / f"{self.package.name}-{__version__}-{source_hash(self.package)}"
                readable.append(folder)
                check_writable(folder)
            except (OSError, RuntimeError) as error:
                reasons.append(str(error))
            else:
                return _Folders(tuple(readable), folder, "; ".join(reasons))
        return _Folders(tuple(readable), None, "; ".join(reasons))

    def look_again(self) -> None:
        """Forget which folders there are: for tests, which change NUMCONV_CACHE_DIR."""
        self.__dict__.pop("folders", None)

    def file(self, name: str, *key: object) -> str:
        """The name of the file of a kernel: what it is called, and the hash of everything else on which it depends."""
        return f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}{SUFFIX}"

    def read(self, file: str) -> Iterator[bytes]:
        """The contents of a file in each folder that has it."""
        for folder in self.folders.readable:
            with contextlib.suppress(OSError):
                yield (folder / file).read_bytes()

    def write(self, file: str, content: bytes) -> None:
        """Write a file; readers see the whole of it or nothing."""
        folder = self.folders.writable
        if folder is None:
            return
        partial = folder / f"{file}.{os.urandom(4).hex()}.tmp"
        try:
            self._remove_unused(folder)
            partial.write_bytes(content)
            partial.replace(folder / file)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    @functools.cache  # noqa: B019 - there is one object a package, for good
    def _remove_unused(self, current: pathlib.Path) -> None:
        """Remove the folders of other versions of this package that nobody opened for 30 days."""
        import shutil

        pattern = re.compile(re.escape(self.package.name) + r"-[^-]+-[0-9a-f]{12}")
        limit = time.time() - _KEPT_SECONDS
        with contextlib.suppress(OSError):
            for folder in current.parent.iterdir():
                if folder != current and pattern.fullmatch(folder.name) and folder.stat().st_mtime < limit:
                    shutil.rmtree(folder, ignore_errors=True)

    def info(self) -> CacheInfo:
        """Where compiled kernels are kept, and how many there are."""
        folders = self.folders
        try:
            sizes = [path.stat().st_size for path in folders.writable.glob(f"*{SUFFIX}")] if folders.writable else []
        except OSError:
            sizes = []
        return CacheInfo(folders.writable, len(sizes), sum(sizes), folders.reason)
