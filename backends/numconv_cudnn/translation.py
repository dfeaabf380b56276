"""A problem as a graph of cuDNN: plain data, known without cuDNN.

The graph has one convolution, for a forward pass or a gradient of x with the bias and the activation behind it, which never leave
the chip. One-dimensional problems become two-dimensional with a first axis of one row. Names and rules are those of the cuDNN
documentation, "Graph API".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from numconv.plugin import ConvProblem, Verdict

__all__ = ["LAYOUTS", "Graph", "Node", "Tensor", "graph_of", "steps_of", "supported"]

LAYOUTS = ("channels_first", "channels_last")

_DTYPES = ("float16", "bfloat16", "float32")
_ACTIVATIONS = {"relu": "relu", "silu": "swish", "gelu": "gelu"}
_NAMES = {
    "forward": ("conv_fprop", ("image", "weight")),
    "input_grad": ("conv_dgrad", ("loss", "filter")),
    "weight_grad": ("conv_wgrad", ("loss", "image")),
}  # fmt: skip
_TRANSFORMS = ("FFT", "WINOGRAD", "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6")
_NEVER = ("NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "WINOGRAD_TILE_13x13")


class Tensor(NamedTuple):
    """A tensor of a graph; `strides` in elements, none for those that stay on the chip."""

    name: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Of a dense one."""
        return math.prod(self.dims) * (4 if self.dtype == "float32" else 2)


class Node(NamedTuple):
    """An operation: the names of its inputs by parameter, of its output, and its other parameters."""

    operation: str
    inputs: tuple[tuple[str, str], ...]
    output: str
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """Inputs in the executor's order, then what the nodes make, the output last. Known by its identity: the key of a plan."""

    inputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    made: tuple[Tensor, ...]
    excluded: tuple[str, ...]
    """Numerical notes of engines that are not taken."""
    transforms: bool
    """Whether the engine may transform, so that a value that is not finite spoils its surroundings."""
    workspace: int
    """Bytes that an engine may need."""
    text: str
    """What it computes, for people and files."""
    timed: bool
    """Whether the engines are timed, and not chosen by cuDNN's heuristics."""

    @property
    def output(self) -> Tensor:
        """The tensor that is written."""
        return self.made[-1]


def supported(problem: ConvProblem) -> Verdict:
    """What can be said without a graph: a reason for each limit."""
    if problem.dtype not in _DTYPES:
        return Verdict.no(f"dtype {problem.dtype} is not supported (has {', '.join(_DTYPES)})")
    if problem.out_dtype not in (problem.dtype, "float32"):
        return Verdict.no(f"results of {problem.out_dtype} from {problem.dtype} are not supported (has the same, and float32)")
    if problem.ndim > 3:
        return Verdict.no(f"{problem.ndim} spatial dimensions are not supported (has 1 to 3)")
    if problem.pad_mode != "zeros":
        return Verdict.no(f"pad_mode {problem.pad_mode!r} is not supported (has zeros)")
    if any(high < 0 for _, high in problem.padding):
        return Verdict.no(f"padding {problem.padding} cuts x, which is not supported")
    if problem.flip:
        return Verdict.no("flip=True is not supported: cuDNN's engines correlate")
    if max(map(math.prod, (problem.x_shape, problem.y_shape, problem.w_shape))) >= 1 << 31:
        return Verdict.no("an array of 2**31 elements or more is not supported")
    return Verdict.yes()


def with_two_axes(values: tuple[int, ...], ndim: int, filler: int) -> tuple[int, ...]:
    """The values of the spatial axes with one more before a single one."""
    return (*values[:-1], filler, values[-1]) if ndim == 1 else values


def _tensor(name: str, dims: Sequence[int], dtype: str, layout: str) -> Tensor:
    steps, ndim = steps_of(dims, layout), len(dims) - 2
    rows = steps[-1] * dims[-1]  # of the axis of one row: never stepped over
    return Tensor(name, with_two_axes(tuple(dims), ndim, 1), with_two_axes(steps, ndim, rows), dtype)


def _channels(name: str, count: int, dtype: str, ndim: int) -> Tensor:
    ones = (1,) * max(2, ndim)
    return Tensor(name, (1, count, *ones), (count, 1, *ones), dtype)


def _excluded(problem: ConvProblem, transforms: bool) -> tuple[str, ...]:
    """Engines whose bits change from run to run, or that keep less than the level promises.

    Of float32 the engines on tensor cores round the factors to TF32.
    """
    always = _NEVER if transforms else (*_NEVER, *_TRANSFORMS)
    if problem.level == "fast":
        return always
    return (*always, "REDUCED_PRECISION_REDUCTION", *(["TENSOR_CORE"] if problem.dtype == "float32" else []))


def steps_of(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """The strides, in elements, of a dense array [N, C, *S] in a layout, or [K, C/G, *R]; or of a bias [K], which has one."""
    order = list(range(len(shape)))
    if layout == "channels_last" and len(shape) > 1:
        order.append(order.pop(1))
    steps, step = [0] * len(shape), 1
    for axis in reversed(order):
        steps[axis] = step
        step *= shape[axis]
    return tuple(steps)


@functools.lru_cache(maxsize=1024)
def graph_of(problem: ConvProblem, layout: str, fused: bool = True, transforms: bool = False, timed: bool = False) -> Graph:
    """The graph of a problem: the same object for the same arguments.

    Parameters
    ----------
    problem : ConvProblem
        One that is `supported`.
    layout : {"channels_first", "channels_last"}
        Of the memory of all arrays.
    fused : bool
        With the bias and the activation.
    transforms : bool
        For engines of Winograd's algorithm and by FFT too.
    timed : bool
        Whether its engines are timed.

    Returns
    -------
    Graph
    """
    ndim = problem.ndim
    operation, parameters = _NAMES[problem.op]
    inputs = [_tensor(name, shape, problem.dtype, layout) for name, shape in zip(parameters, problem.input_shapes, strict=False)]
    lows, highs = (tuple(pair[side] for pair in problem.padding) for side in (0, 1))
    attributes = {"pre_padding": lows, "post_padding": highs, "stride": problem.stride, "dilation": problem.dilation}
    fillers = {"pre_padding": 0, "post_padding": 0, "stride": 1, "dilation": 1}
    convolution = Node(
        operation,
        tuple((name, name) for name in parameters),
        "sums",
        tuple((name, with_two_axes(values, ndim, fillers[name])) for name, values in attributes.items()),
    )
    nodes, made = [convolution], [_tensor("sums", problem.output_shapes[0], "float32", layout)]
    if fused and problem.op != "weight_grad" and problem.bias:
        inputs.append(_channels("bias", problem.bias_shape[0], problem.dtype, ndim))
        nodes.append(Node("add", (("a", made[-1].name), ("b", "bias")), "biased"))
        made.append(made[-1]._replace(name="biased"))
    if fused and problem.activation:
        nodes.append(Node(_ACTIVATIONS[problem.activation], (("input", made[-1].name),), "activated"))
        made.append(made[-1]._replace(name="activated"))
    made[-1] = made[-1]._replace(dtype=problem.out_dtype)
    words = (str(problem), layout, *(node.operation for node in nodes), *(["transforms"] if transforms else []))
    excluded = _excluded(problem, transforms)
    return Graph(tuple(inputs), tuple(nodes), tuple(made), excluded, transforms, problem.max_workspace, " ".join(words), timed)
