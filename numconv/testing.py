"""What every backend has to keep, as tests: for ours and for anybody's.

A plugin tests itself in five lines::

    from numconv.testing import BackendContract


    class TestExample(BackendContract):
        backend = "example"

`check` compares an implementation with the reference backend on one problem; `bound` is the one table of tolerances.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .plugin import CONV_OPS, LEVELS, POOL_OPS, WINDOW_OPS, Backend, Implementation, Verdict, np_dtype, parse
from .registry import Candidate, Registry, default_registry

__all__ = ["CONV_PROBLEMS", "POOL_PROBLEMS", "WINDOW_PROBLEMS", "BackendContract", "bound", "candidates", "check", "inputs"]

Array = np.ndarray[Any, Any]

# --- tolerances ----------------------------------------------------------------------------------------------------------------

_EPS = {
    "float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52,
    "complex64": 2.0**-23, "complex128": 2.0**-52,
}  # fmt: skip
_TINY = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "complex64": 2.0**-149}
# What the levels allow at least where sums are held in single and in double precision. "fast": both factors rounded to bfloat16.
_LEAST = {"strict": (0.0, 0.0), "high": (0.0, 0.0), "default": (1e-5, 1e-13), "fast": (2.0**-8, 1e-13)}
_MOVES = ("max_pool", "pad", "unfold", "max_unpool", "max_unpool_backward")


def bound(problem: Any) -> float:
    """The largest error that a result may have, relative to the magnitude of its element.

    The magnitude is the same operation on the absolute values of x, w and bias. The error of a sum in plain arithmetic grows about
    with the square root of the number of its terms, so that is the bound at the levels "strict" and "high".

    ==================== =========================================================================================
    integers, moves      0: pad, unfold, max_pool, max_unpool and its gradient do no arithmetic
    "strict", "high"     eps of the accumulation dtype * (2 + 2 sqrt(terms)); for lp_pool times 1 + max(p, 1/p)
    "default"            the larger of that and 1e-5 in single precision, 1e-13 in double
    "fast"               the larger of that and 2**-8 in single precision, 1e-13 in double
    float16, bfloat16    eps of the dtype is added: the rounding of the result
    ==================== =========================================================================================

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem

    Returns
    -------
    float

    Examples
    --------
    >>> from numconv.plugin import parse
    >>> from numconv.testing import bound
    >>> bound(parse("conv forward f32 n1 c1 k1 g1 in8 w4 s1 p0 d1 accuracy=high")) / 2**-23
    6.0
    """
    if problem.op in _MOVES or "int" in problem.dtype:
        return 0.0
    double = problem.acc_dtype in ("float64", "complex128")
    sums = _EPS[problem.acc_dtype] * (2 + 2 * math.sqrt(problem.terms))
    if problem.op.startswith("lp_pool"):
        sums *= 1 + max(problem.p, 1 / problem.p)
    rounding = _EPS[problem.out_dtype] if problem.out_dtype in ("float16", "bfloat16") else 0.0
    return max(sums, _LEAST[problem.level][double]) + rounding


def _is_exact(problem: Any, implementation: Implementation, integer: bool) -> bool:
    """Whether the result must be that of the reference, bit for bit (promise 1)."""
    if bound(problem) == 0:
        return True
    divides = problem.op.startswith(("avg_pool", "lp_pool")) or getattr(problem, "activation", None) in ("silu", "gelu")
    return integer and not divides and not implementation.levels.isdisjoint(("strict", "high"))


# --- inputs and what the reference makes of them -------------------------------------------------------------------------------


def inputs(problem: Any, rng: np.random.Generator, integer: bool = True, nonfinite: Sequence[int] = ()) -> list[Array]:
    """Random arrays for a problem.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    rng : numpy.random.Generator
    integer : bool
        Small integers, of which sums are exact; else normally distributed floats, or integers of the whole range.
    nonfinite : sequence of int
        The positions of the arrays in which up to three elements become NaN, Inf and -Inf.

    Returns
    -------
    list of arrays of the shapes ``problem.input_shapes``
    """
    arrays = [_random(shape, np_dtype(problem.dtype), rng, integer) for shape in problem.input_shapes]
    if problem.op.startswith("max_unpool"):
        arrays[1] = rng.integers(0, math.prod(problem.spatial), problem.y_shape)
    elif problem.op == "max_pool_backward" and problem.indices:
        x = _random(problem.x_shape, np.dtype(np.float32), rng, integer)
        arrays[1] = _reference(problem.replace(op="max_pool", dtype="float32", out_dtype="float32"), [x])[1]
    for position in nonfinite:
        _sow(arrays[position], rng)
    return arrays


def _random(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator, integer: bool) -> Array:
    if dtype.kind in "iu" and not integer:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    parts = [rng.integers(0 if dtype.kind == "u" else -4, 5, shape) if integer else rng.standard_normal(shape) for _ in range(2)]
    return np.asarray(parts[0] + 1j * parts[1] if dtype.kind == "c" else parts[0]).astype(dtype)


def _sow(array: Array, rng: np.random.Generator) -> None:
    count = min(3, array.size)
    places = rng.permutation(array.size)[:count]
    array.reshape(-1)[places] = rng.permutation([np.nan, np.inf, -np.inf])[:count]


def _dtypes(problem: Any) -> list[np.dtype[Any]]:
    """Of the outputs."""
    return [np_dtype(problem.out_dtype), np.dtype(np.int64) if problem.op == "max_pool" else np_dtype(problem.out_dtype)]


def _reference(problem: Any, arrays: Sequence[Array]) -> list[Array]:
    implementations = default_registry().backend("reference").implementations()
    implementation = next(each for each in implementations if problem.op in each.ops)
    outs = [np.empty(shape, dtype) for shape, dtype in zip(problem.output_shapes, _dtypes(problem), strict=False)]
    implementation.build(problem)(outs, arrays)
    return outs


def _magnitudes(problem: Any, arrays: Sequence[Array]) -> list[Array]:
    """The operation on absolute values, in float64; a value that is not finite counts nothing."""
    changes: dict[str, Any] = {"dtype": "float64", "out_dtype": "float64", "accuracy": "high"}
    if problem.op in CONV_OPS:
        changes["activation"] = None
    chosen = 1 if problem.op == "max_pool_backward" else len(arrays)  # its second array says where, not how much
    sizes = [_absolute(array) for array in arrays[:chosen]]
    return _reference(problem.replace(**changes), [*sizes, *arrays[chosen:]])


def _absolute(array: Array) -> Array:
    wide = np.abs(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))
    return np.where(np.isfinite(wide), wide, 0.0)


class _Case(NamedTuple):
    """Inputs of a problem, with the results of the reference in its own wide arithmetic and the magnitudes of their elements."""

    problem: Any
    arrays: list[Array]
    expected: list[Array]
    magnitudes: list[Array] | None
    integer: bool


def _make_case(problem: Any, rng: np.random.Generator, integer: bool, nonfinite: Sequence[int] = ()) -> _Case:
    arrays = inputs(problem, rng, integer, nonfinite)
    magnitudes = _magnitudes(problem, arrays) if bound(problem) else None
    return _Case(problem, arrays, _reference(problem.replace(accuracy="high"), arrays), magnitudes, integer)


# --- memory --------------------------------------------------------------------------------------------------------------------

# Each takes (shape, dtype, xp) and returns a C-contiguous base array and a view of it that has this shape.
_Form = Callable[[tuple[int, ...], Any, Any], tuple[Any, Any]]
_MARGIN = 65


def _plain(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty(shape, dtype)
    return base, base


def _shifted(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    """Contiguous, off the alignment that an allocation has, between margins as wide as a tile may overrun."""
    base = xp.empty(math.prod(shape) + 2 * _MARGIN, dtype)
    return base, base[_MARGIN:-_MARGIN].reshape(shape)


def _channels_last(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty((*shape[:1], *shape[2:], *shape[1:2]), dtype)
    return base, base.transpose(0, base.ndim - 1, *range(1, base.ndim - 1)) if base.ndim > 2 else base


def _reversed(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty(shape, dtype)
    return base, base[(slice(None, None, -1),) * base.ndim]


def _fortran(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    base = xp.empty(shape[::-1], dtype)
    return base, base.T


def _spread(shape: tuple[int, ...], dtype: Any, xp: Any) -> tuple[Any, Any]:
    """Gaps on every axis, and every second element only on the last."""
    base = xp.empty((*(size + 1 for size in shape[:-1]), 2 * shape[-1] + 1), dtype)
    return base, base[(*(slice(1, None),) * (base.ndim - 1), slice(1, None, 2))]


# Arrays of a call take these in turn: outputs first, then inputs.
_FORMS: dict[str, tuple[_Form, ...]] = {
    "C-contiguous": (_plain,),
    "unaligned": (_shifted,),
    "channels-last": (_channels_last,),
    "negatively strided": (_reversed,),
    "Fortran-ordered": (_fortran,),
    "non-contiguous": (_spread,),
    "mixed": (_plain, _channels_last, _fortran, _spread, _reversed),
}


class _Memory:
    """A view in some form, whose base is filled with a byte: 0xFF makes floats NaN."""

    def __init__(self, form: _Form, shape: tuple[int, ...], dtype: Any, byte: int, xp: Any):
        self.base, self.view = form(shape, dtype, xp)
        self.base.reshape(-1).view(xp.uint8)[...] = byte
        inside, view = form(shape, bool, np)
        inside[...] = False
        view[...] = True
        self._outside = ~inside.reshape(-1)
        self._byte = byte

    def bytes(self) -> Array:
        """``[elements of the base, bytes of an element]``, on the host."""
        host = _host(self.base).reshape(-1)
        return host.view(np.uint8).reshape(host.size, host.itemsize)

    def is_clean_outside(self) -> bool:
        """Whether nothing was written beside the view."""
        return bool((self.bytes()[self._outside] == self._byte).all())


def _host(array: Any) -> Array:
    return array if isinstance(array, np.ndarray) else array.get()


def _namespace(device: str) -> Any:
    return np if device == "cpu" else importlib.import_module("cupy")


def _execute(executor: Any, case: _Case, form: str, device: str, bind: bool = False, byte: int = 0xFF) -> list[Array]:
    """The results in this form of memory.

    Raises AssertionError if an input changed or something beside the outputs was written.
    """
    xp, forms = _namespace(device), itertools.cycle(_FORMS[form])
    outs = [
        _Memory(next(forms), shape, dtype, byte, xp)
        for shape, dtype in zip(case.problem.output_shapes, _dtypes(case.problem), strict=False)
    ]
    ins = [_Memory(next(forms), array.shape, array.dtype, 0xFF, xp) for array in case.arrays]
    for memory, array in zip(ins, case.arrays, strict=True):
        memory.view[...] = xp.asarray(array)
    if bind:
        run, operands = executor.bind(ins[1].view), [ins[0], *ins[2:]]
        ins[1].view[...] = 0  # what is bound must not see this
    else:
        run, operands = executor, ins
    before = [memory.bytes().copy() for memory in operands]
    run([memory.view for memory in outs], [memory.view for memory in operands])
    for position, (memory, old) in enumerate(zip(operands, before, strict=True)):
        assert np.array_equal(memory.bytes(), old), f"input {position} was changed"
    for position, memory in enumerate(outs):
        assert memory.is_clean_outside(), f"memory beside output {position} was written"
    return [_host(memory.view).copy() for memory in outs]


# --- comparison ----------------------------------------------------------------------------------------------------------------


def _compare(case: _Case, results: Sequence[Array], exact: bool) -> None:
    """Raise AssertionError with the position and both numbers of the worst element."""
    for position, (got, expected) in enumerate(zip(results, case.expected, strict=True)):
        allowed = None
        if not exact and case.magnitudes is not None:
            allowed = case.magnitudes[position] * bound(case.problem) + _TINY.get(case.problem.out_dtype, 0.0)
        _compare_arrays(position, got, expected, allowed)


def _compare_arrays(output: int, got: Array, expected: Array, allowed: Array | None) -> None:
    if got.dtype.kind == "c":  # the two parts on their own, for an infinity beside a NaN
        got, expected = (np.stack([a.real, a.imag], axis=-1) for a in (got, expected))
        allowed = None if allowed is None else allowed[..., None]
    if got.dtype.kind not in "iu":
        got, expected = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got - expected)
        wrong = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
        if allowed is not None:
            wrong &= ~(error <= allowed)
    if not wrong.any():
        return
    worst = int(np.argmax(np.where(wrong, np.nan_to_num(error, nan=np.inf), -1.0)))
    at = tuple(map(int, np.unravel_index(worst, got.shape)))
    limit = "it must be equal" if allowed is None else f"the error may be {np.broadcast_to(allowed, got.shape)[at]:.3g}"
    raise AssertionError(
        f"output {output} at {list(at)} is {got[at].item()!r}, and the reference gives {expected[at].item()!r}; {limit}; "
        f"{np.count_nonzero(wrong)} of {got.size} elements differ"
    )


def _check_case(case: _Case, row: Candidate, device: str, forms: Sequence[str] = tuple(_FORMS)) -> None:
    """Run a candidate on a case in several forms of memory, and through `bind` where it is offered."""
    assert row.implementation is not None
    executor = row.implementation.build(case.problem)
    exact = _is_exact(case.problem, row.implementation, case.integer)
    jobs = [(form, False) for form in forms]
    if hasattr(executor, "bind"):
        jobs += [(form, True) for form in forms]
    for number, (form, bind) in enumerate(jobs):
        try:
            # Two poisons: an element that was left out cannot hold the right integer under both.
            _compare(case, _execute(executor, case, form, device, bind, (0xFF, 0x7E)[number % 2]), exact)
        except AssertionError as error:
            who = f"{row.backend} {row.algorithm} at {case.problem.level!r}"
            how = f"{form} arrays{', bound weights' if bind else ''}, {'integers' if case.integer else 'random data'}"
            raise AssertionError(f"{case.problem}: {who}, {how}: {error}") from None


# --- one problem ---------------------------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A backend as an entry point, for one that is not installed."""

    name: str
    backend: Backend
    dist: Any = None

    def load(self) -> Backend:
        return self.backend


