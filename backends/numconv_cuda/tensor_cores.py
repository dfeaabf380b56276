"""Convolution on tensor cores: float16 and bfloat16 arrays as they are, float32 as TF32, which only accuracy "fast" allows.

Both factors are first packed (`numconv_cuda.tensor_layouts`), then multiplied (`numconv_cuda.tensor_products`). Sums are held in
float32, whose additions the hardware does not round to nearest, so that a result of more than half precision also needs "fast".
Packed arrays take working memory: of so many images at a time as `max_workspace` allows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from numconv.plugin import ConvProblem, Verdict, np_dtype, scratch

from .compiler import SIMULATED
from .costs import cost_of
from .direct import add_parts, bias_sums, bias_workspace, conv_geometry
from .forms import ITEMSIZE, UNITS, Tile
from .geometry import Geometry, elements_of
from .implicit_gemm import MOST_GROUPS, ImplicitGemm, shape_of
from .launching import capability, launch, over, pointer, zero
from .tensor_layouts import extent_of, layout_of, pack_kernel, units_of
from .tensor_pointwise import fits
from .tensor_products import tensor_kernel

__all__ = ["TILES", "Memory", "TensorCores", "memory_of", "tile_of"]

LEAST_CAPABILITY = (8, 0)
"""The compute capability that has the instruction in all three formats."""
TILES: tuple[Tile, ...]
if SIMULATED:  # a thread of the simulator is one of Python's
    TILES = (Tile(16, 8, 1, 1, 2),)
else:
    TILES = (Tile(128, 128, 2, 4, 3), Tile(64, 128, 1, 4, 4), Tile(128, 64, 2, 2, 4), Tile(64, 64, 2, 2, 4))
"""The largest first."""
BLOCKS = 264
"""Two for each multiprocessor of a large device: below this a smaller tile, or more parts, keep more of it busy."""
LEAST = 512
"""Terms of a part of a weight gradient."""


def _blocks(tile: Tile, rows: int, columns: int, groups: int) -> int:
    return -(-rows // tile.rows) * -(-columns // tile.columns) * groups


@functools.lru_cache(maxsize=1024)
def tile_of(problem: ConvProblem) -> Tile:
    """The tile that wastes least, and among those the largest that still gives every multiprocessor work."""
    rows, columns, _ = shape_of(problem)

    def rank(tile: Tile) -> tuple[bool, int]:
        blocks = _blocks(tile, rows, columns, problem.groups)
        return problem.op != "weight_grad" and blocks < BLOCKS, blocks * tile.rows * tile.columns

    return min(TILES, key=rank)


class Memory(NamedTuple):
    """How a problem is cut, and the working memory that it takes, in units of 16 bytes where nothing else is said."""

    images: int
    """At a time."""
    image: int
    """Of a packed image."""
    other: int
    """Of the packed weights; for a gradient of w, of an image of y."""
    entries: int
    """Of the table, 8 bytes each."""
    chunks: int
    """Slices of the terms, of a phase or of a part."""
    parts: int
    """Of the sums of a gradient of w, for each turn."""

    @property
    def packed(self) -> tuple[int, int, int]:
        """Units of the packed image, of the other factor, and of the table."""
        return self.images * self.image, self.other, self.entries // 2 + 1


@functools.lru_cache(maxsize=1024)
def memory_of(problem: ConvProblem) -> Memory:
    """The most images at a time for which `max_workspace` suffices, but one at least."""
    per_c, per_k, taps = problem.c // problem.groups, problem.k // problem.groups, math.prod(problem.kernel)
    backward = problem.op == "input_grad"
    rows, channels = (per_c, per_k) if backward else (per_k, per_c)
    units = units_of(channels, problem.dtype)
    image = math.prod(extent_of(problem).sizes) * units * problem.groups
    if problem.op == "weight_grad":
        return _weight_memory(problem, image)
    if backward:
        apart = (s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True))
        taps = math.prod(-(-r // step) for r, step in zip(problem.kernel, apart, strict=True))
    chunks = -(-taps * units // UNITS)
    entries = chunks * UNITS * (math.prod(problem.stride) if backward else 1)
    weights = problem.groups * rows * math.prod(problem.kernel) * units
    images = _images(problem, problem.max_workspace // 16 - weights - entries // 2 - 1, image)
    return Memory(images, image, weights, entries, chunks, 1)


def _images(problem: ConvProblem, free: int, image: int) -> int:
    return max(1, min(problem.n, min(free, 2**31 - 1) // max(image, 1)))


def _weight_memory(problem: ConvProblem, image: int) -> Memory:
    depth = UNITS * 16 // ITEMSIZE[problem.dtype]
    outputs = math.prod(problem.output)
    other = outputs * problem.groups * units_of(problem.k // problem.groups, problem.dtype)
    rows, columns, _ = shape_of(problem)
    wanted = -(-BLOCKS // _blocks(tile_of(problem), rows, columns, problem.groups))
    sums = max(-(-math.prod(problem.w_shape) // 4), 1)

    def cut(images: int) -> Memory:
        slices = -(-images * outputs // depth)
        parts = max(1, min(wanted, images * outputs // LEAST, MOST_GROUPS // problem.groups))
        chunks = max(1, -(-slices // parts))
        return Memory(images, image, images * other, slices * depth, chunks, max(1, -(-slices // chunks)))

    images = _images(problem, problem.max_workspace // 16, image + other + outputs // 2 + 1)
    while images > 1 and _bytes(problem, cut(images), sums) > problem.max_workspace:
        images -= -(-images // 8)
    return cut(images)


def _bytes(problem: ConvProblem, memory: Memory, sums: int) -> int:
    turns = -(-problem.n // memory.images)
    return 16 * (sum(memory.packed) + sums * memory.parts * turns)


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
        layers = problem.groups * (math.prod(problem.stride) if problem.op == "input_grad" else 1)
        if layers > MOST_GROUPS:
            return Verdict.no(f"{layers} products side by side, and a grid has room for {MOST_GROUPS}")
        rows, columns, _ = shape_of(problem)
        if -(-rows // tile_of(problem).rows) > MOST_GROUPS or columns >= 2**31:
            return Verdict.no(f"a product of {rows} rows and {columns} columns does not fit a grid")
        needed = self.workspace(problem)
        if needed > problem.max_workspace:
            return Verdict.no(f"packs an image at a time at least, in {needed} bytes; max_workspace is {problem.max_workspace}")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """See `numconv_cuda.costs`: the part of the tiles that is not wasted."""
        rows, columns, _ = shape_of(problem)
        tile = tile_of(problem)
        waste = _blocks(tile, rows, columns, 1) * tile.rows * tile.columns / max(rows * columns, 1)
        return cost_of(problem, self.name, waste)

    def workspace(self, problem: ConvProblem) -> int:
        """The packed factors, and parts of the sums of a weight gradient and of the bias."""
        if problem.op != "weight_grad":
            return 16 * sum(memory_of(problem).packed)
        return _bytes(problem, memory_of(problem), max(-(-math.prod(problem.w_shape) // 4), 1)) + bias_workspace(problem)

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
        turns = max(1, -(-problem.n // memory.images))
        sums = scratch((turns * memory.parts, items), np_dtype(problem.acc_dtype), y)
        to_sums, packing = pointer(sums), None if pointwise else _packing(problem, y)
        columns = int(g.per_c) if pointwise else int(g.taps) * units_of(int(g.per_c), problem.dtype) * each
        for turn in list(_turns(problem, memory.images)) or [_Turn(0, 0, 0)]:
            at_x, at_y = from_x.shifted(turn.first * int(g.x.n)), from_y.shifted(turn.first * int(g.y.n))
            place, shape = to_sums.shifted(turn.number * memory.parts * items), (int(g.per_k), columns, memory.parts)
            _multiply(problem, g, turn, (w, sums, *ins), packing, (at_x, at_y), (at_y, at_x, at_y, place), shape)
        k, c, *steps = elements_of(w)
        sizes, parts, start = (w.shape[0], *w.shape[2:], w.shape[1]), turns * memory.parts, zero(problem.acc_dtype)
        over(add_parts, items, (w, sums), to_sums, pointer(w), sizes, (k, *steps, c), items, parts, start)
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
    rows, columns, phases = _phase_shape(problem)
    for turn in _turns(problem, problem.n if pointwise else memory_of(problem).images):
        at_image, at_out = from_image.shifted(turn.first * step), to_out.shifted(turn.first * out_step)
        shape = rows, columns * turn.images, phases
        _multiply(problem, g, turn, arrays, packing, (at_image, from_w), (from_w, at_image, from_bias, at_out), shape)


def _phase_shape(problem: ConvProblem) -> tuple[int, int, int]:
    """Rows, columns for an image, and how many such products there are side by side."""
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    if problem.op == "forward":
        return per_k, math.prod(problem.output), 1
    return per_c, math.prod(-(-n // s) for n, s in zip(problem.spatial, problem.stride, strict=True)), math.prod(problem.stride)


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
) -> None:
    """Pack some images, unless they are read as they lie, and multiply.

    `sources` are those of the packed image and of the other factor; `others` what the kernel takes beside the packed ones: the
    first and second factor of its product as they are, the bias, and the result. `shape` has rows, columns, and products side by
    side.
    """
    op, dtype, memory, start = problem.op, problem.dtype, memory_of(problem), zero(problem.acc_dtype)
    lay, tile, factors = layout_of(problem, g, turn.images, memory.chunks), tile_of(problem), (*others[:2], others[0])
    if packing:
        counts = _items(problem, g, lay, memory, first=turn.number == 0)
        items, arrays, factors = sum(counts), (*arrays, packing.array), (packing.other, packing.image, packing.table)
        to_factors = packing.image, packing.other, packing.table
        over(pack_kernel(op, dtype), items, arrays, *sources, *to_factors, g, lay, counts, items, start)
    rows, columns, beside = shape
    grid = (-(-columns // tile.columns), -(-rows // tile.rows), problem.groups * beside)
    multiply = tensor_kernel(op, tile, dtype, pointwise=packing is None)
    launch(multiply, grid, tile.threads, arrays, *factors, *others, g, lay, start)


def _items(problem: ConvProblem, g: Geometry, lay: Any, memory: Memory, *, first: bool) -> tuple[int, int, int]:
    """Items of the kernel that packs: pairs of units of the image, units of the other factor, entries of the table."""
    images = int(lay.n) * problem.groups
    pixels = images * math.prod(map(int, lay.sizes)) * -(-int(lay.units) // 2)
    if problem.op == "weight_grad":
        return pixels, images * int(g.outputs) * -(-int(lay.others) // 2), memory.entries
    return pixels, memory.other if first else 0, memory.entries if first else 0
