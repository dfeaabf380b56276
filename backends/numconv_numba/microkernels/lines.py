"""Sums of a register tile on their way to y: lines of neighbours, with bias and relu, several at a call.

A tile with the lanes over pixels computes a block as one row, with gaps between its lines. A call for each line, and a pass that
looks for what is not finite, would take as long as the products of few input channels.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds
from .memory import Memory

__all__ = ["write_lines"]


class _Lines:
    """Emits the copies of one channel's lines."""

    def __init__(self, emit: Emitter, results: Memory, builder: Any, columns: Any, relu: Any):
        self.emit, self.results, self.builder, self.relu = emit, results, builder, relu
        lanes = columns.type(emit.lanes)
        self.whole, self.left = builder.sdiv(columns, lanes), builder.srem(columns, lanes)
        self.tail = emit.first(self.left)
        bits = ir.VectorType(ir.IntType(8 * emit.width // emit.lanes), emit.lanes)
        self.found = cgutils.alloca_once_value(builder, ir.Constant(bits, None))

    def write(self, source: Any, target: Any, shift: Any) -> None:
        """One line: whole vectors, then the rest of one."""
        emit, builder = self.emit, self.builder
        with cgutils.for_range(builder, self.whole) as vector:
            place = emit.at(target, emit.times(vector.index, self.results.width))
            self.results.store(self._dressed(emit.load(emit.at(source, emit.times(vector.index, emit.width))), shift), place)
        with builder.if_then(builder.icmp_signed(">", self.left, self.left.type(0))):
            value = emit.load_masked(emit.at(source, emit.times(self.whole, emit.width)), self.tail)
            place = emit.at(target, emit.times(self.whole, self.results.width))
            self.results.store_masked(self._dressed(value, shift), place, self.tail)

    def _dressed(self, value: Any, shift: Any) -> Any:
        """With bias and relu. What is not finite, times zero, is NaN, whose bits stay: a sum would wait for the one before."""
        builder = self.builder
        found = builder.load(self.found)
        builder.store(builder.or_(found, builder.bitcast(builder.fmul(value, self.emit.zero), found.type)), self.found)
        return self.emit.positive(builder.fadd(value, shift), self.relu)


@intrinsic
def _write_lines(
    typingctx: Any, lanes: Any, dtype: Any, sums: Any, sums_k: Any, sums_line: Any, channels: Any, lines: Any, columns: Any,
    bias: Any, relu: Any, y: Any, y_k: Any, y_line: Any,
) -> Any:  # fmt: skip
    check_kinds((lanes, dtype), (sums, bias, y))
    n = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, sums, sums_k, sums_line, channels, lines, columns, bias, relu, y, y_k, y_line = args
        arithmetic, stored = dtype.value
        emit = Emitter(builder, arithmetic, lanes.value)
        zero = columns.type(0)
        clip = emit.spread(builder.icmp_signed("!=", relu, zero))
        given = builder.icmp_unsigned("!=", builder.ptrtoint(bias, zero.type), zero)
        code = _Lines(emit, Memory(context, builder, emit, stored), builder, columns, clip)
        shift = cgutils.alloca_once(builder, emit.vector)
        with cgutils.for_range(builder, channels) as channel:
            k = channel.index
            builder.store(emit.constant(-0.0), shift)  # -0 changes no sum
            with builder.if_then(given):
                builder.store(emit.broadcast(emit.at(bias, emit.times(k, emit.width // emit.lanes))), shift)
            source, target = emit.at(sums, builder.mul(k, sums_k)), emit.at(y, builder.mul(k, y_k))
            with cgutils.for_range(builder, lines) as line:
                code.write(
                    emit.at(source, builder.mul(line.index, sums_line)), emit.at(target, builder.mul(line.index, y_line)),
                    builder.load(shift),
                )  # fmt: skip
        return emit.any(emit.not_finite(builder.bitcast(builder.load(code.found), emit.vector)))

    return n(lanes, dtype, sums, n, n, n, n, n, bias, n, y, n, n), codegen


@kernel(emitted=True)
def write_lines(
    lanes: Tag, dtype: Tag, sums: Address, sums_k: int, sums_line: int, channels: int, lines: int, columns: int, bias: Address,
    relu: int, y: Address, y_k: int, y_line: int,
) -> int:  # fmt: skip
    """y[k, line, i] = sums[k, line, i] + bias[k], or its positive part. Returns 1 if one of these sums is not finite, else 0.

    Parameters
    ----------
    lanes : Tag
        Of a vector of sums.
    dtype : Tag
        A pair: of the sums and the bias, and of y.
    sums, y : Address
        Elements of a line are neighbours.
    sums_k, sums_line, y_k, y_line : int
        Bytes from channel to channel and from line to line.
    channels, lines, columns : int
        How many, and elements of a line.
    bias : Address
        Of the first channel's, or 0.
    relu : int
        1 to write the positive part.
    """
    return _write_lines(lanes, dtype, sums, sums_k, sums_line, channels, lines, columns, bias, relu, y, y_k, y_line)
