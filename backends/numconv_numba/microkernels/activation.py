"""Activations in registers, in the precision of the sums: relu, silu(x) = x / (1 + exp(-x)), gelu(x) = x * erfc(-x / sqrt(2)) / 2.

They are straight lines of arithmetic, for vectors and for single numbers alike. silu, and gelu in double precision, are within a
few units in the last place. gelu in single precision is within 2 epsilon of |x|, as x is itself after a sum: so results of x below
-3, which are small beside x, have fewer digits, as in other libraries, for less than half of the instructions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["GELU", "RELU", "SILU", "SMOOTH", "Numbers", "dress", "gelu", "silu"]

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
    """

    mantissa: int
    exponent: int
    log2: tuple[float, ...]
    exp: tuple[float, ...]
    least: float
    most: float


# The polynomial of single precision is minimax; that of double precision interpolates at Chebyshev's nodes, in 50 digits. Their
# relative errors: 1e-7 and 4e-18.
_SINGLE = _Precision(
    23, 127, (math.log(2),), (1.0, 1.0, 0.499992314880108, 0.16667114646894912, 0.04189015758850858, 0.008312520648970374), -88.3,
    89.0,
)  # fmt: skip
_DOUBLE = _Precision(
    52, 1023, (math.log(2), 2.3190468138462996e-17), (1.0, 1.0, 0.500000000000001839, 0.166666666666666808,
    0.0416666666664880955, 0.00833333333331960061, 0.00138888889523147747, 0.000198412698900471137, 0.0000248014854823284924,
    2.75572409185789698e-6, 2.76326396390410297e-7, 2.51100376059637777e-8), -709.0, 710.0,
)  # fmt: skip

# For single precision: erfc(-x / sqrt(2)) / 2 = 1/2 + u N(u^2) / D(u^2) with u = x / REACH, from the constants up, within 4e-8.
# From the REACH on it is 0 or 1, as N(1) is half of D(1), bit for bit.
_REACH = 5.4
_NUMERATOR = (
    2.1542882919311523, 5.004826068878174, 20.94300651550293, 19.972885131835938, 24.826656341552734, 2.882085084915161,
)  # fmt: skip
_DENOMINATOR = (1.0, 7.183191776275635, 23.37420082092285, 43.96577072143555, 49.214439392089844, 26.829885482788086)

