"""The cache of compiled kernels: one file for each library of them and processor, see `KernelFiles`."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import sys
from collections.abc import Iterable

import numba
from numba.core.registry import cpu_target

from numconv.plugin import KernelFiles

from .parts import Library

__all__ = ["FILES", "file_of", "load", "save"]

FILES = KernelFiles(pathlib.Path(__file__).parents[1])


@functools.cache
def _stamp(source: str) -> str:
    """The hash of a file outside the package: what is inside is part of the folder's name."""
    path = pathlib.Path(source)
    return "" if path.is_relative_to(FILES.package) or not path.is_file() else hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _processor() -> tuple[str, str, str]:
    """Asked once: LLVM may be busy."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, name, features


def file_of(name: str, key: object, sources: Iterable[str]) -> str:
    """The file of a library that is called `name`.

    Parameters
    ----------
    name : str
    key : object
        What tells it from others of that name: its `repr` counts.
    sources : iterable of str
        The files that define its functions.
    """
    return FILES.file(name, numba.__version__, sys.implementation.cache_tag, _processor(), key, tuple(map(_stamp, sources)))


def load(file: str) -> Library | None:
    """What is in a file, if there is such a file."""
    for content in FILES.read(file):
        try:
            return Library.loaded(content)
        except Exception:  # noqa: BLE001 a damaged file, which can raise anything: compile and write it again
            continue
    return None


def save(file: str, content: bytes) -> None:
    """Write a file."""
    FILES.write(file, content)
