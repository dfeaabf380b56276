"""Convolution on tensor cores: float16 and bfloat16 arrays as they are, float32 as TF32, which only accuracy "fast" allows.

Both factors are first packed (`tensor_layouts`), then multiplied (`tensor_products`). Sums are held in
float32, whose additions the hardware does not round to nearest, so that a result of more than half precision also needs "fast".
Packed arrays take working memory: of so many images at a time as `max_workspace` allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from numconv.plugin import ConvProblem, Verdict, np_dtype, scratch
from numconv_cuda.costs import cost_of
from numconv_cuda.direct import add_parts, bias_sums, bias_workspace, conv_geometry
from numconv_cuda.gemm.implicit_gemm import MOST_GROUPS, ImplicitGemm
from numconv_cuda.geometry import Geometry, elements_of
from numconv_cuda.primitives.forms import ITEMSIZE, UNITS
from numconv_cuda.runtime.compiler import SIMULATED
from numconv_cuda.runtime.launching import capability, launch, over, pointer, zero

from .tensor_cuts import Memory, bytes_of, memory_of, product_of, sums_of, tile_of
from .tensor_layouts import PACK_TILE, Layout, layout_of, pack_kernel, units_of
from .tensor_pointwise import fits
from .tensor_products import finish_kernel, tensor_kernel

__all__ = ["TensorCores"]

LEAST_CAPABILITY = (8, 0)
"""The compute capability that has the instruction in all three formats."""


def _typed(found: Any, dtype: str) -> Any:
    """The pointer to working memory, as one to elements of a dtype."""
    if SIMULATED:
        return found.viewed(np_dtype(dtype))
    return found._replace(dtype=dtype)


class _Turn(NamedTuple):
    """Some images: where they begin in x and y, and where the results of parts begin."""

    images: int
    first: int
    number: int


def _turns(problem: ConvProblem, images: int) -> Iterator[_Turn]:
    for number, first in enumerate(range(0, problem.n, images)):
        yield _Turn(min(images, problem.n - first), first, number)


class TensorCores(ImplicitGemm):
    """For half precision, and for float32 where TF32 is allowed."""

    name = "tensor_cores"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {}

    def supports(self, problem: ConvProblem) -> Verdict:
        """On a device with tensor cores, in a format that the level allows."""
        if problem.dtype not in ITEMSIZE or problem.acc_dtype != "float32":
            return Verdict.no(f"multiplies float16, bfloat16 and TF32, not {problem.dtype} summed in {problem.acc_dtype}")
        if problem.level != "fast" and problem.out_dtype == "float32":
            return Verdict.no('rounds factors or sums more than float32 does, which only accuracy="fast" allows')
        found = capability()
        if found < LEAST_CAPABILITY:
            least = ".".join(map(str, LEAST_CAPABILITY))
            return Verdict.no(f"needs compute capability {least}, and the device has {found[0]}.{found[1]}")
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"input_grad with pad_mode {problem.pad_mode!r} folds the padding back, which it does not")
        rows, columns, beside, _ = product_of(problem)
        if beside > MOST_GROUPS:
            return Verdict.no(f"{beside} products side by side, and a grid has room for {MOST_GROUPS}")
        if -(-rows // tile_of(problem).rows) > MOST_GROUPS or columns >= 2**31:
            return Verdict.no(f"a product of {rows} rows and {columns} columns does not fit a grid")
        needed = self.workspace(problem)
        if needed > problem.max_workspace:
            return Verdict.no(f"packs an image at a time at least, in {needed} bytes; max_workspace is {problem.max_workspace}")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """See `costs`: the part of the tiles that is not wasted."""
        product, tile = product_of(problem), tile_of(problem)
        depth = UNITS * 16 // ITEMSIZE[problem.dtype]
        done = 2 * product.blocks(tile) * tile.rows * tile.columns * product.slices * depth
        return cost_of(problem, self.name, max(done / max(problem.flops, 1), 1))

    def workspace(self, problem: ConvProblem) -> int:
        """The packed factors, and parts of sums."""
        return bytes_of(problem, memory_of(problem)) + (bias_workspace(problem) if problem.op == "weight_grad" else 0)

    def _forward(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (x, w, *bias), y = ins, outs[0]
        g = conv_geometry(problem, x, w, y, y, bias)
        _multiply_images(problem, g, (x, int(g.x.n)), (y, int(g.y.n)), w, bias)

    def _input_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, w, *bias), x = ins, outs[0]
        g = conv_geometry(problem, x, w, y, x, bias)
        _multiply_images(problem, g, (y, int(g.y.n)), (x, int(g.x.n)), w, bias)

    def _weight_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, x), w = ins, outs[0]
        g, memory, items = conv_geometry(problem, x, w, y, w), memory_of(problem), math.prod(w.shape)
        each = 16 // ITEMSIZE[problem.dtype]
        from_y, from_x = pointer(y), pointer(x)
        pointwise = fits(problem.op, g, each, (from_y, from_x))
        turns = list(_turns(problem, memory.images)) or [_Turn(0, 0, 0)]
        of_turns = len(turns) if len(turns) > 1 else 0
        sums = scratch((memory.parts + of_turns, items), np_dtype(problem.acc_dtype), y)
        to_sums, packing = pointer(sums), None if pointwise else _packing(problem, y)
        columns = int(g.per_c) if pointwise else int(g.taps) * units_of(int(g.per_c), problem.dtype) * each
        order, start = (0, *range(2, w.ndim), 1), zero(problem.acc_dtype)
        sizes, steps = tuple(w.shape[axis] for axis in order), tuple(elements_of(w)[axis] for axis in order)
        near = tuple(math.prod(sizes[axis + 1 :]) for axis in range(w.ndim))
        for turn in turns:
            at_x, at_y = from_x.shifted(turn.first * int(g.x.n)), from_y.shifted(turn.first * int(g.y.n))
            shape, arrays = (int(g.per_k), columns, memory.parts), (w, sums, *ins)
            _multiply(problem, g, turn, arrays, packing, (at_x, at_y), (at_y, at_x, at_y, to_sums), shape)
            if of_turns:
                of_turn = to_sums.shifted((memory.parts + turn.number) * items)
                over(add_parts, items, arrays, to_sums, of_turn, sizes, near, items, memory.parts, start)
        parts, at = (of_turns, to_sums.shifted(memory.parts * items)) if of_turns else (memory.parts, to_sums)
        over(add_parts, items, (w, sums), at, pointer(w), sizes, steps, items, parts, start)
        if problem.bias:
            bias_sums(problem, outs[1], ins[0 if problem.bias == "y" else 1])


def _multiply_images(
    problem: ConvProblem, g: Geometry, source: tuple[Any, int], target: tuple[Any, int], w: Any, bias: Sequence[Any]
) -> None:
    """A convolution or a gradient of x, from and to an array with its step from image to image."""
    (image, step), (out, out_step) = source, target
    if not math.prod(out.shape):
        return
    from_image, from_w, to_out = pointer(image), pointer(w), pointer(out)
    from_bias, arrays = pointer(bias[0]) if bias else from_w, (out, image, w, *bias)
    pointwise = fits(problem.op, g, 16 // ITEMSIZE[problem.dtype], (from_w, from_image))
    packing = None if pointwise else _packing(problem, image)
    memory, product = memory_of(problem), product_of(problem)
    sums = scratch((memory.parts, sums_of(problem, memory.images)), np_dtype("float32"), image) if memory.parts > 1 else out
    columns, phases = product.columns // problem.n, product.beside // problem.groups
    for turn in _turns(problem, memory.images):
        at_image, at_out = from_image.shifted(turn.first * step), to_out.shifted(turn.first * out_step)
        shape, split = (product.rows, columns * turn.images, phases * memory.parts), sums is not out
        factors = from_w, at_image, from_bias
        target = pointer(sums) if split else at_out
        lay = _multiply(problem, g, turn, (*arrays, sums), packing, (at_image, from_w), (*factors, target), shape, split=split)
        if split:
            items, start = sums_of(problem, turn.images), zero(problem.acc_dtype)
            finish = finish_kernel(problem.op)
            over(finish, items, (*arrays, sums), target, *factors, at_out, g, lay, items, memory.parts, start)


class _Packing(NamedTuple):
    """Working memory for the packed factors: its array, and pointers to the image, the other factor, and the table."""

    array: Any
    image: Any
    other: Any
    table: Any


def _packing(problem: ConvProblem, like: Any) -> _Packing:
    image, other, table = (units * 4 for units in memory_of(problem).packed)
    array = scratch((image + other + table,), np_dtype("int32"), like)
    first = pointer(array)
    return _Packing(array, _typed(first, problem.dtype), _typed(first.shifted(image), problem.dtype), first.shifted(image + other))


def _multiply(
    problem: ConvProblem,
    g: Geometry,
    turn: _Turn,
    arrays: Sequence[Any],
    packing: _Packing | None,
    sources: tuple[Any, Any],
    others: tuple[Any, Any, Any, Any],
    shape: tuple[int, int, int],
    *,
    split: bool = False,
) -> Layout:
    """Pack some images, unless they are read as they lie, and multiply.

    `sources` are those of the packed image and of the other factor; `others` what the kernel takes beside the packed ones: the
    first and second factor of its product as they are, the bias, and the result. `shape` has rows, columns, and products side by
    side: phases, or parts of the terms, or both.
    """
    op, dtype, memory, start = problem.op, problem.dtype, memory_of(problem), zero(problem.acc_dtype)
    lay, tile, factors = (
        layout_of(problem, g, turn.images, memory.slices, memory.length),
        tile_of(problem),
        (*others[:2], others[0]),
    )
    if packing:
        arrays, factors = (*arrays, packing.array), (packing.other, packing.image, packing.table)
        to_factors, (blocks, counts) = (packing.image, packing.other, packing.table), _to_pack(problem, g, lay, memory, turn)
        first = pack_kernel(op, dtype)
        launch(first, sum(blocks), PACK_TILE.threads, arrays, *sources, *to_factors, g, lay, blocks[:2], counts, start)
    rows, columns, beside = shape
    grid = (-(-columns // tile.columns), -(-rows // tile.rows), problem.groups * beside)
    multiply = tensor_kernel(op, tile, dtype, pointwise=packing is None, split=split)
    launch(multiply, grid, tile.threads, arrays, *factors, *others, g, lay, start)
    return lay


def _to_pack(
    problem: ConvProblem, g: Geometry, lay: Layout, memory: Memory, turn: _Turn
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Blocks of the kernel that packs, for the image, the other factor and the table; units of weights and entries of the table."""
    at_once, threads = PACK_TILE.channels * ITEMSIZE[problem.dtype] // 16, PACK_TILE.threads

    def tiles(volume: int, units: int) -> int:
        return -(-turn.images * volume // PACK_TILE.positions) * problem.groups * -(-units // at_once)

    image = tiles(math.prod(map(int, lay.sizes)), int(lay.units))
    if problem.op == "weight_grad":
        return (image, tiles(int(g.outputs), int(lay.others)), -(-memory.entries // threads)), (0, memory.entries)
    weights, entries = (memory.other, memory.entries) if turn.number == 0 else (0, 0)
    return (image, -(-weights // threads), -(-entries // threads)), (weights, entries)
