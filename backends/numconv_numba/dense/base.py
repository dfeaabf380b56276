"""What the dense implementations share: an input_grad as forward convolutions, widened weights, images that are computed again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, activate, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.direct import Direct
from numconv_numba.geometry import conv_vectors

from .patches import MOVED_SECONDS, PATCH_SECONDS, Moves, is_patchwise, kept_arrays, patch_products, product_weights

__all__ = [
    "Adjoint",
    "DenseImplementation",
    "ForwardExecutor",
    "Part",
    "Weights",
    "accumulated",
    "compute_again",
    "few_phases",
    "fill",
    "forward_parts",
    "forward_problems",
    "is_padded",
    "redo",
    "with_weights",
]

MOST_PHASES = 4096
"""Of a strided input_grad: planning takes some microseconds for each."""
FLAG = np.dtype(np.uint8)
"""Of the status of an image; made once, as calls of a few microseconds notice."""


class Part(NamedTuple):
    """A forward convolution that gives one phase of an input_grad.

    Attributes
    ----------
    problem : ConvProblem or None
        Of grad_y with some taps of w; None where a phase sees no tap and stays zero.
    taps, places : tuple of slice
        The taps of w, and the positions of grad_x, per dimension.
    """

    problem: ConvProblem | None
    taps: tuple[slice, ...]
    places: tuple[slice, ...]


class _Axis(NamedTuple):
    """One phase of one dimension: window, padding, dilation and size of its convolution."""

    window: int
    padding: tuple[int, int]
    dilation: int
    size: int
    taps: slice
    places: slice


def _axis_phase(problem: ConvProblem, axis: int, phase: int) -> _Axis:
    """Position p = s * m + phase of x is read by tap t of output m + (phase + low - t*d) / s, where that is a whole number."""
    s, d, r = problem.stride[axis], problem.dilation[axis], problem.kernel[axis]
    low, size = problem.padding[axis][0], -(-(problem.spatial[axis] - phase) // s)
    every = s // math.gcd(s, d)
    first = next((t for t in range(min(every, r)) if (phase + low - t * d) % s == 0), None)
    places = slice(phase, None, s)
    if first is None:
        return _Axis(0, (0, 0), 1, size, slice(0, 0), places)
    count = -(-(r - first) // every)
    last = first + (count - 1) * every
    before = (last * d - low - phase) // s
    dilation = every * d // s
    after = size + dilation * (count - 1) - before - problem.output[axis]
    # with flip, tap t of the mathematical kernel lies at r - 1 - t
    taps = slice(r - 1 - last, r - first, every) if problem.flip else slice(first, last + 1, every)
    return _Axis(count, (before, after), dilation, size, taps, places)


def forward_parts(problem: ConvProblem) -> list[Part]:
    """The forward problems that compute an input_grad with padding of zeros, one for each phase of the stride.

    Positions of x with the same remainder by the stride are read by the same taps, and for them the gradient is a dense
    convolution of grad_y with those taps, reversed: no zeros are multiplied (the phases of a transposed convolution).
    """
    parts = []
    for phases in itertools.product(*(range(min(s, size)) for s, size in zip(problem.stride, problem.spatial, strict=True))):
        axes = [_axis_phase(problem, axis, phase) for axis, phase in enumerate(phases)]
        taps, places = tuple(a.taps for a in axes), tuple(a.places for a in axes)
        changes: dict[str, Any] = {
            "op": "forward", "c": problem.k, "k": problem.c, "spatial": problem.output, "flip": not problem.flip,
            "kernel": tuple(a.window for a in axes), "stride": (1,) * problem.ndim, "padding": tuple(a.padding for a in axes),
            "dilation": tuple(a.dilation for a in axes), "bias": "y" if problem.bias else "",
        }  # fmt: skip
        empty = any(a.window == 0 for a in axes)
        parts.append(Part(None if empty else problem.replace(**changes), taps, places))
    return parts


class Weights(NamedTuple):
    """Weights as a kernel reads them.

    Attributes
    ----------
    array : ndarray
    strides : tuple of int
        Of w ``[K, C/G, *R]``, in bytes.
    packed : bool
        Whether the array is in the kernel's own order instead.
    """

    array: Any
    strides: tuple[int, ...]
    packed: bool = False


class ForwardExecutor:
    """A forward convolution on tiles: weights made ready, one run, and images computed again that have lost a padding zero.

    Parameters
    ----------
    problem : ConvProblem
    items : int
        Blocks of all groups.
    """

    def __init__(self, problem: ConvProblem, items: int):
        self._problem = problem
        self._items = items
        self._padded = is_padded(problem)
        self._vectors: Callable[..., Any] = conv_vectors(problem, ACTIVATIONS[problem.activation])
        self._acc = np_dtype(problem.acc_dtype)
        self._images = problem.n

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if self._items:
            self._run(outs[0], ins, self.unpacked(ins[1]))

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, packed."""
        original = w.copy()
        ready = self.packed(original)
        return lambda outs, ins: self._run(outs[0], (ins[0], original, *ins[1:]), ready) if self._items else None

    def unpacked(self, w: Any) -> Weights:
        """The weights of a single call."""
        return Weights(w, w.strides)

    def packed(self, w: Any) -> Weights:
        """Bound weights."""
        raise NotImplementedError

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run the kernel; `status` gets a 1 for each image with a sum that is not finite."""
        raise NotImplementedError

    def _run(self, y: Any, ins: Any, w: Weights) -> None:
        x, bias = ins[0], ins[2:]
        shift = accumulated(bias[0], self._acc) if bias else 0
        status = np.zeros(self._images, FLAG)
        self.launch(x, w, shift, y, status, self._vectors(x.strides, w.strides, y.strides))
        if status.item(0) if self._images == 1 else b"\1" in status.tobytes():
            self.again(y, ins, np.flatnonzero(status))

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again: see `redo`."""
        if self._padded:
            redo(self._problem, y, ins, images)


