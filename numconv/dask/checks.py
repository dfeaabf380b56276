"""What is checked of the arguments of all functions on Dask arrays, and the forms that they take."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from numconv.arguments import problem_of
from numconv.context import current
from numconv.dispatch import Choice, make_request
from numconv.errors import ProblemError
from numconv.registry import default_registry

from .blocks import Frame

__all__ = ["arrays", "expect", "outputs", "problem", "times", "with_batch"]


def arrays(op: str, **given: Any) -> list[Any]:
    """Dask arrays of known chunks, none of them empty, and of one dtype, indices of int64; other arrays become one chunk."""
    found: list[Any] = []
    first = ""
    for name, value in given.items():
        if value is None:
            if name != "bias" and (op, name) != ("max_pool_backward", "indices"):
                raise ProblemError(f"numconv.dask.{op}: {name} is None; give an array")
            found.append(None)
            continue
        array = value if isinstance(value, da.Array) else da.from_array(np.asarray(value), chunks=-1)
        if any(np.isnan(size) for size in array.shape):
            raise ProblemError(f"numconv.dask.{op}: {name} has chunks of unknown sizes; call {name}.compute_chunk_sizes() first")
        array = _usual(array)
        first = first or name
        if name == "indices":
            if array.dtype != np.int64:
                raise ProblemError(
                    f"numconv.dask.{op}: indices have dtype {array.dtype}, and must have int64, as max_pool gives them"
                )
        elif found and array.dtype != found[0].dtype:
            raise ProblemError(
                f"numconv.dask.{op}: {first} has dtype {found[0].dtype} and {name} has {array.dtype}: all arrays of a call have "
                f"one dtype; convert one of them, for example {name}.astype({str(found[0].dtype)!r})"
            )
        found.append(array)
    return found


def _usual(array: Any) -> Any:
    """The array in the byte order of this machine, without chunks of nothing, where there are others."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not any(0 in along and any(along) for along in array.chunks):
        return array
    return array.rechunk(tuple(tuple(size for size in along if size) or (0,) for along in array.chunks))


def problem(op: str, x_shape: Any, w_shape: Any, dtype: Any, options: Any, choice: Choice, bias: bool = False) -> Any:
    """The problem of the whole, checked, and whether its arrays have no N."""
    request = make_request(op, x_shape, w_shape, dtype, options, choice, current(), bias)
    if choice.backend is not None:
        default_registry().check_names((choice.backend,), request.asked)
    return problem_of(request)


def expect(op: str, name: str, array: Any, shape: tuple[int, ...]) -> None:
    """Raise unless the array, if there is one, has this shape."""
    if array is not None and array.shape != shape:
        raise ProblemError(f"numconv.dask.{op}: {name} has shape {array.shape}, and must have {shape}")


def with_batch(array: Any, batchless: bool) -> Any:
    """The array with N."""
    return array[None] if batchless else array


def times(counts: tuple[int, ...], each: int) -> tuple[int, ...]:
    """Chunks of so many groups, of so many channels each."""
    return tuple(count * each for count in counts)


def outputs(frame: Frame, axes: Any) -> dict[str, tuple[int, ...]]:
    """The chunks of y along the named axes of space."""
    return {name: axis.outputs for name, axis in zip(frame.space, axes, strict=True)}
