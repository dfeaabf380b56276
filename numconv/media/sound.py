"""Sound: files -> ``[C, T]`` with a rate, and back, by soundfile, that is libsndfile: WAV, FLAC, Ogg, MP3, AIFF and others."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import MediaError, existing_file, reader
from .saving import channels_of, new_file, suffix_of

__all__ = ["MAX_SECONDS", "Sound", "SoundHeader", "read_sound", "sound_header", "write_sound"]

Array = np.ndarray[Any, Any]

MAX_SECONDS = 600.0
"""How long a sound may be, unless the caller asks for more."""
_WIDEST = 8 * 48_000
"""Values a second that the limit allows for, in all channels together, so that it bounds memory: 8 channels at 48 kHz."""
_BLOCK = 1 << 16
"""Samples read or written at a time: libsndfile 1.2 crashes where a long sound is written as Vorbis at once."""
_OGG_RATE = 200_000
"""The highest rate of libvorbis; above it libsndfile 1.2 crashes."""
_MAX_RATE = 2**31 - 1
"""Of libsndfile."""
_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}


class Sound(NamedTuple):
    """A sound in memory."""

    x: Array
    """``[C, T]``, float32; -1 to 1 but for files of floats, which may be louder."""
    rate: int
    """Samples a second, in each channel."""


class SoundHeader(NamedTuple):
    """What a file says of itself."""

    channels: int
    samples: int
    """In each channel, T."""
    rate: int
    """Samples a second, in each channel."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples / self.rate


def sound_header(path: str | os.PathLike[str]) -> SoundHeader:
    """What a sound file says of itself, without decoding it.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    SoundHeader
        channels, samples in each, and rate.

    Raises
    ------
    MediaError
        If the file is empty, not a sound, or shorter than its header says (where the format tells).

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_sound(f"{folder}/silence.wav", np.zeros((2, 4000), "float32"), rate=8000)
    ...     media.sound_header(f"{folder}/silence.wav").seconds
    0.5
    """
    path = existing_file(path)
    soundfile = reader("soundfile", "soundfile")
    try:
        info = soundfile.info(_name(path))
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from error
    if "(should be " in info.extra_info:  # libsndfile's word for chunks that end before their stated length
        raise MediaError(f"{path} is truncated: it ends after {info.frames:,} samples, and its header says more. Copy it again")
    if info.frames <= 0:
        raise MediaError(f"{path} holds no samples")
    return SoundHeader(info.channels, info.frames, info.samplerate)


def read_sound(
    path: str | os.PathLike[str], *, rate: int | None = None, channels: int | None = None, max_seconds: float = MAX_SECONDS
) -> Sound:
    """Read a sound file.

    Parameters
    ----------
    path : path-like
        The file: WAV, FLAC, Ogg, MP3, AIFF, or what else libsndfile reads.
    rate : int, optional
        Resample to this many samples a second, by SciPy's polyphase filter; by default the rate of the file.
    channels : int, optional
        Number of channels: 1 takes the mean of all; more repeat the one of a mono file. By default those of the file.
    max_seconds : float
        A longer sound is refused before it is decoded. In all channels together it may also hold no more values than 8
        channels at 48 kHz in this time, so that the limit bounds memory.

    Returns
    -------
    Sound
        x ``[C, T]``, float32, and the rate. Full scale is -1 to 1; a file of floats may be louder, and is kept as it is.

    Raises
    ------
    MediaError
        If the file is empty, truncated, too long, not a sound, or has other channels.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> tone = np.sin(np.arange(8000) * 0.1)[None] / 2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_sound(f"{folder}/tone.flac", tone, rate=8000)
    ...     x, rate = media.read_sound(f"{folder}/tone.flac", rate=4000)
    >>> x.shape, x.dtype, rate
    ((1, 4000), dtype('float32'), 4000)
    """
    path = existing_file(path)
    counts: dict[str, Any] = {"rate": rate, "channels": channels}
    for name, value in counts.items():
        if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
            raise MediaError(f"{name}={value!r} is asked for: it must be an integer of at least 1, or None for that of the file")
    header = sound_header(path)
    _check_length(path, header, max_seconds)
    x = _to_channels(path, _decode(path, header), channels)
    if rate is None or rate == header.rate:
        return Sound(x, header.rate)
    return Sound(_resample(x, header.rate, rate), rate)


