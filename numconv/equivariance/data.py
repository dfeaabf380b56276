"""What the report looks at: a photograph, handwritten digits, or an array of the caller."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import NumconvError, ProblemError

__all__ = ["SOURCES", "Data", "read"]

Array = np.ndarray[Any, Any]
SOURCES = ("photograph", "digits", "waves")
_NEEDED = {"photograph": ("sklearn", "PIL"), "digits": ("sklearn",), "waves": ()}
_SIZE = 48
"""Rows and columns of the images: a multiple of the usual strides."""


class Data(NamedTuple):
    """An array to measure with, and what it is."""

    x: Array
    """``[N, C, *S]``, float64, each channel with mean 0."""
    description: str


def read(source: str, seed: int = 0) -> Data:
    """Read the data of this name, or of a file.

    Parameters
    ----------
    source : str
        "photograph": a piece of scikit-learn's photograph of a temple, in colour. "digits": handwritten digits, 4 x 4 of them side
        by side. "waves": an image of random waves, which needs no package. Else the path of an .npy file with an array
        ``[N, C, *S]``: sounds, images or volumes.
    seed : int
        Of the waves.

    Returns
    -------
    Data

    Raises
    ------
    NumconvError
        If a package is missing.
    ProblemError
        If the file has no such array.
    """
    if source not in SOURCES:
        return _file(Path(source))
    missing = missing_packages(source)
    if missing:
        raise NumconvError(
            f'the {source} need {" and ".join(missing)}: pip install "numconv-nd[demo]"; the data "waves" need neither'
        )
    x, description = _waves(seed) if source == "waves" else _photograph() if source == "photograph" else _digits()
    return Data(_centred(x), description)


def missing_packages(source: str) -> list[str]:
    """The import packages that a source needs and that are not there."""
    return [name for name in _NEEDED[source] if importlib.util.find_spec(name) is None]


def _centred(x: Array) -> Array:
    """Without its means: a relative error would otherwise count how bright an image is."""
    x = x.astype(np.float64)
    return np.asarray(x - x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))


def _photograph() -> tuple[Array, str]:
    from sklearn import datasets

    pixels = datasets.load_sample_image("china.jpg")[40 : 40 + 4 * _SIZE, 240 : 240 + 4 * _SIZE]
    reduced = pixels.reshape(_SIZE, 4, _SIZE, 4, 3).mean(axis=(1, 3)) / 255
    return reduced.transpose(2, 0, 1)[None], f"a photograph of a temple (scikit-learn), {_SIZE} x {_SIZE} pixels in colour"


def _digits() -> tuple[Array, str]:
    from sklearn import datasets

    images = datasets.load_digits().images[:16] / 16
    return images.reshape(4, 4, 8, 8).swapaxes(1, 2).reshape(1, 1, 32, 32), "16 handwritten digits (scikit-learn), 32 x 32 pixels"


def _waves(seed: int) -> tuple[Array, str]:
    """Random numbers, smoothed so that neighbours are alike, as in photographs: amplitudes fall with the frequency."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((1, 3, _SIZE, _SIZE)))
    frequency = np.hypot(np.fft.fftfreq(_SIZE)[:, None], np.fft.rfftfreq(_SIZE))
    return np.fft.irfft2(spectrum / np.maximum(frequency, 1 / _SIZE), (_SIZE, _SIZE)), f"random waves, {_SIZE} x {_SIZE} pixels"


def _file(path: Path) -> Data:
    if path.suffix != ".npy":
        raise ProblemError(f"--data {path}: give {', '.join(SOURCES)}, or the path of an .npy file with an array [N, C, *S]")
    try:
        x = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ProblemError(f"{path} holds no array that can be read: {error}") from error
    if not 3 <= x.ndim <= 5 or x.dtype.kind not in "fiu":
        raise ProblemError(
            f"{path} has shape {x.shape} and dtype {x.dtype}; it must be real, [N, C, *S] with 1 to 3 spatial dimensions"
        )
    if not x.size or not np.isfinite(x).all():
        bad = np.count_nonzero(~np.isfinite(x))
        raise ProblemError(
            f"{path} has shape {x.shape} and {bad} values that are NaN or infinite; it must hold numbers, all finite"
        )
    return Data(_centred(x), f"{path.name}, {list(x.shape)}")
