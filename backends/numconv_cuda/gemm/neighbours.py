"""Which factors have neighbours in memory that are copied 16 bytes at a time.

A copy takes the same term of several lines at once, where they follow each other in memory. Every such run must be whole, aligned,
and free of padding: the steps between runs are multiples of one, and so is the address.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from numconv.plugin import np_dtype
from numconv_cuda.geometry import Geometry
from numconv_cuda.primitives.host_copies import WIDE
from numconv_cuda.runtime.compiler import SIMULATED

from .gemm import FORWARD, INPUT_GRAD, Operation

__all__ = ["Way", "plain_ways", "ways_of", "widest"]

BYTES = 16
"""Of the widest copy."""


class Way(NamedTuple):
    """How the copies of a slice are spread over threads, and how many elements, neighbours in memory, each takes.

    *Along* the terms, neighbouring threads copy neighbouring terms of a line; *across* them, neighbouring lines of a term.
    """

    across: bool
    wide: int = 1

    def __str__(self) -> str:
        return f"{'x' if self.across else ''}{self.wide}"


def plain_ways(operation: Operation) -> tuple[Way, Way]:
    """How both factors are copied where nothing is known of their memory."""
    return Way(operation.across[0]), Way(operation.across[1])


def ways_of(operation: Operation, g: Geometry, pointers: Sequence[Any], dtype: str, acc_dtype: str) -> tuple[Way, Way]:
    """How both factors of a product are copied, by where their elements lie.

    Parameters
    ----------
    operation : Operation
    g : Geometry
    pointers : sequence
        Of the two factors first.
    dtype, acc_dtype : str
        Of arrays and of shared memory: elements that need a conversion are copied one at a time.
    """
    find = {FORWARD.name: _forward, INPUT_GRAD.name: _input_grad}.get(operation.name, _weight_grad)
    plain = plain_ways(operation)
    if dtype != acc_dtype:
        return plain
    first, second = (
        found if isinstance(found, Way) else way if found is None else _across(found, _elements(pointer, dtype))
        for way, found, pointer in zip(plain, find(g), pointers[:2], strict=True)
    )
    return first, second


def widest(operation: Operation, dtype: str, acc_dtype: str) -> Iterator[tuple[Way, Way]]:
    """The pairs of ways with the widest copies there are: for arrays with channels first, and with channels last."""
    wide = BYTES // np_dtype(dtype).itemsize
    if dtype == acc_dtype and wide > 1:
        first, second = plain_ways(operation)
        yield (first, Way(True, wide)) if operation.name == FORWARD.name else (Way(True, wide), Way(True, wide))
        if operation.name == INPUT_GRAD.name:
            yield Way(True, wide), second


def _elements(pointer: Any, dtype: str) -> int:
    """Of a copy of 16 bytes; 1 where the first element is not aligned."""
    if SIMULATED:
        return WIDE  # a pointer there has no address, and a copy says when it is not aligned
    return 1 if pointer.address % BYTES else BYTES // np_dtype(dtype).itemsize


def _across(steps: Sequence[Any], wide: int) -> Way:
    """Lines that are neighbours, in runs that are whole and aligned wherever these steps lead."""
    return Way(True, wide if all(int(step) % wide == 0 for step in steps) else 1)


def _dense(sizes: Sequence[Any], steps: Sequence[Any]) -> bool:
    """Whether a volume is contiguous, row-major."""
    expected = 1
    for size, step in zip(reversed(sizes), reversed(steps), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= int(size)
    return True


def _in_place(g: Geometry) -> bool:
    """Whether a kernel has one tap, under which each output lies where its element of x does."""
    return g.taps == 1 and g.size == g.output and set(g.stride) == {1} and not any(g.low)


# Of each factor the steps that lead from run to run of neighbouring lines, or else the way, or None if it is as well as another.
_Found = Sequence[Any] | Way | None


def _forward(g: Geometry) -> tuple[_Found, _Found]:
    return None, _image(g, g.x, g.size)


def _input_grad(g: Geometry) -> tuple[_Found, _Found]:
    w = g.w
    return (w.k, w.group, g.per_c) if g.taps == 1 and w.c == 1 else None, _image(g, g.y, g.output)


def _weight_grad(g: Geometry) -> tuple[_Found, _Found]:
    x, y = g.x, g.y
    first = (y.n, y.group, *y.spatial, g.per_k) if y.channel == 1 else None
    return first, (x.n, x.group, *x.spatial, g.per_c) if g.taps == 1 and x.channel == 1 else None


def _image(g: Geometry, array: Any, sizes: Sequence[Any]) -> _Found:
    """Of the second factor of a kernel of one tap: its lines are positions, its terms channels."""
    if _in_place(g) and _dense(sizes, array.spatial):
        return array.n, array.group, array.channel, g.volume
    return Way(across=False) if g.taps == 1 and array.channel == 1 else None