# For double precision, after Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x) exp x^2 erfc x", Mathematics of
# Computation 36 (1981): K sqrt(2); (z + K) exp(z^2) erfc(z) / sqrt(2) in (z - K) / (z + K), interpolated in the same way, with a
# relative error of 1.5e-17; and the magnitude from which erfc(x / sqrt(2)) is 0, as there exp(-x^2 / 2) has the exponent of 0.
_CENTRE, _LARGEST = 4.9497474683058327, 37.656
_ERFC = (
    0.76866437869408242, -0.66312454463628143, 0.49081246644948028, -0.30777248804382389, 0.15962131014257997,
    -0.065279183494474367, 0.018751495946170037, -0.0022465138411912334, -0.00092302515545353375, 0.00050525019937396068,
    -2.9742437971568945e-5, -5.2875387949351807e-5, 1.3185546715740264e-5, 5.12240677907609e-6, -2.3985186486322404e-6,
    -5.6314175808104158e-7, 3.8928773030517308e-7, 8.212711854646397e-8, -5.9065214998346527e-8, -1.5382176241372662e-8,
    6.4016411116808952e-9, 2.3325778112651894e-9,
)  # fmt: skip
_SHORT = 6
"""Coefficients of a polynomial that is evaluated one after the other."""


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
        """From the constant's coefficient up; a long one by Estrin's scheme, of which steps wait for few others."""
        terms = [self.constant(coefficient) for coefficient in coefficients]
        if len(terms) <= _SHORT:
            return functools.reduce(lambda total, term: self.fma(total, x, term), reversed(terms))
        while len(terms) > 1:
            pairs = [self.fma(high, x, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
            terms = pairs + terms[2 * len(pairs) :]
            x = self._builder.fmul(x, x)
        return terms[0]

    def exp(self, x: Any, scale: float, left: Any = None) -> tuple[Any, Any]:
        """exp(scale * (x + left)) as two factors, of which one is a power of two; `scale` is one too, or less than 0.

        The arguments are within `least` and `most`; for the least, one factor is 0, for the most infinite.
        """
        builder, kind = self._builder, self.precision
        # added to a small number, it rounds that to an integer, which then stands in the low bits as an exponent
        rounding = self.constant(1.5 * 2.0**kind.mantissa + kind.exponent)
        shifted = self.fma(x, scale / math.log(2), rounding)
        power, rest = builder.fsub(shifted, rounding), x
        for part in kind.log2:
            rest = self.fma(power, -part / scale, rest)
        rest = rest if left is None else builder.fadd(rest, left)
        places = ir.Constant(self._whole, [kind.mantissa] * self._lanes if self._lanes else kind.mantissa)
        of_two = builder.bitcast(builder.shl(builder.bitcast(shifted, self._whole), places), self.kind)
        return self.polynomial([factor * scale**i for i, factor in enumerate(kind.exp)], rest), of_two


def silu(builder: Any, x: Any) -> Any:
    """x / (1 + exp(-x)) of a number or of a vector."""
    numbers = Numbers(builder, x.type)
    within = numbers.most(numbers.least(x, -numbers.precision.least), -numbers.precision.most)
    return builder.fdiv(x, numbers.fma(*numbers.exp(within, -1.0), 1.0))


def gelu(builder: Any, x: Any) -> Any:
    """x * erfc(-x / sqrt(2)) / 2 of a number or of a vector."""
    numbers = Numbers(builder, x.type)
    return (_gelu_in_double if numbers.precision is _DOUBLE else _gelu_in_single)(builder, numbers, x)


def _gelu_in_single(builder: Any, numbers: Numbers, x: Any) -> Any:
    """By a rational function."""
    u = numbers.most(numbers.least(builder.fmul(x, numbers.constant(1 / _REACH)), 1.0), -1.0)
    square = builder.fmul(u, u)
    quotient = builder.fdiv(numbers.polynomial(_NUMERATOR, square), numbers.polynomial(_DENOMINATOR, square))
    return builder.fmul(x, numbers.fma(u, quotient, 0.5))


def _gelu_in_double(builder: Any, numbers: Numbers, x: Any) -> Any:
    """max(x, 0) less the tail of |x|."""
    magnitude = numbers.magnitude(x)
    size = numbers.least(magnitude, _LARGEST)
    inverse = builder.fdiv(numbers.constant(1.0), builder.fadd(size, numbers.constant(_CENTRE)))
    series = numbers.polynomial(_ERFC, numbers.fma(inverse, -2 * _CENTRE, 1.0))
    # exp(-x^2 / 2), where the square keeps what its rounding leaves
    square = builder.fmul(size, size)
    bell, of_two = numbers.exp(square, -0.5, numbers.fma(size, size, builder.fneg(square)))
    tail = builder.fmul(builder.fmul(series, inverse), builder.fmul(bell, of_two))
    below = builder.fcmp_ordered("<", x, numbers.constant(0.0))
    # of -inf the magnitude itself, whose product with 0 is NaN
    part = builder.select(below, magnitude, size)
    return numbers.fma(builder.fneg(part), tail, builder.select(below, numbers.constant(-0.0), x))


SMOOTH = {SILU: silu, GELU: gelu}
"""The activations that are more than a comparison, by their codes."""


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

        with builder.if_then(builder.icmp_signed("<=", code, _i64(RELU))):
            do(lambda value: emit.positive(value, relu))
        for number, function in SMOOTH.items():
            with builder.if_then(builder.icmp_signed("==", code, _i64(number))):
                do(functools.partial(function, builder))
        return emit.any(builder.load(bad))

    n = types.int64
    return types.int64(lanes, dtype, x, n, n, n, bias, n, n, y, n), codegen


@kernel(emitted=True)
def dress(
    lanes: Tag, dtype: Tag, x: Address, x_row: int, rows: int, columns: int, bias: Address, by_row: int, code: int, y: Address,
    y_row: int,
) -> int:  # fmt: skip
    """y[i, j] = the activation of x[i, j] + bias[j], or + bias[i] if `by_row` is 1; y may be x.

    Elements of a row are neighbours; rows of x and y lie `x_row` and `y_row` bytes apart. `bias` may be 0; `code` is that of
    `ACTIVATIONS`. Returns 1 if one of these x is NaN or an infinity, else 0.
    """
    return _dress(lanes, dtype, x, x_row, rows, columns, bias, by_row, code, y, y_row)