def _registry_of(backend: str | Backend) -> tuple[Registry, Backend]:
    if isinstance(backend, str):
        return default_registry(), default_registry().backend(backend)
    return Registry([_Entry(backend.name, backend)]), backend


def candidates(problem: Any, backend: str | Backend) -> list[Candidate]:
    """All implementations of a backend that have the operation of `problem`: those that can compute it first, then the refusals.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    backend : str or Backend
        A name of the registry, or an object that need not be installed.

    Returns
    -------
    list of Candidate
        With backend, algorithm, verdict, cost, workspace, implementation.
    """
    registry, found = _registry_of(backend)
    return registry.candidates(problem, found.device, found.name, None)


def check(
    problem: Any,
    backend: str | Backend,
    algorithm: str | None = None,
    *,
    rng: np.random.Generator,
    integer: bool = True,
    nonfinite: Sequence[int] = (),
) -> None:
    """Compare an implementation with the reference backend on random inputs.

    Its executor is run on outputs filled with NaN, on arrays that are contiguous, shifted off their alignment, channels-last,
    Fortran-ordered, negatively strided and non-contiguous, and through ``bind`` where it has that. Integers, and floats that hold
    small integers, must agree exactly; other results within `bound`.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    backend : str or Backend
        A name of the registry, or an object that need not be installed.
    algorithm : str, optional
        An implementation's name; by default the one that the backend would choose.
    rng : numpy.random.Generator
    integer, nonfinite
        As for `inputs`.

    Raises
    ------
    AssertionError
        If a result is wrong, an element was not written, an input changed, or something beside the outputs was written. The text
        holds the problem, the position and both numbers.
    UnsupportedProblemError
        If the backend does not support the problem.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv.plugin import parse
    >>> from numconv.testing import check
    >>> check(parse("conv forward f32 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1"), "reference", rng=np.random.default_rng(1))
    """
    registry, found = _registry_of(backend)
    row = registry.select(problem, f"check of {problem.op}", found.device, found.name, algorithm)[0]
    _check_case(_make_case(problem, rng, integer, nonfinite), row, found.device)


