"""The data: what is learned from, what is held out, and what they are; from a folder or by the name of an example."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import numconv
from numconv import media
from numconv.errors import ProblemError
from numconv.nn.data import Arrays, Data

__all__ = ["EXAMPLES", "Task", "example_task", "folder_task", "moving_shapes", "split_task"]

Array = np.ndarray[Any, Any]

_HELD_OUT = 0.2
_MOTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
_VIDEO = {"max_side": 32, "max_frames": 16}
"""Smaller than what media.common_form takes: the work grows with the cube."""


@dataclass(frozen=True)
class Task:
    """Something to learn."""

    name: str
    kind: str
    """"sound", "image" or "video"."""
    classes: tuple[str, ...]
    train: Data
    test: Data
    shape: tuple[int, ...]
    """``[C, *S]`` of one sample."""
    rate: int | None = None
    """Sounds: samples a second."""
    skipped: tuple[media.Skipped, ...] = ()
    """Files that are left out."""
    folders: bool = False
    """Whether training and test data come from two folders, and not from a random split of one."""


def folder_task(
    folder: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    *,
    held_out: float | None = None,
    seed: int = 0,
    limits: Mapping[str, Any] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Task:
    """A folder of labelled sounds, images or videos as a task; every file is read once, and what cannot be read is left out.

    Parameters
    ----------
    folder : path-like
        Its subfolders are the classes; see `numconv.media.list_folder`.
    test : path-like, optional
        A folder like it, with the same classes or some of them, to be tested on; by default a part of `folder` is held out.
    held_out : float, optional
        How much of each class is held out where `test` is not given, 0.2 by default.
    seed : int
        Of the random split.
    limits : mapping, optional
        The limits of `numconv.media.common_form`: max_rate, max_seconds, max_side, max_frames.
    progress : callable
        Called after each file.

    Returns
    -------
    Task

    Raises
    ------
    MediaError
        If the folders have no classes or no files to read, or `test` has other classes.
    ProblemError
        If there are fewer than two classes, nothing is left to test on, or both `test` and `held_out` are given.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media, training
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("dark", "light"):
    ...         for i in range(5):
    ...             media.write_image(f"{folder}/{name}/{i}.png", np.full((1, 8, 8), name == "light", float))
    ...     task = training.folder_task(folder)
    >>> task.kind, task.classes, task.shape, len(task.train), len(task.test)
    ('image', ('dark', 'light'), (1, 8, 8), 8, 2)
    """
    if test is not None and held_out is not None:
        raise ProblemError(
            f"held_out={held_out:g} is a part of one folder, and all of {test} is to be tested on: leave one of them out"
        )
    files = media.list_folder(folder)
    if len(files.classes) < 2:
        raise ProblemError(f"{folder} has one class, {files.classes[0]}: put the files of each class in a subfolder of its own")
    form, files = media.common_form(files, **((_VIDEO if files.kind == "video" else {}) | dict(limits or {})))
    if test is None:
        learned, tested = files.split(_HELD_OUT if held_out is None else held_out, rng=seed)
    else:
        learned, tested = files, media.list_folder(test, kind=files.kind, classes=files.classes)
    train = media.Dataset(learned, form).check(progress)
    held = media.Dataset(tested, form).check(progress)
    for part, what in ((train, "to learn from"), (held, "to test on")):
        if not len(part):
            reason = f": {part.files.skipped[0].path}: {part.files.skipped[0].reason}" if part.files.skipped else ""
            raise ProblemError(f"{test or folder} leaves no file {what}{reason}")
    skipped = tuple(dict.fromkeys((*train.files.skipped, *held.files.skipped)))
    rate = form.rate if isinstance(form, media.SoundForm) else None
    return Task(Path(folder).resolve().name, files.kind, files.classes, train, held, form.shape, rate, skipped, test is not None)


def split_task(name: str, kind: str, classes: tuple[str, ...], x: Array, labels: Array, held_out: float, seed: int) -> Task:
    """Arrays x ``[N, C, *S]`` and labels ``[N]`` as a task, a fraction of each class held out at random."""
    train, test = media.stratified_split(labels, held_out, rng=seed)
    return Task(name, kind, classes, Arrays(x[train], labels[train]), Arrays(x[test], labels[test]), x.shape[1:])


def moving_shapes(
    count: int, rng: int | np.random.Generator, *, frames: int = 8, size: int = 16, noise: float = 0.1
) -> tuple[Array, Array, tuple[str, ...]]:
    """Little videos of a shape that moves in one of four directions, a pixel a frame.

    The shape is a square, a disc or a cross of random size, brightness and place; what leaves on one side comes in on the other. So
    each single frame is equally likely in every class, and only the motion tells.

    Parameters
    ----------
    count : int
        N, how many videos.
    rng : int or numpy.random.Generator
        Where chance comes from, or its seed.
    frames, size : int
        T, and H = W.
    noise : float
        Standard deviation of what is added to every pixel.

    Returns
    -------
    x : array
        ``[N, 1, T, H, W]``, float32, 0 to 1.
    labels : array
        ``[N]``, int64.
    classes : tuple of str
        The directions.

    Examples
    --------
    >>> from numconv import training
    >>> x, labels, classes = training.moving_shapes(10, rng=0)
    >>> x.shape, classes
    ((10, 1, 8, 16, 16), ('left', 'right', 'up', 'down'))
    """
    rng = np.random.default_rng(rng)
    labels = rng.permutation(np.arange(count) % len(_MOTIONS))
    row, column = np.meshgrid(np.arange(size) - size // 2, np.arange(size) - size // 2, indexing="ij")
    x = np.empty((count, 1, frames, size, size), np.float32)
    for n, label in enumerate(labels):
        radius = rng.uniform(1.5, 3.5)
        shape = rng.integers(3)
        inside = (np.maximum(abs(row), abs(column)), np.hypot(row, column), np.minimum(abs(row), abs(column)) * 2 + 1)[
            shape
        ] <= radius
        if shape == 2:
            inside &= np.maximum(abs(row), abs(column)) <= radius + 1
        picture = np.roll(inside * rng.uniform(0.4, 0.9), rng.integers(size, size=2), axis=(0, 1))
        step = np.array(tuple(_MOTIONS.values())[label])
        x[n, 0] = [np.roll(picture, t * step, axis=(0, 1)) for t in range(frames)]
    x += rng.normal(0, noise, x.shape).astype(np.float32)
    return np.clip(x, 0, 1, out=x), labels, tuple(_MOTIONS)


def _digits(held_out: float | None, seed: int) -> Task:
    """Handwritten digits of 8 x 8 pixels; a third is held out by default."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise media.MissingPackageError(f'the digits come with scikit-learn ({error}): pip install "numconv-nd[demo]"') from error
    found = datasets.load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    return split_task(
        "digits", "image", tuple("0123456789"), x, found.target.astype(np.int64), 1 / 3 if held_out is None else held_out, seed
    )


