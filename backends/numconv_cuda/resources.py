"""What each kernel needs of a multiprocessor: compiled without a device, assembled by ptxas.

``python -m numconv_cuda.resources`` writes the table beside this file. It needs numba-cuda with its toolkit
(``python -m pip install 'numba-cuda[cu13]' nvidia-cuda-nvcc``) and the program ptxas, but neither a GPU nor its driver.
"""

from __future__ import annotations

import csv
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, accumulator, np_dtype, parse

from . import direct, pooling, windows
from .gemm import finishing, gemm, pipelined, tiles
from .gemm.neighbours import plain_ways, widest
from .geometry import Geometry, geometry, strides_of
from .primitives import forms
from .runtime.compiler import Kernel, ptx, type_of, types
from .strips import depthwise, pool_strips, sliding, stencil, window_strips
from .tensor_cores import tensor_cuts, tensor_layouts, tensor_products

__all__ = ["CAPABILITIES", "DTYPES", "TABLE", "Resources", "Variant", "assemble", "read_table", "toolkit_reason", "variants"]

TABLE = Path(__file__).with_suffix(".csv")
CAPABILITIES = (80, 90)
"""Compute capabilities, times ten, for which the table is: those of the A100 and of the H100."""
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "int32")
"""Of the table; the other dtypes differ from one of these in the width of their loads."""


class Variant(NamedTuple):
    """A kernel and the types of its arguments."""

    kernel: Kernel
    dtype: str
    ndim: int
    types: tuple[Any, ...]


class Resources(NamedTuple):
    """A row of the table; all but registers in bytes."""

    kernel: str
    dtype: str
    ndim: int
    capability: int
    registers: int
    shared: int
    stack: int
    spilled: int


def _geometry_type(ndim: int, *, conv: bool) -> Any:
    """The type of the geometry of a problem of so many dimensions whose indices have 32 bits."""
    sizes = "x".join(["9"] * ndim)
    window = "x".join(["3"] * ndim)
    text = (
        f"conv forward f32 n1 c1 k1 g1 in{sizes} w{window} s1 p0 d1"
        if conv
        else f"pool lp_pool f32 n1 c1 in{sizes} w{window} s1 p0 d1"
    )
    strides = (1, 1, 1, (1,) * ndim)
    found: Geometry = geometry(parse(text), [np.empty(1)], strides, strides, strides)
    return type_of(found)


