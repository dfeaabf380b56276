"""Video: files -> ``[C, T, H, W]`` with a rate, and back.

PyAV reads and writes films: it has the licence of numconv (BSD), a release every few months, wheels for every platform that hold
FFmpeg's libraries, and gives the size and length of a film before anything is decoded. imageio-ffmpeg, the other one in use,
starts the program ffmpeg, which its wheel carries under the GPL at twice the size, and reads what it prints. Animated GIF, PNG
and WebP are Pillow's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import MediaError, existing_file, reader
from .image import MAX_PIXELS, check_arguments, check_pixels, fit_size, image_header, opened, to_array
from .saving import channels_of, new_file, suffix_of, to_bytes

__all__ = ["MAX_FRAMES", "Video", "VideoHeader", "read_video", "video_header", "write_video"]

Array = np.ndarray[Any, Any]

MAX_FRAMES = 1_000
"""How many frames a video may have, unless the caller asks for more."""
_ANIMATED = {".gif", ".png", ".apng", ".webp"}
_FILMS = (".mp4", ".mkv", ".mov", ".avi")
_DEFAULT_MILLISECONDS = 100
"""How long browsers show a frame that states no time."""
_LONGEST = 655_350
"""Milliseconds for which a GIF can show a frame."""


class Video(NamedTuple):
    """A video in memory."""

    x: Array
    """``[C, T, H, W]``, float32, 0 to 1."""
    rate: float
    """Frames a second, the mean."""


class VideoHeader(NamedTuple):
    """What a file says of itself."""

    channels: int
    """1: grey; 3: colours."""
    frames: int
    """T; 0 where the file does not say (Matroska and WebM). Animated images: those stored; one may be shown for longer."""
    height: int
    width: int
    rate: float
    """Frames a second, the mean; 0 where the file does not say. Animated images: as the first frame has it."""


def video_header(path: str | os.PathLike[str]) -> VideoHeader:
    """What a video file says of itself, without decoding it.

    Parameters
    ----------
    path : path-like
        The file: a film, or an animated image.

    Returns
    -------
    VideoHeader
        channels, frames (0 where the file does not say), height, width, and rate in frames a second.

    Raises
    ------
    MediaError
        If the file is empty, truncated at the header, or holds no video.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> fading = np.ones((1, 8, 20, 30)) * np.linspace(0, 1, 8)[:, None, None]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_video(f"{folder}/fading.gif", fading, rate=10)
    ...     media.video_header(f"{folder}/fading.gif")
    VideoHeader(channels=1, frames=8, height=20, width=30, rate=10.0)
    """
    path = existing_file(path)
    if path.suffix.lower() in _ANIMATED:
        channels, height, width, frames = image_header(path)
        with opened(path) as image:
            return VideoHeader(channels, frames, height, width, 1000 / (image.info.get("duration") or _DEFAULT_MILLISECONDS))
    with _film(path) as (_, stream):
        grey = (stream.pix_fmt or "").startswith("gray")
        return VideoHeader(1 if grey else 3, stream.frames, stream.height, stream.width, float(stream.average_rate or 0))


def read_video(
    path: str | os.PathLike[str],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    fit: str = "pad",
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
) -> Video:
    """Read a film or an animated image.

    Parameters
    ----------
    path : path-like
        The file: MP4, Matroska, WebM, AVI, MOV, or what else FFmpeg reads; GIF, animated PNG or WebP.
    channels : int, optional
        1 (grey) or 3 (red, green, blue). By default as in the file.
    size : (int, int), optional
        Height and width of the result; every frame is brought to it as it is decoded. By default those of the file.
    fit : str
        "pad", "crop" or "stretch", as in `read_image`.
    max_frames : int
        A video with more frames is refused: before it is decoded where the file says how many there are, else on the way.
    max_pixels : int
        A video is refused before it is decoded if one of its frames, or all frames of the result together, have more pixels.

    Returns
    -------
    Video
        x ``[C, T, H, W]``, float32, 0 to 1, and the mean rate in frames a second. The frames of an animated image are repeated as
        long as they are shown, so that T counts equal times.

    Raises
    ------
    MediaError
        If the file is empty, truncated, too long, too large, or holds no video, or an argument makes no sense.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_video(f"{folder}/white.mp4", np.ones((3, 8, 32, 32)), rate=25)
    ...     x, rate = media.read_video(f"{folder}/white.mp4", channels=1, size=(16, 16))
    >>> x.shape, x.dtype, rate
    ((1, 8, 16, 16), dtype('float32'), 25.0)
    """
    path = existing_file(path)
    check_arguments(channels, size, fit)
    if channels == 4:
        raise MediaError(f"{path}: channels=4 is asked for: videos have 1 (grey) or 3 (red, green, blue)")
    header = video_header(path)
    check_pixels(path, (header.width, header.height), max_pixels)
    height, width = size or (header.height, header.width)
    most = min(max_frames, max_pixels // (height * width))
    _check_frames(path, header.frames, most, max_frames, (height, width))
    channels = channels or header.channels
    if path.suffix.lower() in _ANIMATED:
        return _read_animation(path, channels, size, fit, most, max_frames)
    frames: list[Array] = []
    for frame in _film_frames(path, channels):
        frames.append(frame if size is None else fit_size(frame, size, fit))
        _check_frames(path, len(frames), most, max_frames, (height, width))
    if len(frames) < max(header.frames, 1):
        raise MediaError(
            f"{path} is truncated: {len(frames):,} of the {header.frames:,} frames that its header says can be decoded. Copy it "
            "again"
        )
    return Video(np.stack(frames, axis=1), header.rate)


def write_video(path: str | os.PathLike[str], x: Any, rate: float) -> None:
    """Write a video to a file.

    Parameters
    ----------
    path : path-like
        The file; its suffix says the format: .mp4, .mkv, .mov, .avi (H.264) or .gif. It is replaced as a whole, or left as it was.
    x : array
        ``[C, T, H, W]``: 1 channel (grey) or 3 (red, green, blue); floats, clipped to 0 to 1, or uint8.
    rate : float
        Frames a second; a GIF counts in hundredths of a second, up to 655.35 seconds a frame.

    Raises
    ------
    MediaError
        If the suffix is another, x is not such an array, or the format has no such size or rate.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> x = np.zeros((3, 8, 32, 32))
    >>> x[0] = 1
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_video(f"{folder}/red.mp4", x, rate=25)
    ...     media.read_video(f"{folder}/red.mp4").x.mean(axis=(1, 2, 3)).round(1) + 0.0
    array([1., 0., 0.], dtype=float32)
    """
    path = Path(path)
    suffix = suffix_of(path, (*_FILMS, ".gif"))
    frames = to_bytes(channels_of(path, x, "C, T, H, W", (1, 3))).transpose(1, 2, 3, 0)
    if not 0 < rate < math.inf:
        raise MediaError(f"{path}: rate={rate} is asked for, and more than 0 frames a second are needed, and finitely many")
    with new_file(path) as temporary:
        if suffix == ".gif":
            _write_gif(temporary, frames, rate)
        else:
            try:
                _write_film(temporary, frames, rate)
            except reader("av", "av").error.FFmpegError as error:
                height, width = frames.shape[1:3]
                raise MediaError(f"{path}: {width:,} x {height:,} pixels at rate={rate} cannot be written: {error}") from error


def _check_frames(path: Path, frames: int, most: int, max_frames: int, size: tuple[int, int]) -> None:
    if frames <= most:
        return
    if frames > max_frames:
        raise MediaError(f"{path} has {frames:,} frames or more, and max_frames={max_frames:,}: cut it, or raise max_frames=")
    height, width = size
    raise MediaError(
        f"{path} has {frames:,} frames or more of {width:,} x {height:,} = {height * width:,} pixels, and in all {most:,} such "
        f"frames are allowed: ask for a smaller size=, cut it, or raise max_pixels= "
        f"(each takes {height * width * 12 / 2**20:,.1f} MiB)"
    )


@contextmanager
def _film(path: Path) -> Iterator[tuple[Any, Any]]:
    """A film opened by FFmpeg, and its first video stream."""
    av = reader("av", "av")
    try:
        container = av.open(str(path.absolute()))  # FFmpeg takes what stands before a colon for a protocol
    except av.error.FFmpegError as error:
        raise _unreadable(path, error) from error
    with container:
        if not container.streams.video:
            raise MediaError(f"{path} holds no video, only {', '.join(s.type for s in container.streams) or 'nothing'}")
        stream = container.streams.video[0]
        if not (stream.width and stream.height):
            raise MediaError(f"{path} does not say how large its frames are: it is damaged, or of a kind that FFmpeg doesn't know")
        yield container, stream


def _film_frames(path: Path, channels: int) -> Iterator[Array]:
    av = reader("av", "av")
    form = {1: "gray", 3: "rgb24"}[channels]
    with _film(path) as (container, stream):
        try:
            for frame in container.decode(stream):
                check_pixels(path, (frame.width, frame.height), 2 * stream.width * stream.height)
                pixels = frame.to_ndarray(format=form).astype(np.float32) / np.float32(255)
                yield pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        except av.error.FFmpegError as error:
            raise _unreadable(path, error) from error


def _read_animation(path: Path, channels: int, size: tuple[int, int] | None, fit: str, most: int, max_frames: int) -> Video:
    sequence = reader("PIL.ImageSequence", "pillow")
    frames, times = [], []
    with opened(path) as image:
        try:
            for frame in sequence.Iterator(image):
                x = to_array(frame, channels)
                frames.append(x if size is None else fit_size(x, size, fit))
                times.append(image.info.get("duration") or _DEFAULT_MILLISECONDS)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from error
    repeats = np.rint(np.divide(times, min(times))).astype(int)
    _check_frames(path, int(repeats.sum()), most, max_frames, frames[0].shape[1:])
    return Video(np.repeat(np.stack(frames, axis=1), repeats, axis=1), 1000 / min(times))


def _write_gif(path: Path, frames: Array, rate: float) -> None:
    pillow = reader("PIL.Image", "pillow")
    images = [pillow.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[-1] == 1 else frame)) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=min(max(round(1000 / rate), 10), _LONGEST), loop=0)


def _write_film(path: Path, frames: Array, rate: float) -> None:
    av = reader("av", "av")
    height, width, channels = frames.shape[1:]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options={"crf": "12"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"  # colours at half the size need even sides
        for frame in frames if channels == 3 else np.repeat(frames, 3, axis=-1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _unreadable(path: Path, error: Exception) -> MediaError:
    return MediaError(f"{path} cannot be decoded as video ({error}): it is damaged, truncated, or another kind of file")
