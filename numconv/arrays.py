"""Arrays of callers: which kind, on which device, in a form that executors accept."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .errors import ProblemError

_OVERLAP_WORK = 100_000
"""Candidate solutions examined before two views count as overlapping."""

__all__ = ["as_array", "check_out", "device_of", "empty", "plain"]


def as_array(value: Any, op: str, name: str) -> Any:
    """`value` as a plain array in native byte order, of NumPy or, for what lives on a GPU, of its own library.

    Lists, subclasses of ndarray and whatever NumPy can read become plain arrays without a copy where possible; byte-swapped data is
    copied.
    """
    if type(value) is np.ndarray and value.dtype.isnative and value.flags.aligned:
        return value
    if not isinstance(value, np.ndarray):
        if hasattr(value, "__cuda_array_interface__"):
            return value
        if value is None:
            raise ProblemError(f"{op}: {name} is None; give an array")
        try:
            value = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise ProblemError(f"{op}: {name} of type {type(value).__name__} is no array: {error}") from error
    if isinstance(value, np.ma.MaskedArray):
        raise ProblemError(
            f"{op}: {name} is a masked array, and a convolution has no way to leave values out; pass {name}.filled(0)"
        )
    value = np.asarray(value)
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if not value.flags.aligned:
        value = value.copy()
    return value


def device_of(array: Any) -> str:
    """``cpu`` or ``gpu``."""
    return "gpu" if hasattr(array, "__cuda_array_interface__") else "cpu"


def empty(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """An uninitialised array of the library of `like`."""
    if like is None or type(like) is np.ndarray:
        return np.empty(shape, dtype)
    return sys.modules[type(like).__module__.split(".")[0]].empty(shape, dtype)


def plain(array: Any) -> Any:
    """The array without its subclass of ndarray, on the same memory."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def check_out(op: str, out: Any, shape: tuple[int, ...], dtype: Any, inputs: list[Any], name: str = "out") -> None:
    """Raise ProblemError unless results can be written to `out`."""
    kind = type(inputs[0]) if inputs else np.ndarray
    if not isinstance(out, kind):
        raise ProblemError(
            f"{op}: {name} is a {type(out).__name__}, and the arrays are {kind.__name__} on the {device_of(inputs[0])}; "
            "give the same kind"
        )
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise ProblemError(
            f"{op}: {name} has shape {tuple(out.shape)} and dtype {out.dtype}, and the result has {shape} and {dtype}"
        )
    if device_of(out) == "gpu":
        return
    if not out.flags.writeable:
        raise ProblemError(f"{op}: {name} is read-only; give a writable array")
    if not out.flags.aligned:
        raise ProblemError(f"{op}: {name} is not aligned to its dtype {dtype}; allocate it with numpy.empty")
    if isinstance(out, np.ma.MaskedArray):
        raise ProblemError(f"{op}: {name} is a masked array, and a result has no mask; give {name}.data")
    if not out.flags.forc and _folds(out):
        raise ProblemError(
            f"{op}: {name} with strides {out.strides} and shape {shape} has elements that share memory; give a plain array"
        )
    for array in inputs:
        if isinstance(array, np.ndarray) and np.may_share_memory(out, array) and _overlap(out, array):
            raise ProblemError(
                f"{op}: {name} overlaps an input or another result in memory, and both would be spoilt; give memory of its own"
            )


def _folds(out: Any) -> bool:
    """Whether elements may share memory: some step is shorter than the reach of the axes with smaller steps."""
    reach = out.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True) if size > 1):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def _overlap(a: Any, b: Any) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]  # the stubs know only -1 and 0
    except np.exceptions.TooHardError:
        return True
