"""`numconv lecture`: why networks for sound, images and video are made of convolutions, each claim measured.

One module a claim, in the order of `course`; each reads top to bottom and uses the public names of numconv only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["CLAIMS", "run"]

CLAIMS = 12
"""Number of chapters: each takes one claim of the lecture, and has its number."""


def run(
    folder: Path,
    chapters: Sequence[int] = tuple(range(1, CLAIMS + 1)),
    *,
    backend: str | None = None,
    seed: int = 0,
    quick: bool = False,
    voices: Path | None = None,
) -> dict[str, Any]:
    """Teach: print every chapter, and write the page and its pictures.

    Parameters
    ----------
    folder : Path
        Where ``lecture.md`` goes, with its pictures in the folder ``lecture`` beside it; made if it is not there.
    chapters : sequence of int
        Which of the claims 1 to 12.
    backend : str, optional
        Compute with this backend, strictly.
    seed : int
        For weights, splits and permutations.
    quick : bool
        Less data and shorter trainings.
    voices : Path, optional
        The folder of recorded voices; by default that of the checkout.

    Returns
    -------
    dict
        All figures as plain data, chapter by chapter, each with its claim and whether that holds.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError, UnsupportedProblemError
        If there is no such backend here, or it computes on a GPU: all arrays of the lecture are NumPy's.
    OSError
        If the folder cannot be made.
    """
    from .course import teach

    return teach(folder, chapters, backend=backend, seed=seed, quick=quick, voices=voices)
