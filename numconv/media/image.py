"""Images: files -> ``[C, H, W]``, and back, by Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import MediaError, existing_file, reader
from .saving import channels_of, new_file, suffix_of, to_bytes

__all__ = [
    "FITS", "MAX_PIXELS", "ImageHeader", "check_arguments", "check_pixels", "fit_size", "image_header", "opened", "read_image",
    "to_array", "write_image",
]  # fmt: skip

Array = np.ndarray[Any, Any]

MAX_PIXELS = 1 << 26
"""How many pixels a picture may have, unless the caller asks for more: 8,192 x 8,192."""
FITS = ("pad", "crop", "stretch")
_DEEP = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "I": 65535.0, "F": 1.0}
"""Modes with more than 8 bits, and what stands for white. Pillow gives 16-bit greyscale PNG as I or I;16."""
_SUFFIXES = (".png", ".jpg", ".jpeg")


class ImageHeader(NamedTuple):
    """What a file says of itself."""

    channels: int
    """1: grey; 3: colours. Transparency is not counted."""
    height: int
    width: int
    frames: int
    """More than 1 where it is animated."""


def image_header(path: str | os.PathLike[str]) -> ImageHeader:
    """What an image file says of itself, without decoding it.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    ImageHeader
        channels (without transparency), height, width, and the number of frames.

    Raises
    ------
    MediaError
        If the file is empty or not an image.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_image(f"{folder}/grey.png", np.zeros((1, 20, 30)))
    ...     media.image_header(f"{folder}/grey.png")
    ImageHeader(channels=1, height=20, width=30, frames=1)
    """
    with opened(path) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # the camera was held upright
            width, height = height, width
        return ImageHeader(3 if _has_colour(image) else 1, height, width, getattr(image, "n_frames", 1))


def read_image(
    path: str | os.PathLike[str],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    fit: str = "pad",
    max_pixels: int = MAX_PIXELS,
) -> Array:
    """Read an image file; of an animated one, the first frame.

    Parameters
    ----------
    path : path-like
        The file: PNG, JPEG, WebP, TIFF, BMP, GIF, or what else Pillow reads. It is turned as its camera says.
    channels : int, optional
        1 (grey) or 3 (red, green, blue), both on white where the image is transparent, or 4 (with opacity). By default 1 or 3,
        as in the file.
    size : (int, int), optional
        Height and width of the result, by Pillow's antialiased bilinear filter. By default those of the file.
    fit : str
        How another aspect ratio comes to `size`: "pad" (resized to lie inside, its borders repeated), "crop" (resized to
        cover, its middle kept) or "stretch".
    max_pixels : int
        An image with more pixels is refused before it is decoded.

    Returns
    -------
    array
        ``[C, H, W]``, float32, 0 to 1.

    Raises
    ------
    MediaError
        If the file is empty, truncated, too large, or not an image, or an argument makes no sense.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_image(f"{folder}/white.png", np.ones((1, 20, 30)))
    ...     x = media.read_image(f"{folder}/white.png", channels=3, size=(8, 8))
    >>> x.shape, x.dtype, x.max()
    ((3, 8, 8), dtype('float32'), np.float32(1.0))
    """
    check_arguments(channels, size, fit)
    with opened(path) as image:
        check_pixels(path, image.size, max_pixels)
        try:
            if size is not None:
                image.draft(None, tuple(2 * side for side in reversed(size)))  # JPEG: decode no finer than needed
            x = to_array(reader("PIL.ImageOps", "pillow").exif_transpose(image), channels)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from error
    return x if size is None else fit_size(x, size, fit)


def write_image(path: str | os.PathLike[str], x: Any) -> None:
    """Write an image to a file.

    Parameters
    ----------
    path : path-like
        The file; its suffix says the format: .png, .jpg or .jpeg. It is replaced as a whole, or left as it was.
    x : array
        ``[C, H, W]``: 1 channel (grey), 3 (red, green, blue) or, PNG only, 4 (with opacity); floats, clipped to 0 to 1, or uint8.

    Raises
    ------
    MediaError
        If the suffix is another, or x is not such an array.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numconv import media
    >>> x = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype="uint8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     media.write_image(f"{folder}/noise.png", x)
    ...     bool((np.rint(media.read_image(f"{folder}/noise.png") * 255) == x).all())
    True
    """
    path = Path(path)
    channels = (1, 3, 4) if suffix_of(path, _SUFFIXES) == ".png" else (1, 3)
    pixels = to_bytes(channels_of(path, x, "C, H, W", channels)).transpose(1, 2, 0)
    image = reader("PIL.Image", "pillow").fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    with new_file(path) as temporary:
        image.save(temporary, quality=95)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A file opened by Pillow, which reads no more than its header."""
    path = existing_file(path)
    pillow = reader("PIL.Image", "pillow")
    try:
        image = pillow.open(path)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise MediaError(
            f"{path}: {error}. It is Pillow's own limit: make the image smaller, or raise PIL.Image.MAX_IMAGE_PIXELS and max_pixels"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    with image:
        yield image


def check_arguments(channels: int | None, size: tuple[int, int] | None, fit: str) -> None:
    """Refuse what no picture can have."""
    if channels not in (None, 1, 3, 4):
        raise MediaError(f"channels={channels} is asked for: pictures have 1 (grey), 3 (red, green, blue) or 4 (with opacity)")
    if size is not None and not _is_size(size):
        raise MediaError(f"size={size!r} is asked for: it is (height, width), two integers of at least 1")
    if fit not in FITS:
        raise MediaError(f"fit={fit!r} is asked for: it is one of {', '.join(FITS)}")


def _is_size(size: Any) -> bool:
    sides = np.asarray(size)
    return sides.shape == (2,) and bool(np.issubdtype(sides.dtype, np.integer)) and int(sides.min()) > 0


def check_pixels(path: str | os.PathLike[str], size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture of width x height pixels before it is decoded."""
    width, height = size
    if width * height > max_pixels:
        raise MediaError(
            f"{path} has {width:,} x {height:,} = {width * height:,} pixels, more than max_pixels={max_pixels:,}: make it smaller, "
            f"or raise max_pixels= (it takes {width * height * 3 * 4 / 2**20:,.0f} MiB in three channels)"
        )


def to_array(image: Any, channels: int | None) -> Array:
    """Pixels of one frame, ``[C, H, W]``, float32, 0 to 1."""
    if image.mode in _DEEP:
        grey = np.asarray(image, np.float32) / np.float32(_DEEP[image.mode])
        if bad := np.count_nonzero(np.isnan(grey)):
            raise ValueError(f"{bad:,} of its pixels are NaN")
        pixels = np.clip(grey, 0, 1)[None]
        return pixels if channels in (None, 1) else np.concatenate([pixels] * 3 + [np.ones_like(pixels)] * (channels == 4))
    channels = channels or (3 if _has_colour(image) else 1)
    if channels != 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        paper = reader("PIL.Image", "pillow").new("RGBA", image.size, "white")
        image = reader("PIL.Image", "pillow").alpha_composite(paper, image)
    values = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]), np.uint8)
    by_channel = values[None] if channels == 1 else values.transpose(2, 0, 1)
    return np.ascontiguousarray(by_channel, np.float32) / np.float32(255)


def fit_size(x: Array, size: tuple[int, int], fit: str = "pad") -> Array:
    """Bring pictures to a size.

    Parameters
    ----------
    x : array
        ``[C, H, W]``, float32.
    size : (int, int)
        Height and width of the result.
    fit : str
        "pad", "crop" or "stretch", as in `read_image`.

    Returns
    -------
    array
        ``[C, *size]``, float32.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import media
    >>> media.fit_size(np.ones((3, 40, 20), "float32"), (10, 10), "crop").shape
    (3, 10, 10)
    """
    have, want = np.array(x.shape[1:]), np.array(size)
    if (have == want).all():
        return x
    scale = {"pad": (want / have).min(), "crop": (want / have).max(), "stretch": want / have}[fit]
    inner = np.maximum(np.rint(have * scale).astype(int), 1)
    pillow = reader("PIL.Image", "pillow")
    turned = (int(inner[1]), int(inner[0]))
    resized = np.stack([np.asarray(pillow.fromarray(plane).resize(turned, pillow.Resampling.BILINEAR)) for plane in x])
    low = (want - inner) // 2
    padded = np.pad(resized, [(0, 0), *((max(a, 0), max(b, 0)) for a, b in zip(low, want - inner - low, strict=True))], mode="edge")
    top, left = np.maximum(-low, 0)
    return np.ascontiguousarray(padded[:, top : top + size[0], left : left + size[1]])


def _has_colour(image: Any) -> bool:
    if image.mode == "P":
        return any(len({*colour[:3]}) > 1 for colour in _palette(image))
    return image.mode not in {"1", "L", "LA", "La", *_DEEP}


def _palette(image: Any) -> list[tuple[int, ...]]:
    values = image.getpalette("RGB") or []
    return [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]


def _unreadable(path: str | os.PathLike[str], error: Exception) -> MediaError:
    return MediaError(f"{path} cannot be decoded as an image ({error}): it is damaged, truncated, or another kind of file")
