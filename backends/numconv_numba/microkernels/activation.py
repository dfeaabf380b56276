"""Activations in registers, in the precision of the sums: relu, silu(x) = x / (1 + exp(-x)), gelu(x) = x * erfc(-x / sqrt(2)) / 2.

They are straight lines of arithmetic, for vectors and for single numbers alike, within a few units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["RELU", "Numbers", "dress", "gelu", "silu"]

RELU, SILU, GELU = 1, 2, 3
_i64 = ir.IntType(64)


class _Precision(NamedTuple):
    """What exp and erfc are computed with.

    Attributes
    ----------
    mantissa, exponent : int
        Bits of the mantissa, and the bias of the exponent.
    log2 : tuple of float
        log(2), and in double precision what its rounding leaves.
    exp : tuple of float
        Coefficients of exp between -log(2) / 2 and log(2) / 2, from the constant up.
    least, most : float
        Arguments of exp beyond which the exponent of the result is that of 0 and of infinity.
    erfc : tuple of float
        Coefficients of (1 + 2z) exp(z^2) erfc(z) in t = (z - 3) / (z + 3), from the constant up: of powers in single precision, of
        Chebyshev polynomials in double.
    largest : float
        The magnitude from which erfc(x / sqrt(2)) is 0.
    """

    mantissa: int
    exponent: int
    log2: tuple[float, ...]
    exp: tuple[float, ...]
    least: float
    most: float
    erfc: tuple[float, ...]
    largest: float


# The form of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x) exp x^2 erfc x", Mathematics of Computation 36 (1981);
# interpolated in 40 digits. The first coefficient left out is 2e-18 in double and 2e-9 in single precision. exp is Taylor's series
# in double precision, where the first term left out is 4e-18, and interpolates at Chebyshev's nodes in single: 1e-8.
_SINGLE = _Precision(
    23, 127, (math.log(2),), (1.0, 1.0, 0.5, 0.16666577025597726, 0.04166655466200664, 0.008363173074545174,
    0.0013926176124446912), -88.3, 89.0, (1.25300806, -0.135621069, -0.0475621569, 0.129644114, -0.119275275, 0.0683165678,
    -0.0237635764, 2.49911687e-3, 1.87507912e-3, -7.26453679e-4, -9.25451669e-5, 7.73102422e-5), 20.0,
)  # fmt: skip
_DOUBLE = _Precision(
    52, 1023, (math.log(2), 2.3190468138462996e-17), tuple(1 / math.factorial(term) for term in range(14)), -709.0, 710.0, (
    1.17756257419656, 0.005353904539615676, -0.09377550342284209, 0.05436652555744322, -0.018976596707845208,
    0.004453426061462712, -0.0006335531710553147, 1.7661719523171593e-05, 1.2841532864056681e-05, -2.0072285659059705e-06,
    -1.8075227904145446e-07, 7.549828343828702e-08, 1.8856685238796514e-09, -2.699519049754503e-09, -1.460079115500696e-11,
    1.0361607450228662e-10, 1.4757160152014485e-12, -4.277340031843879e-12, -2.0792246802778108e-13, 1.8134503585032112e-13,
    1.973426172909187e-14, -7.287947896500856e-15, -1.5170019483940254e-15, 2.351178628468913e-16, 1.0002989611741126e-16), 57.0,
)  # fmt: skip


class Numbers:
    """Arithmetic on numbers of one kind, for a function under construction.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    kind : llvmlite.ir.Type
        A float, a double, or a vector of them.
    """

    def __init__(self, builder: Any, kind: Any):
        self._builder, self.kind = builder, kind
        self._lanes = kind.count if isinstance(kind, ir.VectorType) else 0
        double = isinstance(kind.element if self._lanes else kind, ir.DoubleType)
        self.precision = _DOUBLE if double else _SINGLE
        whole = ir.IntType(64 if double else 32)
        self._whole = ir.VectorType(whole, self._lanes) if self._lanes else whole
        self._suffix = (f"v{self._lanes}" if self._lanes else "") + ("f64" if double else "f32")

    def constant(self, number: float) -> Any:
        """A number, in every lane."""
        return ir.Constant(self.kind, [number] * self._lanes if self._lanes else number)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c with one rounding; numbers that are given as such are constants."""
        values = [self.constant(each) if isinstance(each, float) else each for each in (a, b, c)]
        function = cgutils.get_or_insert_function(
            self._builder.module, ir.FunctionType(self.kind, [self.kind] * 3), f"llvm.fma.{self._suffix}"
        )
        return self._builder.call(function, values)

    def least(self, a: Any, number: float) -> Any:
        """The smaller one; NaN stays NaN."""
        return self._builder.select(self._builder.fcmp_ordered(">", a, self.constant(number)), self.constant(number), a)

    def most(self, a: Any, number: float) -> Any:
        """The larger one; NaN stays NaN."""
        return self._builder.select(self._builder.fcmp_ordered("<", a, self.constant(number)), self.constant(number), a)

    def magnitude(self, x: Any) -> Any:
        """The absolute value."""
        kind = ir.FunctionType(self.kind, [self.kind])
        return self._builder.call(cgutils.get_or_insert_function(self._builder.module, kind, f"llvm.fabs.{self._suffix}"), [x])

    def polynomial(self, coefficients: Sequence[float], x: Any) -> Any:
        """By Horner's rule; the coefficients from the constant up."""
        value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.fma(value, x, coefficient)
        return value

    def chebyshev(self, coefficients: Sequence[float], t: Any) -> Any:
        """A sum of Chebyshev polynomials by Clenshaw's rule."""
        builder, twice = self._builder, self._builder.fadd(t, t)
        last, value = self.constant(0.0), self.constant(coefficients[-1])
        for coefficient in coefficients[-2:0:-1]:
            last, value = value, self.fma(twice, value, builder.fsub(self.constant(coefficient), last))
        return self.fma(t, value, builder.fsub(self.constant(coefficients[0]), last))

    def exp(self, x: Any) -> Any:
        """exp(x); 0 below the normal numbers."""
        builder, kind = self._builder, self.precision
        # added to a small number, it rounds that to an integer, which then stands in the low bits as an exponent
        rounding = self.constant(1.5 * 2.0**kind.mantissa + kind.exponent)
        x = self.most(self.least(x, kind.most), kind.least)
        shifted = self.fma(x, 1 / math.log(2), rounding)
        power = builder.fsub(shifted, rounding)
        rest = x
        for part in kind.log2:
            rest = self.fma(power, -part, rest)
        places = ir.Constant(self._whole, [kind.mantissa] * self._lanes if self._lanes else kind.mantissa)
        scale = builder.bitcast(builder.shl(builder.bitcast(shifted, self._whole), places), self.kind)
        return builder.fmul(self.polynomial(kind.exp, rest), scale)