# --- the problems of the contract ----------------------------------------------------------------------------------------------

# Sizes lie off the multiples of every likely tile, and each option appears in one, two or three dimensions. Each of the three
# operations runs on all of them.
_GEOMETRIES = (
    # 1-D
    "f32 n3 c1 k1 g1 in37 w5 s1 p2 d1",
    "f32 n2 c6 k4 g2 in41 w7 s3 p5:2 d2",
    "f64 n1 c3 k17 g1 in67 w9 s1 p0 d1",
    "f32 n2 c9 k9 g9 in50 w4 s1 p3:0 d1",
    "f32 n2 c2 k3 g1 in5 w3 s1 p7:6 d1 pad=circular",
    "f32 n1 c1 k2 g1 in150 w75 s1 p37 d1 flip=1",
    "c64 n2 c3 k2 g1 in19 w4 s2 p1 d1 pad=replicate",
    "i8 n2 c5 k3 g1 in23 w3 s1 p1 d1",
    "f32 n2 c6 k8 g2 in1 w2 s2 p1 d1",
    # 2-D: dense, pointwise, regular
    "f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1",
    "f32 n1 c33 k18 g1 in9x11 w1x1 s1 p0 d1",
    "f32 n2 c16 k16 g1 in14x14 w3x3 s1 p1 d1",
    "f32 n1 c3 k18 g1 in17x15 w7x7 s2 p3 d1",
    "f32 n2 c7 k10 g1 in9x12 w1x1 s2 p0 d1",
    "f32 n3 c4 k5 g1 in6x7 w6x7 s1 p0 d1",
    "f32 n1 c2 k3 g1 in4x4 w7x7 s1 p3 d1",
    "f32 n1 c2 k3 g1 in13x16 w2x2 s5 p0:3x1:0 d1",
    "f32 n1 c2 k2 g1 in9x9 w3x3 s1 p4 d4",
    "f32 n2 c3 k2 g1 in8x9 w3x3 s2 p1:-1x0 d1",
    "f32 n2 c5 k7 g1 in1x2 w2x4 s2x3 p1x2 d1",
    "f64 n1 c4 k6 g1 in10x7 w3x2 s1x2 p0:1x2:0 d2x1 flip=1",
    # 2-D: groups
    "f32 n2 c19 k19 g19 in11x15 w3x3 s1 p1 d1",
    "f32 n1 c6 k12 g6 in12x10 w5x5 s2 p2 d1",
    "f32 n2 c9 k6 g3 in8x9 w3x3 s1 p1 d1",
    # 2-D: the other options
    "f32 n1 c3 k4 g1 in7x8 w3x3 s1 p2 d1 pad=reflect",
    "f64 n2 c2 k3 g1 in3x4 w3x3 s2 p4:3x5 d1 pad=symmetric",
    "f32 n1 c4 k4 g2 in6x5 w3x2 s1 p1 d2 pad=replicate flip=1",
    "f32 n2 c6 k5 g1 in9x7 w3x3 s1 p1 d1 layout=channels_last",
    "f32 n2 c8 k8 g8 in9x7 w3x3 s1 p1 d1 layout=channels_last",
    # 2-D: the other dtypes
    "f16 n1 c5 k6 g1 in9x10 w3x3 s1 p1 d1",
    "bf16 n2 c4 k3 g1 in8x7 w3x3 s2 p1 d1",
    "c128 n1 c3 k4 g1 in7x6 w3x3 s1 p1 d1",
    "i64 n1 c3 k2 g1 in6x7 w3x3 s1 p1 d1",
    # 3-D and 4-D
    "f32 n2 c3 k5 g1 in6x7x9 w3x3x3 s1 p1 d1",
    "f64 n1 c4 k4 g2 in5x6x4 w2x3x1 s2x1x1 p1x1x0 d1",
    "f32 n1 c5 k5 g5 in5x4x6 w3x3x3 s1 p1 d1 pad=circular",
    "f32 n2 c3 k6 g3 in5x6x4 w2x3x2 s1 p1 d1 flip=1",
    "f32 n1 c2 k3 g1 in4x3x5x3 w2x2x3x2 s1 p1x0x1x0 d1",
)

