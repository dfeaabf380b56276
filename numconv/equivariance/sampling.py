"""Values of a periodic signal between its samples: exactly where there is a sample, by splines, and by its Fourier series."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

__all__ = ["are_samples", "by_fourier_series", "by_splines", "grid", "samples"]

Array = np.ndarray[Any, Any]
_ROUNDING = 1e-9
"""Coordinates this near to a sample are that sample."""
_BLOCK = 64 * 2**20
"""Bytes of intermediate sums of the Fourier series at a time."""


def grid(starts: tuple[Any, ...], counts: tuple[int, ...], step: tuple[Any, ...]) -> Array:
    """The points of a regular grid, ``[d, *counts]``."""
    axes = [np.array([float(start + each * i) for i in range(n)]) for start, n, each in zip(starts, counts, step, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def samples(size: tuple[int, ...]) -> Array:
    """The points at which a signal of this size has samples, ``[d, *size]``."""
    return grid((0,) * len(size), size, (1,) * len(size))


def are_samples(coordinates: Array) -> bool:
    """Whether all coordinates are whole, so that nothing needs interpolation."""
    return bool(np.all(np.abs(coordinates - np.rint(coordinates)) < _ROUNDING))


def by_splines(x: Array, coordinates: Array, order: int) -> Array:
    """One period x ``[N, C, *S]`` at coordinates ``[d, *P]`` (in samples), ``[N, C, *P]``.

    Whole coordinates are index maps, exact for any dtype. Others are interpolated by splines (`scipy.ndimage.map_coordinates`) in
    double precision.
    """
    if are_samples(coordinates):
        size = np.array(x.shape[2:]).reshape(-1, *(1,) * (coordinates.ndim - 1))
        return x[(slice(None), slice(None), *(np.rint(coordinates).astype(np.int64) % size))]
    from scipy import ndimage

    out = np.empty((*x.shape[:2], *coordinates.shape[1:]), x.dtype)
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        out[n, c] = ndimage.map_coordinates(x[n, c].astype(np.float64), coordinates, order=order, mode="grid-wrap")
    return out


def by_fourier_series(x: Array, coordinates: Array, matrix: Array) -> Array:
    """The same by the Fourier series of x: what a band-limited signal with these samples has between them.

    Frequencies that the transformation with this `matrix` (in samples) would bring beyond the Nyquist frequency are left out, since
    on the new grid they would pass for others.
    """
    if are_samples(coordinates):
        return by_splines(x, coordinates, 1)
    ndim = x.ndim - 2
    axes = tuple(range(2, x.ndim))
    frequencies = np.stack(np.meshgrid(*(np.fft.fftfreq(size) for size in x.shape[2:]), indexing="ij"))
    arriving = np.tensordot(np.linalg.inv(matrix).T, frequencies, axes=1)
    kept = np.abs(arriving).max(axis=0) <= 0.5 + _ROUNDING
    spectrum = np.where(kept, np.fft.fftn(x.astype(np.float64), axes=axes, norm="forward"), 0)
    points = coordinates.reshape(ndim, -1)
    block = max(1, _BLOCK // spectrum[..., 0].nbytes)
    parts = [_series(spectrum, points[:, start : start + block]) for start in range(0, points.shape[1], block)]
    return np.concatenate(parts, axis=-1).reshape(*x.shape[:2], *coordinates.shape[1:]).astype(x.dtype)


def _series(spectrum: Array, points: Array) -> Array:
    """The sum of a Fourier series at points ``[d, P]``, one axis after the other, ``[N, C, P]``."""
    waves = [_waves(size, positions) for size, positions in zip(spectrum.shape[2:], points, strict=True)]
    total = np.moveaxis(np.tensordot(spectrum, waves[-1], axes=(-1, 1)), -1, 2)  # [N, C, P, *S[:-1]]
    for wave in reversed(waves[:-1]):
        total = np.einsum("ncp...k,pk->ncp...", total, wave)
    return np.asarray(total.real)


def _waves(size: int, positions: Array) -> Array:
    """exp(2 pi i f p) for all positions p and frequencies f, ``[P, S]``; at the Nyquist frequency a cosine, which is real."""
    waves = np.exp(2j * np.pi * np.outer(positions, np.fft.fftfreq(size)))
    if size % 2 == 0:
        waves[:, size // 2] = np.cos(np.pi * positions)
    return waves
