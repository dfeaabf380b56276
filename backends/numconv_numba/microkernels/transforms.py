"""Winograd's transforms: small matrices applied along two dimensions of a tile, a vector of tiles or of channels at a time.

F(m, 3) computes m outputs of a three-tap filter from m + 2 inputs with m + 2 multiplications. Its matrices come from interpolation
at m + 1 points and infinity (Toom and Cook; Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016,
section 4; Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep neural networks", TOMS 2020,
on the choice of points).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from numba import types

from numconv_numba.compiler import intrinsic

from .emit import Emitter, check_kinds

__all__ = [
    "Matrices",
    "gradient_transform",
    "input_transform",
    "kernel_transform",
    "matrices",
    "output_transform",
    "weight_transform",
]

Matrix = tuple[tuple[float, ...], ...]

# Beside zero and infinity. Of the sets tried, these gave the least error: for m = 4 about a third of that of 1, -1, 2, -2.
_POINTS = {2: ("1", "-1"), 4: ("3/4", "-3/4", "3/2", "-3/2")}


class Matrices(NamedTuple):
    """F(m, r): outputs = output @ ((weights @ w) * (inputs @ x)); m = 1 stands for no transform, of one tap."""

    inputs: Matrix
    weights: Matrix
    output: Matrix


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, from the constant up, of the product of (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


@functools.cache
def matrices(m: int) -> Matrices:
    """Of F(m, 3); of the identity for m = 1."""
    if m == 1:
        return Matrices(((1.0,),), ((1.0,),), ((1.0,),))
    points = [Fraction(0), *map(Fraction, _POINTS[m])]
    inputs, weights = [], []
    for j, point in enumerate(points):
        others = [other for i, other in enumerate(points) if i != j]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        weights.append([point**k / scale for k in range(3)])
        inputs.append([*_polynomial(others), Fraction(0)])
    inputs.append(_polynomial(points))
    weights.append([Fraction(0), Fraction(0), Fraction(1)])
    output = [[point**i for point in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    return Matrices(*(tuple(tuple(map(float, row)) for row in matrix) for matrix in (inputs, weights, output)))


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _combine(builder: Any, emit: Emitter, coefficients: Sequence[float], vectors: Sequence[Any]) -> Any:
    """The sum of the vectors with these coefficients."""
    total = None
    for coefficient, vector in zip(coefficients, vectors, strict=True):
        if coefficient == 0:
            continue
        if total is None:
            total = vector if coefficient == 1 else builder.fmul(vector, emit.constant(coefficient))
        elif abs(coefficient) == 1:
            total = (builder.fadd if coefficient > 0 else builder.fsub)(total, vector)
        else:
            total = emit.fma(vector, emit.constant(coefficient), total)
    return emit.zero if total is None else total


def _multiply(builder: Any, emit: Emitter, matrix: Matrix, vectors: Sequence[Any]) -> list[Any]:
    """matrix @ vectors. Rows or columns that belong to a point and its negative share their even and odd parts."""
    if len(matrix) == 1:
        return list(vectors)
    done: dict[int, Any] = {}
    for i in range(1, len(matrix) - 1, 2):
        row, other = matrix[i], matrix[i + 1]
        if all(abs(a) == abs(b) for a, b in zip(row, other, strict=True)):
            even = [a if a == b else 0.0 for a, b in zip(row, other, strict=True)]
            odd = [a if a != b else 0.0 for a, b in zip(row, other, strict=True)]
            parts = _combine(builder, emit, even, vectors), _combine(builder, emit, odd, vectors)
            done[i], done[i + 1] = builder.fadd(*parts), builder.fsub(*parts)
    if done:
        return [done[i] if i in done else _combine(builder, emit, row, vectors) for i, row in enumerate(matrix)]
    # the matrices of the outputs and of the kernel's gradient: their columns pair
    paired, columns = [vectors[0]], [[row[0] for row in matrix]]
    for j in range(1, len(vectors) - 1, 2):
        paired += [builder.fadd(vectors[j], vectors[j + 1]), builder.fsub(vectors[j], vectors[j + 1])]
        columns += [
            [row[j] if row[j] == row[j + 1] else 0.0 for row in matrix],
            [row[j] if row[j] != row[j + 1] else 0.0 for row in matrix],
        ]
    paired.append(vectors[-1])
    columns.append([row[-1] for row in matrix])
    return [_combine(builder, emit, coefficients, paired) for coefficients in zip(*columns, strict=True)]


def _transform(builder: Any, emit: Emitter, first: Matrix, second: Matrix, tile: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """first @ tile @ transposed second, where each element of the tile is a vector."""
    columns = [_multiply(builder, emit, first, column) for column in zip(*tile, strict=True)]
    return [_multiply(builder, emit, second, row) for row in zip(*columns, strict=True)]


@intrinsic
def input_transform(typingctx: Any, shape: Any, dtype: Any, x: Any, offsets: Any, y: Any, y_step: Any) -> Any:
    """Transform a vector of input tiles: element (i, j) is loaded at its offset in a table, and stored at multiples of y_step."""
    check_kinds((shape, dtype), (x, offsets, y))
    rows, columns, lanes = shape.value
    first, second = matrices(rows).inputs, matrices(columns).inputs

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, offsets, y, y_step = args
        emit, width = Emitter(builder, dtype, lanes), len(second)
        tile = [[emit.load(emit.at(x, emit.offset(offsets, i * width + j))) for j in range(width)] for i in range(len(first))]
        flat = [vector for row in _transform(builder, emit, first, second, tile) for vector in row]
        for place, vector in enumerate(flat):
            emit.store(vector, emit.at(y, emit.times(y_step, place)))
        return context.get_dummy_value()

    return types.void(shape, dtype, x, offsets, y, types.int64), codegen


@intrinsic
def weight_transform(typingctx: Any, shape: Any, dtype: Any, w: Any, w_step: Any, u: Any, u_step: Any) -> Any:
    """Transform a vector of kernels, whose taps lie `w_step` bytes apart, into elements `u_step` bytes apart."""
    check_kinds((shape, dtype), (w, u))
    rows, columns, lanes = shape.value
    first, second = matrices(rows).weights, matrices(columns).weights

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, w, w_step, u, u_step = args
        emit, width = Emitter(builder, dtype, lanes), len(second[0])
        tile = [[emit.load(emit.at(w, emit.times(w_step, i * width + j))) for j in range(width)] for i in range(len(first[0]))]
        flat = [vector for row in _transform(builder, emit, first, second, tile) for vector in row]
        for place, vector in enumerate(flat):
            emit.store(vector, emit.at(u, emit.times(u_step, place)))
        return context.get_dummy_value()

    return types.void(shape, dtype, w, types.int64, u, types.int64), codegen


@intrinsic
def output_transform(typingctx: Any, shape: Any, dtype: Any, s: Any, s_step: Any, y: Any, row_step: Any, column_step: Any) -> Any:
    """Transform the products of a tile, `s_step` bytes apart, for a vector of channels, into its outputs."""
    check_kinds((shape, dtype), (s, y))
    rows, columns, lanes = shape.value
    first, second = matrices(rows).output, matrices(columns).output

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, s, s_step, y, row_step, column_step = args
        emit, width = Emitter(builder, dtype, lanes), len(second[0])
        tile = [[emit.load(emit.at(s, emit.times(s_step, i * width + j))) for j in range(width)] for i in range(len(first[0]))]
        for i, row in enumerate(_transform(builder, emit, first, second, tile)):
            for j, vector in enumerate(row):
                place = builder.add(emit.times(row_step, i), emit.times(column_step, j))
                emit.store(vector, emit.at(y, place))
        return context.get_dummy_value()

    return types.void(shape, dtype, s, types.int64, y, types.int64, types.int64), codegen


@intrinsic
def gradient_transform(typingctx: Any, shape: Any, dtype: Any, y: Any, row_step: Any, column_step: Any, m: Any, m_step: Any) -> Any:
    """The adjoint of `output_transform`: the gradients of a tile's outputs, for a vector of channels, into its elements."""
    check_kinds((shape, dtype), (y, m))
    rows, columns, lanes = shape.value
    first, second = (_transposed(matrices(size).output) for size in (rows, columns))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, y, row_step, column_step, m, m_step = args
        emit = Emitter(builder, dtype, lanes)
        tile = [
            [emit.load(emit.at(y, builder.add(emit.times(row_step, i), emit.times(column_step, j)))) for j in range(columns)]
            for i in range(rows)
        ]
        flat = [vector for row in _transform(builder, emit, first, second, tile) for vector in row]
        for place, vector in enumerate(flat):
            emit.store(vector, emit.at(m, emit.times(m_step, place)))
        return context.get_dummy_value()

    return types.void(shape, dtype, y, types.int64, types.int64, m, types.int64), codegen


@intrinsic
def kernel_transform(typingctx: Any, shape: Any, dtype: Any, s: Any, s_step: Any, w: Any, w_step: Any) -> Any:
    """The adjoint of `weight_transform`: the sums of elements, for a vector of channels, into taps `w_step` bytes apart."""
    check_kinds((shape, dtype), (s, w))
    rows, columns, lanes = shape.value
    first, second = (_transposed(matrices(size).weights) for size in (rows, columns))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, s, s_step, w, w_step = args
        emit, width = Emitter(builder, dtype, lanes), len(second[0])
        tile = [[emit.load(emit.at(s, emit.times(s_step, i * width + j))) for j in range(width)] for i in range(len(first[0]))]
        flat = [vector for row in _transform(builder, emit, first, second, tile) for vector in row]
        for tap, vector in enumerate(flat):
            emit.store(vector, emit.at(w, emit.times(w_step, tap)))
        return context.get_dummy_value()

    return types.void(shape, dtype, s, types.int64, w, types.int64), codegen
