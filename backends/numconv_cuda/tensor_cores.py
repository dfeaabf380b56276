"""The matrix product of `numconv_cuda.gemm` on tensor cores, by the instruction ``mma.sync`` of compute capability 8.0 and later.

A thread takes elements as there; they are rounded to the format of the tensor cores when they go to shared memory: float16 and
bfloat16 arrays as they are, float32 to TF32, which only accuracy "fast" allows. Sums are held in float32, whose additions the
hardware does not round to nearest, so that a result of more than half precision also needs "fast". A warp multiplies blocks of 64
by 32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from numconv.plugin import ConvProblem, Verdict

from .compiler import SIMULATED, Kernel, cuda, device, kernel, types
from .elements import div, mod, poke_tensor, repeated, shifted, unpack, warp_product
from .gathering import Way, strange
from .gemm import ALIGNMENT, Operation, Slices, slices_of, writer
from .geometry import Geometry
from .implicit_gemm import ImplicitGemm, parts_of
from .launching import capability

__all__ = ["FORMATS", "TENSOR_TILE", "TensorCores", "TensorTile", "tensor_kernel"]

FORMATS = {"float32": "float32", "float16": "int16", "bfloat16": "uint16"}
"""The dtype of shared memory by which the kernel knows the format: TF32, and the bits of the half types."""
GAP = {"float32": 4, "float16": 8, "bfloat16": 8}
"""Elements between the lines of a slice, so that the lanes of a warp read from different banks."""
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

    def product(a, b, bias, out, g, rows, columns, terms, length, between, zero):
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
        out = shifted(out, part * between)
        own_row, own_column = row + own_row + div(lane, 4), column + own_column + mod(lane, 4) * 2
        write(results, direct, a, b, bias, out, g, group, own_row, own_column, rows, columns, first, last, zero)

    product.__name__ = product.__qualname__ = f"{operation.name}_tensor_{dtype}_{ways[0]}_{ways[1]}"
    return kernel(product)


class TensorCores(ImplicitGemm):
    """For half precision, and for float32 where TF32 is allowed."""

    name = "tensor_cores"
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
        return super().supports(problem)

    def tile(self, problem: ConvProblem) -> Any:
        """One for every problem."""
        return TENSOR_TILE

    def parts(self, problem: ConvProblem) -> int:
        """Of each sum of a gradient of w."""
        return parts_of(problem, TENSOR_TILE)

    def kernel(self, problem: ConvProblem, operation: Operation, ways: tuple[Way, Way], g: Geometry) -> Kernel:
        """See `tensor_kernel`."""
        return tensor_kernel(operation, TENSOR_TILE, problem.dtype, ways)