CONV_PROBLEMS: tuple[str, ...] = (
    *(f"conv {op} {geometry}" for geometry in _GEOMETRIES for op in CONV_OPS),
    # A dtype may cost the compilation of a kernel, so these take one operation each.
    "conv forward u8 n1 c5 k3 g1 in23 w3 s1 p1 d2 out=i32",
    "conv forward u16 n1 c4 k2 g2 in6x5 w2x3 s1 p1 d1",
    "conv input_grad f16 n2 c3 k4 g1 in7x8 w3x3 s1 p1 d1 out=f32",
    "conv weight_grad f32 n1 c3 k4 g1 in8x6 w3x3 s1 p1 d1 out=f64",
    "conv weight_grad i32 n2 c2 k2 g2 in3x4x3x3 w2x1x2x2 s1x2x1x1 p1 d1x1x2x1",
    "conv forward f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward f32 n2 c33 k19 g1 in9x7 w1x1 s1 p0 d1 bias=y act=silu",
    "conv forward f64 n1 c6 k6 g6 in11x8 w3x3 s1 p1 d1 bias=y act=gelu",
    "conv forward f16 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward i16 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward c64 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y",
    "conv input_grad f32 n2 c5 k7 g1 in13x19 w3x3 s2 p1 d1 bias=x act=relu",
    "conv input_grad f64 n1 c6 k3 g3 in21 w4 s2 p1:-1 d1 bias=x",
    "conv weight_grad f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1 bias=y",
    "conv weight_grad f32 n3 c4 k6 g2 in11x9 w3x2 s2 p1 d1 bias=x",
    "conv weight_grad c128 n2 c2 k3 g1 in17 w3 s1 p1 d1 bias=y",
    "conv weight_grad f16 n2 c3 k3 g3 in9x9 w3x3 s1 p1 d1 bias=y",
)
"""Problems of convolution that every backend is tested on, in text form."""

