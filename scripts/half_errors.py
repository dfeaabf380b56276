"""Errors of float16, bfloat16 and float32 convolutions on the CPU: python scripts/half_errors.py [--tiles].

It prints the table of docs/half.md, or that of docs/amx.md: of matrix tiles (AMX), which it emulates where NUMCONV_AMX=emulate says
so, with float32 computed by three products of bfloat16 numbers at the level "default" and by six at the level "high".

Each algorithm computes the same rows with sums of up to 5,000 terms, on normal, positive and very unequal data. Errors are those of
results in float32, before they are rounded to the half type, against float64: the norm of the error over that of the magnitudes
(the same convolution of |x| with |w|), and the largest error over the magnitude of its element.
"""

from __future__ import annotations

import argparse

import numpy as np

import numconv as nc
from numconv.plugin import np_dtype, parse
from numconv.testing import candidates

ROWS = (
    "n1 c16 k48 g1 in20x22 w3x3 s1 p1 d1",
    "n1 c72 k32 g1 in16x18 w5x5 s1 p2 d1",
    "n1 c555 k32 g1 in12x13 w3x3 s1 p1 d1",
    "n2 c300 k64 g1 in17x19 w1x1 s1 p0 d1",
)
ALGORITHMS = ("direct", "blocked", "blocked_bf16", "implicit_gemm_bf16", "winograd")
FEW_TERMS = "n2 c64 k64 g1 in17x19 w1x1 s1 p0 d1"
KINDS = ("normal", "positive", "unequal")
TILED = (
    ("bf16", "implicit_gemm_amx", "default"), ("bf16", "direct", "default"), ("f32", "implicit_gemm_amx", "default"),
    ("f32", "implicit_gemm_amx", "high"), ("f32", "direct", "high"), ("f32", "winograd", "default"),
)  # fmt: skip


def data(kind, shape, rng):
    """Normal, positive, or normal times powers of two from 2**-20 to 2**20; or all alike, a number that two layers hold badly."""
    if kind == "constant":
        return np.full(shape, 1 + 2.0**-8 - 2.0**-17 - 2.0**-22)
    normal = rng.standard_normal(shape)
    return {"normal": normal, "positive": np.abs(normal), "unequal": normal * np.exp2(rng.integers(-20, 21, shape))}[kind]


def errors(algorithm, dtype, kind, accuracy=None, rows=ROWS):
    """The largest (norm, maximum) over the rows that the algorithm takes; None if there is none."""
    rng, found = np.random.default_rng(0), []
    for row in rows:
        problem = parse(f"conv forward {dtype} {row} out=f32" + (f" accuracy={accuracy}" if accuracy else ""))
        x, w = (data(kind, shape, rng).astype(np_dtype(problem.dtype)) for shape in problem.input_shapes)
        if not any(each.algorithm == algorithm and each.verdict for each in candidates(problem, "numba")):
            continue
        options = {"padding": problem.padding[0][0], "backend": "numba"}
        y = nc.conv(x, w, algorithm=algorithm, accuracy=accuracy, dtype=np.float32, **options)
        x, w = x.astype(np.float64), w.astype(np.float64)
        exact, magnitude = nc.conv(x, w, **options), nc.conv(abs(x), abs(w), **options)
        error = abs(y - exact)
        found.append((np.linalg.norm(error) / np.linalg.norm(magnitude), (error / magnitude).max()))
    return tuple(np.max(found, axis=0)) if found else None


def print_tiles():
    """The table of docs/amx.md."""
    kinds = (*KINDS, "constant")
    print(f"| dtype | algorithm | level | {' | '.join(f'{kind}: norm, largest' for kind in kinds)} |\n{'|---' * 7}|")
    for dtype, algorithm, level in TILED:
        found = [errors(algorithm, dtype, kind, level, (*ROWS, FEW_TERMS)) for kind in kinds]
        if all(found):
            name = {"f32": "float32", "bf16": "bfloat16"}[dtype]
            cells = [f"{norm:.1e}, {largest:.1e}" for norm, largest in found]
            print(f"| {name} | `{algorithm}` | {level} | {' | '.join(cells)} |")


def print_halves():
    """The table of docs/half.md."""
    kinds = KINDS
    print(f"| dtype | algorithm | {' | '.join(f'{kind}: norm, largest' for kind in kinds)} |\n|---|---|---|---|---|")
    for dtype in ("bf16", "f16"):
        for algorithm in ALGORITHMS:
            cells = [errors(algorithm, dtype, kind if dtype == "bf16" or kind != "unequal" else "normal") for kind in kinds]
            if all(cells):
                cells = [f"{norm:.1e}, {largest:.1e}" for norm, largest in cells]
                if dtype == "f16":
                    cells[2] = "(beyond its range)"
                print(f"| {np_dtype(parse(f'conv forward {dtype} {ROWS[0]}').dtype)} | `{algorithm}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--tiles", action="store_true", help="the table of docs/amx.md")
    (print_tiles if parser.parse_args().tiles else print_halves)()