def is_padded(problem: ConvProblem) -> bool:
    """Whether windows hold zeros of padding."""
    return problem.pad_mode == "zeros" and any(low > 0 or high > 0 for low, high in problem.padding)


def redo(problem: ConvProblem, y: Any, ins: Sequence[Any], images: Any) -> None:
    """Compute images of a forward convolution again with `Direct`, where padding zeros may have met a w that is not finite.

    With finite w these zeros added nothing, and what is not finite comes from x or from an overflow: it stays.
    """
    if not np.isfinite(ins[1]).all():
        compute_again(problem, y, ins, images)


def compute_again(problem: ConvProblem, y: Any, ins: Sequence[Any], images: Any) -> None:
    """Compute images of a forward convolution again with `Direct`."""
    executor = Direct().build(problem.replace(n=1))
    for n in images:
        executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


def fill(view: Any, bias: Sequence[Any], activation: str | None) -> None:
    """What no tap sees: the bias alone."""
    view[...] = bias[0].reshape(-1, *[1] * (view.ndim - 2)) if bias else 0
    activate(view, activation)


def with_weights(executor: Any, w: Any) -> Any:
    """What is called like a bound executor, for a single call: w is read where it lies."""
    return lambda outs, ins: executor(outs, (ins[0], w, *ins[1:]))


class Adjoint:
    """An input_grad: the executors of its parts, on views of w and grad_x."""

    def __init__(self, problem: ConvProblem, parts: list[Part], executors: list[Any]):
        self._problem = problem
        self._parts = parts
        self._executors = executors

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute, part by part."""
        swapped = self.swapped(ins[1])
        if max(self._problem.stride) == 1:  # one part: all taps and all places
            self._executors[0](outs, (ins[0], swapped, *ins[2:]))
            return
        for part, executor in zip(self._parts, self._executors, strict=True):
            view = outs[0][(..., *part.places)]
            if executor is None:
                fill(view, ins[2:], self._problem.activation)
            else:
                executor((view,), (ins[0], swapped[(..., *part.taps)], *ins[2:]))

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, packed part by part."""
        swapped = self.swapped(w)
        bound = [
            None if each is None else each.bind(swapped[(..., *part.taps)])
            for part, each in zip(self._parts, self._executors, strict=True)
        ]

        def run(outs: Any, ins: Any) -> None:
            for part, executor in zip(self._parts, bound, strict=True):
                view = outs[0][(..., *part.places)]
                if executor is None:
                    fill(view, ins[1:], self._problem.activation)
                else:
                    executor((view,), ins)

        return run

    def swapped(self, w: Any) -> Any:
        """w with input and output channels exchanged in each group, as a view: ``[C, K/G, *R]``; of two groups or more a copy.

        The adjoint of a complex w is conjugated, in a copy.
        """
        groups = self._problem.groups
        if w.dtype.kind == "c":
            w = w.conj()
        if groups == 1:
            return w.swapaxes(0, 1)
        split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
        return split.reshape(-1, *split.shape[2:])