def write_sound(path: str | os.PathLike[str], x: Any, rate: int) -> None:
    """Write a sound to a file, 16 bit (Ogg: Vorbis).

    Parameters
    ----------
    path : path-like
        The file; its suffix says the format: .wav, .flac or .ogg. It is replaced as a whole, or left as it was.
    x : array
        ``[C, T]``, floats; what is outside -1 to 1 is clipped.
    rate : int
        Samples a second.

    Raises
    ------
    MediaError
        If the suffix is another, x is not such an array, or the format has no such rate.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> noise = np.random.default_rng(0).uniform(-1, 1, (1, 1000))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_sound(f"{folder}/noise.wav", noise, rate=8000)
    ...     bool(np.abs(media.read_sound(f"{folder}/noise.wav").x - noise).max() < 2**-15)
    True
    """
    path = Path(path)
    kind = _FORMATS[suffix_of(path, tuple(_FORMATS))]
    x = np.clip(channels_of(path, x, "C, T", tuple(range(1, 9))), -1, 1)
    x = x.astype(np.float32 if x.itemsize <= 4 else np.float64, copy=False)  # libsndfile takes these
    given: Any = rate
    if not (isinstance(given, int | np.integer) and 1 <= given <= _MAX_RATE):
        raise MediaError(
            f"{path}: rate={rate!r} is asked for, and an integer from 1 to {_MAX_RATE:,} is needed, in samples a second"
        )
    if kind == "OGG" and rate > _OGG_RATE:
        raise MediaError(f"{path}: rate={rate:,} is asked for, and Ogg Vorbis takes at most {_OGG_RATE:,}: resample, or write .wav")
    soundfile = reader("soundfile", "soundfile")
    options = {"format": kind, "subtype": "VORBIS" if kind == "OGG" else "PCM_16"}
    with new_file(path) as temporary:
        try:
            with soundfile.SoundFile(_name(temporary), "w", rate, len(x), **options) as file:
                for start in range(0, x.shape[1], _BLOCK):
                    file.write(x[:, start : start + _BLOCK].T)
        except soundfile.LibsndfileError as error:
            raise MediaError(f"{path}: {len(x)} channels at {rate:,} Hz cannot be written as {kind}: {error}") from error


def _name(path: Path) -> str | bytes:
    """A path as soundfile takes it: where it is no text, as the bytes that it is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return str(path)


def _check_length(path: Path, header: SoundHeader, max_seconds: float) -> None:
    if header.seconds > max_seconds:
        raise MediaError(
            f"{path} lasts {header.seconds:,.1f} s, more than max_seconds={max_seconds:g}: cut it, or raise max_seconds= "
            f"(it takes {header.samples * header.channels * 4 / 2**20:,.0f} MiB)"
        )
    values = header.samples * header.channels
    if values > max_seconds * _WIDEST:
        raise MediaError(
            f"{path} holds {values:,} values in {header.channels} channels at {header.rate:,} Hz, more than "
            f"max_seconds={max_seconds:g} allows for ({max_seconds * _WIDEST:,.0f}): raise max_seconds= "
            f"(it takes {values * 4 / 2**20:,.0f} MiB)"
        )


def _decode(path: Path, header: SoundHeader) -> Array:
    """All samples, ``[C, T]``, never more of them than the header says."""
    soundfile = reader("soundfile", "soundfile")
    x = np.empty((header.channels, header.samples), np.float32)
    done = 0
    try:
        with soundfile.SoundFile(_name(path)) as file:
            while done < header.samples:
                block = file.read(min(_BLOCK, header.samples - done), dtype="float32", always_2d=True)
                if not len(block):
                    break
                x[:, done : done + len(block)] = block.T
                done += len(block)
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from error
    if done < header.samples:
        raise MediaError(
            f"{path} is truncated: it ends after {done:,} of the {header.samples:,} samples that its header says. Copy it again"
        )
    if not np.isfinite(x).all():
        raise MediaError(f"{path} holds {np.count_nonzero(~np.isfinite(x)):,} samples that are NaN or infinite")
    return x


def _to_channels(path: Path, x: Array, channels: int | None) -> Array:
    if channels is None or channels == len(x):
        return x
    if channels == 1:
        mean: Array = x.mean(axis=0, keepdims=True)
        return mean
    if len(x) == 1:
        return np.repeat(x, channels, axis=0)
    raise MediaError(f"{path} has {len(x)} channels, and channels={channels} is asked for: ask for 1 (their mean) or {len(x)}")


def _resample(x: Array, have: int, want: int) -> Array:
    """The same sound at another rate, ceil(T want / have) samples long."""
    from scipy.signal import resample_poly

    common = math.gcd(have, want)
    y: Array = np.ascontiguousarray(resample_poly(x, want // common, have // common, axis=1), dtype=np.float32)
    return y


def _unreadable(path: Path, error: Exception) -> MediaError:
    return MediaError(f"{path} cannot be decoded as sound ({error}): it is damaged, truncated, or another kind of file")
