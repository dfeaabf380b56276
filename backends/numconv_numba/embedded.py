"""Convolutions of numbers that no register tile takes, as those of real floats: integers, and complex numbers.

Sums of products of integers are exact in floats that hold the largest of them: of 8 and 16 bits mostly, of 32 and 64 bits where the
values of a call are small enough, which is looked at; else those of 32 bits are multiplied in parts. Those of 8 bits are numbers of
bfloat16 too, which pairs and matrix tiles multiply faster, in sums of float32. A complex convolution is a real one with twice the
channels: those of real and imaginary parts, and of w both once more, turned by i. Arrays are converted some images at a time, so
only problems of which one image is small are taken.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype

from .dense.blocked import CALL_SECONDS, Blocked
from .dense.implicit_gemm import ImplicitGemm
from .dense.paired import PairedBlocked, PairedGemm
from .dense.tile import RegisterTile
from .dense.weights import BlockedWeights
from .depthwise.depthwise import Depthwise
from .depthwise.depthwise_weights import DepthwiseWeights
from .depthwise.plane_weights import PlanewiseWeights
from .depthwise.planewise import Planewise
from .direct import MEASURED_ERROR, Direct
from .matrix_tiles.tiled_gemm import TiledGemm

__all__ = ["FloatProducts", "RealProducts"]

_OTHERS: tuple[Implementation, ...] = (Planewise(), Depthwise(), RegisterTile(), ImplicitGemm(), Blocked())
_HALF_OTHERS: tuple[Implementation, ...] = (PairedBlocked(), PairedGemm(), TiledGemm())
_OTHER_WEIGHTS: tuple[Implementation, ...] = (PlanewiseWeights(), DepthwiseWeights(), BlockedWeights())
IMAGE_BYTES = 16 * 1024 * 1024
"""Of converted images that are held at a time; one of them is taken as it is up to four times of this."""
CONVERTED_SECONDS = 6e-10
"""Of an element, on its way in or out."""
MANTISSA = {"float32": 24, "float64": 53}


@functools.lru_cache(maxsize=256)
def _cheapest(problem: ConvProblem) -> Implementation:
    """Who computes a problem of real floats by plain sums."""
    return min(_able(problem), key=lambda each: each.cost(problem))


def _able(problem: ConvProblem) -> list[Implementation]:
    others = _OTHER_WEIGHTS if problem.op == "weight_grad" else _HALF_OTHERS if problem.dtype == "bfloat16" else _OTHERS
    return [each for each in others if each.supports(problem)]


def _image_bytes(real: ConvProblem) -> int:
    """Of one image of x and of y, at most."""
    return (math.prod(real.x_shape) + math.prod(real.y_shape)) // max(1, real.n) * np_dtype(real.out_dtype).itemsize


def _some(real: ConvProblem) -> ConvProblem:
    """The problem of as many images as are converted at a time."""
    return real.replace(n=max(1, min(real.n, IMAGE_BYTES // max(1, _image_bytes(real)))))


def _refusal(real: ConvProblem) -> str:
    """Why a problem is not taken, or nothing."""
    if real.op == "input_grad" and real.pad_mode != "zeros":
        return f"no tile gives back the gradient of padding, which must be of zeros, not {real.pad_mode}"
    most = min(4 * IMAGE_BYTES, real.max_workspace // 4)
    if _image_bytes(real) > most:
        return f"an image and its results take {_image_bytes(real)} bytes as {real.dtype}, and it converts at most {most}"
    return ""


def _cost(real: ConvProblem) -> float:
    """Of all calls, and of converting their arrays."""
    some = _some(real)
    elements = sum(map(math.prod, (real.x_shape, real.y_shape, real.w_shape)))
    return CALL_SECONDS + 1.5e-5 + -(-real.n // some.n) * _cheapest(some).cost(some) + elements * CONVERTED_SECONDS


def _workspace(real: ConvProblem) -> int:
    """The converted arrays, and what the computation needs."""
    some = _some(real)
    held = some.n * _image_bytes(real) + 3 * math.prod(real.w_shape) * np_dtype(real.out_dtype).itemsize
    return held + _cheapest(some).workspace(some)


class _Calls:
    """The executors of a problem of real floats, for so many images."""

    def __init__(self, real: ConvProblem):
        self.real, self._made = real, functools.lru_cache(maxsize=2)(self._build)
        self.images = range(0, real.n, _some(real).n)

    def _build(self, count: int) -> tuple[ConvProblem, Any]:
        problem = self.real.replace(n=count)
        return problem, _cheapest(problem).build(problem)

    def __call__(self, start: int, *arrays: Any) -> list[Any]:
        """The results for some images."""
        problem, executor = self._made(min(self.images.step, self.real.n - start))
        outs = [np.empty(shape, problem.out_dtype) for shape in problem.output_shapes]
        executor(tuple(outs), arrays)
        return outs


# --- integers ------------------------------------------------------------------------------------------------------------------


_SMALL, _LARGE = ("int8", "uint8", "int16", "uint16"), ("int32", "uint32", "int64", "uint64")
SEEN_SECONDS = 3e-10
"""Of looking at the value of an element."""


def _holding(largest: int) -> str:
    """The float that holds every integer of up to this magnitude; "" if there is none."""
    return next((name for name, bits in MANTISSA.items() if largest <= 1 << bits), "")


def _float_of(problem: ConvProblem) -> str:
    """The float that holds every sum of products, for large integers if it can; "" if there is none."""
    if problem.dtype in _LARGE:
        return "float64"
    if problem.dtype not in _SMALL:
        return ""
    return _holding(problem.terms << 2 * (8 * np_dtype(problem.dtype).itemsize - problem.dtype.startswith("int")))


@functools.lru_cache(maxsize=256)
def _floats(problem: ConvProblem, name: str) -> ConvProblem:
    """The problem in floats, without what follows its sums; in bfloat16 if that holds its numbers, and is cheaper."""
    plain = problem.replace(dtype=name, out_dtype=name, bias="", activation=None, accuracy="high", layout="channels_first")
    if name != "float32" or np_dtype(problem.dtype).itemsize > 1 or not importlib.util.find_spec("ml_dtypes"):
        return plain
    halves = plain.replace(dtype="bfloat16", accuracy="default")
    return halves if _able(halves) and _cost(halves) < _cost(plain) else plain


def _largest(array: Any) -> int:
    """The largest magnitude of some integers."""
    return max(abs(int(array.max(initial=0))), abs(int(array.min(initial=0))))


def _is_parted(problem: ConvProblem) -> bool:
    """Whether numbers of 32 bits are multiplied in parts of 16, of which double precision holds the sums."""
    return np_dtype(problem.dtype).itemsize == np_dtype(problem.out_dtype).itemsize == 4 and problem.terms <= 1 << 20


class _Sums:
    """The sums of some images, as integers: of factors of which a float holds the sums."""

    def __init__(self, calls: _Calls, w: Any):
        self._calls, self._float = calls, np_dtype(calls.real.dtype)
        self._w, self._whole = w.astype(self._float, order="C"), np.int64 if calls.real.dtype == "float64" else np.int32

    def __call__(self, start: int, x: Any) -> Any:
        """From the images that begin at `start`."""
        (found,) = self._calls(start, x.astype(self._float, order="C"), self._w)
        return found.astype(self._whole)


class _PartedSums:
    """The same modulo 2**32 from parts of 16 bits: what two upper parts give lies above that."""

    def __init__(self, calls: _Calls, w: Any):
        self._upper, self._lower = (_Sums(calls, part) for part in (w >> 16, w & 0xFFFF))

    def __call__(self, start: int, x: Any) -> Any:
        """From the images that begin at `start`."""
        lower = x & 0xFFFF
        return self._lower(start, lower) + ((self._lower(start, x >> 16) + self._upper(start, lower)) << 16)


class _Integers:
    """One convolution of integers."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._calls_of = functools.cache(lambda name: _Calls(_floats(problem, name)))

    @functools.cached_property
    def _other(self) -> Any:
        return Direct().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; sums wrap around as they are written, and so does the bias."""
        problem, (out,), (x, w, *bias) = self._problem, outs, ins
        name = _float_of(problem)
        if problem.dtype in _LARGE:
            name = _holding(problem.terms * _largest(x) * _largest(w))
        if not name and not _is_parted(problem):
            self._other(outs, ins)
            return
        calls = self._calls_of(name or "float64")
        sums = _Sums(calls, w) if name else _PartedSums(calls, w)
        for start in calls.images:
            part = out[start : start + calls.images.step]
            part[...] = sums(start, x[start : start + len(part)])
            if bias:
                part += bias[0].astype(out.dtype).reshape(-1, *[1] * problem.ndim)
            if problem.activation:
                np.maximum(part, 0, out=part)


class FloatProducts(Implementation):
    """Convolution of integers, exactly, in floats; where those of a call are too large, in parts or by `Direct`."""

    name = "float_products"
    ops = frozenset(("forward", "input_grad"))
    measured_error: ClassVar[Mapping[str, float]] = {}

    def supports(self, problem: ConvProblem) -> Verdict:
        """Integers whose sums a float holds, or may hold, images that are small."""
        name = _float_of(problem)
        if not name:
            return Verdict.no(f"a float must hold each sum of products, and here are {problem.terms} products of {problem.dtype}")
        reason = _refusal(_floats(problem, name))
        return Verdict.no(reason) if reason else Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Of the floats; results are converted twice, and large integers looked at."""
        x, w = (math.prod(shape) for shape in problem.input_shapes[:2])
        seen = (x + w) * SEEN_SECONDS + 1.5e-5 if problem.dtype in _LARGE else 0.0
        return _cost(_floats(problem, _float_of(problem))) + seen + math.prod(problem.output_shapes[0]) * CONVERTED_SECONDS

    def workspace(self, problem: ConvProblem) -> int:
        """Of the floats, and of results on their way; or of `Direct`."""
        real = _floats(problem, _float_of(problem))
        image = _some(real).n * _image_bytes(real)
        if problem.dtype in _LARGE:
            return max(_workspace(real) + 4 * image, Direct().workspace(problem))
        return _workspace(real) + 2 * image

    def build(self, problem: ConvProblem) -> _Integers:
        """The executor."""
        return _Integers(problem)


