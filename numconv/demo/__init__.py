"""`numconv demo`: a tour of the library on recorded voices, photographs, handwritten digits and a short video.

Each module is one stop of the tour and reads top to bottom. They use the public names of numconv only.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["missing_packages", "run"]

# import name -> name at the package index
_NEEDED = {"matplotlib": "matplotlib", "PIL": "pillow", "sklearn": "scikit-learn", "soundfile": "soundfile", "tqdm": "tqdm"}


def missing_packages() -> list[str]:
    """The packages that the tour needs and that are not installed."""
    return [package for name, package in _NEEDED.items() if importlib.util.find_spec(name) is None]


def run(folder: Path, *, backend: str | None = None, threads: int | None = None, quick: bool = False) -> None:
    """Take the tour.

    Parameters
    ----------
    folder : Path
        Where pictures and sounds are written; made if it is not there.
    backend : str, optional
        Compute with this backend, strictly.
    threads : int, optional
        Number of threads of a CPU backend.
    quick : bool
        Use less data.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError, UnsupportedProblemError
        If there is no such backend here, or it computes on a GPU: all arrays of the tour are NumPy's.
    """
    from .tour import tour

    tour(folder, backend, threads, quick)
