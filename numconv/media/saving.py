"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from .errors import MediaError

__all__ = ["channels_of", "new_file", "suffix_of", "to_bytes"]

Array = np.ndarray[Any, Any]


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file takes the place of `path` at the end, and is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".numconv-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105 - Path.replace says nothing about an existing file on Windows


def suffix_of(path: Path, known: tuple[str, ...]) -> str:
    """The suffix of a file that is to be written, in small letters; MediaError if nobody here writes such files."""
    suffix = path.suffix.lower()
    if suffix not in known:
        raise MediaError(f"{path}: files called *{suffix} are not written; the format follows the name: {', '.join(known)}")
    return suffix


def channels_of(path: Path, x: Any, letters: str, channels: tuple[int, ...]) -> Array:
    """`x` as an array, after a check of its dimensions, channels and values."""
    x = np.asarray(x)
    if x.ndim != len(letters.split(", ")) or x.size == 0:
        raise MediaError(f"{path}: x has the shape {list(x.shape)}, and [{letters}], none of them 0, is asked for")
    if x.shape[0] not in channels:
        raise MediaError(
            f"{path}: x [{letters}] = {list(x.shape)} has {x.shape[0]} channels, and the format takes {_either(channels)}"
        )
    if not (np.issubdtype(x.dtype, np.floating) or (x.dtype == np.uint8 and len(letters) > len("C, T"))):
        raise MediaError(f"{path}: x has dtype {x.dtype}: give floats, scaled as the readers scale them, or for pictures uint8")
    if bad := np.count_nonzero(~np.isfinite(x)):
        raise MediaError(f"{path}: x has {bad} values that are NaN or infinite")
    return cast(Array, x)


def to_bytes(x: Array) -> Array:
    """Pictures between 0 and 1 as uint8, rounded; what lies outside is clipped."""
    if x.dtype == np.uint8:
        return x
    pixels: Array = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return pixels


def _either(numbers: tuple[int, ...]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 3 else " or ".join(map(str, numbers))
