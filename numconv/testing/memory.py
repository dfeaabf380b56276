"""Arrays in every form of memory that an executor may meet, watched: inputs for changes, outputs for writes beside them."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import Array, Case, out_dtypes

__all__ = ["FORMS", "execute"]

# Each takes (shape, dtype, xp) and returns a C-contiguous base array and a view of it that has this shape.
_Form = Callable[[tuple[int, ...], Any, Any], tuple[Any, Any]]
_MARGIN = 65


def _plain(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty(shape, dtype)
    return base, base


def _shifted(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    """Contiguous, off the alignment that an allocation has, between margins as wide as a tile may overrun."""
    base = xp.empty(math.prod(shape) + 2 * _MARGIN, dtype)
    return base, base[_MARGIN:-_MARGIN].reshape(shape)


def _channels_last(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty((*shape[:1], *shape[2:], *shape[1:2]), dtype)
    return base, base.transpose(0, base.ndim - 1, *range(1, base.ndim - 1)) if base.ndim > 2 else base


def _reversed(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty(shape, dtype)
    return base, base[(slice(None, None, -1),) * base.ndim]


def _fortran(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty(shape[::-1], dtype)
    return base, base.T


def _spread(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    """Gaps on every axis, and every second element only on the last."""
    base = xp.empty((*(size + 1 for size in shape[:-1]), 2 * shape[-1] + 1), dtype)
    return base, base[(*(slice(1, None),) * (base.ndim - 1), slice(1, None, 2))]


def _lone(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    """Contiguous, but for the strides of axes of one element, which lead nowhere and may be any number of bytes."""
    base = xp.empty(shape, dtype)
    strides = [
        step if size > 1 else 1 - 7 * step * (axis + 1) for axis, (size, step) in enumerate(zip(shape, base.strides, strict=True))
    ]
    return base, xp.lib.stride_tricks.as_strided(base, shape, strides)


# Arrays of a call take these in turn: outputs first, then inputs.
FORMS: dict[str, tuple[_Form, ...]] = {
    "C-contiguous": (_plain,),
    "unaligned": (_shifted,),
    "channels-last": (_channels_last,),
    "negatively strided": (_reversed,),
    "Fortran-ordered": (_fortran,),
    "non-contiguous": (_spread,),
    "oddly strided where there is one element": (_lone,),
    "mixed": (_plain, _channels_last, _fortran, _spread, _reversed),
}


class Memory:
    """A view in some form, whose base is filled with a byte: 0xFF makes floats NaN."""

    def __init__(self, form: _Form, shape: tuple[int, ...], dtype: Any, byte: int, xp: Any):
        self.base, self.view = form(shape, dtype, xp)
        self.base.reshape(-1).view(xp.uint8)[...] = byte
        self._form = form
        self._byte = byte

    def bytes(self) -> Array:
        """``[elements of the base, bytes of an element]``, on the host."""
        host = _host(self.base).reshape(-1)
        return host.view(np.uint8).reshape(host.size, host.itemsize)

    def is_clean_outside(self) -> bool:
        """Whether nothing was written beside the view."""
        return bool((self.bytes()[_outside(self._form, self.view.shape)] == self._byte).all())


@functools.lru_cache(maxsize=64)
def _outside(form: _Form, shape: tuple[int, ...]) -> Array:
    """Which elements of the base are not in the view."""
    base, view = form(shape, bool, np)
    base[...] = True
    view[...] = False
    outside: Array = base.reshape(-1)
    return outside


def _host(array: Any) -> Array:
    return array if isinstance(array, np.ndarray) else array.get()


def _namespace(device: str) -> Any:
    return np if device == "cpu" else importlib.import_module("cupy")


def execute(executor: Any, case: Case, form: str, device: str, bind: bool = False, byte: int = 0xFF) -> list[Array]:
    """The results in this form of memory.

    Raises AssertionError if an input changed or something beside the outputs was written.
    """
    xp, forms = _namespace(device), itertools.cycle(FORMS[form])
    outs = [
        Memory(next(forms), shape, dtype, byte, xp)
        for shape, dtype in zip(case.problem.output_shapes, out_dtypes(case.problem), strict=False)
    ]
    ins = [Memory(next(forms), array.shape, array.dtype, 0xFF, xp) for array in case.arrays]
    for memory, array in zip(ins, case.arrays, strict=True):
        memory.view[...] = xp.asarray(array)
    if bind:
        run, operands = executor.bind(ins[1].view), [ins[0], *ins[2:]]
        ins[1].view[...] = 0  # what is bound must not see this
    else:
        run, operands = executor, ins
    before = [memory.bytes().copy() for memory in operands]
    run([memory.view for memory in outs], [memory.view for memory in operands])
    for position, (memory, old) in enumerate(zip(operands, before, strict=True)):
        assert np.array_equal(memory.bytes(), old), f"input {position} was changed"
    for position, memory in enumerate(outs):
        assert memory.is_clean_outside(), f"memory beside output {position} was written"
    return [_host(memory.view).copy() for memory in outs]
