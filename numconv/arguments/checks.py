"""Checks of single arguments: words, numbers for each dimension, padding, shapes, dtypes.

Each names the call, `asked`, in its error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numconv.errors import ProblemError
from numconv.problem import ITEMSIZE, LAYOUTS, LEVELS, PAD_MODES, WIDER, Ints, Pairs, Problem

from .request import Request

__all__ = ["check_fit", "check_results", "common", "conv_padding", "ints", "pairs", "same", "sizes", "split", "windowed", "word"]

# How other libraries call these words.
_ELSEWHERE = {
    "constant": "zeros", "edge": "replicate", "nearest": "replicate", "wrap": "circular", "mirror": "reflect", "symm": "symmetric",
    "nchw": "channels_first", "ncl": "channels_first", "nhwc": "channels_last", "nlc": "channels_last", "swish": "silu",
}  # fmt: skip


def word(value: Any, known: Sequence[str], what: str, asked: str) -> str:
    """A word, if it is one of those known."""
    if not isinstance(value, str) or value not in known:
        ours = _ELSEWHERE.get(value.lower(), value.lower()) if isinstance(value, str) else ""
        hint = f"; say {what}={ours!r}" if ours in known else ""
        raise ProblemError(f"{asked}: {what}={value!r} is not one of {', '.join(known)}{hint}")
    return value


_LARGEST = 2**48
"""Of a stride, a dilation, a padding, or the bytes of an array: beyond any memory, far from where 64 bits of an address end."""


def ints(value: Any, ndim: int, least: int, what: str, asked: str) -> Ints:
    """One int a spatial dimension, each at least `least`."""
    values = (value,) * ndim if isinstance(value, int) else value
    if isinstance(values, str) or not all(isinstance(v, int) for v in values):
        raise ProblemError(f"{asked}: {what}={value!r} must be an integer or one integer for each of the {ndim} spatial dimensions")
    if len(values) != ndim:
        raise ProblemError(
            f"{asked}: {what}={value!r} has {len(values)} entries, but there are {ndim} spatial dimensions; give one each"
        )
    if any(v > _LARGEST for v in values):
        raise ProblemError(f"{asked}: {what}={value!r} holds {max(values)}, and no array reaches further than {_LARGEST} elements")
    if any(v < least for v in values):
        raise ProblemError(f"{asked}: {what}={value!r} must be at least {least} in every dimension, but holds {min(values)}")
    return tuple(values)


def pairs(value: Any, ndim: int, what: str, asked: str) -> Pairs:
    """(low, high) for each spatial dimension, from an int, a flat tuple of ints or a nested tuple of pairs."""
    nested = not isinstance(value, int) and any(isinstance(v, tuple) for v in value)
    if nested:
        if not all(isinstance(v, tuple) and len(v) == 2 and all(isinstance(i, int) for i in v) for v in value):
            raise ProblemError(
                f"{asked}: {what}={value!r} mixes forms: give one (low, high) pair for each of the {ndim} dimensions"
            )
        if len(value) != ndim:
            raise ProblemError(
                f"{asked}: {what}={value!r} has {len(value)} pairs, but there are {ndim} spatial dimensions; give one each"
            )
        if any(width > _LARGEST for pair in value for width in pair):
            largest = max(map(max, value))
            raise ProblemError(f"{asked}: {what}={value!r} holds {largest}, and no array reaches further than {_LARGEST} elements")
        if any(width < 0 for pair in value for width in pair):
            raise ProblemError(f"{asked}: {what}={value!r} must be at least 0 in every dimension, but holds {min(map(min, value))}")
        return tuple(value)
    return tuple((width, width) for width in ints(value, ndim, 0, what, asked))


def same(size: int, s: int, r: int, d: int) -> tuple[int, int]:
    """(low, high) of the padding "same" in a dimension of this size."""
    total = max((-(-size // s) - 1) * s + d * (r - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def conv_padding(value: Any, spatial: Ints, kernel: Ints, stride: Ints, dilation: Ints, words: Sequence[str], asked: str) -> Pairs:
    """(low, high) for each spatial dimension, from numbers or one of the `words`."""
    if not isinstance(value, str):
        return pairs(value, len(spatial), "padding", asked)
    if value in PAD_MODES:
        raise ProblemError(f"{asked}: padding={value!r} says what the padding holds, not how much there is; say pad_mode={value!r}")
    word(value, words, "padding", asked)
    extents = tuple(d * (r - 1) for d, r in zip(dilation, kernel, strict=True))
    if value == "same":
        return tuple(map(same, spatial, stride, kernel, dilation))
    low, high = {"valid": (0, 0), "full": (1, 1), "causal": (1, 0)}[value]
    return tuple((low * e, high * e) for e in extents)


def check_fit(asked: str, what: str, spatial: Ints, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> None:
    """Raise unless the kernel (or window) fits the padded input in every dimension."""
    for axis, (size, r, s, (low, high), d) in enumerate(zip(spatial, kernel, stride, padding, dilation, strict=True)):
        room = size + low + high - d * (r - 1) - 1
        if room < 0:
            raise ProblemError(
                f"{asked}: the {what} is larger than the padded input in spatial dimension {axis}: "
                "floor((S + low + high - d*(r - 1) - 1) / s) + 1 = "
                f"floor(({size} + {low} + {high} - {d}*({r} - 1) - 1) / {s}) + 1 = {room // s + 1}: "
                f"a {what} that spans {d * (r - 1) + 1} needs as much input, and there are {size + low + high}; "
                f"pad by {-room} more, or use a smaller {what} or dilation"
            )


def check_results(asked: str, problem: Problem) -> None:
    """Raise where a result is larger than any memory: planning what to do with it would take as long."""
    for shape in problem.output_shapes:
        size = math.prod(shape) * ITEMSIZE[problem.out_dtype]
        if size > _LARGEST:
            raise ProblemError(
                f"{asked}: a result of shape {shape}, {problem.out_dtype}, has {size} bytes, more than any memory, "
                f"which ends at {_LARGEST}"
            )


def sizes(shape: Any, what: str, asked: str) -> Ints:
    """A shape: a tuple of ints, none negative."""
    if not isinstance(shape, tuple) or not all(isinstance(v, int) for v in shape):
        raise ProblemError(f"{asked}: {what}={shape!r} must be a tuple of integers")
    if any(v < 0 for v in shape):
        raise ProblemError(f"{asked}: {what}={shape!r} has a negative size, {min(shape)}")
    return shape


def split(shape: Ints, ndim: int, layout: str, what: str, asked: str) -> tuple[int, int, Ints, bool]:
    """(N, C, spatial sizes, whether there is no batch axis) of an array with `ndim` spatial dimensions."""
    batchless = len(shape) == ndim + 1
    if len(shape) not in (ndim + 1, ndim + 2):
        last = layout == "channels_last"
        with_n, without = (("[N, *S, C]", "[*S, C]") if last else ("[N, C, *S]", "[C, *S]"))  # fmt: skip
        raise ProblemError(
            f"{asked}: {what} has {len(shape)} dimensions, but {ndim} spatial dimensions need {ndim + 2} ({with_n}) or "
            f"{ndim + 1} ({without})"
        )
    n, *rest = (1, *shape) if batchless else shape
    c, spatial = (rest[-1], tuple(rest[:-1])) if layout == "channels_last" else (rest[0], tuple(rest[1:]))
    if c < 1 or any(s < 1 for s in spatial):
        raise ProblemError(
            f"{asked}: {what} has the shape {shape}: only the batch may be empty, channels and spatial sizes are at least 1"
        )
    return n, c, spatial, batchless


def windowed(request: Request, what: str) -> tuple[int, int, Ints, bool, Ints]:
    """(n, c, spatial, batchless, window) of an array and a window (or width): an int window means that x has a batch axis."""
    options, asked = request.options, request.asked
    word(options.layout, LAYOUTS, "layout", asked)
    x_shape = sizes(request.x_shape, "x_shape", asked)
    window = request.w_shape
    if isinstance(window, str):
        raise ProblemError(f"{asked}: {what}={window!r} must be an integer or one integer for each spatial dimension")
    ndim = len(x_shape) - 2 if isinstance(window, int) else len(window)
    if ndim < 1:
        raise ProblemError(
            f"{asked}: {what}={window!r}: an integer means that x has a batch axis and at least one spatial dimension, so "
            f"at least 3 dimensions, and x has {len(x_shape)}; without a batch axis give a tuple, one entry a spatial dimension"
        )
    return (*split(x_shape, ndim, options.layout, "x", asked), window)


def _out_dtype(request: Request) -> str:
    out = request.out_dtype or request.dtype
    allowed = (request.dtype, *WIDER.get(request.dtype, ()))
    if out not in allowed:
        raise ProblemError(
            f"{request.asked}: dtype={out} asks for an output that is neither the dtype of the inputs nor wider "
            f"(from {request.dtype}: {', '.join(allowed)}); convert the inputs first"
        )
    return out


def common(request: Request) -> dict[str, Any]:
    """The fields that all problems have."""
    if request.accuracy is not None:
        word(request.accuracy, LEVELS, "accuracy", request.asked)
    accuracy = None if request.accuracy == "default" else request.accuracy
    return {"dtype": request.dtype, "out_dtype": _out_dtype(request), "accuracy": accuracy, "max_workspace": request.max_workspace}
