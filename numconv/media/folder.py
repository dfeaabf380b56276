"""Folders of labelled files: each subfolder is a class. What is listed, what is left out and why, and how it is split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import MediaError
from .image import image_header

__all__ = ["KINDS", "LabelledFiles", "Skipped", "kind_of", "list_folder", "stratified_split"]

Array = np.ndarray[Any, Any]

KINDS = {
    "sound": (
        ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".tga"),
    "video": (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".gif", ".apng"),
}  # fmt: skip
"""Suffixes of the files of each kind."""
_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
"""Names of folders that are parts of a data set, not classes."""


class Skipped(NamedTuple):
    """A file or folder that is left out."""

    path: Path
    reason: str
    unreadable: bool = False
    """Whether it is of the kind that is asked for, and damaged."""


@dataclass(frozen=True)
class LabelledFiles:
    """Files of one kind and their classes."""

    kind: str
    """"sound", "image" or "video"."""
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    """For each path, the index of its class."""
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Iterable[int]) -> LabelledFiles:
        """Some of the files, in the order of the indices; the classes stay."""
        indices = list(indices)
        return replace(self, paths=tuple(self.paths[i] for i in indices), labels=tuple(self.labels[i] for i in indices))

    def without(self, skipped: Sequence[Skipped]) -> LabelledFiles:
        """All but those files, which join `skipped`."""
        gone = {each.path for each in skipped}
        kept = self.select(i for i, path in enumerate(self.paths) if path not in gone)
        return replace(kept, skipped=(*self.skipped, *skipped))

    def split(self, fraction: float, rng: int | np.random.Generator) -> tuple[LabelledFiles, LabelledFiles]:
        """The files to learn from, and a random fraction of each class that is held out; see `stratified_split`."""
        train, held_out = stratified_split(self.labels, fraction, rng)
        return self.select(train.tolist()), self.select(held_out.tolist())


def stratified_split(labels: Sequence[int] | Array, fraction: float, rng: int | np.random.Generator) -> tuple[Array, Array]:
    """Split examples at random, in every class by the same fraction.

    Parameters
    ----------
    labels : sequence of int
        The class of each example, ``[N]``.
    fraction : float
        How much of each class is held out, between 0 and 1: rounded, at least one example, and never a whole class.
    rng : int or numpy.random.Generator
        Where chance comes from, or its seed.

    Returns
    -------
    train, held_out : array of int
        Indices, ascending; together each example once.

    Raises
    ------
    MediaError
        If the fraction is not between 0 and 1.

    Examples
    --------
    >>> from numconv import media
    >>> train, held_out = media.stratified_split([0, 0, 0, 0, 1, 1], 0.25, rng=0)
    >>> len(train), len(held_out)
    (4, 2)
    """
    if not 0 < fraction < 1:
        raise MediaError(f"fraction={fraction} of each class is to be held out: it must lie between 0 and 1")
    rng = np.random.default_rng(rng)
    labels = np.asarray(labels)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """Which kind of file a name promises: "sound", "image", "video", or None.

    Parameters
    ----------
    path : path-like
        A name; the file isn't looked at.

    Returns
    -------
    str or None
        The kind.

    Examples
    --------
    >>> from numconv import media
    >>> media.kind_of("voices/one.FLAC"), media.kind_of("README.md")
    ('sound', None)
    """
    suffix = Path(path).suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)


def list_folder(folder: str | os.PathLike[str], *, kind: str | None = None, classes: Sequence[str] | None = None) -> LabelledFiles:
    """The files of a folder whose subfolders are the classes.

    Hidden files and folders are passed over, and what is of another kind (a README, a picture among sounds) or lies outside the
    classes is left out and told in `skipped`. Folders inside a class belong to it. No file is opened, except some GIFs, to see
    whether they move.

    Parameters
    ----------
    folder : path-like
        The folder.
    kind : str, optional
        "sound", "image" or "video"; by default the kind of most of its files.
    classes : sequence of str, optional
        The classes and their order. A subfolder of another name is an error; a class without a subfolder has no files. By default
        the names of the subfolders that hold files, sorted.

    Returns
    -------
    LabelledFiles
        Paths, sorted by class and name, their labels, the classes, and what is left out.

    Raises
    ------
    NotADirectoryError
        If there is no such folder.
    MediaError
        If it holds no classes, no files that can be read, or a class that is not among `classes`.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("high", "low"):
    ...         media.write_sound(f"{folder}/{name}/1.wav", np.zeros((1, 100)), rate=8000)
    ...     files = media.list_folder(folder)
    >>> files.kind, files.classes, files.labels
    ('sound', ('high', 'low'), (0, 1))
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: give one whose subfolders are the classes")
    if kind not in (None, *KINDS):
        raise MediaError(f"kind={kind!r} is asked for: it is one of {', '.join(KINDS)}")
    found = {entry.name: _files_in(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and not _hidden(entry.name)}
    kind = kind or _common_kind(folder, found)
    suffixes = (*KINDS["image"], ".gif") if kind == "image" else KINDS[kind]
    chosen = {name: [path for path in paths if path.suffix.lower() in suffixes] for name, paths in found.items()}
    _check_classes(folder, kind, chosen, classes)

    skipped = [
        Skipped(path, "outside the classes") for path in sorted(folder.iterdir()) if path.is_file() and not _hidden(path.name)
    ]
    skipped += [Skipped(folder / name, f"no {kind} files in it") for name, paths in chosen.items() if not paths]
    skipped += [Skipped(p, f"no {kind} file") for name, paths in found.items() for p in paths if p.suffix.lower() not in suffixes]
    names = tuple(classes) if classes is not None else tuple(name for name, paths in chosen.items() if paths)
    pairs = [(path, label) for label, name in enumerate(names) for path in chosen.get(name, ())]
    return LabelledFiles(kind, tuple(path for path, _ in pairs), tuple(label for _, label in pairs), names, tuple(skipped))


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _files_in(folder: Path) -> list[Path]:
    """Every file below a folder that is not hidden, sorted."""
    inside = (path for path in folder.rglob("*") if not any(map(_hidden, path.relative_to(folder).parts)))
    return sorted(path for path in inside if path.is_file())


def _common_kind(folder: Path, found: dict[str, list[Path]]) -> str:
    """The kind of most files; GIFs that do not move are images."""
    paths = [path for paths in found.values() for path in paths]
    counts = Counter(kind for kind in map(kind_of, paths) if kind)
    if not counts:
        known = ", ".join(f"{kind} ({' '.join(suffixes[:4])} ...)" for kind, suffixes in KINDS.items())
        raise MediaError(f"{folder}: no subfolder holds a file of a known kind: {known}. Subfolders are the classes")
    kind = counts.most_common(1)[0][0]
    films = [path for path in paths if kind_of(path) == "video"]
    if (
        kind == "video"
        and all(path.suffix.lower() == ".gif" for path in films)
        and not any(map(_moves, films[:: len(films) // 8 + 1]))
    ):
        return "image"
    return kind


def _moves(path: Path) -> bool:
    try:
        return image_header(path).frames > 1
    except MediaError:
        return False


def _check_classes(folder: Path, kind: str, chosen: dict[str, list[Path]], classes: Sequence[str] | None) -> None:
    names = [name for name, paths in chosen.items() if paths]
    if not names:
        raise MediaError(f"{folder}: no subfolder holds {kind} files. Subfolders are the classes")
    if classes is not None:
        if unknown := sorted(set(names) - set(classes)):
            raise MediaError(
                f"{folder} has the classes {', '.join(unknown)}, which are not among {', '.join(classes)}: rename "
                "or remove these subfolders"
            )
    elif {name.lower() for name in names} <= _PARTS:
        raise MediaError(
            f"{folder} has the subfolders {', '.join(names)}, which look like parts of a data set: its classes are one level "
            f"further down. Give {folder / names[0]}"
        )
