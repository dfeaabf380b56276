"""Convolution with separable kernels, one pass of a single row of taps for each dimension: for kernels of rank one.

Gaussians, boxes, binomials and all outer products are of this kind. A kernel of R x R taps then costs 2R multiply-adds an output.
Whether w is such a kernel is seen at each call: this is the one choice that looks at values. Any other w goes the way that it
would have gone without this file; the look is taken where it costs less than a hundredth of that.

The passes run over one piece of the results after another, so that what lies between two passes stays in the cache. Only the
dimension along which pieces are cut needs the places of the padding (`_rows_of`); along the others a pass pads by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.dense.base import DenseImplementation
from numconv_numba.dense.blocked import CALL_SECONDS, Blocked
from numconv_numba.dense.implicit_gemm import ImplicitGemm
from numconv_numba.dense.inner_product import InnerProduct
from numconv_numba.dense.polyphase import Polyphase
from numconv_numba.dense.tile import RegisterTile
from numconv_numba.direct import Direct
from numconv_numba.spectral.fft import Fft
from numconv_numba.winograd.forward import Winograd
from numconv_numba.winograd.rows import WinogradRows

from .crosswise import Crosswise
from .depthwise import Depthwise
from .depthwise_plans import lag_refusal
from .planewise import Planewise

__all__ = ["Separable"]

PIECE_BYTES, MOST_BYTES = 1 << 20, 1 << 24
"""What a piece leaves between two passes, and what it may where it would otherwise be short."""
REACHES = 4
"""Results of a piece that is not short, in multiples of what its first and last ones read beyond it, which is computed twice."""
LOOK_SECONDS, LOOK_SECONDS_A_TAP = 2e-6, 3e-9
"""What it takes to see that a w is not separable: most are refused by four of their taps, at worst all of them are read."""
BETWEEN = 1.35
"""Passes against the same work in one call: what lies between them is written and read, and each is short. Measured: 1.2 to 1.5."""
_NUMPY_MODES: Mapping[str, Any] = {"replicate": "edge", "circular": "wrap", "reflect": "reflect", "symmetric": "symmetric"}


# --- the factors of a kernel -----------------------------------------------------------------------------------------------------


def factors_of(w: Any) -> list[Any] | None:
    """The factors of kernels ``[K, 1, *R]``, one ``[K, R]`` a dimension, if each product differs from w by rounding alone.

    They are the lines of taps through the largest one. Rounded taps of an outer product, and lines taken from them, are within
    four units in the last place for each dimension.
    """
    taps = w[:, 0]
    axes = [axis for axis in range(1, taps.ndim) if taps.shape[axis] > 1]
    info = np.finfo(w.dtype)
    if len(axes) > 1 and not _corner_fits(taps[0], axes[0] - 1, axes[-1] - 1, float(info.eps)):
        return None
    wide = taps.astype(np.float64)
    flat = wide.reshape(len(wide), -1)
    peaks = np.unravel_index(np.abs(flat).argmax(1), taps.shape[1:])
    kernels = np.arange(len(wide))
    peak = wide[(kernels, *peaks)]
    if not np.isfinite(peak).all():
        return None
    peak[peak == 0] = 1
    lines = []
    for axis in range(1, taps.ndim):
        through = tuple(place for other, place in enumerate(peaks, 1) if other != axis)
        lines.append(np.moveaxis(wide, axis, -1)[(kernels, *through)] / peak[:, None])
    lines[-1] *= peak[:, None]
    product = functools.reduce(lambda left, right: left[..., None] * right[(slice(None), *[None] * (left.ndim - 1))], lines)
    allowed = 2 * len(axes) * float(info.eps) * np.abs(wide) + float(info.smallest_subnormal)
    # a comparison with NaN is false
    return [line.astype(w.dtype) for line in lines] if (np.abs(product - wide) <= allowed).all() else None


def _corner_fits(kernel: Any, first: int, last: int, eps: float) -> bool:
    """Whether the 2 x 2 taps at the corner could be those of a kernel of rank one."""
    place = [0] * kernel.ndim
    corner = []
    for i in (0, 1):
        for j in (0, 1):
            place[first], place[last] = i, j
            corner.append(float(kernel[tuple(place)]))
    left, right = corner[0] * corner[3], corner[1] * corner[2]
    # a product that underflows tells nothing
    return abs(left - right) <= 16 * eps * abs(left) or min(map(abs, corner)) < 1e-18


# --- the pieces of a problem -----------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """Some results of one image: which, from which part of x, and the forward problem of each pass."""

    passes: tuple[ConvProblem, ...]
    image: int
    groups: slice
    kernels: slice
    rows: slice
    """Of the results, along the first dimension with several taps."""
    reach: tuple[int, int]
    """The places of x that they read, along the same dimension; they begin before 0 in the padding."""


def _pass_axes(problem: ConvProblem) -> list[int]:
    """The dimensions of the passes, in their order: the last dimension first."""
    return [axis for axis in reversed(range(problem.ndim)) if problem.kernel[axis] > 1]


def _passes(problem: ConvProblem, padding: tuple[int, int], size: int) -> tuple[ConvProblem, ...]:
    """The passes over all groups of a problem, for one image of `size` places with this padding along the dimension of pieces."""
    axes = _pass_axes(problem)
    cut = axes[-1]
    spatial = [size if axis == cut else problem.spatial[axis] for axis in range(problem.ndim)]
    found = []
    for number, own in enumerate(axes):
        # the first pass does what dimensions of one tap ask for
        done = [axis for axis in range(problem.ndim) if axis == own or (number == 0 and axis not in axes)]
        kernel, stride, dilation = [1] * problem.ndim, [1] * problem.ndim, [1] * problem.ndim
        pads = [(0, 0)] * problem.ndim
        for axis in done:
            kernel[axis], stride[axis], dilation[axis] = problem.kernel[axis], problem.stride[axis], problem.dilation[axis]
            pads[axis] = padding if axis == cut else problem.padding[axis]
        last = number + 1 == len(axes)
        channels = problem.c if number == 0 else problem.k
        step = problem.replace(
            n=1, c=channels, groups=channels, spatial=tuple(spatial), kernel=tuple(kernel), stride=tuple(stride),
            padding=tuple(pads), dilation=tuple(dilation), bias=problem.bias if last else "",
            activation=problem.activation if last else None,
        )  # fmt: skip
        spatial = list(step.output)
        found.append(step)
    return tuple(found)


def _between(problem: ConvProblem) -> float:
    """Bytes that one row of results of a single group leaves between the passes."""
    item, cut = np_dtype(problem.dtype).itemsize, _pass_axes(problem)[-1]
    others = [max(size, out) for axis, (size, out) in enumerate(zip(problem.spatial, problem.output, strict=True)) if axis != cut]
    return problem.k // problem.groups * math.prod(others) * problem.stride[cut] * item


def _pieces(problem: ConvProblem) -> Iterator[_Piece]:
    """Of one image after another: several groups with all rows where those fit, else some rows of one group."""
    cut, per_k = _pass_axes(problem)[-1], problem.k // problem.groups
    output, row = problem.output[cut], _between(problem)
    groups = max(1, min(problem.groups, int(PIECE_BYTES // (row * output))))
    beyond = -(-problem.dilation[cut] * (problem.kernel[cut] - 1) // problem.stride[cut])
    most = int(min(MOST_BYTES, problem.max_workspace // 4) // row)
    rows = output if groups > 1 else max(1, min(output, max(int(PIECE_BYTES // row), min(REACHES * beyond, most))))
    for image in range(problem.n):
        for group in range(0, problem.groups, groups):
            count = min(groups, problem.groups - group)
            part = problem.replace(c=count, groups=count, k=count * per_k)
            kernels = slice(group * per_k, (group + count) * per_k)
            for begin in range(0, output, rows):
                end = min(output, begin + rows)
                passes, reach = _piece_passes(part, begin, end)
                yield _Piece(passes, image, slice(group, group + count), kernels, slice(begin, end), reach)


def _piece_passes(problem: ConvProblem, begin: int, end: int) -> tuple[tuple[ConvProblem, ...], tuple[int, int]]:
    """The passes for the rows begin..end of results, and the places of x that they read."""
    cut = _pass_axes(problem)[-1]
    stride, low, size = problem.stride[cut], problem.padding[cut][0], problem.spatial[cut]
    first = begin * stride - low
    stop = (end - 1) * stride - low + problem.dilation[cut] * (problem.kernel[cut] - 1) + 1
    if problem.pad_mode != "zeros":
        return _passes(problem, (0, 0), stop - first), (first, stop)
    pads = max(0, -first), max(0, stop - size)
    return _passes(problem, pads, stop - first - sum(pads)), (first, stop)


@functools.lru_cache(maxsize=256)
def _summary(problem: ConvProblem) -> tuple[float, int]:
    """The cost of all pieces, and the bytes of the largest."""
    tile, found = Depthwise(), [piece.passes for piece in _pieces(problem.replace(n=1))]
    kinds = set(found)
    seconds = {passes: sum(map(tile.forward_cost, passes)) for passes in kinds}
    return BETWEEN * problem.n * sum(seconds[passes] for passes in found), max(_bytes(passes, tile) for passes in kinds)


def _bytes(passes: tuple[ConvProblem, ...], tile: Depthwise) -> int:
    """What lies between two passes, copied rows of x, and what a pass needs."""
    held = max(math.prod(step.x_shape) for step in passes) * np_dtype(passes[0].dtype).itemsize
    return 2 * held + max(map(tile.forward_workspace, passes))


# --- executors -------------------------------------------------------------------------------------------------------------------


def _rows_of(x: Any, reach: tuple[int, int], mode: str, axis: int) -> Any:
    """The places of x that a piece reads along a dimension: a view, unless they lie on both sides of a border that is not zero."""
    first, stop = reach
    size = x.shape[axis]
    if mode == "zeros" or (first >= 0 and stop <= size):
        return x[(slice(None),) * axis + (slice(max(0, first), min(size, stop)),)]
    places = np.pad(np.arange(size), (max(0, -first), max(0, stop - size)), mode=_NUMPY_MODES[mode])
    start = max(0, first)
    return x.take(places[start : start + stop - first], axis)


class _Passes:
    """The executors of all pieces, for given factors."""

    def __init__(self, problem: ConvProblem):
        self._problem, tile = problem, Depthwise()
        self._axes = _pass_axes(problem)
        self._pieces = list(_pieces(problem))
        steps = {step for piece in self._pieces for step in piece.passes}
        self._executors = {step: tile.build(step) for step in steps}

    def __call__(self, y: Any, x: Any, factors: Sequence[Any], bias: Sequence[Any]) -> None:
        """Compute, piece by piece."""
        problem, cut = self._problem, self._axes[-1]
        dtype = np_dtype(problem.dtype)
        weights = [self._kernel(factors[axis], axis) for axis in self._axes]
        for piece in self._pieces:
            images = slice(piece.image, piece.image + 1)
            values = _rows_of(x[images, piece.groups], piece.reach, problem.pad_mode, 2 + cut)
            target = y[(images, piece.kernels, *(piece.rows if axis == cut else slice(None) for axis in range(problem.ndim)))]
            shift = [each[piece.kernels] for each in bias]
            for step, w in zip(piece.passes, weights, strict=True):
                last = step is piece.passes[-1]
                result = target if last else np.empty(step.y_shape, dtype)
                self._executors[step]((result,), (values, w[piece.kernels], *(shift if last else ())))
                values = result

    def _kernel(self, factor: Any, axis: int) -> Any:
        """A factor as weights ``[K, 1, *R]`` with taps along one dimension."""
        shape = [1] * self._problem.ndim
        shape[axis] = factor.shape[1]
        return factor.reshape(len(factor), 1, *shape)


class _Executor:
    """One convolution: by passes where w allows it."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem

    @functools.cached_property
    def _passes(self) -> _Passes:
        return _Passes(self._problem)

    @functools.cached_property
    def _otherwise(self) -> Any:
        return _cheapest(self._problem).build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Look at w, and compute."""
        factors = factors_of(ins[1])
        if factors is None:
            self._otherwise(outs, ins)
        else:
            self._passes(outs[0], ins[0], factors, ins[2:])

    def bind(self, w: Any) -> Callable[[Any, Any], None]:
        """The executor with the factors of w, or with w as the other way keeps it."""
        factors = factors_of(w)
        if factors is None:
            return self._bind_otherwise(w)
        passes = self._passes
        return lambda outs, ins: passes(outs[0], ins[0], factors, ins[1:])

    def _bind_otherwise(self, w: Any) -> Callable[[Any, Any], None]:
        other = self._otherwise
        if hasattr(other, "bind"):
            bound: Callable[[Any, Any], None] = other.bind(w)
            return bound
        original = w.copy()
        return lambda outs, ins: other(outs, (ins[0], original, *ins[1:]))


_OTHERS: tuple[Implementation, ...] = (
    Planewise(), Crosswise(), Polyphase(), Depthwise(), InnerProduct(), RegisterTile(), WinogradRows(), Winograd(),
    ImplicitGemm(), Blocked(), Fft(),
)  # fmt: skip
"""Dense ones too: a channel may have many kernels."""


@functools.lru_cache(maxsize=256)
def _cheapest(problem: ConvProblem) -> Implementation:
    """What computes a problem whose w is not separable."""
    able = (each for each in _OTHERS if each.supports(problem) and each.workspace(problem) <= problem.max_workspace)
    return min((*able, Direct()), key=lambda each: each.cost(problem))


class Separable(DenseImplementation):
    """Convolution of real floats, of one channel a group, with kernels of rank one; with others by way of `_cheapest`."""

    name = "separable"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 1e-6, "float64": 2e-15}

    def accepts(self, problem: ConvProblem) -> Verdict:
        """One channel a group, several taps along two dimensions, no window beside x."""
        if problem.c != problem.groups:
            return Verdict.no(
                f"it takes one input channel a group, and {problem.c} channels in {problem.groups} groups are "
                f"{problem.c // problem.groups}"
            )
        if len(_pass_axes(problem)) < 2:
            return Verdict.no(f"a kernel of {problem.kernel} has taps along fewer than two dimensions: there is nothing to split")
        if problem.dtype != problem.acc_dtype or problem.out_dtype != problem.dtype:
            return Verdict.no(f"its passes keep what lies between them in {problem.dtype}, and sums are {problem.acc_dtype}")
        reach = [d * (r - 1) for d, r in zip(problem.dilation, problem.kernel, strict=True)]
        if problem.pad_mode == "zeros" and any(max(pads) > most for pads, most in zip(problem.padding, reach, strict=True)):
            return Verdict.no(f"windows would hold nothing but padding {problem.padding}, and its passes need a row of x")
        reason = lag_refusal(problem)  # its passes are those of `Depthwise`
        return Verdict.no(reason) if reason else Verdict.yes("where w is of rank one")

    def forward_cost(self, problem: ConvProblem) -> float:
        """That of the passes, where looking at w in vain is cheap enough."""
        passes, _ = _summary(problem)
        taps = math.prod(problem.w_shape)
        look = LOOK_SECONDS + taps * LOOK_SECONDS_A_TAP
        other = _cheapest(problem).cost(problem)
        return CALL_SECONDS + look + (passes if look < other / 100 else max(passes, other))

    def forward_workspace(self, problem: ConvProblem) -> int:
        """The larger of the two ways."""
        return max(_summary(problem)[1], _cheapest(problem).workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
