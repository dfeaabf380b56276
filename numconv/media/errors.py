"""What can go wrong with files: the errors, and the checks that every reader begins with."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from numconv.errors import MissingPackageError, NumconvError

__all__ = ["MediaError", "MissingPackageError", "existing_file", "reader"]


class MediaError(NumconvError, ValueError):
    """A file or an array is not what was asked for: empty, truncated, too large, of another kind. The text names the file."""


def reader(module: str, package: str) -> Any:
    """The module of a package that reads or writes files, imported only now.

    Raises
    ------
    MissingPackageError
        If it is not installed, or its own libraries are missing.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        raise MissingPackageError(
            f"files of this kind are read and written by {package}, which cannot be imported ({error}): "
            'pip install "numconv-nd[media]"'
        ) from error


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that has contents.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no file.
    MediaError
        If the file is empty.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is asked for; numconv.media.list_folder reads folders")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes): copy it again, or delete it")
    return path
