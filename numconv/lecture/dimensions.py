"""Claim 9: stride and pooling bring the dimension down; what one output of a stack of layers sees."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import numconv as nc
from numconv.demo import data
from numconv.demo.pictures import COLOURS, bare, show_map

from .lesson import Lesson

__all__ = ["CLAIM", "STACK", "TITLE", "Layer", "field_by_gradient", "teach"]

TITLE = "Bringing the dimension down"
CLAIM = (
    "Strides and pooling bring the dimension down: later layers have fewer positions, cost less, "
    "and each position sees more of the input."
)

Array = np.ndarray[Any, Any]


class Layer(NamedTuple):
    """A layer of the stack, in two dimensions."""

    op: str
    channels: int
    kernel: int
    stride: int
    padding: int

    def options(self) -> dict[str, Any]:
        """Stride and padding, as numconv's functions take them."""
        return {"stride": self.stride, "padding": self.padding}

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """``[C, H, W]`` after this layer."""
        w_shape = (self.channels, before[0], self.kernel, self.kernel) if self.op == "conv" else (self.kernel, self.kernel)
        return tuple(nc.output_shape(self.op, before, w_shape, **self.options()))


STACK = (
    Layer("conv", 16, 3, 1, 1),
    Layer("conv", 16, 3, 1, 1),
    Layer("max_pool", 16, 2, 2, 0),
    Layer("conv", 32, 3, 1, 1),
    Layer("conv", 32, 3, 2, 1),
    Layer("avg_pool", 32, 2, 2, 0),
    Layer("conv", 64, 3, 1, 1),
)


def teach(lesson: Lesson) -> None:
    """A stack of layers as a table; its receptive field checked by a gradient; stride against pooling on a photograph."""
    through_a_stack(lesson)
    receptive_field(lesson)
    on_a_photograph(lesson)


def through_a_stack(lesson: Lesson) -> None:
    """Shapes, values, work and receptive field, layer by layer."""
    shape: tuple[int, ...] = (3, 64, 64)
    lesson.text("""A stack of convolutions and poolings on a colour image of 64x64. Work counts a multiplication and an addition
        as two; the receptive field is the square of input pixels that one output sees, the step is how many pixels apart those
        of neighbours are.""")
    rows: list[tuple[Any, ...]] = [("input", "", "", "", str(list(shape)), int(np.prod(shape)), 0, 1, 1)]
    work = []
    for n, layer in enumerate(STACK):
        before, shape = shape, layer.shape(shape)
        flops = (
            2 * before[0] * layer.kernel**2 * int(np.prod(shape)) if layer.op == "conv" else layer.kernel**2 * int(np.prod(shape))
        )
        work.append(flops)
        seen = nc.receptive_field([(step.kernel, step.stride, 1, step.padding) for step in STACK[: n + 1]])
        rows.append(
            (
                layer.op,
                f"{layer.kernel}x{layer.kernel}",
                str(layer.stride),
                str(layer.padding),
                str(list(shape)),
                int(np.prod(shape)),
                flops,
                seen.size[0],
                seen.stride[0],
            )
        )
    lesson.table(("layer", "window", "stride", "padding", "output", "values", "work", "field", "step"), rows)
    full = full_size_work()
    lesson.figure("positions_in", 64 * 64)
    lesson.figure("positions_out", shape[1] * shape[2])
    lesson.figure("work", sum(work))
    lesson.figure("work_without_strides", full)
    lesson.check(
        "Two poolings and a stride of 2 divide the positions by 64", f"from 64x64 to {shape[1]}x{shape[2]}", shape[1:] == (8, 8)
    )
    lesson.check(
        "The stack costs less than at full size",
        f"{sum(work) / 1e6:.0f} million operations; the same without strides: {full / 1e6:.0f}",
        sum(work) < full / 4,
    )


def full_size_work() -> int:
    """Operations of the same convolutions if nothing brought the dimension down."""
    channels, total = 3, 0
    for layer in STACK:
        if layer.op == "conv":
            total += 2 * channels * layer.kernel**2 * layer.channels * 64 * 64
            channels = layer.channels
    return total


def field_by_gradient(size: int, row: int, column: int) -> Array:
    """Where the input has an influence on one output of the stack: the gradient of that output, ``[size, size]``.

    The layers have one channel and positive weights, and pooling takes means, so that no influence cancels.
    """
    shapes: list[tuple[int, ...]] = [(1, size, size)]
    for layer in STACK:
        shapes.append(layer._replace(channels=1).shape(shapes[-1]))
    gradient: Array = np.zeros(shapes[-1])
    gradient[0, row, column] = 1
    for layer, before in zip(reversed(STACK), reversed(shapes[:-1]), strict=True):
        if layer.op == "conv":
            w = np.full((1, 1, layer.kernel, layer.kernel), 1 / layer.kernel**2)
            gradient = nc.conv_input_grad(gradient, w, before, **layer.options())
        else:
            gradient = nc.avg_pool_backward(gradient, before, (layer.kernel,) * 2, **layer.options())
    influence: Array = gradient[0]
    return influence


