"""What is found out, before anything is computed, of the files that a command is to write after it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from numconv.errors import BackendUnavailableError, ProblemError

__all__ = ["check_file", "check_picture"]


def check_file(path: Path) -> None:
    """Raise OSError unless a file of this name can be written."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is to be written: give a name in it")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise FileNotFoundError(f"{path} cannot be written: {path.parent.resolve()} is no folder that can be written to")


def check_picture(path: Path | None = None) -> None:
    """Raise unless matplotlib is there, and writes files that end like `path`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailableError('pictures need matplotlib: pip install "numconv-nd[plot]"')
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.filetypes
    if path.suffix[1:].lower() not in known:
        raise ProblemError(
            f"{path}: pictures called *{path.suffix} are not written; the format follows the name: {', '.join(known)}"
        )
