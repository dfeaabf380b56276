"""Tensors to arrays and back, and the functions that torch's automatic differentiation sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from numconv.derivatives import Trilinear, Unpooling, Windows, parsed
from numconv.errors import ProblemError
from numconv.plugin import np_dtype
from numconv.problem import SHORT

__all__ = [
    "apply",
    "array_of",
    "checked",
    "compute",
    "dtype_name",
    "joined_batch",
    "parsed_call",
    "split_batch",
    "tensor_of",
    "with_signature",
]

AnyCall: TypeAlias = Trilinear | Unpooling | Windows

_DTYPES = frozenset(getattr(torch, name) for name in SHORT)

# --- tensors and arrays --------------------------------------------------------------------------------------------------------


def checked(op: str, **tensors: Any) -> None:
    """Raise unless all are tensors, on one device that numconv knows."""
    first: Any = None
    for name, tensor in tensors.items():
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise ProblemError(
                f"numconv.torch.{op}: {name} is a {type(tensor).__name__}, and must be a torch.Tensor; for arrays there is "
                f"numconv.{op}"
            )
        if tensor.dtype not in _DTYPES:
            raise ProblemError(f"numconv.torch.{op}: {name} has dtype {tensor.dtype}; use one of {', '.join(SHORT)}")
        if tensor.layout != torch.strided:
            raise ProblemError(f"numconv.torch.{op}: {name} has the layout {tensor.layout}; give {name}.to_dense()")
        if tensor.device.type not in ("cpu", "cuda", "meta"):
            raise ProblemError(
                f"numconv.torch.{op}: {name} lives on {tensor.device}; numconv computes on cpu and cuda: {name}.cpu()"
            )
        first = (name, tensor) if first is None else first
        if tensor.device != first[1].device:
            raise ProblemError(
                f"numconv.torch.{op}: {first[0]} lives on {first[1].device} and {name} on {tensor.device}; move one of them"
            )
        if name != "indices" and tensor.dtype != first[1].dtype:
            raise ProblemError(
                f"numconv.torch.{op}: {first[0]} has dtype {first[1].dtype} and {name} has {tensor.dtype}: all tensors of a call "
                f"have one dtype; convert one of them, for example {name}.to({first[1].dtype})"
            )


def array_of(tensor: Tensor) -> Any:
    """A tensor of the CPU as an array on its memory; one of a GPU as it is, without the gradients that it records."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        return tensor.resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np_dtype("bfloat16"))
    return tensor.numpy(force=True)  # copies what is lazily conjugated or negated


def tensor_of(result: Any) -> Tensor:
    """A tensor on the memory of an array; what came back as a tensor, of a GPU, as it is."""
    if not isinstance(result, np.ndarray):
        tensor: Tensor = result
        return tensor
    if result.dtype.kind == "V":  # bfloat16, of ml_dtypes
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(result)


def dtype_name(tensor: Tensor) -> str:
    """numconv's name of the dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def compute(call: AnyCall, *tensors: Tensor | None) -> Tensor:
    """The result on real memory; of tensors without memory (device "meta") one without."""
    given = [tensor for tensor in tensors if tensor is not None]
    if given[0].device.type == "meta":
        return given[0].new_empty(call.result_shape(dtype_name(given[0])))
    return tensor_of(call.run(*map(array_of, given)))


# --- functions with derivatives ------------------------------------------------------------------------------------------------


def apply(call: AnyCall, *tensors: Tensor | None) -> Tensor:
    """The call on tensors, recorded for derivatives of any order."""
    if torch.compiler.is_compiling():
        return _apply_compiled(call, *tensors)
    function = _Bilinear if isinstance(call, Trilinear) else _Linear
    result: Tensor = function.apply(call, *tensors)
    return result


def _gradients(
    applied: Callable[..., Tensor], call: Trilinear, gradient: Tensor, first: Any, second: Any, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients for both inputs and the bias, as far as they are needed."""
    found: list[Tensor | None] = [
        applied(*call.derivative(role, gradient, first, second)) if need else None
        for role, need in zip(call.roles, needs, strict=False)
    ]
    if len(needs) > 2:
        channels = gradient.ndim + call.channel_axis
        axes = [axis for axis in range(gradient.ndim) if axis != channels]
        found.append(gradient.sum(axes) if needs[2] else None)
    return found


