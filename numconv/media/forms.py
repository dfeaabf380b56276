"""What every item of a batch becomes: one rate, one size, one length."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .errors import MediaError
from .folder import LabelledFiles, Skipped
from .image import image_header, read_image
from .sound import read_sound, sound_header
from .video import read_video, video_header

__all__ = ["Form", "ImageForm", "SoundForm", "VideoForm", "common_form", "fit_length"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SoundForm:
    """Sounds of one rate and length: longer ones are cut, shorter ones lie in silence."""

    rate: int
    """Samples a second."""
    samples: int
    channels: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, T)``."""
        return self.channels, self.samples

    def load(self, path: Path) -> Array:
        """A file at this rate, ``[C, its own length]``."""
        return read_sound(path, rate=self.rate, channels=self.channels).x

    def fit(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """``[C, T]``: the middle, or with `rng` a random part; or x in the middle, or at a random place, of silence."""
        return fit_length(x, self.samples, rng=rng)


@dataclass(frozen=True)
class ImageForm:
    """Images of one size; another aspect ratio is padded by repeating the border."""

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return self.channels, self.height, self.width

    def load(self, path: Path) -> Array:
        """A file in this size, ``[C, H, W]``."""
        return read_image(path, channels=self.channels, size=(self.height, self.width))

    def fit(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """``[C, H, W]``: x as it is."""
        return x


@dataclass(frozen=True)
class VideoForm:
    """Videos of one size and number of frames: longer ones are cut, the first and last frame of shorter ones repeated."""

    frames: int
    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, T, H, W)``."""
        return self.channels, self.frames, self.height, self.width

    def load(self, path: Path) -> Array:
        """A file in this size, ``[C, its own length, H, W]``."""
        return read_video(path, channels=self.channels, size=(self.height, self.width)).x

    def fit(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """``[C, T, H, W]``: the middle, or with `rng` a random part; or x with its first and last frame repeated."""
        return fit_length(x, self.frames, rng=rng, mode="edge")


Form: TypeAlias = SoundForm | ImageForm | VideoForm


def fit_length(x: Array, length: int, *, rng: np.random.Generator | None = None, mode: str = "constant") -> Array:
    """Bring axis 1 of an array, time, to a length.

    Parameters
    ----------
    x : array
        ``[C, T, ...]``.
    length : int
        The length of the result.
    rng : numpy.random.Generator, optional
        Where it is cut, or how it is padded, is random; by default in the middle.
    mode : str
        How it is padded, as `numpy.pad` calls it: "constant" (zeros), "edge", "wrap", ...

    Returns
    -------
    array
        ``[C, length, ...]``; a view where it is cut.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import media
    >>> x = np.arange(1, 5)[None]
    >>> media.fit_length(x, 2), media.fit_length(x, 7)
    (array([[2, 3]]), array([[0, 1, 2, 3, 4, 0, 0]]))
    """
    spare = abs(x.shape[1] - length)
    low = spare // 2 if rng is None else int(rng.integers(spare + 1))
    if x.shape[1] >= length:
        return x[:, low : low + length]
    width = [(0, 0), (low, spare - low)] + [(0, 0)] * (x.ndim - 2)
    padded: Array = np.pad(x, width, mode=mode)  # type: ignore[call-overload]
    return padded


def common_form(
    files: LabelledFiles, *, max_rate: int = 16_000, max_seconds: float = 4.0, max_side: int = 64, max_frames: int = 32
) -> tuple[Form, LabelledFiles]:
    """The form that suits most of the files, from their headers.

    Parameters
    ----------
    files : LabelledFiles
        Files of one kind.
    max_rate : int
        Sounds: samples a second; by default enough for speech.
    max_seconds : float
        Sounds: no longer than this.
    max_side : int
        Images and videos: no side is longer.
    max_frames : int
        Videos: no more frames.

    Returns
    -------
    form : SoundForm, ImageForm or VideoForm
        The most frequent rate; the length that 19 of 20 sounds keep to, one channel. The median height and width; colours
        if any file has them; the median number of frames.
    files : LabelledFiles
        Without those whose header can't be read, which joined `skipped`.

    Raises
    ------
    MediaError
        If no file can be read; the text has the reason of the first. If a limit is not above 0.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("high", "low"):
    ...         media.write_sound(f"{folder}/{name}/1.wav", np.zeros((1, 4000)), rate=8000)
    ...     media.common_form(media.list_folder(folder))[0]
    SoundForm(rate=8000, samples=4000, channels=1)
    """
    for name, most in {"max_rate": max_rate, "max_seconds": max_seconds, "max_side": max_side, "max_frames": max_frames}.items():
        if not most > 0:
            raise MediaError(f"{name}={most!r} leaves nothing of a file: it must be above 0")
    header = {"sound": sound_header, "image": image_header, "video": _video_header}[files.kind]
    headers, skipped = [], []
    for path in files.paths:
        try:
            headers.append(header(path))
        except (MediaError, OSError) as error:
            skipped.append(Skipped(path, str(error), unreadable=True))
    if not headers:
        raise MediaError(f"none of {len(files)} files can be read: {skipped[0].reason if skipped else 'there are none'}")
    if files.kind == "sound":
        return _sound_form(headers, max_rate, max_seconds), files.without(skipped)
    colours = max(each.channels for each in headers)
    height, width = (_median([getattr(each, side) for each in headers]) for side in ("height", "width"))
    scale = min(1.0, max_side / max(height, width))
    height, width = max(round(height * scale), 1), max(round(width * scale), 1)
    if files.kind == "image":
        return ImageForm(height, width, colours), files.without(skipped)
    frames = min(_median([each.frames for each in headers]), max_frames)
    return VideoForm(frames, height, width, colours), files.without(skipped)


def _sound_form(headers: list[Any], max_rate: int, max_seconds: float) -> SoundForm:
    rate = min(Counter(each.rate for each in headers).most_common(1)[0][0], max_rate)
    seconds = min(float(np.quantile([each.seconds for each in headers], 0.95, method="higher")), max_seconds)
    return SoundForm(rate, max(round(seconds * rate), 1))


def _video_header(path: Path) -> Any:
    """A header that knows the number of frames, if need be by counting them."""
    header = video_header(path)
    return header if header.frames else header._replace(frames=read_video(path, size=(1, 1), fit="stretch").x.shape[1])


def _median(values: list[int]) -> int:
    return int(np.median(values))