def _shapes(held_out: float | None, seed: int) -> Task:
    """1,000 little videos of shapes that move."""
    x, labels, classes = moving_shapes(1_000, rng=seed)
    return split_task("shapes", "video", classes, x, labels, _HELD_OUT if held_out is None else held_out, seed)


def _voices(held_out: float | None, seed: int) -> Task:
    """900 recorded prompts in five languages."""
    places = [Path(numconv.__file__).parents[1] / "examples/data/voices", Path("examples/data/voices")]
    for place in places:
        if place.is_dir():
            return folder_task(place, held_out=held_out, seed=seed)
    raise ProblemError(
        f"the recordings are part of numconv's source and not of the installed package (looked for {places[0]}): get the source, "
        "and run `numconv train voices` in it, or `numconv train PATH/examples/data/voices`"
    )


_TASKS: dict[str, Callable[[float | None, int], Task]] = {"digits": _digits, "voices": _voices, "shapes": _shapes}
EXAMPLES = {name: str(task.__doc__).partition("\n")[0].rstrip(".") for name, task in _TASKS.items()}
"""The named examples, and what they are."""


def example_task(name: str, *, held_out: float | None = None, seed: int = 0) -> Task:
    """One of the named examples.

    Parameters
    ----------
    name : str
        "digits", "voices" or "shapes"; `EXAMPLES` says what they are.
    held_out : float, optional
        How much of each class is held out.
    seed : int
        Of the split, and of data that are generated.

    Returns
    -------
    Task

    Raises
    ------
    ProblemError
        If there is no such example, or its recordings are not here.
    MissingPackageError
        If the package that brings the data is not installed.

    Examples
    --------
    >>> from numconv import training
    >>> task = training.example_task("shapes")
    >>> task.shape, len(task.train), len(task.test)
    ((1, 8, 16, 16), 800, 200)
    """
    if name not in _TASKS:
        raise ProblemError(f"no example is called {name!r}: there are {', '.join(_TASKS)}")
    return _TASKS[name](held_out, seed)
