"""The problems of padding, unfolding, folding and unpooling."""

from __future__ import annotations

from numconv.errors import ProblemError
from numconv.problem import LAYOUTS, PAD_MODES, WindowProblem

from .checks import check_fit, common, conv_padding, ints, pairs, sizes, split, windowed, word
from .request import Call, Request

__all__ = ["columns_problem", "pad_problem", "unpool_problem"]


def columns_problem(request: Request) -> Call:
    """The problem of `unfold` or `fold`."""
    options, asked = request.options, request.asked
    if options.layout != "channels_first":
        raise ProblemError(f"{asked}: layout={options.layout!r}: {request.op} is defined for channels_first only")
    n, c, spatial, batchless, raw = windowed(request, "window")
    ndim = len(spatial)
    window = ints(raw, ndim, 1, "window", asked)
    stride = ints(1 if options.stride is None else options.stride, ndim, 1, "stride", asked)
    dilation = ints(options.dilation, ndim, 1, "dilation", asked)
    padding = conv_padding(options.padding, spatial, window, stride, dilation, ("valid", "same", "full", "causal"), asked)
    check_fit(asked, "window", spatial, window, stride, padding, dilation)
    problem = WindowProblem(
        op=request.op, n=n, c=c, spatial=spatial, window=window, stride=stride, padding=padding, dilation=dilation,
        **common(request),
    )  # fmt: skip
    return Call(problem, batchless)


def pad_problem(request: Request) -> Call:
    """The problem of `pad`, or of its gradient."""
    options, asked = request.options, request.asked
    word(options.pad_mode, PAD_MODES, "mode", asked)
    n, c, spatial, batchless, raw = windowed(request, "width")
    padding = pairs(raw, len(spatial), "width", asked)
    if request.op == "pad_backward":
        padded, spatial = spatial, tuple(size - low - high for size, (low, high) in zip(spatial, padding, strict=True))
        if any(size < 1 for size in spatial):
            raise ProblemError(f"{asked}: grad has the spatial shape {padded}, which a width of {raw!r} would leave with {spatial}")
    ones = (1,) * len(spatial)
    problem = WindowProblem(
        op=request.op, n=n, c=c, spatial=spatial, window=ones, stride=ones, padding=padding, dilation=ones,
        pad_mode=options.pad_mode, layout=options.layout, **common(request),
    )  # fmt: skip
    return Call(problem, batchless)


def unpool_problem(request: Request) -> Call:
    """The problem of `max_unpool`, or of its gradient."""
    asked, layout = request.asked, request.options.layout
    word(layout, LAYOUTS, "layout", asked)
    x_shape, y_shape = sizes(request.x_shape, "x_shape", asked), sizes(request.w_shape, "y", asked)
    if len(x_shape) != len(y_shape) or len(x_shape) < 2:
        raise ProblemError(
            f"{asked}: y and x_shape must have the same number of dimensions, and have {len(y_shape)} and {len(x_shape)}"
        )
    ndim = len(x_shape) - 2 if request.options.ndim is None else request.options.ndim
    if not isinstance(ndim, int) or ndim < 1:
        raise ProblemError(
            f"{asked}: ndim={ndim!r}: there must be at least one spatial dimension ([N, C, *Q]; without N say ndim=)"
        )
    n, c, spatial, batchless = split(x_shape, ndim, layout, "x_shape", asked)
    n_y, c_y, target, _ = split(y_shape, ndim, layout, "y", asked)
    if (n, c) != (n_y, c_y):
        raise ProblemError(f"{asked}: y has batch and channels {(n_y, c_y)}, x_shape has {(n, c)}; they must agree")
    ones = (1,) * ndim
    problem = WindowProblem(
        op=request.op, n=n, c=c, spatial=spatial, window=ones, stride=ones, padding=((0, 0),) * ndim, dilation=ones, target=target,
        layout=layout, **common(request),
    )  # fmt: skip
    return Call(problem, batchless)
