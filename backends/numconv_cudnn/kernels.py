"""The kernels of ``kernels.cu`` as launches: which one, how many blocks, with which arguments.

All arguments are integers of 64 bits, addresses too; a structure, passed by value, comes first and has only such fields. What
launches them is the driver, or in tests a loop over the same source compiled for the host.
"""

from __future__ import annotations

import functools
import math
import pathlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from numconv.plugin import ConvProblem

from .translation import steps_of

__all__ = ["THREADS", "BiasSums", "Finish", "Launch", "Macros", "Move", "Repair", "macros", "source"]

THREADS = 256
"""Threads of every block."""
_BLOCKS = 264
"""Blocks that share work among them: two for each of the 132 multiprocessors of an H200."""
_EACH = 1 << 11
"""So many values every block may look at by itself: then one launch looks and repairs."""
_LOOKED = 1 << 10
"""Values for a block of the launch that only looks, until there are `_BLOCKS`."""
_BY = ("witnesses", "weights", "each", "all")
_AT_ONCE = 1024
"""Blocks that sums of a bias aim at."""
_LEAST = 2048
"""Values that a partial sum has at least."""
_ACTIVATIONS = (None, "relu", "silu", "gelu")
_TYPES = {"float16": "Half", "bfloat16": "BFloat", "float32": "float"}

NO_RECORD = array("q")


class Launch(Protocol):
    """What launches the kernels that are compiled for some types."""

    def __call__(self, kernel: str, blocks: int, numbers: Sequence[int], stream: int, record: array[int] = NO_RECORD) -> None:
        """Launch a kernel with the fields of its structure, if it takes one, and its further arguments."""


class Macros(NamedTuple):
    """The element types for which the source is compiled: of inputs and outputs."""

    IN: str
    OUT: str


def macros(problem: ConvProblem) -> Macros:
    """Those of a problem."""
    return Macros(_TYPES[problem.dtype], _TYPES[problem.out_dtype])


@functools.cache
def source() -> str:
    """The CUDA C++ source."""
    return (pathlib.Path(__file__).parent / "kernels.cu").read_text(encoding="utf-8")


