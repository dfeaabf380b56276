"""Labelled files as batches, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .errors import MediaError
from .folder import LabelledFiles, Skipped
from .forms import Form

__all__ = ["Dataset"]

Array = np.ndarray[Any, Any]


class Dataset:
    """Batches of labelled files.

    Files are read when they are first needed, and kept in memory as far as `memory` allows, in float32; what is beyond is
    read again each time.

    Parameters
    ----------
    files : LabelledFiles
        The files.
    form : SoundForm, ImageForm or VideoForm
        What every item becomes.
    memory : int
        Bytes of decoded files that are kept, 1 GiB by default.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("high", "low"):
    ...         media.write_sound(f"{folder}/{name}/1.wav", np.zeros((1, 4000)), rate=8000)
    ...     data = media.Dataset(media.list_folder(folder), media.SoundForm(rate=4000, samples=1000))
    ...     for x, labels in data.batches(32, rng=np.random.default_rng(0)):
    ...         print(x.shape, labels)
    (2, 1, 1000) [0 1]
    """

    def __init__(self, files: LabelledFiles, form: Form, *, memory: int = 1 << 30):
        self.files = files
        self.form = form
        self.labels = np.array(files.labels, np.int64)
        """The class of each file, ``[N]``."""
        self._room = memory
        self._kept: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an item, without N."""
        return self.form.shape

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> Iterator[tuple[Array, Array]]:
        """Each file once.

        Parameters
        ----------
        batch_size : int
            Files in a batch; the last may have fewer.
        rng : numpy.random.Generator, optional
            Shuffles the files, and chooses the part of longer ones, or the place of shorter ones. By default they come in their
            order, and the middle is taken.

        Yields
        ------
        x : array
            ``[N, *shape]``, float32.
        labels : array
            ``[N]``, int64.

        Raises
        ------
        MediaError
            If a file cannot be read; `check` finds such files beforehand.
        """
        if batch_size < 1:
            raise MediaError(f"batch_size={batch_size} is asked for: it must be at least 1")
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        for start in range(0, len(self), batch_size):
            chosen = order[start : start + batch_size]
            yield np.stack([self.form.fit(self._load(int(i)), rng) for i in chosen]), self.labels[chosen]

    def arrays(self) -> tuple[Array, Array]:
        """All of it in memory: x ``[N, *shape]``, float32, and labels ``[N]``, int64, in their order."""
        return next(self.batches(len(self)))

    def check(self, progress: Callable[[], object] = lambda: None) -> Dataset:
        """Read every file once; the dataset without those that cannot be read, which `files.skipped` lists with the reason.

        Parameters
        ----------
        progress : callable
            Called after each file.
        """
        skipped = []
        for i, path in enumerate(self.files.paths):
            try:
                self._load(i)
            except (MediaError, OSError) as error:
                skipped.append(Skipped(path, str(error), unreadable=True))
            progress()
        gone = {each.path for each in skipped}
        kept = [i for i, path in enumerate(self.files.paths) if path not in gone]
        checked = Dataset(self.files.without(skipped), self.form, memory=self._room)
        checked._kept = {new: self._kept[old] for new, old in enumerate(kept) if old in self._kept}
        return checked

    def _load(self, i: int) -> Array:
        if i in self._kept:
            return self._kept[i]
        x = self.form.load(self.files.paths[i])
        if x.nbytes <= self._room:
            self._kept[i] = x
            self._room -= x.nbytes
        return x
