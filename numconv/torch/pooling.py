"""Pooling that is not linear: maxima, which are once it is known where they are, and p-norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from numconv.derivatives import Windows

from .operators import apply, array_of, compute, dtype_name, joined_batch, parsed_call, split_batch, tensor_of, with_signature

__all__ = ["lp_pool", "max_pool"]


# --- maxima --------------------------------------------------------------------------------------------------------------------


def max_pool(call: Windows, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest elements of windows, and their positions."""
    if torch.compiler.is_compiling():
        indices = _compiled_maxima(x, call.text, list(call.x_shape))
        return _taken(call, x, indices), indices
    found: tuple[Tensor, Tensor] = _Maxima.apply(call, x)
    return found


def _maxima(call: Windows, x: Tensor) -> tuple[Tensor, Tensor]:
    if x.device.type == "meta":
        shape = call.result_shape(dtype_name(x))
        return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)
    y, indices = call.run(array_of(x))
    return tensor_of(y), tensor_of(indices)


def _axes(call: Windows, x: Tensor) -> tuple[int, int]:
    """The first and the last spatial axis."""
    last = x.ndim - 1 - call.channels_last
    return last + 1 - call.ndim, last


def _taken(call: Windows, x: Tensor, indices: Tensor) -> Tensor:
    """The elements of x at the positions."""
    first, last = _axes(call, x)
    return x.flatten(first, last).gather(first, indices.flatten(first, last)).reshape(indices.shape)


def _put_back(call: Windows, gradient: Tensor, indices: Tensor) -> Tensor:
    """Its adjoint, by torch's differentiable functions."""
    first, last = _axes(call, gradient)
    flat = gradient.new_zeros(call.x_shape).flatten(first, last)
    return flat.scatter_add(first, indices.flatten(first, last), gradient.flatten(first, last)).reshape(call.x_shape)


@with_signature
class _Maxima(torch.autograd.Function):
    """Maxima and their positions, which make the derivatives linear."""

    @staticmethod
    def forward(call: Windows, x: Tensor) -> tuple[Tensor, Tensor]:
        return _maxima(call, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call = inputs[0]
        indices = output[1]
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        (indices,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, _put_back(ctx.call, gradient, indices)
        return None, compute(ctx.call.other(), gradient, indices)

    @staticmethod
    def jvp(ctx: Any, _: None, d_x: Tensor) -> Any:
        return _taken(ctx.call, d_x, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Windows, x: Tensor) -> Any:
        size = info.batch_size
        found = max_pool(call.folded(size), joined_batch(call, size, in_dims[1], x))
        return tuple(split_batch(call, size, each) for each in found), (0, 0)


@torch.library.custom_op("numconv::maxima", mutates_args=(), schema="(Tensor x, str text, SymInt[] sizes) -> Tensor")
def _compiled_maxima(x: Tensor, text: str, sizes: list[int]) -> Tensor:
    return _maxima(parsed_call(text, sizes, len(sizes)), x)[1]


@_compiled_maxima.register_fake
def _(x: Tensor, text: str, sizes: list[int]) -> Tensor:
    return x.new_empty(parsed_call(text, sizes, len(sizes)).result_shape(dtype_name(x)), dtype=torch.int64)


# --- norms ---------------------------------------------------------------------------------------------------------------------


def lp_pool(call: Windows, p: float, x: Tensor) -> Tensor:
    """The p-norms of windows."""
    if torch.compiler.is_compiling():
        return _power(_sums(call, _power(x.abs(), p)), 1 / p)
    result: Tensor = _Norms.apply(call, p, x)
    return result


def _power(x: Tensor, exponent: float) -> Tensor:
    """x to a power, where x is not negative: 0 where x is 0, with a gradient of 0."""
    zero = x == 0
    return x.masked_fill(zero, 1).pow(exponent).masked_fill(zero, 0)


def _sums(call: Windows, x: Tensor, adjoint: bool = False) -> Tensor:
    """The sums of windows, or the adjoint: averages of the elements that a window has, by their number."""
    averages, counting = call.averages(), call.counting()
    counts = apply(counting, x.new_ones(counting.x_shape))
    return apply(averages.other(), x * counts) if adjoint else apply(averages, x) * counts


def _slope(x: Tensor, p: float) -> Tensor:
    return x.sign() * _power(x.abs(), p - 1)


@with_signature
class _Norms(torch.autograd.Function):
    """y = (sum of |x|^p)^(1/p), whose derivative is sign(x) |x|^(p - 1) y^(1 - p)."""

    @staticmethod
    def forward(call: Windows, p: float, x: Tensor) -> Tensor:
        return compute(call, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.call, ctx.p, x = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        call, p = ctx.call, ctx.p
        if not torch.is_grad_enabled():  # nobody asks for the derivative of this one
            return None, None, compute(call.other(), gradient, x)
        scaled = gradient * _power(lp_pool(call, p, x), 1 - p)
        return None, None, _slope(x, p) * _sums(call, scaled, adjoint=True)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, d_x: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        call, p = ctx.call, ctx.p
        return _power(lp_pool(call, p, x), 1 - p) * _sums(call, _slope(x, p) * d_x)

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Windows, p: float, x: Tensor) -> Any:
        size = info.batch_size
        return split_batch(call, size, lp_pool(call.folded(size), p, joined_batch(call, size, in_dims[2], x))), 0
