"""Activations that a store applies: relu, silu, gelu, of a value at a time; see `microkernels.activation`.

They have no branch and no call, so that loops over them become vectors.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from .compiling.compiler import helper, intrinsic, invoke
from .elements import itemsize
from .microkernels import activation
from .scalar import address, load, store, wide_vectors

__all__ = ["ACTIVATIONS", "activate_rows", "activate_run", "activated", "rectified"]

ACTIVATIONS = {None: 0, "relu": 1, "silu": 2, "gelu": 3}


@intrinsic
def silu(typingctx: Any, x: Any) -> Any:
    """x / (1 + exp(-x)) of a real float."""
    return x(x), lambda context, builder, sig, args: activation.silu(builder, args[0])


@intrinsic
def gelu(typingctx: Any, x: Any) -> Any:
    """x * erfc(-x / sqrt(2)) / 2 of a real float."""
    return x(x), lambda context, builder, sig, args: activation.gelu(builder, args[0])


def rectified(value: Any, code: int) -> Any:
    """max(value, 0) for the code of relu, else the value; NaN stays NaN."""
    raise NotImplementedError("for kernels only")


@overload(rectified)
def _rectified(value, code):
    if isinstance(value, types.Complex):
        return lambda value, code: value
    kind = value
    return lambda value, code: kind(0) if (code == 1) & (value < kind(0)) else value


def activated(value: Any, code: int) -> Any:
    """Silu or gelu of a value; NaN stays NaN."""
    raise NotImplementedError("for kernels only")


@overload(activated)
def _activated(value, code):
    if not isinstance(value, types.Float):
        return lambda value, code: value
    return lambda value, code: silu(value) if code == 2 else gelu(value)


@helper
def activate_run(values, count, code, t):
    """Silu or gelu of neighbouring values in place; `values` is their address, `t` the tag of their dtype."""
    wide_vectors()
    if code == 2:
        for i in range(count):
            store(values + i * itemsize(t), activated(load(values + i * itemsize(t), t), 2), t)
    else:
        for i in range(count):
            store(values + i * itemsize(t), activated(load(values + i * itemsize(t), t), 3), t)


@helper
def activate_rows(dress, y, y_row, rows, length, code, t):
    """Silu or gelu of rows of neighbouring values in place; `dress` is the address of the kernel. Rows without a gap are one."""
    if y_row == length * itemsize(t):
        rows, length = 1, rows * length
    invoke(dress, y, y_row, rows, length, address(0), 0, code, y, y_row)