# --- complex numbers -----------------------------------------------------------------------------------------------------------


def _reals(problem: ConvProblem) -> ConvProblem:
    """The real problem, whose channels are in each group the real parts and then the imaginary ones."""
    real = {"complex64": "float32", "complex128": "float64"}[problem.dtype]
    return problem.replace(dtype=real, out_dtype=real, c=2 * problem.c, k=2 * problem.k, layout="channels_first")


def _parts(x: Any, groups: int) -> Any:
    """``[N, 2C, *S]`` from ``[N, C, *S]``."""
    n, c, *spatial = x.shape
    found = np.empty((n, groups, 2, c // groups, *spatial), x.real.dtype)
    grouped = x.reshape(n, groups, c // groups, *spatial)
    found[:, :, 0], found[:, :, 1] = grouped.real, grouped.imag
    return found.reshape(n, 2 * c, *spatial)


def _join(found: Any, out: Any, groups: int) -> None:
    """The opposite of `_parts`."""
    n, c, *spatial = out.shape
    parts = found.reshape(n, groups, 2, c // groups, *spatial)
    out.real[...], out.imag[...] = (parts[:, :, which].reshape(out.shape) for which in range(2))


def _turned(w: Any, groups: int) -> Any:
    """``[2K, 2C/G, *R]`` from ``[K, C/G, *R]``: what gives real and imaginary parts of y from those of x."""
    k, c, *taps = w.shape
    found = np.empty((groups, 2, k // groups, 2, c, *taps), w.real.dtype)
    grouped = w.reshape(groups, k // groups, c, *taps)
    for part in range(2):
        found[:, part, :, part] = grouped.real
        found[:, part, :, 1 - part] = grouped.imag if part else -grouped.imag
    return found.reshape(2 * k, 2 * c, *taps)


def _turned_back(found: Any, out: Any, groups: int) -> None:
    """The adjoint of `_turned`."""
    k, c, *taps = out.shape
    parts = found.reshape(groups, 2, k // groups, 2, c, *taps)
    out.real[...] = (parts[:, 0, :, 0] + parts[:, 1, :, 1]).reshape(out.shape)
    out.imag[...] = (parts[:, 1, :, 0] - parts[:, 0, :, 1]).reshape(out.shape)


class _Complex:
    """One convolution of complex numbers, or a gradient."""

    def __init__(self, problem: ConvProblem):
        self._problem, self._calls = problem, _Calls(_reals(problem))

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (self._weights if self._problem.op == "weight_grad" else self._images)(outs, ins)

    def _images(self, outs: Any, ins: Any) -> None:
        (out,), (x, w, *bias), groups = outs, ins, self._problem.groups
        rest = [_turned(w, groups), *(_parts(each[None], groups)[0] for each in bias)]
        for start in self._calls.images:
            images = slice(start, start + self._calls.images.step)
            (found,) = self._calls(start, _parts(x[images], groups), *rest)
            _join(found, out[images], groups)

    def _weights(self, outs: Any, ins: Any) -> None:
        (w, *bias), groups, sums = outs, self._problem.groups, None
        for start in self._calls.images:
            images = slice(start, start + self._calls.images.step)
            found = self._calls(start, *(_parts(each[images], groups) for each in ins))
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        if sums is None:
            for out in outs:
                out[...] = 0
            return
        _turned_back(sums[0], w, groups)
        for out, shift in zip(bias, sums[1:], strict=True):
            _join(shift[None], out[None], groups)


class RealProducts(Implementation):
    """Convolution of complex numbers and its gradients, by a real one of twice the channels."""

    name = "real_products"
    ops = frozenset(("forward", "input_grad", "weight_grad"))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Complex numbers, images that are small."""
        if problem.dtype not in ("complex64", "complex128") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"it takes and gives complex64, or complex128, and here are {problem.dtype} and {problem.out_dtype}")
        reason = _refusal(_reals(problem))
        return Verdict.no(reason) if reason else Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Of the real numbers."""
        return _cost(_reals(problem))

    def workspace(self, problem: ConvProblem) -> int:
        """Of the real numbers."""
        return _workspace(_reals(problem))

    def build(self, problem: ConvProblem) -> _Complex:
        """The executor."""
        return _Complex(problem)
