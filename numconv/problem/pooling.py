"""The problem of a pooling and of its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from numconv.errors import ProblemError

from .base import Problem
from .names import DEFAULT_WORKSPACE, POOL_OPS, Ints, Pairs
from .writing import text_of

__all__ = ["PoolProblem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolProblem(Problem):
    """Max, average or power-mean pooling over windows, or its gradient.

    Attributes
    ----------
    op : one of `POOL_OPS`
        max_pool: (x) -> y[, indices]. max_pool_backward: (grad_y, x), or (grad_y, indices) if `indices`, -> grad_x.
        avg_pool: (x) -> y. avg_pool_backward: (grad_y) -> grad_x. lp_pool: (x) -> y. lp_pool_backward: (grad_y, x) -> grad_x.
    indices : bool
        max_pool also writes int64 indices, max_pool_backward reads them: flat positions in the unpadded volume of a channel.
    """

    word: ClassVar[str] = "pool"
    op: str
    dtype: str
    n: int
    c: int
    spatial: Ints
    window: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    ceil_mode: bool = False
    count_include_pad: bool = True
    p: float = 2.0
    indices: bool = False
    layout: str = "channels_first"
    out_dtype: str = ""
    accuracy: str | None = None
    max_workspace: int = DEFAULT_WORKSPACE

    def __post_init__(self) -> None:
        self._check_common()
        if self.op not in POOL_OPS:
            raise ProblemError(f"pool: operation {self.op!r} is not one of {', '.join(POOL_OPS)}")
        self._check_geometry(self.window, self.stride, self.padding, self.dilation)
        if any(q < 1 for q in self.output):
            raise ProblemError(f"pool {self}: the output would have the spatial shape {self.output}")

    @property
    def output(self) -> Ints:
        """Q: as for a convolution; under `ceil_mode` rounded up, less the windows that start at or beyond S + low."""
        return tuple(map(self._windows, range(self.ndim)))

    def _windows(self, axis: int) -> int:
        (low, high), s = self.padding[axis], self.stride[axis]
        room = self.spatial[axis] + low + high - self.dilation[axis] * (self.window[axis] - 1) - 1
        if room < 0 or not self.ceil_mode:
            return room // s + 1
        q = -(-room // s) + 1
        return min(q, -(-(self.spatial[axis] + low) // s))

    @property
    def y_shape(self) -> Ints:
        """``[N, C, *Q]``."""
        return (self.n, self.c, *self.output)

    @property
    def input_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if not self.op.endswith("_backward"):
            return (self.x_shape,)
        if self.op == "avg_pool_backward":
            return (self.y_shape,)
        return (self.y_shape, self.y_shape if self.indices else self.x_shape)

    @property
    def output_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if self.op.endswith("_backward"):
            return (self.x_shape,)
        return (self.y_shape, self.y_shape) if self.indices else (self.y_shape,)

    @property
    def terms(self) -> int:  # noqa: D102 - inherited
        return math.prod(self.window)

    @property
    def flops(self) -> int:
        """One operation for each tap of each window."""
        return math.prod(self.y_shape) * math.prod(self.window)

    def __str__(self) -> str:
        return text_of(self, self.window, ceil_mode="ceil", count_include_pad="countpad", p="norm", indices="indices")