class Repair(NamedTuple):
    """Computes again what values that are not finite spoilt; else it costs a launch that finds nothing to do, or two.

    An engine multiplies padding zeros, with which an infinity makes NaN though such a product is no term. What tells:

    witnesses  one result of each channel, which reads every tap and no padding: if a weight is not finite, so is one of them, and
               all other results are computed again
    weights    themselves, where an activation may hide what the witnesses say, or there are none
    each       result, where the infinity may come from anywhere: each that is not finite is computed again
    all        nothing: cuDNN has no engine, and this is what computes
    """

    kernel: str
    record: array[int]
    by: int
    looked: int
    """Weights or flags that a block looks at."""
    flags: int
    """Blocks of the launch that looks at the weights, and leaves a flag each; 0: there is none."""
    weights: int
    blocks: int

    @classmethod
    def of(cls, problem: ConvProblem, layout: str, by: str, *, fused: bool) -> Repair:
        """For dense arrays in a layout, and a result that has, or gets, its bias and activation here or has not."""
        witness = None if fused and problem.activation else _witness(problem)
        if by == "witnesses" and witness is None:
            by = "weights"
        weights = math.prod(problem.w_shape)
        flags = min(_BLOCKS, -(-weights // _LOOKED)) if by == "weights" and weights > _EACH else 0
        most = _BLOCKS if by in ("witnesses", "weights") else 4 * _BLOCKS
        blocks = min(-(-math.prod(problem.output_shapes[0]) // THREADS), most)
        record = _geometry(problem, layout, witness or (0,) * problem.ndim, fused=fused)
        return cls(f"redo_{problem.op}", record, _BY.index(by), flags or weights, flags, weights, blocks)

    def run(self, launch: Launch, a: int, b: int, bias: int, y: int, flags: int, stream: int) -> None:
        """All addresses, of the bias 0 if the result has none yet; `flags` has a byte for each of them."""
        if self.flags:
            launch("look", self.flags, (b, self.weights, flags), stream)
        numbers = (a, b, bias, y, self.by, self.looked, flags if self.flags else 0)
        launch(self.kernel, self.blocks, numbers, stream, self.record)


def _witness(problem: ConvProblem) -> tuple[int, ...] | None:
    """The position of a result that reads every tap, and no zero of the padding or between strided gradients, if there is one."""
    position = []
    for size, taps, output, step, (low, _), dilation in zip(
        problem.spatial, problem.kernel, problem.output, problem.stride, problem.padding, problem.dilation, strict=True
    ):
        reach = dilation * (taps - 1)
        if problem.op == "forward":
            at = -(-low // step)
            fits = at < output and at * step - low + reach < size
        else:
            at = max(0, reach - low)
            fits = step == 1 and at < size and at + low < output
        if not fits:
            return None
        position.append(at)
    return tuple(position)


def _geometry(problem: ConvProblem, layout: str, witness: tuple[int, ...], *, fused: bool) -> array[int]:
    """The record of the source, for at most three spatial axes."""
    missing = 3 - problem.ndim
    lows = tuple(low for low, _ in problem.padding)
    activation = _ACTIVATIONS.index(problem.activation) if fused else 0
    values = [problem.n, problem.c, problem.k, problem.groups, activation, layout == "channels_last"]
    for axes, filler in (
        (problem.spatial, 1), (problem.kernel, 1), (problem.output, 1), (problem.stride, 1), (lows, 0), (problem.dilation, 1),
        (witness, 0),
    ):  # fmt: skip
        values += [filler] * missing + list(axes)
    for shape in problem.input_shapes[:2]:
        steps = steps_of(shape, layout)
        values += [*steps[:2], *(0,) * missing, *steps[2:]]
    return array("q", values)


class Move(NamedTuple):
    """A copy of an array to other strides; of at most five axes."""

    kernel: str
    record: array[int]
    blocks: int

    @classmethod
    def of(cls, kernel: str, shape: Sequence[int], given: Sequence[int], made: Sequence[int]) -> Move:
        """By the kernel ``move_in`` or ``move_out``, with strides in elements."""
        order = sorted(range(len(shape)), key=lambda axis: -abs(made[axis]))
        missing = 5 - len(shape)
        values = [
            number
            for axes, filler in ((shape, 1), (given, 0), (made, 0))
            for number in (*[filler] * missing, *(axes[axis] for axis in order))
        ]
        return cls(kernel, array("q", values), min(-(-math.prod(shape) // THREADS), 16 * _BLOCKS))

    def run(self, launch: Launch, given: int, made: int, stream: int) -> None:
        """From an address to another."""
        launch(self.kernel, self.blocks, (given, made), stream, self.record)


class Finish(NamedTuple):
    """Bias and activation, in place, for sums that cuDNN left without them."""

    elements: int
    step: int
    channels: int
    activation: int

    @classmethod
    def of(cls, problem: ConvProblem, layout: str) -> Finish:
        """For a dense result in a layout."""
        shape = problem.output_shapes[0]
        return cls(math.prod(shape), steps_of(shape, layout)[1], shape[1], _ACTIVATIONS.index(problem.activation))

    def run(self, launch: Launch, y: int, bias: int, stream: int) -> None:
        """On a result at an address; 0: no bias."""
        blocks = min(-(-self.elements // THREADS), 16 * _BLOCKS)
        launch("finish", blocks, (y, bias, self.elements, self.step, self.channels, self.activation), stream)


class BiasSums(NamedTuple):
    """The gradient of a bias: sums over all but the channels, in parts whose number is a function of the problem."""

    n: int
    channels: int
    positions: int
    lanes: int
    parts: int

    @classmethod
    def of(cls, problem: ConvProblem, layout: str) -> BiasSums:
        """For grad_y, or x, in this layout."""
        shape = problem.y_shape if problem.bias == "y" else problem.x_shape
        n, channels, positions = shape[0], shape[1], math.prod(shape[2:])
        lanes = 32 if layout == "channels_last" else 1
        blocks, rows = -(-channels // lanes), n * positions
        return cls(n, channels, positions, lanes, max(1, min(_AT_ONCE // blocks, rows * lanes // _LEAST)))

    @property
    def bytes(self) -> int:
        """Of the partial sums."""
        return 4 * self.parts * self.channels

    def run(self, launch: Launch, values: int, sums: int, out: int, step: int, stream: int) -> None:
        """From values to a result whose elements are `step` apart, through `bytes` at `sums`."""
        blocks = -(-self.channels // self.lanes) * self.parts
        launch("channel_sums", blocks, (values, sums, self.n, self.channels, self.positions, self.lanes, self.parts), stream)
        launch("store_sums", -(-self.channels // THREADS), (sums, out, self.channels, self.parts, step), stream)
