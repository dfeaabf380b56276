"""The problems of pooling."""

from __future__ import annotations

import math

from numconv.errors import ProblemError
from numconv.problem import PoolProblem

from .checks import check_fit, common, conv_padding, ints, windowed
from .request import Call, Request

__all__ = ["pool_problem"]


def pool_problem(request: Request) -> Call:
    """The problem of a pooling, or of its gradient."""
    options, asked = request.options, request.asked
    n, c, spatial, batchless, raw = windowed(request, "window")
    ndim = len(spatial)
    window = ints(raw, ndim, 1, "window", asked)
    stride = window if options.stride is None else ints(options.stride, ndim, 1, "stride", asked)
    dilation = ints(options.dilation, ndim, 1, "dilation", asked)
    padding = conv_padding(options.padding, spatial, window, stride, dilation, ("valid", "same"), asked)
    for axis, ((low, high), d, r) in enumerate(zip(padding, dilation, window, strict=True)):
        if max(low, high) > d * (r - 1):
            raise ProblemError(
                f"{asked}: padding {max(low, high)} in spatial dimension {axis} must stay below the window's extent "
                f"d*(r - 1) + 1 = {d}*({r} - 1) + 1 = {d * (r - 1) + 1}, else a window would lie in the padding alone"
            )
    check_fit(asked, "window", spatial, window, stride, padding, dilation)
    _check_pool_dtype(request)
    problem = PoolProblem(
        op=request.op, n=n, c=c, spatial=spatial, window=window, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=options.ceil_mode, count_include_pad=options.count_include_pad, p=_exponent(request), indices=options.indices,
        layout=options.layout, **common(request),
    )  # fmt: skip
    _check_elements(problem, asked)
    return Call(problem, batchless)


def _exponent(request: Request) -> float:
    p = request.options.p
    if not 0 < p < math.inf:
        raise ProblemError(f"{request.asked}: p={p!r} must be a finite number above 0 (max_pool is the limit of a large p)")
    return p  # type: ignore[no-any-return]


def _check_pool_dtype(request: Request) -> None:
    kind, dtype = request.op.split("_")[0], request.dtype
    if kind == "max" and dtype.startswith("complex"):
        raise ProblemError(
            f"{request.asked}: complex numbers have no order, so {dtype} has no maximum; pool the magnitude, or use avg_pool"
        )
    if kind == "avg" and "int" in dtype:
        raise ProblemError(f"{request.asked}: the average of integers ({dtype}) is no integer; convert x to a float dtype first")
    if kind == "lp" and ("int" in dtype or dtype.startswith("complex")):
        raise ProblemError(
            f"{request.asked}: lp_pool is for real floats, and the dtype is {dtype}; convert x, or pool the magnitude"
        )


def _check_elements(problem: PoolProblem, asked: str) -> None:
    """Raise if some window holds no element of x: with dilation all its taps may fall into the padding."""
    for axis in range(problem.ndim):
        size, (low, _), s, d = problem.spatial[axis], problem.padding[axis], problem.stride[axis], problem.dilation[axis]
        # Steps of at most x's size cannot jump over x, and a window's padding is less than its extent.
        for q in range(problem.output[axis]) if d > size else ():
            taps = range(q * s - low, q * s - low + problem.window[axis] * d, d)
            if not any(0 <= tap < size for tap in taps):
                raise ProblemError(
                    f"{asked}: window {q} in spatial dimension {axis} holds no element: its taps lie at "
                    f"{taps[0]}..{taps[-1]} in steps of {d}, and x has {size}; use less padding or dilation"
                )