def silu(builder: Any, x: Any) -> Any:
    """x / (1 + exp(-x)) of a number or of a vector."""
    numbers = Numbers(builder, x.type)
    return builder.fdiv(x, builder.fadd(numbers.constant(1.0), numbers.exp(builder.fneg(x))))


def gelu(builder: Any, x: Any) -> Any:
    """x * erfc(-x / sqrt(2)) / 2 of a number or of a vector."""
    numbers = Numbers(builder, x.type)
    kind = numbers.precision
    size = numbers.least(numbers.magnitude(x), kind.largest)
    z = builder.fmul(size, numbers.constant(math.sqrt(0.5)))
    total, double = builder.fadd(z, numbers.constant(3.0)), numbers.fma(2.0, z, 1.0)
    inverse = builder.fdiv(numbers.constant(1.0), builder.fmul(total, double))
    t = builder.fmul(builder.fmul(builder.fsub(z, numbers.constant(3.0)), double), inverse)
    series = (numbers.polynomial if kind is _SINGLE else numbers.chebyshev)(kind.erfc, t)
    # exp(-x^2 / 2), where the square keeps what its rounding leaves
    square = builder.fmul(size, size)
    left = numbers.fma(size, size, builder.fneg(square))
    bell = numbers.exp(builder.fmul(square, numbers.constant(-0.5)))
    bell = numbers.fma(bell, builder.fmul(left, numbers.constant(-0.5)), bell)
    tail = builder.fmul(builder.fmul(series, builder.fmul(total, inverse)), bell)
    below = builder.fcmp_ordered("<", x, numbers.constant(0.0))
    factor = builder.select(below, tail, builder.fsub(numbers.constant(2.0), tail))
    return builder.fmul(builder.fmul(x, numbers.constant(0.5)), factor)


