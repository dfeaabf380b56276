"""What the networks of the lecture learn from: digits and voices, split, shifted, shuffled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import numconv
from numconv import media
from numconv.demo import data

__all__ = ["Split", "digits", "find_voices", "framed", "moved", "shuffled", "voices"]

Array = np.ndarray[Any, Any]


class Split(NamedTuple):
    """Examples ``[N, C, *S]``, float32, with their classes ``[N]``: to learn from, and held out."""

    x: Array
    labels: Array
    test_x: Array
    test_labels: Array
    classes: tuple[str, ...]

    @property
    def train(self) -> tuple[Array, Array]:
        """As `nn.fit` takes it."""
        return self.x, self.labels

    @property
    def test(self) -> tuple[Array, Array]:
        """As `nn.evaluate` takes it."""
        return self.test_x, self.test_labels


def _split(x: Array, labels: Array, classes: tuple[str, ...], seed: int) -> Split:
    train, test = media.stratified_split(labels, 1 / 3, seed)
    return Split(x[train], labels[train], x[test], labels[test], classes)


def digits(seed: int) -> Split:
    """Handwritten digits ``[N, 1, 8, 8]`` from 0 to 1, a third of them held out."""
    x, labels = data.digits()
    return _split((x / 16).astype(np.float32), labels, tuple("0123456789"), seed)


def find_voices() -> Path | None:
    """The folder of recorded voices that comes with the source of numconv, if this is a checkout or is run in one."""
    places = (Path(numconv.__file__).parents[1] / "examples/data/voices", Path("examples/data/voices"))
    return next((place for place in places if place.is_dir()), None)


def voices(folder: Path, seed: int) -> Split:
    """Recorded voices ``[N, 1, 8000]``, a second each, of equal loudness, a third of them held out; a subfolder a language."""
    files = media.list_folder(folder, kind="sound")
    x = np.stack([media.fit_length(media.read_sound(path, rate=8000, channels=1).x, 8000) for path in files.paths])
    x /= x.std(axis=2, keepdims=True) + 1e-6
    return _split(x, np.array(files.labels), files.classes, seed)


def framed(x: Array, width: int) -> Array:
    """Zeros around each example, so many on every side."""
    return np.pad(x, [(0, 0), (0, 0), *[(width, width)] * (x.ndim - 2)])


def moved(x: Array, shifts: Array) -> Array:
    """Each example ``x[n]`` moved by ``shifts[n]`` positions along its spatial axes; zeros follow."""
    width = int(np.abs(shifts).max())
    wide, y = framed(x, width), np.empty_like(x)
    for n, shift in enumerate(shifts):
        window = (slice(width - step, width - step + size) for step, size in zip(shift, x.shape[2:], strict=True))
        y[n] = wide[n][(slice(None), *window)]
    return y


def shuffled(split: Split, seed: int) -> Split:
    """The same examples with all positions permuted, in one fixed way for all of them."""
    order = np.random.default_rng(seed).permutation(split.x[0, 0].size)
    both = (x.reshape(*x.shape[:2], -1)[..., order].reshape(x.shape) for x in (split.x, split.test_x))
    return split._replace(x=next(both), test_x=next(both))
