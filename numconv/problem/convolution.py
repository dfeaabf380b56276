"""The problem of a convolution and of its gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from numconv.errors import ProblemError

from .base import Problem
from .names import ACTIVATIONS, CONV_OPS, DEFAULT_WORKSPACE, PAD_MODES, Ints, Pairs
from .writing import text_of

__all__ = ["ConvProblem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvProblem(Problem):
    """A convolution, or its gradient for the input or the weights.

    Attributes
    ----------
    op : {"forward", "input_grad", "weight_grad"}
        forward: (x, w, bias) -> y. input_grad: (grad_y, w, bias) -> grad_x. weight_grad: (grad_y, x) -> grad_w, grad_bias.
    dtype, out_dtype : str
        Of the inputs, and of the outputs.
    n, c, k, groups : int
        Batch, input channels, output channels, groups.
    spatial, kernel, stride, dilation : tuple of int
        One entry a spatial dimension.
    padding : tuple of (int, int)
        (low, high) for each dimension; a negative high (from a transposed convolution) leaves the last values of x unread.
    pad_mode : str
        What the padding holds; "zeros" where nothing is padded, so that every algorithm may serve.
    bias : {"", "x", "y"}
        The side whose channels the bias has: "y" for conv, "x" for a transposed convolution (bias of length C).
        With op="weight_grad" the gradient of that bias is a second output: the sum of grad_y ("y") or of x ("x") over each channel.
    """

    word: ClassVar[str] = "conv"
    op: str
    dtype: str
    n: int
    c: int
    k: int
    groups: int = 1
    spatial: Ints
    kernel: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    pad_mode: str = "zeros"
    flip: bool = False
    layout: str = "channels_first"
    bias: str = ""
    activation: str | None = None
    out_dtype: str = ""
    accuracy: str | None = None
    max_workspace: int = DEFAULT_WORKSPACE

    def __post_init__(self) -> None:
        self._check_common()
        if self.op not in CONV_OPS:
            raise ProblemError(f"conv: operation {self.op!r} is not one of {', '.join(CONV_OPS)}")
        if self.pad_mode not in PAD_MODES:
            raise ProblemError(f"conv: pad_mode {self.pad_mode!r} is not one of {', '.join(PAD_MODES)}")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ProblemError(f"conv: activation {self.activation!r} is not one of None, {', '.join(ACTIVATIONS)}")
        if self.k < 1 or self.groups < 1 or self.c % self.groups or self.k % self.groups:
            raise ProblemError(f"conv: {self.c} input and {self.k} output channels cannot be split into {self.groups} groups")
        if self.pad_mode != "zeros" and all(width <= 0 for pair in self.padding for width in pair):
            object.__setattr__(self, "pad_mode", "zeros")
        self._check_geometry(self.kernel, self.stride, self.padding, self.dilation)
        if any(q < 1 for q in self.output):
            raise ProblemError(f"conv {self}: the output would have the spatial shape {self.output}")

    @property
    def output(self) -> Ints:
        """Q, the spatial shape of y: floor((S + low + high - d(r - 1) - 1) / s) + 1."""
        return tuple(
            (size + low + high - d * (r - 1) - 1) // s + 1
            for size, r, s, (low, high), d in zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    @property
    def w_shape(self) -> Ints:
        """``[K, C/G, *R]``."""
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def y_shape(self) -> Ints:
        """``[N, K, *Q]``."""
        return (self.n, self.k, *self.output)

    @property
    def bias_shape(self) -> Ints:
        """``[K]`` for a bias on y, ``[C]`` for one on x, ``[]`` without."""
        return {"y": (self.k,), "x": (self.c,), "": ()}[self.bias]

    @property
    def input_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if self.op == "weight_grad":
            return (self.y_shape, self.x_shape)
        bias = (self.bias_shape,) if self.bias else ()
        return (self.x_shape if self.op == "forward" else self.y_shape, self.w_shape, *bias)

    @property
    def output_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if self.op == "weight_grad":
            return (self.w_shape, self.bias_shape) if self.bias else (self.w_shape,)
        return (self.y_shape if self.op == "forward" else self.x_shape,)

    @property
    def terms(self) -> int:  # noqa: D102 - inherited
        taps = math.prod(self.kernel)
        if self.op == "forward":
            return self.c // self.groups * taps
        if self.op == "weight_grad":
            summed = map(max, self.output, self.spatial) if self.bias == "x" else self.output
            return self.n * math.prod(summed)
        folded = math.prod(1 if self.pad_mode == "zeros" else 1 + -(-(low + max(high, 0)) // size)
                           for size, (low, high) in zip(self.spatial, self.padding, strict=True))  # fmt: skip
        return self.k // self.groups * taps * folded

    @property
    def flops(self) -> int:
        """Real multiplications and additions, padding counted as terms; a complex product counts 8."""
        products = self.n * self.k * (self.c // self.groups) * math.prod(self.kernel) * math.prod(self.output)
        return products * (8 if self.dtype.startswith("complex") else 2)

    def __str__(self) -> str:
        return text_of(self, self.kernel, pad_mode="pad", flip="flip", bias="bias", activation="act")
