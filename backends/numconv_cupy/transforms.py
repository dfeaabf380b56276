"""Convolution by transforms as a list of prepared steps: what `fft` does on a device with real floats in their own precision.

A unit is a block of one image. All units that the working memory holds, and the weights, are put in place by one launch and
transformed as one batch by cuFFT; a launch multiplies and sums spectra, a batch goes back, and a last launch cuts the results out:
five calls, whatever the number of blocks. What is not finite spoils all results of its blocks, so results that are not finite are
computed again term by term, as those are whose sums are short beside the error of a transform.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Executor, np_dtype

from .bias import add_bias_gradient, bias_workspace
from .blocks import is_prepared
from .device import Device, Transform
from .flags import Box
from .layouts import Channels, Layout
from .recipes import Place, Recipe, executor_by, layout, record
from .source import geometry

__all__ = ["is_transformed", "rounds_of", "spectra_layout", "transformed"]

_NDIM = 3
"""Axes of a transform of cuFFT."""
_MOST = 2**31 - 1
"""Threads of a launch."""
_THREADS = 1 << 17
"""That keep a large GPU busy: gradients of weights have as many partial sums as give so many products of spectra."""


def is_transformed(problem: ConvProblem, dtype: str) -> bool:
    """Whether this module computes it: real floats transformed in the precision of their sums, in dimensions that cuFFT has."""
    return is_prepared(problem) and problem.ndim <= _NDIM and dtype == problem.acc_dtype


def transformed(problem: ConvProblem, cut: Layout, short: Sequence[Box], device: Device) -> Executor:
    """Steps, which are prepared for each combination of strides that comes along."""
    return executor_by(functools.partial(prepare, cut, short), problem, device)


@functools.cache
def spectra_layout(ndim: int) -> np.dtype[Any]:
    """Struct Spectra of ``spectra.cu``."""
    numbers = (
        "threads", "unit", "first", "weights", "sources", "group", "output", "groups", "outputs", "inputs", "rows", "columns",
        "inner", "most",
    )  # fmt: skip
    after = ("frequencies", "size", "parts", "start", "last", "scale")
    by_axis = ("step", "extent", "before", "from", "to")
    divisors = ("size", "channels", "inputs", "outputs", "blocks", "frequencies", "rows", "columns", "groups", "taps")
    divisors_by_axis = ("length", "block", "dilation", "stride", "kept", "window")
    tail = layout(ndim, after, by_axis, [f"by_{name}" for name in divisors], [f"by_{name}" for name in divisors_by_axis])
    fields: list[tuple[Any, ...]] = [(name, np.int64) for name in numbers]
    fields += [(name, np.int64, (4,)) for name in ("a", "b", "c")]
    fields += [(name, *tail.fields[name][:1]) for name in tail.names]  # type: ignore[index,union-attr]
    return np.dtype(fields)


class Round(NamedTuple):
    """Units and channels that are computed together."""

    cut: Layout
    channels: Channels
    first: int
    units: int

    @property
    def outputs(self) -> int:
        """A group."""
        if self.channels.groups > 1:
            return self.cut.outputs
        count: int = self.channels.results.stop - self.channels.results.start
        return count

    @property
    def first_group(self) -> int:
        """Of the channels."""
        group: int = self.channels.results.start // self.cut.outputs
        return group

    @property
    def first_output(self) -> int:
        """In its group."""
        output: int = self.channels.results.start % self.cut.outputs
        return output

    @property
    def weights(self) -> int:
        """Kernels."""
        return self.channels.groups * self.outputs * self.cut.inputs

    @property
    def sources(self) -> int:
        """Channels of the source of a unit."""
        return self.channels.groups * self.cut.inputs

    @property
    def results(self) -> int:
        """Channels of the result of a unit."""
        return self.channels.groups * self.outputs


def prepare(cut: Layout, short: Sequence[Box], recipe: Recipe) -> None:
    """All rounds of all channels."""
    for channels in cut.channels():
        rounds = _rounds(recipe.problem, cut, channels)
        for number, each in enumerate(rounds):
            if recipe.problem.op == "weight_grad":
                _weight_grad(recipe, each, number == 0, number == len(rounds) - 1)
            else:
                _convolve(recipe, each, short)
    if recipe.problem.op == "weight_grad" and recipe.problem.bias:
        add_bias_gradient(recipe)


def _rounds(problem: ConvProblem, cut: Layout, channels: Channels) -> list[Round]:
    whole = Round(cut, channels, 0, 1)
    size = 6 * np_dtype(cut.dtype).itemsize * math.prod(cut.lengths)
    fixed = whole.weights
    room = problem.max_workspace // size - fixed
    channels_of_unit = whole.sources + whole.results
    most = max(1, min(room // channels_of_unit, _MOST // (math.prod(cut.lengths) * (fixed + channels_of_unit))))
    units = cut.n * cut.blocks
    share = -(-units // -(-units // most))
    return [Round(cut, channels, first, min(share, units - first)) for first in range(0, units, share)]


def rounds_of(problem: ConvProblem, cut: Layout) -> tuple[int, int]:
    """How many rounds there are, and an upper bound of the bytes of one."""
    rounds = [_rounds(problem, cut, channels) for channels in cut.channels()]
    first = rounds[0][0]
    size = 6 * np_dtype(cut.dtype).itemsize * math.prod(cut.lengths)
    sums = math.prod(problem.w_shape) * np_dtype(cut.dtype).itemsize if problem.op == "weight_grad" else 0
    needed = size * (first.weights + first.units * (first.sources + first.results)) + sums + 1024
    return sum(map(len, rounds)), max(needed, bias_workspace(problem))


def _half(cut: Layout) -> int:
    return math.prod(cut.lengths[:-1]) * (cut.lengths[-1] // 2 + 1)


class Memory(NamedTuple):
    """Where a round has its values and spectra."""

    values: Place
    spectra: Place
    products: Place


def _memory(recipe: Recipe, cut: Layout, transforms: int, results: int, after: int = 0) -> Memory:
    """Values that come back lie where those that went had been."""
    size = math.prod(cut.lengths)
    values = recipe.reserve(max(transforms, results) * size, cut.dtype, after)
    spectra = recipe.reserve(2 * transforms * _half(cut), cut.dtype, recipe.end)
    return Memory(values, spectra, recipe.reserve(2 * results * _half(cut), cut.dtype, recipe.end))


def _moved(place: Place, values: int, dtype: str) -> Place:
    return Place(place.array, place.offset + values * np_dtype(dtype).itemsize)


def _common(problem: ConvProblem, each: Round) -> dict[str, Any]:
    """What all kernels of a round know."""
    cut = each.cut
    gradient = problem.op == "input_grad"
    before = [e - 1 - low if gradient else 0 for e, (low, _) in zip(cut.extents, problem.padding, strict=True)]
    blocks = [-(-p // s) for p, s in zip(cut.positions, cut.steps, strict=True)]
    return {
        "first": each.first, "weights": each.weights, "sources": each.sources, "group": each.first_group,
        "output": each.first_output, "groups": each.channels.groups, "outputs": each.outputs, "inputs": cut.inputs,
        "step": cut.steps, "extent": cut.extents, "before": before, "scale": 1.0 / math.prod(cut.lengths),
        "by_inputs": cut.inputs, "by_outputs": each.outputs, "by_blocks": cut.blocks, "by_length": cut.lengths, "by_block": blocks,
        "by_dilation": problem.dilation, "by_stride": problem.stride, "by_window": problem.kernel,
    }  # fmt: skip


def _macros(problem: ConvProblem, **tile: int) -> dict[str, int]:
    return {"SPECTRA_BYTES": spectra_layout(problem.ndim).itemsize, "GRADIENT": int(problem.op == "input_grad"), **tile}


def _launch(
    recipe: Recipe, name: str, strides: Sequence[Any], fields: dict[str, Any], places: Sequence[Place | None], **more: Any
) -> None:
    problem = recipe.problem
    about = geometry(problem, *strides, **more)
    recipe.launch(name, fields["threads"], (about, record(spectra_layout(problem.ndim), **fields)), places, _macros(problem))


class Steps(NamedTuple):
    """Of the products of a round, in spectra of one channel: part, group, row or column, inner (of c: part, group, row, column)."""

    a: tuple[int, int, int, int]
    b: tuple[int, int, int, int]
    c: tuple[int, int, int, int]


def _products(recipe: Recipe, each: Round, sizes: tuple[int, int, int, int], steps: Steps, places: Sequence[Place]) -> None:
    """Rows, columns, inner terms and the most of a part."""
    problem, frequencies = recipe.problem, _half(each.cut)
    rows, columns, inner, most = sizes
    tile = {"ROWS": _side(rows), "COLUMNS": _side(columns)}
    across, down, parts = -(-columns // tile["COLUMNS"]), -(-rows // tile["ROWS"]), -(-inner // most)
    threads = frequencies * across * down * each.channels.groups * parts
    fields: dict[str, Any] = {name: [step * frequencies for step in given] for name, given in steps._asdict().items()}
    fields |= {
        "threads": threads, "rows": rows, "columns": columns, "inner": inner, "most": most, "by_frequencies": frequencies,
        "by_columns": across, "by_rows": down, "by_groups": each.channels.groups,
    }  # fmt: skip
    about = record(spectra_layout(problem.ndim), **fields)
    recipe.launch("multiply_spectra", threads, (about,), places, _macros(problem, **tile))


def _side(count: int) -> int:
    """Of a thread's tile."""
    return 4 if count >= 3 else count


