"""The problems of convolutions, transposed or not."""

from __future__ import annotations

from numconv.errors import ProblemError
from numconv.problem import ACTIVATIONS, LAYOUTS, PAD_MODES, ConvProblem, Ints, Pairs

from .checks import check_fit, common, conv_padding, ints, same, sizes, split, word
from .options import Geometry
from .request import Call, Request

__all__ = ["conv_problem", "conv_transpose_problem"]

_CONV_OP = {
    "conv": "forward",
    "conv_input_grad": "input_grad",
    "conv_weight_grad": "weight_grad",
    "conv_transpose": "input_grad",
    "conv_transpose_input_grad": "forward",
    "conv_transpose_weight_grad": "weight_grad",
}


def conv_problem(request: Request) -> Call:
    """The problem of a convolution, or of one of its gradients."""
    options, asked = request.options, request.asked
    w_shape, ndim = _weights(request)
    word(options.layout, LAYOUTS, "layout", asked)
    word(options.pad_mode, PAD_MODES, "pad_mode", asked)
    n, c, spatial, batchless = split(sizes(request.x_shape, "x_shape", asked), ndim, options.layout, "x", asked)
    k, kernel = w_shape[0], w_shape[2:]
    groups = _groups(options, asked, input_channels=c, output_channels=k)
    if w_shape[1] * groups != c:
        raise ProblemError(
            f"{asked}: x has {c} channels, but w {w_shape} takes w.shape[1] * groups = {w_shape[1]} * {groups} = "
            f"{w_shape[1] * groups}; with groups={groups} w must be ({k}, {c // groups}, ...)"
            + _layout_hint(request, w_shape[1] * groups)
        )
    stride = ints(options.stride, ndim, 1, "stride", asked)
    dilation = ints(options.dilation, ndim, 1, "dilation", asked)
    padding = conv_padding(options.padding, spatial, kernel, stride, dilation, ("valid", "same", "full", "causal"), asked)
    check_fit(asked, "kernel", spatial, kernel, stride, padding, dilation)
    op = _CONV_OP[request.op]
    problem = ConvProblem(
        op=op, n=n, c=c, k=k, groups=groups, spatial=spatial, kernel=kernel,
        stride=_effective(stride, spatial, kernel, padding, dilation), padding=padding, dilation=dilation,
        pad_mode=options.pad_mode, flip=options.flip, layout=options.layout, bias="y" if request.bias else "",
        activation=_activation(request), **common(request),
    )  # fmt: skip
    return Call(problem, batchless)


def conv_transpose_problem(request: Request) -> Call:
    """The problem of the convolution whose adjoint was asked for: its input is our output."""
    options, asked = request.options, request.asked
    w_shape, ndim = _weights(request)
    word(options.layout, LAYOUTS, "layout", asked)
    word(options.pad_mode, PAD_MODES, "pad_mode", asked)
    n, k, output, batchless = split(sizes(request.x_shape, "x_shape", asked), ndim, options.layout, "x", asked)
    kernel = w_shape[2:]
    groups = _groups(options, asked, input_channels=k)
    if w_shape[0] != k:
        raise ProblemError(
            f"{asked}: x has {k} channels, but w {w_shape} of a transposed convolution is [C, K/G, *R] with C = "
            f"w.shape[0] = {w_shape[0]}"
        )
    stride = ints(options.stride, ndim, 1, "stride", asked)
    dilation = ints(options.dilation, ndim, 1, "dilation", asked)
    extra = _output_padding(options, ndim, stride, dilation, asked)
    if options.padding == "same":
        if any(extra):
            raise ProblemError(
                f"{asked}: output_padding={options.output_padding!r} with padding='same', whose output is x's size times the stride"
            )
        spatial = tuple(q * s for q, s in zip(output, stride, strict=True))
        padding = tuple(map(same, spatial, stride, kernel, dilation))
    else:
        padding = conv_padding(options.padding, output, kernel, stride, dilation, ("valid", "same"), asked)
        spatial = tuple(map(_transposed_axis, output, stride, kernel, dilation, padding, extra))
        padding = tuple((low, high - o) for (low, high), o in zip(padding, extra, strict=True))
    _check_transposed(asked, output, kernel, stride, dilation, spatial, padding, extra)
    problem = ConvProblem(
        op=_CONV_OP[request.op], n=n, c=w_shape[1] * groups, k=k, groups=groups, spatial=spatial, kernel=kernel,
        stride=_effective(stride, spatial, kernel, padding, dilation), padding=padding, dilation=dilation,
        pad_mode=options.pad_mode, flip=options.flip, layout=options.layout, bias="x" if request.bias else "",
        activation=_activation(request), **common(request),
    )  # fmt: skip
    return Call(problem, batchless)


