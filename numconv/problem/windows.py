"""The problem of what moves or adds up values: pad, unfold, fold, max_unpool and their gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from numconv.errors import ProblemError

from .base import Problem
from .names import DEFAULT_WORKSPACE, PAD_MODES, WINDOW_OPS, Ints, Pairs
from .writing import text_of

__all__ = ["WindowProblem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowProblem(Problem):
    """Operations that only move or add up values: pad, unfold, fold and max_unpool, with their gradients.

    Attributes
    ----------
    op : one of `WINDOW_OPS`
        pad: (x) -> padded; pad_backward: (grad) -> grad_x. unfold: (x) -> columns ``[N, C*prod(R), prod(Q)]``;
        fold: (columns) -> x, its adjoint. max_unpool: (y, indices) -> x; max_unpool_backward: (grad_x, indices) -> grad_y.
    window, stride, dilation : tuple of int
        Of unfold and fold; ones for the others.
    target : tuple of int
        For max_unpool the spatial shape Q of y; else empty.
    """

    word: ClassVar[str] = "window"
    op: str
    dtype: str
    n: int
    c: int
    spatial: Ints
    window: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    pad_mode: str = "zeros"
    target: Ints = ()
    layout: str = "channels_first"
    out_dtype: str = ""
    accuracy: str | None = None
    max_workspace: int = DEFAULT_WORKSPACE

    def __post_init__(self) -> None:
        self._check_common()
        if self.op not in WINDOW_OPS:
            raise ProblemError(f"window: operation {self.op!r} is not one of {', '.join(WINDOW_OPS)}")
        if self.pad_mode not in PAD_MODES:
            raise ProblemError(f"{self.op}: mode {self.pad_mode!r} is not one of {', '.join(PAD_MODES)}")
        self._check_geometry(self.window, self.stride, self.padding, self.dilation)
        if any(q < 1 for q in self.output):
            raise ProblemError(f"window {self}: the output would have the spatial shape {self.output}")

    @property
    def output(self) -> Ints:
        """The padded shape for pad, the number of windows for unfold and fold, Q for max_unpool."""
        if self.target:
            return self.target
        return tuple(
            (size + low + high - d * (r - 1) - 1) // s + 1
            for size, r, s, (low, high), d in zip(self.spatial, self.window, self.stride, self.padding, self.dilation, strict=True)
        )

    @property
    def y_shape(self) -> Ints:
        """``[N, C, *Q]``: padded or pooled; for unfold and fold ``[N, C*prod(R), prod(Q)]``."""
        if self.op in ("unfold", "fold"):
            return (self.n, self.c * math.prod(self.window), math.prod(self.output))
        return (self.n, self.c, *self.output)

    @property
    def input_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        return {
            "pad": (self.x_shape,), "pad_backward": (self.y_shape,), "unfold": (self.x_shape,), "fold": (self.y_shape,),
            "max_unpool": (self.y_shape, self.y_shape), "max_unpool_backward": (self.x_shape, self.y_shape),
        }[self.op]  # fmt: skip

    @property
    def output_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        return (self.y_shape if self.op in ("pad", "unfold", "max_unpool_backward") else self.x_shape,)

    @property
    def terms(self) -> int:  # noqa: D102 - inherited
        if self.op == "fold":
            return math.prod(self.window)
        if self.op == "pad_backward":
            return math.prod(2 + (low + high) // size for size, (low, high) in zip(self.spatial, self.padding, strict=True))
        return 1

    @property
    def flops(self) -> int:
        """One operation for each value moved."""
        return max(math.prod(self.x_shape), math.prod(self.y_shape))

    def __str__(self) -> str:
        return text_of(self, self.window, pad_mode="pad", target="target")
