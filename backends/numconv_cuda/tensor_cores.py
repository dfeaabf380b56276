"""The matrix product of `numconv_cuda.gemm` on tensor cores, by the instruction ``mma.sync`` of compute capability 8.0 and later.

A thread takes elements as there; they are rounded to the format of the tensor cores when they go to shared memory: float16 and
bfloat16 arrays as they are, float32 to TF32, which only accuracy "fast" allows. Sums are held in float32, whose additions the
hardware does not round to nearest, so that a result of more than half precision also needs "fast". A warp multiplies blocks of 64
by 32.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype, scratch

from .compiler import SIMULATED, Kernel, cuda, device, kernel, types
from .costs import cost_of
from .direct import add_up, bias_sums, bias_workspace, conv_geometry
from .elements import div, mod, poke_tensor, repeated, shifted, unpack, warp_product
from .gathering import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Operation, Slices, Way, slices_of, strange, ways_of, writer
from .gemm import ALIGNMENT
from .geometry import Geometry
from .implicit_gemm import ImplicitGemm
from .launching import capability, launch, pointer, zero
from .schedule import MOST_GROUPS, shape_of

__all__ = ["FORMATS", "TENSOR_TILE", "TensorCores", "TensorTile", "tensor_kernel"]

FORMATS = {"float32": "float32", "float16": "int16", "bfloat16": "uint16"}
"""The dtype of shared memory by which the kernel knows the format: TF32, and the bits of the half types."""
GAP = {"float32": 4, "float16": 8, "bfloat16": 8}
"""Elements between the lines of a slice, so that the lanes of a warp read from different banks."""
BLOCKS, LEAST_TERMS = 264, 256
"""Two for each multiprocessor of a large device: below this more parts keep more of it busy, of at least so many terms."""
LEAST = (8, 0)
"""The compute capability that has the instruction in all three formats."""


class TensorTile(NamedTuple):
    """The part of the product that a block computes, the depth of a slice, and how many warps share rows and columns."""

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warp_rows * self.warp_columns

    @property
    def blocks(self) -> tuple[int, int]:
        """How many tiles of 16 rows and of 8 columns a warp has."""
        return self.rows // self.warp_rows // 16, self.columns // self.warp_columns // 8


TENSOR_TILE = TensorTile(16, 8, 16, 1, 1) if SIMULATED else TensorTile(128, 128, 16, 2, 4)


def _putter(tile: TensorTile, pitch: int, slices: Slices) -> Any:
    """The device function that rounds what a thread took of both slices and writes it to one of the two buffers."""
    height, width, depth, threads = tile.rows, tile.columns, tile.depth, tile.threads
    spread_a, spread_b = slices.spread_first, slices.spread_second
    loads_a, loads_b = height * depth // threads, width * depth // threads
    buffer_a, buffer_b = height * pitch, width * pitch

    @device
    def put(slices_a, slices_b, next_a, next_b, buffer, thread):
        for number in range(loads_a):
            line, inner = spread_a(thread, number)
            poke_tensor(slices_a, buffer * buffer_a + line * pitch + inner, next_a[number])
        for number in range(loads_b):
            line, inner = spread_b(thread, number)
            poke_tensor(slices_b, buffer * buffer_b + line * pitch + inner, next_b[number])

    return put


def _writer(operation: Operation, tile: TensorTile) -> Any:
    """See `numconv_cuda.gemm.writer`: a lane has two rows and two columns of each tile of 16 by 8."""
    high, wide = tile.blocks

    @device
    def row_of(i):
        return i * 8

    @device
    def column_of(j):
        return div(j, 2) * 8 + mod(j, 2)

    @device
    def place_of(i, j):
        return (div(i, 2) * wide + div(j, 2)) * 4 + mod(i, 2) * 2 + mod(j, 2)

    return writer(operation, 2 * high, 2 * wide, row_of, column_of, place_of)


@functools.cache
def tensor_kernel(operation: Operation, tile: TensorTile, dtype: str, ways: tuple[Way, Way]) -> Kernel:
    """The kernel of an operation for arrays of a dtype, with the arguments and the grid of `numconv_cuda.gemm.product_kernel`."""
    height, width, depth, _, warp_columns = tile
    high, wide = tile.blocks
    number = getattr(types, FORMATS[dtype])
    pitch, step = depth + GAP[dtype], 8 if dtype == "float32" else 16
    buffer_a, buffer_b, accumulators = height * pitch, width * pitch, 4 * high * wide
    size_a, size_b = 2 * buffer_a, 2 * buffer_b
    slices, count_a = slices_of(operation, tile, ways), height * depth // tile.threads
    begin, read_a, read_b, put = slices.begin, slices.first, slices.second, _putter(tile, pitch, slices)
    write = _writer(operation, tile)

    def product(a, b, bias, out, g, rows, columns, terms, length, zero):
        slices_a = cuda.shared.array(size_a, number, ALIGNMENT)
        slices_b = cuda.shared.array(size_b, number, ALIGNMENT)
        results = cuda.local.array(accumulators, types.float32)
        thread = cuda.threadIdx.x
        row, column = cuda.blockIdx.y * height, cuda.blockIdx.x * width
        group, part = mod(cuda.blockIdx.z, g.groups), div(cuda.blockIdx.z, g.groups)
        first = part * length
        last = min(first + length, terms)
        lane, warp = mod(thread, 32), div(thread, 32)
        own_row, own_column = div(warp, warp_columns) * (high * 16), mod(warp, warp_columns) * (wide * 8)
        acc, blocks = repeated(zero, accumulators), repeated(0, high)
        place_a, cursor_a, place_b, cursor_b = begin(g, group, row, column, first, thread)
        next_a, cursor_a = read_a(a, g, place_a, cursor_a, row, rows, first, last, thread, zero)
        next_b, cursor_b = read_b(b, g, place_b, cursor_b, column, columns, first, last, thread, zero)
        odd = strange(next_a, count_a, zero)
        put(slices_a, slices_b, next_a, next_b, 0, thread)
        cuda.syncthreads()
        buffer = 0
        for term in range(first, last, depth):
            more = term + depth < last
            if more:
                next_a, cursor_a = read_a(a, g, place_a, cursor_a, row, rows, term + depth, last, thread, zero)
                next_b, cursor_b = read_b(b, g, place_b, cursor_b, column, columns, term + depth, last, thread, zero)
            at_a, at_b = buffer * buffer_a + own_row * pitch, buffer * buffer_b + own_column * pitch
            for inner in range(0, depth, step):
                acc = warp_product(acc, slices_a, slices_b, at_a + inner, at_b + inner, pitch, lane, blocks)
            buffer = 1 - buffer
            if more:
                odd = odd or strange(next_a, count_a, zero)
                put(slices_a, slices_b, next_a, next_b, buffer, thread)
            cuda.syncthreads()
        direct = cuda.syncthreads_or(1 if odd else 0) != 0
        unpack(results, acc)
        out = shifted(out, part * rows * columns * g.groups)
        own_row, own_column = row + own_row + div(lane, 4), column + own_column + mod(lane, 4) * 2
        write(results, direct, a, b, bias, out, g, group, own_row, own_column, rows, columns, first, last, zero)

    product.__name__ = product.__qualname__ = f"{operation.name}_tensor_{dtype}_{ways[0]}_{ways[1]}"
    return kernel(product)


def _blocks(tile: Any, rows: int, columns: int, groups: int) -> int:
    return -(-rows // tile.rows) * -(-columns // tile.columns) * groups


def parts_of(problem: ConvProblem, tile: Any) -> int:
    """Into how many parts the terms are split: a function of the problem alone."""
    if problem.op != "weight_grad" or problem.level == "strict":
        return 1
    rows, columns, terms = shape_of(problem)
    wanted = -(-BLOCKS // _blocks(tile, rows, columns, problem.groups))
    return max(1, min(wanted, terms // LEAST_TERMS, MOST_GROUPS // problem.groups))


class Phase(NamedTuple):
    """The elements of x that lie alike to the stride, and the taps that reach them: a gradient of stride 1."""

    geometry: Geometry
    taps: int
    """0 where no tap does; the geometry then has one, of which nothing is summed."""
    x_offset: int
    w_offset: int


def has_phases(problem: ConvProblem) -> bool:
    """Whether a gradient of x is computed phase by phase."""
    return max(problem.stride) > 1 and max(problem.dilation) == 1 and not problem.flip


def phases(problem: ConvProblem, g: Geometry) -> Iterator[Phase]:
    """The phases of a strided gradient of x, each element of which is in one.

    On an axis a tap r of an output q reads i = q s + r - low, so the taps r = f, f + s, ... reach the elements whose i + low leaves
    the rest f, and no others: i = i0 + s j with i0 = (f - low) mod s, and q = (i0 + low - f) / s + j - t for r = f + s t.
    """
    number = type(g.n)
    for rests in itertools.product(*map(range, problem.stride)):
        starts = [(rest - low) % s for rest, s, (low, _) in zip(rests, problem.stride, problem.padding, strict=True)]
        size = [max(-(-(n - i) // s), 0) for n, i, s in zip(problem.spatial, starts, problem.stride, strict=True)]
        window = [max(-(-(r - rest) // s), 0) for r, rest, s in zip(problem.kernel, rests, problem.stride, strict=True)]
        low = [(i + p - rest) // s for i, rest, s, (p, _) in zip(starts, rests, problem.stride, problem.padding, strict=True)]
        if math.prod(size):
            geometry = g._replace(
                size=tuple(map(number, size)), window=tuple(number(max(r, 1)) for r in window), low=tuple(map(number, low)),
                stride=(number(1),) * problem.ndim, volume=number(math.prod(size)),
                taps=number(math.prod(max(r, 1) for r in window)),
                x=g.x._replace(spatial=_stretched(g.x.spatial, problem.stride, size)),
                w=g.w._replace(spatial=_stretched(g.w.spatial, problem.stride, window)),
            )  # fmt: skip
            yield Phase(geometry, math.prod(window), _offset(starts, g.x.spatial), _offset(rests, g.w.spatial))


def _stretched(steps: tuple[Any, ...], stride: tuple[int, ...], sizes: Sequence[int]) -> tuple[Any, ...]:
    """The steps from one element of a phase to the next, 0 where there is no other."""
    return tuple(type(step)(int(step) * s if size > 1 else 0) for step, s, size in zip(steps, stride, sizes, strict=True))


def _offset(position: Sequence[int], steps: Sequence[Any]) -> int:
    return sum(at * int(step) for at, step in zip(position, steps, strict=True))


class TensorCores(Implementation):
    """For half precision, and for float32 where TF32 is allowed."""

    name = "tensor_cores"
    ops = frozenset(CONV_OPS)
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {}

    def supports(self, problem: ConvProblem) -> Verdict:
        """What `ImplicitGemm` supports, on a device with tensor cores, in a format that the level allows."""
        if problem.dtype not in FORMATS or problem.acc_dtype != "float32":
            return Verdict.no(f"multiplies float16, bfloat16 and TF32, not {problem.dtype} summed in {problem.acc_dtype}")
        if problem.level != "fast" and problem.out_dtype == "float32":
            return Verdict.no('rounds factors or sums more than float32 does, which only accuracy="fast" allows')
        found = capability()
        if found < LEAST:
            return Verdict.no(f"needs compute capability {LEAST[0]}.{LEAST[1]}, and the device has {found[0]}.{found[1]}")
        return ImplicitGemm().supports(problem)

    def tile(self, problem: ConvProblem) -> Any:
        """One for every problem."""
        return TENSOR_TILE

    def kernel(self, problem: ConvProblem, operation: Operation, ways: tuple[Way, Way]) -> Kernel:
        """See `tensor_kernel`."""
        return tensor_kernel(operation, TENSOR_TILE, problem.dtype, ways)

    def cost(self, problem: ConvProblem) -> float:
        """See `numconv_cuda.costs`: the part of the tiles that is not wasted, and of the terms that are not zero."""
        rows, columns, _ = shape_of(problem)
        tile = self.tile(problem)
        waste = _blocks(tile, rows, columns, 1) * tile.rows * tile.columns / max(rows * columns, 1)
        zeros = math.prod(problem.stride) if problem.op == "input_grad" and not has_phases(problem) else 1
        return cost_of(problem, self.name, waste * zeros)

    def workspace(self, problem: ConvProblem) -> int:
        """Parts of the sums of a weight gradient and of the bias."""
        if problem.op != "weight_grad":
            return 0
        parts = parts_of(problem, self.tile(problem))
        return math.prod(problem.w_shape) * parts * np_dtype(problem.acc_dtype).itemsize + bias_workspace(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        run = {"forward": self._forward, "input_grad": self._input_grad, "weight_grad": self._weight_grad}[problem.op]
        return functools.partial(run, problem)

    def _forward(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (x, w, *bias), y = ins, outs[0]
        g = conv_geometry(problem, x, w, y, y, bias)
        pointers = pointer(w), pointer(x), pointer(bias[0] if bias else w), pointer(y)
        self._multiply(problem, FORWARD, g, (y, *ins), pointers)

    def _input_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, w, *bias), x = ins, outs[0]
        g = conv_geometry(problem, x, w, y, x, bias)
        from_w, from_y, from_bias, to_x = pointer(w), pointer(y), pointer(bias[0] if bias else w), pointer(x)
        if not has_phases(problem):
            self._multiply(problem, INPUT_GRAD, g, (x, *ins), (from_w, from_y, from_bias, to_x))
            return
        for phase in phases(problem, g) if problem.n else ():
            pointers = from_w.shifted(phase.w_offset), from_y, from_bias, to_x.shifted(phase.x_offset)
            columns, terms = problem.n * int(phase.geometry.volume), int(g.per_k) * phase.taps
            shape = (int(g.per_c), columns, terms)
            self._launch(problem, INPUT_GRAD, INPUT_GRAD.ways, phase.geometry, (x, *ins), pointers, shape)

    def _weight_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, x), w = ins, outs[0]
        g = conv_geometry(problem, x, w, y, w)
        parts = parts_of(problem, self.tile(problem))
        sums = scratch((parts, math.prod(problem.w_shape)), np_dtype(problem.acc_dtype), y)
        pointers = pointer(y), pointer(x), pointer(y), pointer(sums)
        self._multiply(problem, WEIGHT_GRAD, g, (w, sums, *ins), pointers, parts)
        add_up(problem, sums, w, parts)
        if problem.bias:
            bias_sums(problem, outs[1], ins[0 if problem.bias == "y" else 1])

    def _multiply(
        self,
        problem: ConvProblem,
        operation: Operation,
        g: Geometry,
        arrays: Sequence[Any],
        pointers: Sequence[Any],
        parts: int = 1,
    ) -> None:
        """Launch the product of every group and part, if there is anything to compute."""
        shape = shape_of(problem)
        if shape[0] * shape[1]:
            ways = ways_of(operation, self.tile(problem), g, pointers)
            self._launch(problem, operation, ways, g, arrays, pointers, shape, parts)

    def _launch(
        self,
        problem: ConvProblem,
        operation: Operation,
        ways: tuple[Way, Way],
        g: Geometry,
        arrays: Sequence[Any],
        pointers: Sequence[Any],
        shape: tuple[int, int, int],
        parts: int = 1,
    ) -> None:
        """Launch a product of this shape."""
        rows, columns, terms = shape
        tile = self.tile(problem)
        grid = (-(-columns // tile.columns), -(-rows // tile.rows), problem.groups * parts)
        length = -(-terms // (parts * tile.depth)) * tile.depth  # parts begin where a thread's loads are aligned
        sizes = (rows, columns, terms, length)
        launch(self.kernel(problem, operation, ways), grid, tile.threads, arrays, *pointers, g, *sizes, zero(problem.acc_dtype))