_POOL_OPTIONS = (
    ("max_pool", ""), ("max_pool", " indices=1"), ("max_pool_backward", ""), ("max_pool_backward", " indices=1"),
    ("avg_pool", ""), ("avg_pool_backward", ""), ("lp_pool", ""), ("lp_pool_backward", ""),
)  # fmt: skip

POOL_PROBLEMS: tuple[str, ...] = (
    *(
        f"pool {op} {geometry}{option}"
        for geometry in (
            "f32 n2 c3 in11x13 w2x2 s2 p0 d1",
            "f64 n1 c5 in17 w5 s2 p2:1 d1 ceil=1",
            "f32 n2 c2 in6x7x5 w3x2x3 s2x1x2 p1 d1x2x1 ceil=1",
        )
        for op, option in _POOL_OPTIONS
    ),
    "pool max_pool f32 n2 c7 in9x10 w3x3 s1 p1 d2 indices=1 layout=channels_last",
    "pool max_pool i8 n1 c3 in9x8 w3x2 s2 p1 d1 indices=1",
    "pool max_pool u64 n1 c2 in4x3x5x3 w2x2x2x1 s1 p0 d1",
    "pool max_pool bf16 n1 c3 in9x8 w3x3 s2 p1 d1",
    "pool max_pool_backward f32 n1 c4 in9x8 w3x3 s1 p1 d1 out=f64",
    "pool avg_pool f32 n2 c7 in9x10 w3x3 s2 p1 d1 ceil=1 countpad=0 layout=channels_last",
    "pool avg_pool c64 n1 c3 in9x8 w3x3 s2 p1 d1",
    "pool avg_pool f16 n1 c3 in9x8 w3x3 s2 p1 d1",
    "pool avg_pool_backward f64 n1 c3 in9x8 w4x3 s1x2 p1:2x1 d1x3 ceil=1 countpad=0",
    "pool lp_pool f32 n2 c3 in11x9 w3x3 s2 p1 d1 norm=3.0",
    "pool lp_pool_backward f64 n2 c3 in11x9 w3x2 s2 p1 d1 ceil=1 norm=0.5",
)
"""Problems of pooling."""

