"""Winograd's transforms: small matrices applied along two dimensions of a tile, a vector of tiles or of channels at a time.

F(m, r) computes m outputs of an r-tap filter from m + r - 1 inputs with as many multiplications. Its matrices come from
interpolation at m + r - 2 points and infinity (Toom and Cook; Lavin and Gray, "Fast algorithms for convolutional neural networks",
CVPR 2016, section 4; Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep neural networks",
TOMS 2020, on the choice of points).

The transforms are compiled alone and called by address. Their first tag, the shape, is (outputs, taps) along the rows and along the
columns of a tile, then lanes; one output and one tap stand for no transform.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["TRANSFORMS", "Matrices", "Matrix", "combine", "matrices", "multiply", "shapes_for"]

Matrix = tuple[tuple[float, ...], ...]

_i64 = ir.IntType(64)

# Beside zero and infinity, by the number of elements m + r - 1. Of the sets tried, these gave the least error: for F(4, 3) about a
# third of that of 1, -1, 2, -2.
_POINTS = {3: ("1",), 4: ("1", "-1"), 5: ("2/3", "-2/3", "2"), 6: ("3/4", "-3/4", "3/2", "-3/2")}


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
def matrices(m: int, taps: int) -> Matrices:
    """Of F(m, taps); of the identity for one output and one tap."""
    if m == taps == 1:
        return Matrices(((1.0,),), ((1.0,),), ((1.0,),))
    points = [Fraction(0), *map(Fraction, _POINTS[m + taps - 1])]
    inputs, weights = [], []
    for j, point in enumerate(points):
        others = [other for i, other in enumerate(points) if i != j]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        weights.append([point**k / scale for k in range(taps)])
        inputs.append([*_polynomial(others), Fraction(0)])
    inputs.append(_polynomial(points))
    weights.append([Fraction(int(k == taps - 1)) for k in range(taps)])
    output = [[point**i for point in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    return Matrices(*(tuple(tuple(map(float, row)) for row in matrix) for matrix in (inputs, weights, output)))


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def combine(builder: Any, emit: Emitter, coefficients: Sequence[float], vectors: Sequence[Any]) -> Any:
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


def multiply(builder: Any, emit: Emitter, matrix: Matrix, vectors: Sequence[Any]) -> list[Any]:
    """matrix @ vectors. Rows or columns that belong to a point and its negative share their even and odd parts."""
    if len(matrix) == 1:
        return list(vectors)
    done: dict[int, Any] = {}
    for i in range(1, len(matrix) - 1, 2):
        row, other = matrix[i], matrix[i + 1]
        if all(abs(a) == abs(b) for a, b in zip(row, other, strict=True)):
            even = [a if a == b else 0.0 for a, b in zip(row, other, strict=True)]
            odd = [a if a != b else 0.0 for a, b in zip(row, other, strict=True)]
            parts = combine(builder, emit, even, vectors), combine(builder, emit, odd, vectors)
            done[i], done[i + 1] = builder.fadd(*parts), builder.fsub(*parts)
    if done:
        return [done[i] if i in done else combine(builder, emit, row, vectors) for i, row in enumerate(matrix)]
    # the matrices of the outputs and of the kernel's gradient: their columns pair
    paired, columns, j = [], [], 0
    turned = _transposed(matrix)
    while j < len(vectors):
        both = turned[j : j + 2]
        if len(both) == 2 and all(abs(a) == abs(b) for a, b in zip(*both, strict=True)):
            paired += [builder.fadd(vectors[j], vectors[j + 1]), builder.fsub(vectors[j], vectors[j + 1])]
            columns += [[a if a == b else 0.0 for a, b in zip(*both, strict=True)]]
            columns += [[a if a != b else 0.0 for a, b in zip(*both, strict=True)]]
        else:
            both = both[:1]
            paired.append(vectors[j])
            columns.append(list(both[0]))
        j += len(both)
    return [combine(builder, emit, coefficients, paired) for coefficients in zip(*columns, strict=True)]


def _emit(
    builder: Any, dtype: Any, lanes: int, both: Sequence[Matrix], vectors: Any, load: Any, store: Any, last: Sequence[Any] = ()
) -> None:
    """Transform so many vectors of tiles: load(emit, i, j, place) gives an element, store(emit, i, j, place, vector) takes one.

    `place` is the byte offset of a vector among those that follow each other. Columns are loaded, and rows stored, one by one: of a
    tile that no registers hold, only what lies between the two products then goes through memory. `last`: whether the last row, and
    the last column, of the results are stored; without it, both are.
    """
    emit = Emitter(builder, dtype, lanes)
    first, second = both
    with cgutils.for_range(builder, vectors) as vector:
        place = builder.mul(vector.index, _i64(emit.width))
        columns = [
            multiply(builder, emit, first, [load(emit, i, j, place) for i in range(len(first[0]))]) for j in range(len(second[0]))
        ]
        waiting: dict[tuple[bool, bool], list[tuple[int, int, Any]]] = {}
        for i, row in enumerate(zip(*columns, strict=True)):
            for j, result in enumerate(multiply(builder, emit, second, row)):
                ends = bool(last) and i == len(first) - 1 > 0, bool(last) and j == len(second) - 1 > 0
                if any(ends):
                    waiting.setdefault(ends, []).append((i, j, result))
                else:
                    store(emit, i, j, place, result)
        for ends, results in waiting.items():
            with builder.if_then(functools.reduce(builder.and_, itertools.compress(last, ends))):
                for i, j, result in results:
                    store(emit, i, j, place, result)


def _spaced(base: Any, step: Any, width: int) -> Any:
    """Where element (i, j) lies, of tiles that are `width` elements wide: at multiples of a step."""
    return lambda emit, i, j, place: emit.at(emit.at(base, emit.times(step, i * width + j)), place)


def _in_rows(base: Any, row_step: Any, column_step: Any) -> Any:
    """Where element (i, j) lies: in rows and columns."""
    return lambda emit, i, j, place: emit.at(emit.at(emit.at(base, emit.times(row_step, i)), emit.times(column_step, j)), place)


def _loads(where: Any) -> Any:
    return lambda emit, i, j, place: emit.load(where(emit, i, j, place))


def _stores(where: Any) -> Any:
    return lambda emit, i, j, place, vector: emit.store(vector, where(emit, i, j, place))


@intrinsic
def _input(
    typingctx: Any, shape: Any, dtype: Any, x: Any, offsets: Any, vectors: Any, y: Any, y_step: Any, last_row: Any, last_column: Any
) -> Any:
    check_kinds((shape, dtype), (x, offsets, y))
    rows, row_taps, columns, column_taps, lanes = shape.value
    both, width = (matrices(rows, row_taps).inputs, matrices(columns, column_taps).inputs), columns + column_taps - 1

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, offsets, vectors, y, y_step, *ends = args
        last = [builder.icmp_signed("!=", end, _i64(0)) for end in ends]

        def load(emit: Emitter, i: int, j: int, place: Any) -> Any:
            return emit.load(emit.at(emit.at(x, emit.offset(offsets, i * width + j)), place))

        store = _stores(_spaced(y, y_step, width))
        with builder.if_else(builder.and_(*last)) as (whole, part):
            with whole:
                _emit(builder, dtype, lanes, both, vectors, load, store)
            with part:
                _emit(builder, dtype, lanes, both, vectors, load, store, last)
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, x, offsets, n, y, n, n, n), codegen


@kernel(emitted=True)
def transform_input(
    shape: Tag, dtype: Tag, x: Address, offsets: Address, vectors: int, y: Address, y_step: int, last_row: int, last_column: int
) -> None:  # fmt: skip
    """Input tiles, so many vectors of them that follow each other.

    Element (i, j) is loaded at its byte offset in an int64 table; elements are stored `y_step` bytes apart, those of the last row
    and column, at infinity, only if they are asked for.
    """
    _input(shape, dtype, x, offsets, vectors, y, y_step, last_row, last_column)


@intrinsic
def _weight(
    typingctx: Any, shape: Any, dtype: Any, w: Any, row_step: Any, column_step: Any, n_rows: Any, n_columns: Any, vectors: Any,
    u: Any, u_step: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (w, u))
    rows, row_taps, columns, column_taps, lanes = shape.value
    both, width = (matrices(rows, row_taps).weights, matrices(columns, column_taps).weights), columns + column_taps - 1

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, w, row_step, column_step, n_rows, n_columns, vectors, u, u_step = args
        where, store = _in_rows(w, row_step, column_step), _stores(_spaced(u, u_step, width))

        def load_inside(emit: Emitter, i: int, j: int, place: Any) -> Any:
            there = builder.and_(builder.icmp_signed("<", _i64(i), n_rows), builder.icmp_signed("<", _i64(j), n_columns))
            return emit.load_masked(where(emit, i, j, place), emit.spread(there))

        last = [builder.icmp_signed(">=", n, _i64(taps)) for n, taps in ((n_rows, row_taps), (n_columns, column_taps))]
        with builder.if_else(builder.and_(*last)) as (whole, part):
            with whole:
                _emit(builder, dtype, lanes, both, vectors, _loads(where), store)
            with part:
                _emit(builder, dtype, lanes, both, vectors, load_inside, store, last)
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, w, n, n, n, n, n, u, n), codegen


@kernel(emitted=True)
def transform_weight(
    shape: Tag, dtype: Tag, w: Address, row_step: int, column_step: int, rows: int, columns: int, vectors: int, u: Address,
    u_step: int, count: int, w_next: int, u_next: int,
) -> None:  # fmt: skip
    """Kernels, for so many vectors of channels that follow each other, into elements `u_step` bytes apart.

    Taps beyond the first `rows` and `columns` are zero, and elements at infinity then not stored. `count` of them lie `w_next` and
    `u_next` bytes apart.
    """
    for one in range(count):
        _weight(shape, dtype, w + one * w_next, row_step, column_step, rows, columns, vectors, u + one * u_next, u_step)


@intrinsic
def _output(
    typingctx: Any, shape: Any, dtype: Any, s: Any, s_step: Any, vectors: Any, y: Any, row_step: Any, column_step: Any
) -> Any:
    check_kinds((shape, dtype), (s, y))
    rows, row_taps, columns, column_taps, lanes = shape.value
    both, width = (matrices(rows, row_taps).output, matrices(columns, column_taps).output), columns + column_taps - 1

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, s, s_step, vectors, y, row_step, column_step = args
        load, store = _loads(_spaced(s, s_step, width)), _stores(_in_rows(y, row_step, column_step))
        _emit(builder, dtype, lanes, both, vectors, load, store)
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, s, n, n, y, n, n), codegen


@kernel(emitted=True)
def transform_output(
    shape: Tag, dtype: Tag, s: Address, s_step: int, vectors: int, y: Address, row_step: int, column_step: int
) -> None:
    """The products of a tile, `s_step` bytes apart, into its outputs, for so many vectors of channels that follow each other."""
    _output(shape, dtype, s, s_step, vectors, y, row_step, column_step)


@intrinsic
def _gradient(
    typingctx: Any, shape: Any, dtype: Any, y: Any, row_step: Any, column_step: Any, vectors: Any, m: Any, m_step: Any
) -> Any:
    check_kinds((shape, dtype), (y, m))
    rows, row_taps, columns, column_taps, lanes = shape.value
    both = _transposed(matrices(rows, row_taps).output), _transposed(matrices(columns, column_taps).output)
    width = columns + column_taps - 1

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, y, row_step, column_step, vectors, m, m_step = args
        load, store = _loads(_in_rows(y, row_step, column_step)), _stores(_spaced(m, m_step, width))
        _emit(builder, dtype, lanes, both, vectors, load, store)
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, y, n, n, n, m, n), codegen


@kernel(emitted=True)
def transform_gradient(
    shape: Tag, dtype: Tag, y: Address, row_step: int, column_step: int, vectors: int, m: Address, m_step: int
) -> None:
    """The adjoint of `transform_output`: gradients of a tile's outputs into those of its products."""
    _gradient(shape, dtype, y, row_step, column_step, vectors, m, m_step)