@intrinsic
def _dress(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, x_row: Any, rows: Any, columns: Any, bias: Any, by_row: Any, code: Any, y: Any,
    y_row: Any,
) -> Any:  # fmt: skip
    check_kinds((lanes, dtype), (x, bias, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_row, rows, columns, bias, by_row, code, y, y_row = args
        emit = Emitter(builder, dtype, count)
        whole, left = builder.sdiv(columns, _i64(count)), builder.srem(columns, _i64(count))
        every, tail = emit.first(_i64(count)), emit.first(left)
        bad = cgutils.alloca_once_value(builder, ir.Constant(every.type, None))
        given = builder.icmp_unsigned("!=", builder.ptrtoint(bias, _i64), _i64(0))
        rowwise = builder.icmp_signed("!=", by_row, _i64(0))
        of_column, of_row = builder.and_(given, builder.not_(rowwise)), builder.and_(given, rowwise)
        relu = emit.spread(builder.icmp_signed("==", code, _i64(RELU)))

        def do(apply: Callable[[Any], Any]) -> None:
            with cgutils.for_range(builder, rows) as row:
                source, target = emit.at(x, builder.mul(row.index, x_row)), emit.at(y, builder.mul(row.index, y_row))
                slot = cgutils.alloca_once(builder, emit.vector)
                builder.store(emit.constant(-0.0), slot)  # -0 changes no sum
                with builder.if_then(of_row):
                    builder.store(emit.broadcast(emit.at(bias, builder.mul(row.index, _i64(emit.width // count)))), slot)

                # a load of no lanes is slow where there is no memory, so without a bias it looks at x
                def write(vector: Any, mask: Any, slot: Any = slot, source: Any = source, target: Any = target) -> None:
                    place = builder.mul(vector, _i64(emit.width))
                    value = emit.load_masked(emit.at(source, place), mask)
                    builder.store(builder.or_(builder.load(bad), emit.not_finite(value)), bad)
                    columnwise = builder.select(of_column, bias, source)
                    loaded = emit.load_masked(emit.at(columnwise, place), emit.both(mask, of_column))
                    shift = builder.select(emit.spread(of_column), loaded, builder.load(slot))
                    emit.store_masked(apply(builder.fadd(value, shift)), emit.at(target, place), mask)

                with cgutils.for_range(builder, whole) as vector:
                    write(vector.index, every)
                with builder.if_then(builder.icmp_signed(">", left, _i64(0))):
                    write(whole, tail)

        with builder.if_else(builder.icmp_signed("<=", code, _i64(RELU))) as (plain, smooth):
            with plain:
                do(lambda value: emit.positive(value, relu))
            with smooth, builder.if_else(builder.icmp_signed("==", code, _i64(SILU))) as (one, other):
                with one:
                    do(lambda value: silu(builder, value))
                with other:
                    do(lambda value: gelu(builder, value))
        return emit.any(builder.load(bad))

    n = types.int64
    return types.int64(lanes, dtype, x, n, n, n, bias, n, n, y, n), codegen


@kernel
def dress(
    lanes: Tag, dtype: Tag, x: Address, x_row: int, rows: int, columns: int, bias: Address, by_row: int, code: int, y: Address,
    y_row: int,
) -> int:  # fmt: skip
    """y[i, j] = the activation of x[i, j] + bias[j], or + bias[i] if `by_row` is 1; y may be x.

    Elements of a row are neighbours; rows of x and y lie `x_row` and `y_row` bytes apart. `bias` may be 0; `code` is that of
    `ACTIVATIONS`. Returns 1 if one of these x is NaN or an infinity, else 0.
    """
    return _dress(lanes, dtype, x, x_row, rows, columns, bias, by_row, code, y, y_row)