WINDOW_PROBLEMS: tuple[str, ...] = (
    *(
        f"window {op} f32 n2 c3 in5x4 w1x1 s1 p2:3x0:9 d1{mode}"
        for mode in ("", " pad=reflect", " pad=symmetric", " pad=replicate", " pad=circular")
        for op in ("pad", "pad_backward")
    ),
    "window pad_backward f32 n2 c3 in5x4 w1x1 s1 p2x0 d1 pad=replicate",
    "window pad_backward f64 n1 c2 in3x4x2 w1x1x1 s1 p0x3:1x0 d1 pad=circular",
    "window pad i16 n1 c3 in1 w1 s1 p3 d1 pad=reflect layout=channels_last out=i64",
    "window pad_backward c128 n2 c2 in3x4x2 w1x1x1 s1 p1x0:2x5 d1 pad=circular",
    "window pad_backward f16 n2 c3 in5x4 w1x1 s1 p2 d1 pad=symmetric layout=channels_last",
    "window unfold f32 n2 c3 in9x11 w3x2 s2x1 p1:2x0 d1x3",
    "window unfold i8 n1 c2 in3x4x3x2 w2x2x1x2 s1 p1 d1",
    "window fold f32 n2 c3 in9x11 w3x2 s2x1 p1:2x0 d1x3",
    "window fold f64 n1 c2 in29 w7 s1 p3 d1",
    "window fold u8 n1 c2 in5x6x4 w2x3x2 s1 p1 d1 out=u16",
    "window max_unpool f32 n2 c3 in9x8 w1x1 s1 p0 d1 target=4x3",
    "window max_unpool i32 n2 c3 in19 w1 s1 p0 d1 target=6 layout=channels_last",
    "window max_unpool_backward f32 n2 c3 in9x8 w1x1 s1 p0 d1 target=4x3",
    "window max_unpool_backward f64 n1 c2 in3x4x5 w1x1x1 s1 p0 d1 target=2x2x3",
)
"""Problems of padding, unfolding, folding and unpooling."""