@intrinsic
def _kernel(
    typingctx: Any, shape: Any, dtype: Any, s: Any, s_step: Any, vectors: Any, w: Any, row_step: Any, column_step: Any, n_rows: Any,
    n_columns: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (s, w))
    rows, row_taps, columns, column_taps, lanes = shape.value
    both = _transposed(matrices(rows, row_taps).weights), _transposed(matrices(columns, column_taps).weights)
    width = columns + column_taps - 1

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, s, s_step, vectors, w, row_step, column_step, n_rows, n_columns = args
        where = _in_rows(w, row_step, column_step)

        def store(emit: Emitter, i: int, j: int, place: Any, vector: Any) -> None:
            there = builder.and_(builder.icmp_signed("<", _i64(i), n_rows), builder.icmp_signed("<", _i64(j), n_columns))
            emit.store_masked(vector, where(emit, i, j, place), emit.spread(there))

        _emit(builder, dtype, lanes, both, vectors, _loads(_spaced(s, s_step, width)), store)
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, s, n, n, w, n, n, n, n), codegen


@kernel(emitted=True)
def transform_kernel(
    shape: Tag, dtype: Tag, s: Address, s_step: int, vectors: int, w: Address, row_step: int, column_step: int, rows: int,
    columns: int,
) -> None:  # fmt: skip
    """The adjoint of `transform_weight`: sums of the elements into the gradients of the first `rows` and `columns` of the taps."""
    _kernel(shape, dtype, s, s_step, vectors, w, row_step, column_step, rows, columns)


TRANSFORMS = transform_input, transform_weight, transform_output, transform_gradient, transform_kernel
"""Of one shape: a network that is trained needs them all."""


def _outputs(taps: int) -> list[int]:
    """m of the tiles along a dimension, the largest first: of 6 elements, of 4 or 5, and for two taps of 3.

    Few pixels of many channels take small tiles, since the transformed weights of large ones are many.
    """
    return {1: [1, 1, 1], 2: [5, 4, 2]}.get(taps, [7 - taps, 5 - taps, 5 - taps])


def shapes_for(row_taps: int, column_taps: int) -> list[tuple[int, int, int, int]]:
    """The shapes of all tiles for kernels of so many taps, the larger first."""
    both = zip(_outputs(row_taps), _outputs(column_taps), strict=True)
    return [
        (rows, row_taps, columns, column_taps)
        for rows, columns in dict.fromkeys(both)
        if (rows > 1 or row_taps == 1) and (columns > 1 or column_taps == 1)
    ]
