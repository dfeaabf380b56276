"""Products of columns as a list of prepared steps: what `matmul` and `pointwise` do on a device with real floats.

A block is some images, or some rows (positions on the first spatial axis) of one, see `blocks`. A launch gathers its columns, and a
batched product of cuBLAS multiplies all of its images, which for y writes in place where nothing is left to do. A third launch,
where there is anything, ends a product: bias, activation, other strides, and what is not finite at the border, where a padding
zero may have met an infinity; it is computed again term by term.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, Executor, cupy_view, np_dtype

from .bias import add_bias_gradient
from .blocks import (
    TILE,
    Matrices,
    Operand,
    Part,
    is_bare,
    is_contiguous,
    is_short,
    item_size,
    limit_of,
    matrices_of,
    moved,
    parts_of,
    rounded,
)
from .device import Device, Product
from .namespaces import Arrays, namespace
from .recipes import Place, Recipe, executor_by, layout, record
from .source import Strides, geometry, strides_of

__all__ = ["block_layout", "border_layout", "executor_of"]

_UNROLLED = 8
"""Taps of the last axis that a kernel is compiled for."""
_THREADS = 1 << 17
"""That keep a large GPU busy."""
_TILES = 264
"""That keep a large GPU busy."""
_LEAST_TERMS = 256
"""Of a partial sum."""


@functools.cache
def block_layout(ndim: int) -> np.dtype[Any]:
    """Struct Block of ``im2col.cu``."""
    numbers = (
        "image_step", "row_step", "threads", "first", "pixels", "begin", "held", "aligned", "share", "parts", "start", "last",
    )  # fmt: skip
    divisors = ("by_pixels", "by_splits", "by_channels", "by_taps")
    return layout(ndim, numbers, (), divisors, ("by_window", "by_axis", "by_stride"))


def _macros(problem: ConvProblem, **more: int) -> dict[str, int]:
    return {"BLOCK_BYTES": block_layout(problem.ndim).itemsize, "COPIES": int(problem.pad_mode != "zeros"), "STORED": 0, **more}


def _record(ndim: int, **fields: Any) -> np.ndarray[Any, Any]:
    return record(block_layout(ndim), **fields)


def executor_of(problem: ConvProblem, device: Device) -> Executor:
    """Steps, which are prepared for each combination of strides that comes along."""
    prepare = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[problem.op]
    run = executor_by(prepare, problem, device)

    def executor(outs: Arrays, ins: Arrays) -> None:
        if not is_contiguous(ins[1].shape, strides_of(ins[1])):
            view = cupy_view(ins[1])
            ins = [ins[0], namespace(view).ascontiguousarray(view), *ins[2:]]
        run(outs, ins)

    return run if problem.op == "weight_grad" else executor


def _multiply(recipe: Recipe, sizes: tuple[int, int, int], a: Operand, b: Operand, c: Operand, images: int) -> None:
    """Products for all images and groups, in as few batches as there are of the fewer."""
    groups = recipe.problem.groups
    by_image = groups == 1 or (images > 1 and images >= groups)
    batch = images if by_image else groups
    for one in range(groups if by_image else images):
        steps = [each.matrices.image_step if by_image else each.group_step for each in (a, b, c)]
        product = Product(
            *sizes, (a.turned, a.matrices.row_step, steps[0]), (b.turned, b.matrices.row_step, steps[1]),
            (c.matrices.row_step, steps[2]), batch, a.dtype, c.dtype, recipe.problem.level == "fast" and a.dtype == "float32",
        )  # fmt: skip
        where = (0, one) if by_image else (one, 0)
        recipe.multiply(product, a.at(*where), b.at(*where), c.at(*where))


def _unrolled(problem: ConvProblem) -> int:
    last: int = problem.kernel[-1]
    return last if last <= _UNROLLED else 0


def _bytes(place: Place, elements: int, dtype: str) -> int:
    return place.offset + elements * np_dtype(dtype).itemsize


def _gathered(
    recipe: Recipe, source: tuple[int, Strides], part: Part, joint: bool, after: int, *, outputs: bool = False
) -> Matrices:
    """The columns of a block of outputs in working memory; with `outputs` a copy of grad_y in their order instead."""
    problem = recipe.problem
    geometry_of = _as_columns(problem) if outputs else problem
    array, strides = source
    channels, taps = geometry_of.c, math.prod(geometry_of.kernel)
    pixels = part.rows * math.prod(problem.output[1:])
    rows = channels * taps
    row_step = rounded(part.images * pixels if joint else pixels)
    image_step = pixels if joint else rows * row_step
    wide = 16 // np_dtype(problem.dtype).itemsize
    quads, leads = -(-pixels // wide), taps // geometry_of.kernel[-1]
    share = -(-leads // min(leads, -(-_THREADS // (part.images * channels * quads))))
    splits = -(-leads // share)
    threads = part.images * channels * splits * quads
    place = recipe.reserve(rows * row_step * (1 if joint else part.images), problem.dtype, after)
    block = _record(
        problem.ndim, image_step=image_step, row_step=row_step, threads=threads, first=part.row, pixels=pixels,
        aligned=not joint or pixels % wide == 0, share=share, by_pixels=quads, by_splits=splits, by_channels=channels, by_taps=taps,
        by_window=geometry_of.kernel, by_axis=(part.rows, *problem.output[1:]),
    )  # fmt: skip
    about = geometry(geometry_of, strides)
    start = Place(array, part.image * strides[0] * np_dtype(problem.dtype).itemsize)
    recipe.launch("gather_columns", threads, (about, block), (start, place), _macros(geometry_of, LAST=_unrolled(geometry_of)))
    return Matrices(place, image_step, row_step, joint)


@functools.lru_cache(maxsize=256)
def _as_columns(problem: ConvProblem) -> ConvProblem:
    """A problem whose columns are grad_y itself."""
    ones = (1,) * problem.ndim
    found: ConvProblem = problem.replace(
        op="forward", c=problem.k, groups=1, spatial=problem.output, kernel=ones, stride=ones, dilation=ones,
        padding=((0, 0),) * problem.ndim, pad_mode="zeros", bias="", activation=None, flip=False,
    )  # fmt: skip
    return found


# --- the operations


def _of_positions(recipe: Recipe) -> bool:
    """One tap, and channels last: one product of all positions with the weights; False if it is another case."""
    problem = recipe.problem
    out_steps, in_steps = recipe.strides[:2]
    forward = problem.op == "forward"
    out_shape, in_shape = (problem.y_shape, problem.x_shape) if forward else (problem.x_shape, problem.y_shape)
    if not is_bare(problem) or problem.bias or problem.activation or problem.out_dtype not in (problem.acc_dtype, problem.dtype):
        return False
    if not all(_has_channels_last(*each) for each in ((out_shape, out_steps), (in_shape, in_steps))):
        return False
    inner, columns = in_shape[1] // problem.groups, out_shape[1] // problem.groups
    pixels = problem.n * math.prod(problem.output)
    weights = Operand(Matrices(Place(2), 0, problem.c // problem.groups), inner * columns, problem.dtype, turned=forward)
    source = Operand(Matrices(Place(1), 0, in_shape[1]), inner, problem.dtype)
    result = Operand(Matrices(Place(0), 0, out_shape[1]), columns, problem.out_dtype)
    _multiply(recipe, (pixels, inner, columns), source, weights, result, 1)
    return True


def _has_channels_last(shape: Sequence[int], strides: Strides) -> bool:
    order = (0, *range(2, len(shape)), 1)
    return is_contiguous([shape[axis] for axis in order], [strides[axis] for axis in order])


def _forward(recipe: Recipe) -> None:
    problem = recipe.problem
    if _of_positions(recipe):
        return
    (y_steps, x_steps) = recipe.strides[:2]
    ends = bool(problem.bias or problem.activation)
    y = matrices_of(Place(0), problem.y_shape, y_steps)
    if problem.out_dtype not in ((problem.acc_dtype,) if ends else (problem.acc_dtype, problem.dtype)):
        y = None
    x = matrices_of(Place(1), problem.x_shape, x_steps) if is_bare(problem) else None
    taps = math.prod(problem.kernel)
    pixel_bytes = 0 if x else item_size(problem.dtype) * problem.c * taps
    short = not x and is_short(problem)
    if short or not y:
        pixel_bytes += item_size(problem.acc_dtype) * problem.k
    for part in parts_of(problem, pixel_bytes, 0, problem.output[0]):
        joint = short and part.images > 1
        pixels = part.rows * math.prod(problem.output[1:])
        first = part.row * math.prod(problem.output[1:])
        columns = moved(x, part, first, problem.dtype) if x else _gathered(recipe, (1, x_steps), part, joint, 0)
        products, dtype = _products(recipe, y, part, first, joint, 0 if x else recipe.end)
        together = pixels * (part.images if joint else 1)
        inner = problem.c // problem.groups * taps
        rows = problem.k // problem.groups
        weights = Operand(Matrices(Place(2), 0, inner), rows * inner, problem.dtype)
        _multiply(
            recipe, (rows, inner, together), weights, Operand(columns, inner * columns.row_step, problem.dtype),
            Operand(products, rows * products.row_step, dtype), 1 if joint else part.images,
        )  # fmt: skip
        if ends or products.place.array != 0:
            _finish(recipe, part, products, dtype)
        elif problem.pad_mode == "zeros":
            _repair_border(recipe, part)


def _products(recipe: Recipe, y: Matrices | None, part: Part, first: int, joint: bool, after: int) -> tuple[Matrices, str]:
    """Where the products of a block go, and their dtype: into y where they can stay there."""
    problem = recipe.problem
    if y and not joint:
        return moved(y, part, first, problem.out_dtype), problem.out_dtype
    pixels = part.rows * math.prod(problem.output[1:])
    row_step = rounded(pixels * (part.images if joint else 1))
    place = recipe.reserve(problem.k * row_step * (1 if joint else part.images), problem.acc_dtype, after)
    return Matrices(place, pixels if joint else problem.k * row_step, row_step, joint), problem.acc_dtype


def _finish(recipe: Recipe, part: Part, products: Matrices, dtype: str) -> None:
    """Bias, activation and strides of a block of y, and what met a padding zero and is not finite."""
    problem = recipe.problem
    y_steps, x_steps, w_steps, *bias = recipe.strides
    pixels = part.rows * math.prod(problem.output[1:])
    threads = part.images * problem.k * pixels
    block = _record(
        problem.ndim, image_step=products.image_step, row_step=products.row_step, threads=threads, first=part.row,
        pixels=pixels, by_pixels=pixels, by_channels=problem.k, by_axis=(part.rows, *problem.output[1:]),
    )  # fmt: skip
    about = geometry(problem, x_steps, w_steps, y_steps, bias_step=bias[0][0] if bias else 1)
    places = (
        Place(1, part.image * x_steps[0] * item_size(problem.dtype)), Place(2), Place(3) if bias else None, products.place,
        Place(0, part.image * y_steps[0] * item_size(problem.out_dtype)),
    )  # fmt: skip
    macros = _macros(problem, STORED=int(dtype == problem.out_dtype))
    recipe.launch("finish_products", threads, (about, block), places, macros)


@functools.cache
def border_layout(ndim: int) -> np.dtype[Any]:
    """Struct Border of ``im2col.cu``."""
    per_axis = layout(ndim, ("threads", "first"), ("from", "inner", "ends"), ("by_positions", "by_channels"), ())
    return layout(ndim * ndim, (), (), (), ("by_piece",), before=per_axis)


def _repair_border(recipe: Recipe, part: Part) -> None:
    """What met a padding zero and is not finite, of a block of products that are y already."""
    problem = recipe.problem
    sizes = (part.rows, *problem.output[1:])
    begins, counts = _inside(problem, part)
    pieces = [
        [*counts[:axis], sizes[axis] - counts[axis], *sizes[axis + 1 :]] for axis in range(problem.ndim)
    ]  # fmt: skip
    ends = list(itertools.accumulate(map(math.prod, pieces)))
    threads = part.images * problem.k * ends[-1]
    if not threads:
        return
    y_steps, x_steps, w_steps = recipe.strides[:3]
    border = record(
        border_layout(problem.ndim), threads=threads, first=part.row, inner=counts, ends=ends, by_positions=ends[-1],
        by_channels=problem.k, by_piece=[max(1, size) for piece in pieces for size in piece], **{"from": begins},
    )  # fmt: skip
    about = geometry(problem, x_steps, w_steps, y_steps)
    places = (
        Place(1, part.image * x_steps[0] * item_size(problem.dtype)), Place(2),
        Place(0, part.image * y_steps[0] * item_size(problem.out_dtype)),
    )  # fmt: skip
    macros = _macros(problem) | {"BORDER_BYTES": border_layout(problem.ndim).itemsize}
    recipe.launch("repair_border", threads, (about, border), places, macros)


def _inside(problem: ConvProblem, part: Part) -> tuple[list[int], list[int]]:
    """Along each axis of a part, the first output that reads no padding, and how many there are."""
    begins, counts = [], []
    for axis, (low, _) in enumerate(problem.padding):
        stride = problem.stride[axis]
        reach = problem.dilation[axis] * (problem.kernel[axis] - 1)
        first, size = (part.row, part.rows) if axis == 0 else (0, problem.output[axis])
        begin = min(max(-(-low // stride) - first, 0), size)
        end = min(max((problem.spatial[axis] - 1 - reach + low) // stride + 1 - first, begin), size)
        begins.append(begin)
        counts.append(end - begin)
    return begins, counts


def _input_grad(recipe: Recipe) -> None:
    problem = recipe.problem
    if _of_positions(recipe):
        return
    out_steps, y_steps = recipe.strides[:2]
    ends = bool(problem.bias or problem.activation)
    out = matrices_of(Place(0), problem.x_shape, out_steps) if is_bare(problem) and not ends else None
    if problem.out_dtype not in (problem.acc_dtype, problem.dtype):
        out = None
    y = matrices_of(Place(1), problem.y_shape, y_steps)
    taps = math.prod(problem.kernel)
    pixel_bytes = 0 if out else item_size(problem.acc_dtype) * problem.c * taps
    if not y:
        pixel_bytes += item_size(problem.dtype) * problem.k
    rows, inner = problem.c // problem.groups * taps, problem.k // problem.groups
    weights = Operand(Matrices(Place(2), 0, rows), rows * inner, problem.dtype, turned=True)
    for part in parts_of(problem, pixel_bytes, 0, problem.spatial[0]):
        held = _rows_read(problem, part)
        pixels = held.rows * math.prod(problem.output[1:])
        first = held.row * math.prod(problem.output[1:])
        if out:
            columns, dtype = moved(out, part, first, problem.out_dtype), problem.out_dtype
        else:
            step = rounded(pixels)
            place = recipe.reserve(part.images * problem.c * taps * step, problem.acc_dtype)
            columns, dtype = Matrices(place, problem.c * taps * step, step), problem.acc_dtype
        if held.rows:
            if y:
                source = moved(y, part, first, problem.dtype)
            else:
                source = _gathered(recipe, (1, y_steps), held, False, 0 if out else recipe.end, outputs=True)
            _multiply(
                recipe, (rows, inner, pixels), weights, Operand(source, inner * source.row_step, problem.dtype),
                Operand(columns, rows * columns.row_step, dtype), part.images,
            )  # fmt: skip
        if not out:
            _add_columns(recipe, part, held, columns)


def _rows_read(problem: ConvProblem, part: Part) -> Part:
    """The rows of y that rows of x reach."""
    stride, low = problem.stride[0], problem.padding[0][0]
    reach = problem.dilation[0] * (problem.kernel[0] - 1)
    begin = max(0, -(-(part.row + low - reach) // stride))
    end = max(begin, min(problem.output[0], (part.row + part.rows - 1 + low) // stride + 1))
    return Part(part.image, part.images, begin, end - begin)


def _add_columns(recipe: Recipe, part: Part, held: Part, columns: Matrices) -> None:
    problem = recipe.problem
    out_steps, _, _, *bias = recipe.strides
    pixels = part.rows * math.prod(problem.spatial[1:])
    threads = part.images * problem.c * pixels
    block = _record(
        problem.ndim, image_step=columns.image_step, row_step=columns.row_step, threads=threads, first=part.row,
        pixels=pixels, begin=held.row, held=held.rows, by_pixels=pixels, by_channels=problem.c, by_taps=math.prod(problem.kernel),
        by_axis=(part.rows, *problem.spatial[1:]), by_stride=problem.stride,
    )  # fmt: skip
    strided = int(set(problem.stride) != {1})
    about = geometry(problem, y=out_steps, bias_step=bias[0][0] if bias else 1)
    places = (columns.place, Place(3) if bias else None, Place(0, part.image * out_steps[0] * item_size(problem.out_dtype)))
    recipe.launch("add_columns", threads, (about, block), places, _macros(problem, LAST=_unrolled(problem), STRIDED=strided))


def _weight_grad(recipe: Recipe) -> None:
    problem = recipe.problem
    y_steps, x_steps = recipe.strides[-2:]
    y = matrices_of(Place(recipe.scratch - 2), problem.y_shape, y_steps)
    x = matrices_of(Place(recipe.scratch - 1), problem.x_shape, x_steps) if is_bare(problem) else None
    taps, weights = math.prod(problem.kernel), math.prod(problem.w_shape)
    short = is_short(problem)
    pixel_bytes = item_size(problem.dtype) * ((0 if x and not short else problem.c * taps) + (problem.k if short or not y else 0))
    blocks = parts_of(problem, pixel_bytes, 0 if short else item_size(problem.acc_dtype) * weights, problem.output[0])
    sums = recipe.reserve(weights if len(blocks) > 1 else 0, problem.acc_dtype)
    after = _bytes(sums, weights if len(blocks) > 1 else 0, problem.acc_dtype)
    for number, part in enumerate(blocks):
        joint = short and part.images > 1
        first = part.row * math.prod(problem.output[1:])
        if x and not joint:
            columns, end = moved(x, part, first, problem.dtype), after
        else:
            columns = _gathered(recipe, (recipe.scratch - 1, x_steps), part, joint, after)
            end = recipe.end
        if y and not joint:
            outputs = moved(y, part, first, problem.dtype)
        else:
            outputs = _gathered(recipe, (recipe.scratch - 2, y_steps), part, joint, end, outputs=True)
            end = recipe.end
        count, parts = _partial(recipe, part, joint, columns, outputs, end)
        _sum_gradients(recipe, parts, count, sums, number == 0, number == len(blocks) - 1)
    if problem.bias:
        add_bias_gradient(recipe)


def _partial(recipe: Recipe, part: Part, joint: bool, columns: Matrices, outputs: Matrices, after: int) -> tuple[int, Place]:
    """Products of a block: how many partial sums of the gradient, and where."""
    problem = recipe.problem
    rows, columns_of = problem.k // problem.groups, problem.c // problem.groups * math.prod(problem.kernel)
    weights = math.prod(problem.w_shape)
    inner = part.rows * math.prod(problem.output[1:]) * (part.images if joint else 1)
    images = 1 if joint else part.images
    chunk = inner if images > 1 or problem.groups > 1 else _chunk(problem, inner)
    whole = inner // chunk
    count = images * whole + (inner % chunk > 0)
    place = recipe.reserve(weights * count, problem.acc_dtype, after)
    result = Matrices(place, weights, columns_of)

    def multiply(length: int, begin: int, batch: int, step: int, first: int) -> None:
        a, b = (moved(each, Part(0, 1, 0, 1), begin, problem.dtype) for each in (outputs, columns))
        if step:
            a, b = a._replace(image_step=step), b._replace(image_step=step)
        _multiply(
            recipe, (rows, length, columns_of), Operand(a, rows * a.row_step, problem.dtype),
            Operand(b, columns_of * b.row_step, problem.dtype, turned=True),
            Operand(result._replace(place=Place(place.array, place.offset + first * weights * item_size(problem.acc_dtype))),
                    rows * columns_of, problem.acc_dtype), batch,
        )  # fmt: skip

    if chunk == inner:
        multiply(inner, 0, images, 0, 0)
    else:
        multiply(chunk, 0, whole, chunk, 0)
        if inner % chunk:
            multiply(inner % chunk, whole * chunk, 1, 0, whole)
    return count, place


def _chunk(problem: ConvProblem, inner: int) -> int:
    """Terms of a partial sum: as many sums as give each multiprocessor two tiles."""
    columns = problem.c * math.prod(problem.kernel)
    tiles = -(-problem.k // TILE) * -(-columns // TILE)
    room = max(1, limit_of(problem) // 4 // (item_size(problem.acc_dtype) * problem.k * columns))
    wanted = min(_TILES // tiles, inner // _LEAST_TERMS, room)
    return inner if wanted < 2 else rounded(-(-inner // wanted))


def _sum_gradients(recipe: Recipe, parts: Place, count: int, sums: Place, start: bool, last: bool) -> None:
    problem = recipe.problem
    out_steps, (y_steps, x_steps) = recipe.strides[0], recipe.strides[-2:]
    weights = math.prod(problem.w_shape)
    block = _record(
        problem.ndim, image_step=weights, threads=weights, parts=count, start=start, last=last, by_taps=math.prod(problem.kernel),
        by_channels=problem.c // problem.groups, by_window=problem.kernel,
    )  # fmt: skip
    about = geometry(problem, y_steps, x_steps, out_steps)
    places = (Place(recipe.scratch - 2), Place(recipe.scratch - 1), parts, sums, Place(0))
    recipe.launch("sum_gradients", weights, (about, block), places, _macros(problem))
