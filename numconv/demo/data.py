"""Real data, read by well-kept packages: soundfile for sound, Pillow for images, scikit-learn for photographs and digits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image
from sklearn import datasets

__all__ = ["Voices", "digits", "photograph", "voices"]

Array = np.ndarray[Any, Any]


class Voices(NamedTuple):
    """Recordings of one word."""

    x: Array
    """``[N, 1, T]``, float32 between -1 and 1."""
    rate: int
    """Samples a second."""
    names: tuple[str, ...]


def voices(names: Sequence[str]) -> Voices:
    """Three people who say goodbye in their language; see voices/NOTICE for who they are."""
    folder = resources.files(__package__) / "voices"
    waves = []
    for name in names:
        with (folder / f"{name}.flac").open("rb") as file:
            wave, rate = soundfile.read(file, dtype="float32")
        waves.append(wave)
    return Voices(np.stack(waves)[:, None], rate, tuple(names))


def photograph(shrink: int = 1) -> Array:
    """A colour photograph of a temple, ``[3, H, W]``, uint8, made smaller by averaging if asked."""
    pixels = Image.fromarray(datasets.load_sample_image("china.jpg")).reduce(shrink)
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


def digits(count: int | None = None) -> tuple[Array, Array]:
    """Handwritten digits, ``[N, 1, 8, 8]``, integers from 0 to 16, and which digit each of them is, ``[N]``."""
    found = datasets.load_digits()
    return found.images[:count, None].astype(np.int64), found.target[:count]
