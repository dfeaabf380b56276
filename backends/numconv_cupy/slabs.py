"""Padded parts of x, and how large a part may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from numconv.plugin import ConvProblem

from .namespaces import dtype_in, namespace, zeros_like

__all__ = ["Rows", "padded_part", "padded_positions", "padded_slab", "spread_part"]


class Rows(NamedTuple):
    """Images and rows (positions on the first spatial axis) of a block, and the bytes that it takes."""

    images: int
    rows: int
    bytes: int

    @classmethod
    def of(cls, problem: ConvProblem, row_bytes: int, limit: int) -> Rows:
        """The largest block of which the working memory stays under a limit, at least one row.

        Rows are those of y; for gradients of x they are rows of x, which read at most ``1 + d(r - 1) // s`` rows of y more.
        """
        rows = problem.output[0]
        halo = 0
        if problem.op == "input_grad":
            rows = max(problem.spatial[0], problem.output[0])
            halo = 1 + problem.dilation[0] * (problem.kernel[0] - 1) // problem.stride[0]
        allowed = max(1, limit // row_bytes - halo)
        if allowed >= rows:
            images = max(1, min(problem.n, limit // (row_bytes * (rows + halo))))
            return cls(images, rows, images * (rows + halo) * row_bytes)
        return cls(1, allowed, (allowed + halo) * row_bytes)


def padded_positions(xp: Any, positions: Any, size: int, pad_mode: str) -> Any:
    """The positions of x that these positions read, which may lie in the padding; computed where they live."""
    if pad_mode == "replicate":
        return xp.clip(positions, 0, size - 1)
    if pad_mode == "circular":
        return positions % size
    period = max(1, 2 * size - 2) if pad_mode == "reflect" else 2 * size
    folded = positions % period
    mirrored = (period if pad_mode == "reflect" else period - 1) - folded
    return xp.where(folded < size, folded, mirrored)


def padded_part(x: Any, firsts: Sequence[int], extents: Sequence[int], pad_mode: str, dtype: str) -> Any:
    """The positions ``firsts .. firsts + extents`` of x ``[n, C, *S]``, some of which may lie in the padding, in another dtype."""
    xp = namespace(x)
    kind = dtype_in(xp, dtype)
    spatial = x.shape[2:]
    if pad_mode != "zeros":
        for axis, (first, extent, size) in enumerate(zip(firsts, extents, spatial, strict=True)):
            if first < 0 or first + extent > size:
                x = xp.take(x, padded_positions(xp, _arange(xp, x, first, first + extent), size, pad_mode), axis=2 + axis)
            else:
                x = x[(slice(None),) * (2 + axis) + (slice(first, first + extent), ...)]
        return xp.astype(x, kind, copy=False)
    reads = [
        slice(min(max(first, 0), size), max(0, min(first + extent, size)))
        for first, extent, size in zip(firsts, extents, spatial, strict=True)
    ]
    part = x[(slice(None), slice(None), *reads)]
    if part.shape[2:] == tuple(extents):
        return xp.astype(part, kind, copy=False)
    slab = zeros_like(x, (*x.shape[:2], *extents), dtype)
    if math.prod(part.shape):
        places = [slice(read.start - first, read.stop - first) for read, first in zip(reads, firsts, strict=True)]
        slab[(slice(None), slice(None), *places)] = xp.astype(part, kind, copy=False)
    return slab


def padded_slab(problem: ConvProblem, x: Any, rows: slice) -> Any:
    """What some rows of outputs read, ``[n, C, *extents]``, with the padding in place, in the dtype of the sums."""
    firsts = [rows.start * problem.stride[0] - problem.padding[0][0], *(-low for low, _ in problem.padding[1:])]
    counts = (rows.stop - rows.start, *problem.output[1:])
    sizes = zip(counts, problem.stride, problem.dilation, problem.kernel, strict=True)
    extents = [(q - 1) * s + d * (r - 1) + 1 for q, s, d, r in sizes]
    return padded_part(x, firsts, extents, problem.pad_mode, problem.acc_dtype)


def spread_part(y: Any, firsts: Sequence[int], extents: Sequence[int], steps: Sequence[int], dtype: str) -> Any:
    """As `padded_part`, of y ``[n, K, *Q]`` with its positions `steps` apart and zeros between them."""
    if all(step == 1 for step in steps):
        return padded_part(y, firsts, extents, "zeros", dtype)
    xp = namespace(y)
    slab = zeros_like(y, (*y.shape[:2], *extents), dtype)
    reads, places = [], []
    for first, extent, step, size in zip(firsts, extents, steps, y.shape[2:], strict=True):
        begin = min(size, max(0, -(-first // step)))
        end = max(begin, min(size, -(-(first + extent) // step)))
        reads.append(slice(begin, end))
        places.append(slice(begin * step - first, (end - 1) * step - first + 1, step) if end > begin else slice(0, 0))
    part = y[(slice(None), slice(None), *reads)]
    if math.prod(part.shape):
        slab[(slice(None), slice(None), *places)] = xp.astype(part, dtype_in(xp, dtype), copy=False)
    return slab


def _arange(xp: Any, like: Any, start: int, stop: int) -> Any:
    if xp.__name__ in ("numpy", "cupy"):
        return xp.arange(start, stop)
    return xp.arange(start, stop, device=like.device)