def _layout_type(dtype: str, ndim: int) -> Any:
    """The type of the layout of such a problem."""
    sizes, short = "x".join(["9"] * ndim), {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
    problem = parse(f"conv forward {short} n1 c1 k1 g1 in{sizes} w{sizes} s1 p0 d1")
    assert isinstance(problem, ConvProblem)
    strides = (1, 1, 1, (1,) * ndim)
    return type_of(tensor_layouts.layout_of(problem, geometry(problem, [np.empty(1)], strides, strides, strides), 1, 1, 1))


def _pointer(dtype: str) -> Any:
    from .runtime.pointers import storage_type

    return types.CPointer(storage_type(dtype))


def variants(dtype: str, ndim: int) -> Iterator[Variant]:
    """Every kernel for arrays of a dtype and so many dimensions, as far as there is one."""
    acc = accumulator(dtype)
    of, sums, zero, number = _pointer(dtype), _pointer(acc), _numba(acc), types.int64
    conv, pool = _geometry_type(ndim, conv=True), _geometry_type(ndim, conv=False)
    ints, narrow, places = types.UniTuple(number, ndim), types.UniTuple(types.int32, ndim), _pointer("int64")
    shape = types.Tuple((number, number, ints))
    real, floating = acc in ("float32", "float64"), acc.startswith(("float", "complex"))
    ordered = not acc.startswith("complex")
    found: list[tuple[Kernel, Sequence[Any]]] = [
        (direct.forward, (of, of, of, of, conv, number, zero)),
        (direct.input_grad, (of, of, of, of, conv, number, zero)),
        (direct.weight_grad, (of, of, sums, conv, number, number, zero)),
        (direct.channel_sums, (of, sums, shape, shape, number, number, zero)),
        (direct.add_parts, (sums, of, types.UniTuple(number, ndim + 2), types.UniTuple(number, ndim + 2), number, number, zero)),
        (finishing.finish_sums, (sums, of, of, *[types.UniTuple(number, ndim + 2)] * 2, number, number, number, number, zero)),
        (windows.gather, (of, of, pool, number, zero)),
        (windows.scatter, (of, of, pool, number, zero)),
        (windows.claim, (places, places, pool, number, number, number)),
        (windows.unpool, (of, places, of, pool, number, number, number, zero)),
        (windows.unpool_backward, (of, places, places, of, pool, number, number, number, zero)),
        (pooling.clear, (places, number, number)),
        (direct.fold_parts, (sums, sums, number, number, number, zero)),
    ]
    if ordered:
        found += [
            (pooling.max_pool, (of, of, places, pool, number, zero)),
            (pooling.max_whole_kernel(acc), (of, of, places, pool, zero)),
            (pooling.max_pool_backward, (of, of, of, pool, number, zero)),
            (pooling.find_strays, (places, places, pool, number, number)),
            (pooling.indexed_backward, (of, places, places, of, pool, number, number, zero)),
            (pooling.searched_backward, (of, places, places, of, pool, number, number, zero)),
        ]
    if floating:
        found.append((pooling.avg_whole_kernel(acc), (of, of, pool, ints, ints, zero)))
        found += [(each, (of, of, pool, ints, ints, number, zero)) for each in (pooling.avg_pool, pooling.avg_pool_backward)]
    if real:
        found += [
            (pooling.lp_pool, (of, of, pool, zero, number, zero)),
            (pooling.lp_pool_backward, (of, of, of, pool, zero, number, zero)),
        ]
        for width in depthwise.WIDTHS:
            found.append((depthwise.rows_kernel(width, acc), (of, of, of, of, conv, narrow, number, zero)))
            found.append((depthwise.taps_kernel(width, acc), (of, of, sums, conv, narrow, number, number, zero)))
    for product, out in _products(dtype, acc, ndim, of, sums):
        found.append((product, (of, of, of, out, conv, *[number] * 5, zero)))
    found += _tensor_products(dtype, ndim, of, sums)
    if ndim < 3 and dtype != "complex64":
        found += _window_strips(dtype, ndim)
    if real:
        found += _strips(dtype, ndim)
    for kernel, arguments in found:
        yield Variant(kernel, dtype, ndim, tuple(arguments))


_SIZES = {1: "in32", 2: "in32x32", 3: "in9x32x32"}


def _short(dtype: str) -> str:
    return {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "int32": "i32"}[dtype]


def _problem(text: str, dtype: str, ndim: int, window: int, padding: int) -> Any:
    """A problem with a window of as many elements on the last two axes, of arrays that are aligned."""
    sizes = "x".join((["3"] * ndim)[:-2] + [str(window)] * min(ndim, 2))
    word, op, counts, stride = text.split()
    return parse(f"{word} {op} {_short(dtype)} n1 {counts} {_SIZES[ndim]} w{sizes} s{stride} p{padding} d1".replace(",", " "))


def _array(shape: Sequence[int], dtype: str) -> Any:
    return np.empty(tuple(shape), np_dtype(dtype))


def _strips(dtype: str, ndim: int) -> Iterator[tuple[Kernel, Sequence[Any]]]:
    """Kernels of strips and planes: for each class of problems one window of those for which kernels are made."""
    acc = accumulator(dtype)
    of, sums, zero = _pointer(dtype), _pointer(acc), _numba(acc)
    for op in CONV_OPS:
        problem = _problem(f"conv {op} c1,k1,g1 1", dtype, ndim, 3, 1)
        g = _conv_geometry(problem)
        pointers: tuple[Any, ...] = (of, of, sums) if op == "weight_grad" else (of, of, of, of)
        yield _as_planned(stencil.planned(problem, g, (0, 0)), pointers, zero)
        if ndim < 3:
            problem = _problem(f"conv {op} c1,k1,g1 1", dtype, ndim, 32, 16)
            yield _as_planned(sliding.planned(problem, _conv_geometry(problem), (0, 0)), pointers, zero)
    if ndim == 3:
        return
    places = _pointer("int64")
    for op, pointers in (
        ("max_pool", (of, of, places)), ("max_pool_backward", (of, of, of)),
        ("avg_pool", (of, of)), ("avg_pool_backward", (of, of, of)),
    ):  # fmt: skip
        problem = _problem(f"pool {op} c1 2", dtype, ndim, 3, 1)
        for indices in (False, True) if op.startswith("max") else (False,):
            chosen = problem.replace(indices=indices)
            launch = pool_strips.planned(chosen, _pool_geometry(chosen), 0, 0, 0)
            kinds = (of, places, of) if indices and op == "max_pool_backward" else pointers
            yield _as_planned(launch, kinds, *((zero, zero) if op == "avg_pool" else (zero,)))


def _window_strips(dtype: str, ndim: int) -> Iterator[tuple[Kernel, Sequence[Any]]]:
    """Kernels that move strips."""
    acc = accumulator(dtype)
    words, of = _pointer(window_strips.WORDS[np_dtype(dtype).itemsize]), _pointer(dtype)
    for op, window in (("pad", 1), ("unfold", 3)):
        problem = _problem(f"window {op} c1 1", dtype, ndim, window, 1)
        yield _as_planned(window_strips.planned_copy(problem, _pool_geometry(problem), 0, 0), (words, words))
    if acc in ("float32", "float64"):
        problem = _problem("window fold c1 1", dtype, ndim, 3, 1)
        yield _as_planned(window_strips.planned_fold(problem, _pool_geometry(problem), 0), (of, of), _numba(acc))


def _conv_geometry(problem: Any) -> Geometry:
    x, w, y = (_array(shape, problem.dtype) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    return direct.conv_geometry(problem, x, w, y, {"forward": y, "input_grad": x, "weight_grad": w}[problem.op])


def _pool_geometry(problem: Any) -> Geometry:
    x, y = (_array((problem.n, problem.c, *sizes), problem.dtype) for sizes in (problem.spatial, problem.output))
    return geometry(problem, (x, y), strides_of(x, 1), strides_of(y, 1), strides_of(y, 1))


def _as_planned(launch: Any, pointers: Sequence[Any], *numbers: Any) -> tuple[Kernel, Sequence[Any]]:
    return launch.kernel, (*pointers, *map(type_of, launch.arguments), *numbers)


def _products(dtype: str, acc: str, ndim: int, of: Any, sums: Any) -> Iterator[tuple[Kernel, Any]]:
    """The kernels of matrix products and the types of their results: the first and the last tile, wide copies on the first."""
    for operation, out in ((gemm.FORWARD, of), (gemm.INPUT_GRAD, of), (gemm.WEIGHT_GRAD, sums)):
        known = tiles.tiles_of(acc)
        for tile in (known[0], known[-1]):
            for ways in (plain_ways(operation), *(widest(operation, dtype, acc) if tile is known[0] else ())):
                yield pipelined.product_kernel(operation, tiles.Recipe(tile, acc, ways, ndim, converted=dtype != acc)), out
    smaller = next(tile for tile in tiles.tiles_of(acc) if tile.threads <= tiles.LARGEST // 2)
    phased = tiles.Recipe(smaller, acc, plain_ways(gemm.INPUT_GRAD), ndim, phased=True, converted=dtype != acc)
    yield pipelined.product_kernel(gemm.INPUT_GRAD, phased), of


def _tensor_products(dtype: str, ndim: int, of: Any, sums: Any) -> Iterator[tuple[Kernel, Sequence[Any]]]:
    """The kernels of tensor cores, which pack factors and multiply them: every tile, and factors as they lie on the largest."""
    if dtype not in forms.ITEMSIZE:
        return
    conv, layout, number, table = _geometry_type(ndim, conv=True), _layout_type(dtype, ndim), types.int64, _pointer("int32")
    for op in CONV_OPS:
        out = sums if op == "weight_grad" else of
        packed = (of, of, of, of, table, conv, layout, types.UniTuple(number, 2), types.UniTuple(number, 2), types.float32)
        yield tensor_layouts.pack_kernel(op, dtype), packed
        most, least = tensor_cuts.TILES[0], tensor_cuts.TILES[-1]
        for tile, pointwise, split in (
            *((tile, False, False) for tile in tensor_cuts.TILES),
            (most, True, False),
            (least, False, True),
        ):
            if split and op == "weight_grad":
                continue
            entries, target = of if pointwise else table, sums if split else out
            arguments = (of, of, entries, of, of, of, target, conv, layout, types.float32)
            yield tensor_products.tensor_kernel(op, tile, dtype, pointwise=pointwise, split=split), arguments
        if op != "weight_grad":
            yield tensor_products.finish_kernel(op), (sums, of, of, of, of, conv, layout, number, number, types.float32)


def _numba(dtype: str) -> Any:
    return getattr(types, dtype)


@functools.cache
def ptxas() -> str | None:
    """The path of the assembler: of the wheel nvidia-cuda-nvcc, or of a toolkit."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return shutil.which("ptxas")
    found: str | None = find_nvidia_binary_utility("ptxas")
    return found


def toolkit_reason() -> str:
    """Why nothing can be compiled or assembled here; empty if it can."""
    if ptxas() is None:
        return "the program ptxas is not found: python -m pip install nvidia-cuda-nvcc"
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("nvvm")
        load_nvidia_dynamic_lib("nvrtc")
    except Exception as error:  # noqa: BLE001 - the finder has errors of its own for each of its ways
        return f"numba-cuda finds no toolkit: {str(error).strip().splitlines()[0]}"
    return ""


def assemble(variant: Variant) -> list[Resources]:
    """Compile a variant for the lowest capability, and assemble it for each."""
    lowest = CAPABILITIES[0]
    source = ptx(variant.kernel, variant.types, (lowest // 10, lowest % 10))
    return [_assemble(variant, source, capability) for capability in CAPABILITIES]


def _assemble(variant: Variant, source: str, capability: int) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(source, encoding="utf-8")
        command = [str(ptxas()), "-v", f"-arch=sm_{capability}", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, said)))

    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Resources(
        variant.kernel.name, variant.dtype, variant.ndim, capability, number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"),
        number(r"(\d+) bytes stack frame"), spilled,
    )  # fmt: skip


def read_table() -> list[Resources]:
    """The rows of the table."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return [
            Resources(row["kernel"], row["dtype"], *(int(row[name]) for name in Resources._fields[2:]))
            for row in csv.DictReader(file)
        ]


def main() -> None:
    """Write the table."""
    rows = [row for dtype in DTYPES for variant in variants(dtype, 2) for row in assemble(variant)]
    rows += [row for ndim in (1, 3) for variant in variants("float32", ndim) for row in assemble(variant)]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Resources._fields)
        writer.writerows(sorted(rows))


if __name__ == "__main__":
    main()
