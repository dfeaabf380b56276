"""What is not finite, found without waiting: flags that stay on the device, and kernels that look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numconv.plugin import ConvProblem

from .namespaces import Arrays, namespace

__all__ = ["Box", "Redo", "redo_nonfinite"]

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""The first position of a part of a result, and its sizes."""


class Redo(Protocol):
    """Computes again where a flag is set, and in a box of positions only if one is given.

    There is one flag an image, for weight_grad one alone; they lie on the device, one byte each.
    """

    def __call__(self, outs: Arrays, ins: Arrays, flags: Any = ..., box: Box | None = None) -> None:  # noqa: D102 - see above
        ...


def redo_nonfinite(redo: Redo, problem: ConvProblem, outs: Arrays, ins: Arrays, watched: Sequence[int]) -> None:
    """Compute again where one of the `watched` inputs is not finite: the images that it touches, or a whole gradient of w.

    An input that has images (x and grad_y) raises only its own images' flags.
    """
    if not watched:
        return
    flags: Any = None
    for position in watched:
        here = _flags(problem, ins[position], whole=problem.op == "weight_grad" or position == 1)
        flags = here if flags is None else flags | here
    redo(outs, ins, flags)


def _flags(problem: ConvProblem, array: Any, *, whole: bool) -> Any:
    """One flag, or one an image; contiguous, as a kernel reads them."""
    xp = namespace(array)
    finite = xp.isfinite(array)
    if problem.op == "weight_grad":
        return xp.reshape(~xp.all(finite), (1,))
    if whole:
        return xp.repeat(xp.reshape(~xp.all(finite), (1,)), problem.n)
    return ~xp.all(finite, axis=tuple(range(1, array.ndim)))