def _effective(stride: Ints, spatial: Ints, kernel: Ints, padding: Pairs, dilation: Ints) -> Ints:
    """The strides, but along an axis with one output the least that leaves it the only one and reaches as far.

    A larger one is the same problem, and would grow without bound what goes by the phases of the stride.
    """
    least = (
        max(size + low + high - d * (r - 1), 1 - high)
        for size, r, (low, high), d in zip(spatial, kernel, padding, dilation, strict=True)
    )
    return tuple(map(min, stride, least))


def _transposed_axis(size: int, s: int, r: int, d: int, pair: tuple[int, int], extra: int) -> int:
    return (size - 1) * s + d * (r - 1) + 1 - pair[0] - pair[1] + extra


def _output_padding(options: Geometry, ndim: int, stride: Ints, dilation: Ints, asked: str) -> Ints:
    extra = ints(options.output_padding, ndim, 0, "output_padding", asked)
    for axis, (o, s, d) in enumerate(zip(extra, stride, dilation, strict=True)):
        if o >= max(s, d):
            raise ProblemError(
                f"{asked}: output_padding {o} in spatial dimension {axis} must be less than max(stride, dilation) = "
                f"max({s}, {d}) = {max(s, d)}"
            )
    return extra


def _check_transposed(
    asked: str, output: Ints, kernel: Ints, stride: Ints, dilation: Ints, spatial: Ints, padding: Pairs, extra: Ints
) -> None:
    for axis, size in enumerate(spatial):
        low, high = padding[axis][0], padding[axis][1] + extra[axis]
        if size < 1:
            q, s, d, r, o = output[axis], stride[axis], dilation[axis], kernel[axis], extra[axis]
            raise ProblemError(
                f"{asked}: the output would be empty in spatial dimension {axis}: (Q - 1)*s + d*(r - 1) + 1 - low - high + o = "
                f"({q} - 1)*{s} + {d}*({r} - 1) + 1 - {low} - {high} + {o} = {size}; use less padding"
            )


def _weights(request: Request) -> tuple[Ints, int]:
    w_shape = sizes(request.w_shape, "w_shape", request.asked)
    if len(w_shape) < 3:
        plain = isinstance(request.x_shape, tuple) and len(request.x_shape) == len(w_shape) > 0
        hint = "; for one channel and one filter give x[None] and w[None, None], or use numconv.signal" if plain else ""
        raise ProblemError(
            f"{request.asked}: w has {len(w_shape)} dimensions; it needs at least 3: [K, C/G, *R] with one spatial dimension{hint}"
        )
    if any(v < 1 for v in w_shape):
        raise ProblemError(f"{request.asked}: w has the shape {w_shape}: every size must be at least 1")
    return w_shape, len(w_shape) - 2


def _groups(options: Geometry, asked: str, **channels: int) -> int:
    groups = options.groups
    if not isinstance(groups, int) or groups < 1:
        raise ProblemError(f"{asked}: groups={groups!r} must be an integer of at least 1")
    for what, count in channels.items():
        if count % groups:
            raise ProblemError(
                f"{asked}: {count} {what.replace('_', ' ')} cannot be split into groups={groups}: {count} % {groups} = "
                f"{count % groups}"
            )
    return groups


def _layout_hint(request: Request, expected: int) -> str:
    other = {"channels_first": -1, "channels_last": -len(request.w_shape) + 1}[request.options.layout]
    if request.x_shape[other] != expected:
        return ""
    return f"; if the channels of x are its {'last' if other == -1 else 'first'} axis, say layout='{LAYOUTS[other == -1]}'"


def _activation(request: Request) -> str | None:
    activation, dtype = request.options.activation, request.dtype
    if activation is None:
        return None
    word(activation, ACTIVATIONS, "activation", request.asked)
    if dtype.startswith("complex") or ("int" in dtype and activation != "relu"):
        raise ProblemError(
            f"{request.asked}: activation={activation!r} is for real floats ('relu' for integers too), and the dtype is {dtype}"
        )
    return activation  # type: ignore[no-any-return]