def _with_bias(call: Trilinear, y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.reshape(-1, *[1] * (-1 - call.channel_axis))


class _InOrder(NamedTuple):
    """Arguments as they were given, in order, without defaults for those left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """Leave the function its own."""


class _Signature(inspect.Signature):
    """One that takes arguments as they are given: torch asks it at every call, and a real one costs more than a small call."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """The arguments, in order."""
        return _InOrder(args, kwargs)


def with_signature(function: Any) -> Any:
    """The class with the signature of its `forward` kept, which torch else finds out at every call."""
    function.forward.__signature__ = _Signature.from_callable(function.forward)
    return function


@with_signature
class _Bilinear(torch.autograd.Function):
    """An operation of a convolution: linear in each of its two inputs, and in a bias."""

    @staticmethod
    def forward(call: Trilinear, first: Tensor, second: Tensor, bias: Tensor | None = None) -> Tensor:
        return compute(call, first, second, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.call, first, second, *_ = inputs
        needs = ctx.needs_input_grad
        ctx.save_for_backward(first if needs[2] else None, second if needs[1] else None)
        ctx.save_for_forward(first, second)
        ctx.set_materialize_grads(False)  # what has no derivative is not computed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        first, second = ctx.saved_tensors
        return (None, *_gradients(apply, ctx.call, gradient, first, second, ctx.needs_input_grad[1:]))

    @staticmethod
    def jvp(ctx: Any, _: None, d_first: Tensor | None, d_second: Tensor | None, d_bias: Tensor | None = None) -> Any:
        first, second = ctx.saved_tensors
        terms: list[Tensor] = []
        if d_first is not None:
            terms.append(apply(ctx.call, d_first, second))
        if d_second is not None:
            terms.append(apply(ctx.call, first, d_second))
        if not terms:
            terms.append(first.new_zeros(ctx.call.result_shape(dtype_name(first))))
        return _with_bias(ctx.call, sum(terms[1:], terms[0]), d_bias)

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Trilinear, first: Tensor, second: Tensor, bias: Tensor | None = None) -> Any:
        _, *dims = in_dims
        size = info.batch_size
        folded = call.folded(size, (dims[0] is not None, dims[1] is not None))
        arrays = [
            tensor if axis is None else _joined(tensor, dim, axis, size, folded.joined)
            for tensor, dim, axis in zip((first, second), dims, folded.axes, strict=False)
        ]
        result = apply(folded.call, *arrays)
        if folded.joined:
            result = result.unflatten(folded.result, (size, -1))
        at = result.ndim + folded.result - 1
        if bias is not None:
            result = result.movedim(at, 0)
            at = 0
            if dims[2] is None:
                return _with_bias(call, result, bias), at
            bias = bias.movedim(dims[2], 0)
            shape = [1] * result.ndim
            shape[0], shape[call.channel_axis] = bias.shape
            result = result + bias.reshape(shape)
        return result, at


def _joined(tensor: Tensor, dim: int | None, axis: int, size: int, joined: bool) -> Tensor:
    """The mapped axis `dim`, or a new one if there is none, put before `axis` (counted from the end) and joined with it."""
    tensor, dim = (tensor.expand(size, *tensor.shape), 0) if dim is None else (tensor, dim)
    tensor = tensor.movedim(dim, axis - 1)
    return tensor.flatten(axis - 1, axis) if joined else tensor


@with_signature
class _Linear(torch.autograd.Function):
    """A linear function of windows, or of what lies at known positions, the indices."""

    @staticmethod
    def forward(call: Unpooling | Windows, x: Tensor, *indices: Tensor) -> Tensor:
        return compute(call, x, *indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.call, _, *indices = inputs
        if indices:
            ctx.save_for_backward(*indices)
            ctx.save_for_forward(*indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        indices = ctx.saved_tensors
        return (None, apply(ctx.call.other(), gradient, *indices), *[None] * len(indices))

    @staticmethod
    def jvp(ctx: Any, _: None, d_x: Tensor, *__: None) -> Any:
        return apply(ctx.call, d_x, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Unpooling | Windows, *tensors: Tensor) -> Any:
        size = info.batch_size
        joined = [joined_batch(call, size, dim, tensor) for dim, tensor in zip(in_dims[1:], tensors, strict=True)]
        return split_batch(call, size, apply(call.folded(size), *joined)), 0


def joined_batch(call: Unpooling | Windows, size: int, dim: int | None, x: Tensor) -> Tensor:
    """x with its mapped axis, or a new one if there is none, joined with N, or as N."""
    return _joined(x, dim, (dim is not None) - x.ndim, size, not call.batchless)


def split_batch(call: Unpooling | Windows, size: int, result: Tensor) -> Tensor:
    """The result for `joined_batch` with the mapped axis first."""
    return result if call.batchless else result.unflatten(0, (size, -1))


# --- torch.compile -------------------------------------------------------------------------------------------------------------


def _apply_compiled(call: AnyCall, *tensors: Tensor | None) -> Tensor:
    """The call as one node of a graph, which knows its shape and its derivatives."""
    given = [tensor for tensor in tensors if tensor is not None]
    second: tuple[int, ...] = ()
    if not isinstance(call, Windows):
        second = call.w_shape if isinstance(call, Trilinear) else call.y_shape
    result: Tensor = _compiled_call(given, call.text, [*call.x_shape, *second], len(call.x_shape))
    return result


def parsed_call(text: str, sizes: Sequence[int], axes: int) -> Any:
    """The call; x has so many axes, w or y the rest. Sizes that a graph left open are fixed: it is compiled again for others."""
    shape = tuple(map(int, sizes))
    return parsed(text, shape[:axes], shape[axes:])


@torch.library.custom_op(
    "numconv::call", mutates_args=(), schema="(Tensor[] tensors, str text, SymInt[] sizes, SymInt axes) -> Tensor"
)
def _compiled_call(tensors: list[Tensor], text: str, sizes: list[int], axes: int) -> Tensor:
    return compute(parsed_call(text, sizes, axes), *tensors)


@_compiled_call.register_fake
def _(tensors: list[Tensor], text: str, sizes: list[int], axes: int) -> Tensor:
    first = tensors[0]
    return first.new_empty(parsed_call(text, sizes, axes).result_shape(dtype_name(first)))


def _save_compiled(ctx: Any, inputs: Any, output: Tensor) -> None:  # noqa: ARG001 - torch passes it by name
    tensors, *call = inputs
    ctx.call = parsed_call(*call)
    ctx.needs = [tensor.requires_grad for tensor in tensors]
    ctx.save_for_backward(*(tensors[:2] if isinstance(ctx.call, Trilinear) else tensors[1:]))


def _compiled_gradients(ctx: Any, gradient: Tensor) -> Any:
    call = ctx.call
    if isinstance(call, Trilinear):
        first, second = ctx.saved_tensors
        found = _gradients(_apply_compiled, call, gradient, first, second, ctx.needs)
    else:
        indices = ctx.saved_tensors
        found = [_apply_compiled(call.other(), gradient, *indices), *[None] * len(indices)]
    return found, None, None, None


_compiled_call.register_autograd(_compiled_gradients, setup_context=_save_compiled)