class Patches(Adjoint):
    """An input_grad whose windows share no position: see `patches`. `forward` makes the executor of a forward problem."""

    def __init__(self, problem: ConvProblem, forward: Callable[[ConvProblem], Any]):
        super().__init__(problem, [], [])
        self._images = patch_products(problem).n
        counts = {min(self._images, problem.n - first) for first in range(0, problem.n, max(self._images, 1))}
        self._forward = {count: forward(patch_products(problem).replace(n=count)) for count in counts}
        self._moves = Moves(problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute, some images at a time."""
        w = product_weights(self._problem, ins[1])
        self._run(outs[0], ins[0], ins[2:], {n: with_weights(each, w) for n, each in self._forward.items()})

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w."""
        columns = product_weights(self._problem, w)
        bound = {count: each.bind(columns) for count, each in self._forward.items()}
        return lambda outs, ins: self._run(outs[0], ins[0], ins[1:], bound)

    def _run(self, x: Any, y: Any, bias: Sequence[Any], executors: Mapping[int, Any]) -> None:
        shift = [np.repeat(each, math.prod(self._problem.kernel)) for each in bias]
        if self._moves.gaps:
            fill(x, bias, self._problem.activation)
        for first in range(0, self._problem.n, max(self._images, 1)):
            some = slice(first, min(first + self._images, self._problem.n))
            (products,) = kept_arrays(x.dtype, patch_products(self._problem).replace(n=some.stop - first).y_shape)
            executors[some.stop - first]((products,), (y[some], *shift))
            self._moves(x[some], products)


class DenseImplementation(Implementation):
    """An implementation of forward convolutions that serves input_grad through `forward_parts`."""

    ops = frozenset(("forward", "input_grad"))
    apart_seconds: ClassVar[float] = 6e-10
    """Of a result that is no neighbour of the next one in memory, as in an input_grad with a stride, beyond that of another."""

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Whether a forward problem is supported."""
        raise NotImplementedError

    def forward_cost(self, problem: ConvProblem) -> float:
        """Estimated seconds of a forward problem."""
        raise NotImplementedError

    def forward_workspace(self, problem: ConvProblem) -> int:
        """Bytes of a forward problem."""
        raise NotImplementedError

    def forward(self, problem: ConvProblem) -> Any:
        """The executor of a forward problem."""
        raise NotImplementedError

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats, where every part of an input_grad is supported."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        if problem.op == "forward":
            return self.accepts(problem)
        if problem.pad_mode != "zeros":
            return Verdict.no(f"an input_grad with pad_mode {problem.pad_mode} folds back: it is no dense convolution")
        if is_patchwise(problem):
            return self.accepts(patch_products(problem))
        if not (few := few_phases(problem)):
            return few
        verdicts = [self.accepts(part) for part in forward_problems(problem)]
        return next((verdict for verdict in verdicts if not verdict), Verdict.yes())

    def cost(self, problem: ConvProblem) -> float:
        """The sum over the parts; those with a stride write every line of grad_x several times."""
        if problem.op == "forward":
            return self.forward_cost(problem)
        if is_patchwise(problem):
            products = patch_products(problem)
            runs = -(-problem.n // max(products.n, 1))
            return runs * self.forward_cost(products) + math.prod(problem.x_shape) * MOVED_SECONDS + PATCH_SECONDS
        strided = math.prod(problem.x_shape) * self.apart_seconds if max(problem.stride) > 1 else 0.0
        return strided + sum(map(self.forward_cost, forward_problems(problem)))

    def workspace(self, problem: ConvProblem) -> int:
        """Of the part that needs most; of several groups, w is copied."""
        if problem.op == "forward":
            return self.forward_workspace(problem)
        swapped = 0 if problem.groups == 1 else math.prod(problem.w_shape) * np_dtype(problem.dtype).itemsize
        if is_patchwise(problem):
            products = patch_products(problem)
            moved = math.prod(products.y_shape) * np_dtype(problem.out_dtype).itemsize
            return (
                swapped + math.prod(problem.w_shape) * np_dtype(problem.dtype).itemsize + moved + self.forward_workspace(products)
            )
        return swapped + max(map(self.forward_workspace, forward_problems(problem)), default=0)

    def build(self, problem: ConvProblem) -> Any:
        """The executor."""
        if problem.op == "forward":
            return self.forward(problem)
        if is_patchwise(problem):
            return Patches(problem, self.forward)
        parts = forward_parts(problem)
        return self.adjoint(problem, parts, [None if part.problem is None else self.forward(part.problem) for part in parts])

    def adjoint(self, problem: ConvProblem, parts: list[Part], executors: list[Any]) -> Any:
        """The executor of an input_grad, from those of its parts."""
        return Adjoint(problem, parts, executors)


def few_phases(problem: ConvProblem) -> Verdict:
    """Whether the phases of an input_grad are few enough to plan each of them."""
    phases = math.prod(map(min, problem.stride, problem.spatial))
    if phases > MOST_PHASES:
        return Verdict.no(f"each phase of a stride is a convolution of its own, of at most {MOST_PHASES}, and here are {phases}")
    return Verdict.yes()


def forward_problems(problem: ConvProblem) -> list[ConvProblem]:
    """Those of `forward_parts` that see a tap."""
    return [part.problem for part in forward_parts(problem) if part.problem is not None]


def accumulated(array: Any, dtype: np.dtype[Any]) -> Any:
    """An array in the dtype of sums, contiguous; itself where it already is."""
    return np.ascontiguousarray(array, dtype)