def _convolve(recipe: Recipe, each: Round, short: Sequence[Box]) -> None:
    problem, cut = recipe.problem, each.cut
    out_steps, source_steps, w_steps, *bias = recipe.strides
    size, half = math.prod(cut.lengths), _half(cut)
    batch, results = each.weights + each.units * each.sources, each.units * each.results
    memory = _memory(recipe, cut, batch, results)
    common = _common(problem, each)
    fields = common | {"threads": batch * size, "by_size": size, "by_channels": each.sources}
    strides = (source_steps, w_steps, out_steps)
    _launch(recipe, "fill_weights_and_sources", strides, fields, (Place(1), Place(2), memory.values))
    recipe.transform(Transform(cut.lengths, batch, cut.dtype, inverse=False), memory.values, memory.spectra)
    groups, outputs, inputs = each.channels.groups, each.outputs, cut.inputs
    steps = Steps((0, inputs, groups * inputs, 1), (0, outputs * inputs, inputs, 1), (0, outputs, groups * outputs, 1))
    source = _moved(memory.spectra, 2 * each.weights * half, cut.dtype)
    _products(recipe, each, (each.units, outputs, inputs, inputs), steps, (source, memory.spectra, memory.products))
    recipe.transform(Transform(cut.lengths, results, cut.dtype, inverse=True), memory.products, memory.values)
    kept = [step // every for step, every in zip(cut.steps, cut.every, strict=True)]
    begin, end = _inside(problem, short)
    fields = common | {
        "threads": results * math.prod(kept), "by_size": math.prod(kept), "by_channels": each.results, "by_kept": kept,
        "from": begin, "to": end,
    }  # fmt: skip
    places = (Place(1), Place(2), Place(3) if bias else None, memory.values, Place(0))
    _launch(recipe, "store_blocks", strides, fields, places, bias_step=bias[0][0] if bias else 1)


def _inside(problem: ConvProblem, short: Sequence[Box]) -> tuple[list[int], list[int]]:
    """The positions of results outside all boxes, each of which is a slice at the border along one axis."""
    sizes = problem.output if problem.op == "forward" else problem.spatial
    begin, end = [0] * problem.ndim, list(sizes)
    for first, count in short:
        axis = next(axis for axis, size in enumerate(sizes) if count[axis] < size)
        if first[axis] == 0:
            begin[axis] = count[axis]
        else:
            end[axis] = first[axis]
    return begin, end


def _weight_grad(recipe: Recipe, each: Round, first: bool, last: bool) -> None:
    problem, cut = recipe.problem, each.cut
    out_steps, (y_steps, x_steps) = recipe.strides[0], recipe.strides[-2:]
    grad_y, x = Place(recipe.scratch - 2), Place(recipe.scratch - 1)
    size, half = math.prod(cut.lengths), _half(cut)
    groups, outputs, inputs = each.channels.groups, each.outputs, cut.inputs
    taps = math.prod(problem.kernel)
    left = each.units * each.results
    batch = left + each.units * each.sources
    most = _most(each, half)
    parts = -(-each.units // most)
    sums = recipe.reserve(each.weights * taps, cut.dtype)
    memory = _memory(recipe, cut, batch, parts * each.weights, recipe.end)
    common = _common(problem, each) | {"weights": left, "by_outputs": each.results, "by_inputs": each.sources}
    strides = (y_steps, x_steps, out_steps)
    fields = common | {"threads": batch * size, "by_size": size}
    _launch(recipe, "fill_gradient_and_sources", strides, fields, (grad_y, x, memory.values))
    recipe.transform(Transform(cut.lengths, batch, cut.dtype, inverse=False), memory.values, memory.spectra)
    steps = Steps(
        (most * groups * inputs, inputs, 1, groups * inputs), (most * groups * outputs, outputs, 1, groups * outputs),
        (groups * outputs * inputs, outputs * inputs, 1, inputs),
    )  # fmt: skip
    right = _moved(memory.spectra, 2 * left * half, cut.dtype)
    _products(recipe, each, (inputs, outputs, each.units, most), steps, (right, memory.spectra, memory.products))
    recipe.transform(Transform(cut.lengths, parts * each.weights, cut.dtype, inverse=True), memory.products, memory.values)
    fields = _common(problem, each) | {
        "threads": each.weights * taps, "by_taps": taps, "parts": parts, "start": first, "last": last,
        "c": (each.weights * size, 0, 0, 0),
    }  # fmt: skip
    _launch(recipe, "store_gradient", strides, fields, (grad_y, x, memory.values, sums, Place(0)))


def _most(each: Round, frequencies: int) -> int:
    """Units of a partial sum of spectra: fewer where there are too few sums to keep a device busy."""
    tiles = -(-each.outputs // _side(each.outputs)) * -(-each.cut.inputs // _side(each.cut.inputs)) * each.channels.groups
    parts = max(1, min(_THREADS // max(1, tiles * frequencies), each.units * (each.sources + each.results) // max(1, each.weights)))
    return -(-each.units // parts)
