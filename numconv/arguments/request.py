"""What a public function was asked for, before it is checked, and the problem that this makes."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Call", "Request"]

_CONV_FUNCTIONS = (
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "conv_transpose",
    "conv_transpose_input_grad",
    "conv_transpose_weight_grad",
)
_FIRST = {"pad_backward": "grad", "fold": "x_shape", "max_unpool": "x_shape", "max_unpool_backward": "grad"}
_SECOND = dict.fromkeys(_CONV_FUNCTIONS, "w") | {
    "pad": "width",
    "pad_backward": "width",
    "max_unpool": "y",
    "max_unpool_backward": "indices",
}


class Request(NamedTuple):
    """A public function's name with the shapes and options that determine its problem.

    `x_shape` is the shape of the array that the docstrings call x (for conv_transpose the input, for max_unpool the result);
    `w_shape` that of w, or the window of a pooling, the width of a padding, the shape of y for max_unpool.
    """

    op: str
    x_shape: Any
    w_shape: Any
    dtype: str
    out_dtype: str | None
    options: Any
    bias: bool
    accuracy: str | None
    max_workspace: int

    @property
    def asked(self) -> str:
        """How error texts name the call."""
        return (
            f"{self.op}({_FIRST.get(self.op, 'x')} {self.x_shape}, {_SECOND.get(self.op, 'window')} {self.w_shape}, {self.dtype})"
        )


class Call(NamedTuple):
    """A problem, and whether the caller's arrays have no batch axis."""

    problem: Any
    batchless: bool