def receptive_field(lesson: Lesson) -> None:
    """`receptive_field` against the pixels that the gradient of one output reaches."""
    row = column = 4
    found = nc.receptive_field([(layer.kernel, layer.stride, 1, layer.padding) for layer in STACK])
    influence = field_by_gradient(64, row, column)
    rows = np.flatnonzero(influence.any(axis=1))
    start = found.start[0] + row * found.stride[0]
    lesson.text(f"""The receptive field by another way: the gradient of one output (row {row}, column {column} of the last
        layer) for all pixels, through `conv_input_grad` and `avg_pool_backward`. It is not zero where the pixel has an
        influence.""")
    lesson.figure("receptive_field", found.size[0])
    lesson.check(
        "`receptive_field` gives the pixels that an output sees",
        f"computed: rows {start} to {start + found.size[0] - 1}; gradient not zero: rows {rows[0]} to {rows[-1]}",
        (rows[0], rows[-1]) == (start, start + found.size[0] - 1) and len(rows) == found.size[0],
    )
    draw_stack(lesson, influence)


def draw_stack(lesson: Lesson, influence: Array) -> None:
    """Each layer as a row of positions, with what the middle output sees; beside it the influence in two dimensions."""
    sizes = [48]
    for layer in STACK:
        sizes.append((sizes[-1] + 2 * layer.padding - layer.kernel) // layer.stride + 1)
    with lesson.picture(
        "receptive_field",
        9.5,
        3.8,
        "Left: 48 positions through the stack; red: what one output of the last layer sees. Right: what influences an output.",
    ) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 1.4))
        first = last = sizes[-1] // 2
        step = int(np.prod([layer.stride for layer in STACK]))
        for n in range(len(STACK), -1, -1):
            # position i of this layer is drawn at the centre of its receptive field
            seen = nc.receptive_field([(1,), *((layer.kernel, layer.stride, 1, layer.padding) for layer in STACK[:n])])
            places = [seen.start[0] + (seen.size[0] - 1) / 2 + i * seen.stride[0] for i in range(sizes[n])]
            red = [first <= i <= last for i in range(sizes[n])]
            left.scatter(places, [n] * sizes[n], s=4 + 5 * n, marker="s", color=[COLOURS[2] if r else "lightgrey" for r in red])
            if n:
                layer = STACK[n - 1]
                left.text(50, n, f"{layer.op} {layer.kernel}, stride {layer.stride}: {sizes[n]}", va="center", fontsize=8)
                first, last = first * layer.stride - layer.padding, last * layer.stride - layer.padding + layer.kernel - 1
        left.text(50, 0, f"input: {sizes[0]}", va="center", fontsize=8)
        left.set(xlim=(-1, 68), ylabel="layer", title=f"one output of the last layer stands for a step of {step} inputs")
        left.set_xticks([])
        show_map(right, influence, "influence on one output", limit=float(influence.max()))


def on_a_photograph(lesson: Lesson) -> None:
    """A stride takes every second output; pooling looks at all of them. What a shift by one pixel does to each."""
    x = data.photograph(4)[:1].astype(np.int64)
    w = np.array([[[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]]])
    dense = nc.conv(x, w, padding=1)
    strided = nc.conv(x, w, padding=1, stride=2)
    maximum, mean = nc.max_pool(dense, (2, 2)), nc.avg_pool(dense.astype(float), (2, 2))
    lesson.text("""A photograph through one filter: with stride 2, and at every position with pooling over 2x2 afterwards. The
        stride computes a quarter of the outputs and never the others; pooling computes all and keeps one number of four.""")
    rows = [(what, str(list(y.shape)), cost, how) for what, y, cost, how in (
        ("stride 1", dense, dense.size * 18, "every output"),
        ("stride 2", strided, strided.size * 18, "every second row and column of them"),
        ("max pooling 2x2", maximum, dense.size * 18 + dense.size, "the largest of four"),
        ("mean pooling 2x2", mean, dense.size * 18 + dense.size, "the mean of four"),
    )]  # fmt: skip
    lesson.table(("", "output", "operations", "keeps"), rows)
    equal = np.array_equal(strided, dense[:, ::2, ::2])
    lesson.check("A stride of 2 is every second output of stride 1", f"{strided.size:,} numbers equal", equal)
    cropped = dense[:, : 2 * (dense.shape[1] // 2), : 2 * (dense.shape[2] // 2)]
    blocks = cropped.reshape(1, cropped.shape[1] // 2, 2, cropped.shape[2] // 2, 2)
    equal = np.array_equal(maximum, blocks.max(axis=(2, 4))) and np.allclose(mean, blocks.mean(axis=(2, 4)))
    lesson.check(
        "Pooling takes the maximum or the mean of each window of all outputs", f"{2 * maximum.size:,} numbers equal", equal
    )
    with lesson.picture(
        "stride_and_pooling", 9.5, 2.1, "A filter on a photograph: at every position, with stride 2, with pooling over 2x2."
    ) as figure:
        for ax, y, title in zip(
            figure.subplots(1, 4),
            (dense, strided, maximum, mean),
            ("stride 1", "stride 2", "max pooling", "mean pooling"),
            strict=True,
        ):
            show_map(ax, y[0], f"{title}: {y.shape[1]}x{y.shape[2]}", limit=400)
            bare(ax, ax.get_title())
