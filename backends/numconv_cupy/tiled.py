"""Convolution as a matrix product in tiles, by the kernel of ``kernels/tiled.cu``: every dtype, the order of accuracy="strict"."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Executor, Verdict, np_dtype

from .direct import Direct, limits
from .launching import THREADS, Launcher
from .namespaces import Arrays, on_namespace
from .source import NULL, geometry, kernel, strides_of

__all__ = ["Tiled", "tile_of"]

WIDE = 4
"""Elements of a load of weights where they are contiguous and aligned."""
MOST_BLOCKS = 2**31 - 1


def tile_of(acc_dtype: str) -> Mapping[str, int]:
    """What a block computes: as many numbers as leave its threads 64 registers for them."""
    size = np_dtype(acc_dtype).itemsize
    if size <= 4:
        return {"TM": 64, "TN": 128, "RM": 8, "RN": 8}
    return {"TM": 64, "TN": 64, "RM": 4, "RN": 8} if size == 8 else {"TM": 64, "TN": 32, "RM": 4, "RN": 4}


class Tiled(Direct):
    """Slices of both factors in shared memory, tiles of results in registers."""

    name = "tiled"
    ops: ClassVar[frozenset[str]] = frozenset({"forward", "input_grad"})

    def supports(self, problem: ConvProblem) -> Verdict:
        """Gradients of x only where padding holds zeros."""
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"input_grad with pad_mode {problem.pad_mode!r} folds the padding back, which it does not")
        blocks, terms = _blocks(problem), _terms(problem)
        if max(blocks, terms) > MOST_BLOCKS:
            return Verdict.no(f"{blocks} blocks of {terms} terms do not fit a grid and its 32-bit counters")
        return limits(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """One launch."""
        return on_namespace(functools.partial(_run, self.kernels, problem))


def _sides(problem: ConvProblem) -> tuple[int, int, int]:
    """Channels of the result a group, positions of the result through the batch, and channels summed a group."""
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    if problem.op == "forward":
        return per_k, problem.n * math.prod(problem.output), per_c
    return per_c, problem.n * math.prod(problem.spatial), per_k


def _terms(problem: ConvProblem) -> int:
    return _sides(problem)[2] * math.prod(problem.kernel)


def _blocks(problem: ConvProblem) -> int:
    rows, columns, _ = _sides(problem)
    tile = tile_of(problem.acc_dtype)
    return -(-rows // tile["TM"]) * -(-columns // tile["TN"]) * problem.groups


def _run(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    (out,), (source, w, *bias) = outs, ins
    wide = problem.op == "forward" and _weights_in_order(problem, w)
    tile = dict(tile_of(problem.acc_dtype)) | {"GRADIENT": int(problem.op == "input_grad"), "WIDE": int(wide)}
    record = geometry(problem, strides_of(source), strides_of(w), strides_of(out), bias_step=strides_of(bias[0])[0] if bias else 1)
    code = kernel("conv_tiled", problem, tile)
    kernels.launch(code, _blocks(problem) * THREADS, (record, source, w, bias[0] if bias else NULL, out))


def _weights_in_order(problem: ConvProblem, w: Any) -> bool:
    """Whether the terms of each row of w are neighbours, and every four of them aligned together."""
    address = w.ctypes.data if isinstance(w, np.ndarray) else w.data.ptr
    lined_up = _terms(problem) % WIDE == 0 and address % (WIDE * w.dtype.itemsize) == 0 and address % 16 == 0
    return bool(lined_up and w.flags.c_contiguous)
