"""What the three problems share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

from numconv.errors import ProblemError

from .names import ITEMSIZE, LAYOUTS, LEVELS, SHORT, WIDER, Ints, Pairs, accumulator

__all__ = ["Problem"]


class Problem:
    """What the three problems share: the text form, the size in bytes, and the check of dtypes."""

    __slots__ = ()
    word: ClassVar[str]
    op: str
    dtype: str
    n: int
    c: int
    spatial: Ints
    out_dtype: str
    layout: str
    accuracy: str | None
    max_workspace: int

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.spatial)

    @property
    def x_shape(self) -> Ints:
        """``[N, C, *S]``: of the input of a convolution or pooling; unpadded, folded or unpooled."""
        return (self.n, self.c, *self.spatial)

    @property
    def acc_dtype(self) -> str:
        """The dtype in which sums are held."""
        return accumulator(self.out_dtype)

    @property
    def level(self) -> str:
        """The accuracy level asked for: ``strict``, ``high``, ``default`` (None) or ``fast``."""
        return self.accuracy or "default"

    @property
    def input_shapes(self) -> tuple[Ints, ...]:
        """Shapes of the arrays an executor reads, channels first."""
        raise NotImplementedError

    @property
    def output_shapes(self) -> tuple[Ints, ...]:
        """Shapes of the arrays an executor writes, channels first."""
        raise NotImplementedError

    @property
    def terms(self) -> int:
        """The largest number of products accumulated into one element of the result."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Bytes that have to be read and written at least once."""
        read = sum(math.prod(s) for s in self.input_shapes) * ITEMSIZE[self.dtype]
        return read + sum(math.prod(s) for s in self.output_shapes) * ITEMSIZE[self.out_dtype]

    def replace(self, **changes: Any) -> Self:
        """The same problem with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def _check_common(self) -> None:
        if not self.out_dtype:
            object.__setattr__(self, "out_dtype", self.dtype)
        for name in (self.dtype, self.out_dtype):
            if name not in SHORT:
                raise ProblemError(f"{self.op}: dtype {name} is not one of {', '.join(SHORT)}")
        if self.out_dtype != self.dtype and self.out_dtype not in WIDER.get(self.dtype, ()):
            allowed = ", ".join((self.dtype, *WIDER.get(self.dtype, ())))
            raise ProblemError(
                f"{self.op}: an output of dtype {self.out_dtype} from inputs of {self.dtype}: it must be the same or wider "
                f"({allowed}); convert the inputs first"
            )
        for value, known, what in ((self.layout, LAYOUTS, "layout"), (self.level, LEVELS, "accuracy")):
            if value not in known:
                raise ProblemError(f"{self.op}: {what} {value!r} is not one of {', '.join(known)}")

    def _check_geometry(self, window: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> None:
        """Raise unless there is one entry a spatial dimension, and no size or step is below 1."""
        if self.n < 0 or self.c < 1:
            raise ProblemError(f"{self.op}: a batch of {self.n} and {self.c} channels: at least 0 and 1 are needed")
        for what, values in (("sizes", self.spatial), ("window", window), ("stride", stride), ("dilation", dilation)):
            if len(values) != self.ndim or not values:
                raise ProblemError(f"{self.op}: {what} {values} for spatial sizes {self.spatial}: one entry each is needed")
            if min(values) < 1:
                raise ProblemError(f"{self.op}: {what} {values} holds {min(values)}, and must be at least 1")
        if len(padding) != self.ndim:
            raise ProblemError(f"{self.op}: padding {padding} for spatial sizes {self.spatial}: one pair each is needed")