# --- the contract --------------------------------------------------------------------------------------------------------------


class BackendContract:
    """Tests that every backend has to pass; pytest collects a subclass that is called ``Test...``.

    Attributes
    ----------
    backend : str or Backend
        The name of the entry point, or an object that need not be installed. A backend that is not available here skips its tests,
        with its reason.
    problems : tuple of str
        Text forms; each runs with each implementation that has its operation, and a refusal is a skip with the Verdict's reason.
    levels, forms : tuple of str
        The accuracy levels, and the forms of memory of the arrays: all, unless a backend that runs slowly here leaves some out.
    seed : int
        Of the random inputs.
    """

    backend: ClassVar[str | Backend]
    problems: ClassVar[tuple[str, ...]] = CONV_PROBLEMS + POOL_PROBLEMS + WINDOW_PROBLEMS
    levels: ClassVar[tuple[str, ...]] = LEVELS
    forms: ClassVar[tuple[str, ...]] = tuple(_FORMS)
    seed: ClassVar[int] = 2

    @classmethod
    def setup_class(cls) -> None:
        """Skip what is not available."""
        verdict = cls._availability()
        if not verdict:
            _skip(f"{cls.backend if isinstance(cls.backend, str) else cls.backend.name}: {verdict.reason}")

    @classmethod
    def _availability(cls) -> Verdict:
        if not isinstance(cls.backend, str):
            return cls.backend.availability()
        default_registry().check_names((cls.backend,), "BackendContract")
        info = next(info for info in default_registry().infos() if info.name == cls.backend)
        return Verdict(info.available, info.reason)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each problem and each implementation that has its operation."""
        if not {"text", "algorithm"} <= set(metafunc.fixturenames):
            return
        texts = [text for text in self.problems if metafunc.function.__name__ != "test_nonfinite" or "int" not in parse(text).dtype]
        rows = [(text, each.name) for text in texts for each in self._implementations() if parse(text).op in each.ops]
        metafunc.parametrize(("text", "algorithm"), rows, ids=[f"{algorithm}: {text}" for text, algorithm in rows])

    def _implementations(self) -> Sequence[Implementation]:
        return _registry_of(self.backend)[1].implementations() if self._availability() else ()

    def _device(self) -> str:
        return _registry_of(self.backend)[1].device

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def _supported(self, text: str, algorithm: str) -> list[tuple[Any, Candidate]]:
        """(problem, candidate) for each accuracy level at which the implementation computes it; a skip with the reasons if none."""
        problem = parse(text)
        if "bfloat16" in (problem.dtype, problem.out_dtype) and importlib.util.find_spec("ml_dtypes") is None:
            _skip("dtype bfloat16 needs the package ml_dtypes")
        problems = [problem.replace(accuracy=None if level == "default" else level) for level in self.levels]
        rows = [next(row for row in candidates(each, self.backend) if row.algorithm in (algorithm, "-")) for each in problems]
        if not any(row.verdict for row in rows):
            _skip("; ".join(dict.fromkeys(row.verdict.reason for row in rows)))
        return [(each, row) for each, row in zip(problems, rows, strict=True) if row.verdict]

    def test_declaration(self) -> None:
        """Names, operations and levels are known ones, and no two implementations of an operation share a name."""
        backend = _registry_of(self.backend)[1]
        assert backend.device in ("cpu", "gpu"), f"device {backend.device!r} is neither cpu nor gpu"
        seen = set()
        for each in backend.implementations():
            assert each.ops <= {*CONV_OPS, *POOL_OPS, *WINDOW_OPS}, f"{each.name} has unknown operations: {sorted(each.ops)}"
            assert each.levels <= set(LEVELS), f"{each.name} has unknown levels: {sorted(each.levels)}"
            assert len(each.ops) * len(each.levels) > 0, f"{each.name} can never be chosen"
            for op in each.ops:
                assert (op, each.name) not in seen, f"two implementations of {op} are called {each.name!r}"
                seen.add((op, each.name))

    def test_verdict(self, text: str, algorithm: str) -> None:
        """A verdict with a reason, a workspace and a cost, the same whenever they are asked for."""
        problem = parse(text)
        each = next(i for i in self._implementations() if i.name == algorithm and problem.op in i.ops)
        for level in sorted(each.levels):
            asked = problem.replace(accuracy=None if level == "default" else level)
            verdict = each.supports(asked)
            assert isinstance(verdict, Verdict), f"{asked}: supports() returned {verdict!r}"
            assert verdict or verdict.reason.strip(), f"{asked}: a refusal without a reason"
            assert each.supports(asked) == verdict, f"{asked}: another verdict when asked again"
            if verdict:
                workspace, cost = each.workspace(asked), each.cost(asked)
                assert type(workspace) is int, f"{asked}: a workspace of {workspace!r}"
                assert workspace >= 0, f"{asked}: a workspace of {workspace} bytes"
                assert 0 < cost < math.inf, f"{asked}: a cost of {cost!r} seconds"
                assert (each.workspace(asked), each.cost(asked)) == (workspace, cost), f"{asked}: other costs when asked again"

    def test_result(self, text: str, algorithm: str) -> None:
        """The reference's result at every level: exactly for integers, within `bound` else, in every form of memory."""
        rows = self._supported(text, algorithm)
        for integer in (True, False):
            case = _make_case(parse(text), self._rng(), integer)
            for problem, row in rows:
                _check_case(case._replace(problem=problem), row, self._device(), self.forms)

    def test_nonfinite(self, text: str, algorithm: str) -> None:
        """NaN and Inf in an input reach the outputs that the reference gives, with its class and sign, and no other (promise 2)."""
        rows = self._supported(text, algorithm)
        for position in range(_floating(rows[0][0])):
            case = _make_case(parse(text), self._rng(), True, (position,))
            for problem, row in rows:
                _check_case(case._replace(problem=problem), row, self._device(), ("C-contiguous",))

    def test_empty_batch(self, text: str, algorithm: str) -> None:
        """A batch of none: an empty result, and a gradient of zeros for the weights."""
        for problem, row in self._supported(text, algorithm)[:1]:
            case = _make_case(problem.replace(n=0), self._rng(), True)
            _check_case(case, row, self._device(), ("C-contiguous", "Fortran-ordered"))

    def test_threads(self, text: str, algorithm: str) -> None:
        """The same bits from an executor that several threads call at once, and from a second executor."""
        for problem, row in self._supported(text, algorithm):
            case = _Case(problem, inputs(problem, self._rng(), False), [], None, False)
            assert row.implementation is not None
            executor, again = row.implementation.build(problem), row.implementation.build(problem)

            def bits(run: Any, case: _Case = case) -> list[bytes]:
                return [result.tobytes() for result in _execute(run, case, "C-contiguous", self._device())]

            expected = bits(again)
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(bits, [executor] * 4))
            assert all(each == expected for each in found), f"{problem}: {row.algorithm}: the bits differ from call to call"


def _floating(problem: Any) -> int:
    """How many of the arrays, from the first, hold floats whose non-finite values are followed."""
    places = problem.op.startswith("max_unpool") or (problem.op == "max_pool_backward" and problem.indices)
    return 1 if places else min(2, len(problem.input_shapes))


def _skip(reason: str) -> None:
    import pytest

    pytest.skip(reason)
