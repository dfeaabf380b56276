"""Matrix tiles: AMX's registers and instructions, and the same in vectors, for tests on processors that have none.

There are eight registers of up to 16 rows of 64 bytes. A product adds to the 16 x 16 float32 numbers of one tile those of two
others, of pairs of bfloat16 numbers: c[m, n] += the sum over k < 16 and both numbers h of a pair of a[m, k, h] * b[k, n, h]. The
sums over the first numbers of pairs and over the second are chains of their own from zero, then they are added, and both to c; each
step is rounded to nearest even, and what is smaller than 2**-126 is taken and given as zero (Intel, "Architecture Instruction Set
Extensions Programming Reference", TDPBF16PS). Registers belong to a thread, which sets their sizes before and gives them back
afterwards.

Instructions are written out as text. Of LLVM's own the registers may be renamed after they were given out, where it schedules for
processors of AMD, to some that are not configured. LLVM never moves a tile, so a kernel that calls another one keeps no tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import initialize_native_asmparser
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import rolled

__all__ = ["EMULATED", "PROCESSOR", "ROWS", "configuration", "configure", "raw_memory", "release", "tile_registers"]

PROCESSOR, EMULATED = "AMX", "AMX emulated"
"""The two bodies of each kernel: a tag."""
ROWS = 16
"""Rows of a register at most; and pairs of a row."""
REGISTERS, ROW_BYTES = 8, 64
COUNTS = 64
"""Where the emulation counts, behind a configuration: configured, released."""

_i8, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_words, _numbers = ir.VectorType(_i32, ROWS), ir.VectorType(_f32, ROWS)
_pointer = _i8.as_pointer()


@functools.cache
def configuration(rows: int) -> np.ndarray[Any, Any]:
    """The sizes of all registers, where blocks have so many rows: at most 32.

    Registers 0 to 3 are those of c, two for each 16 rows; 4 and 5 those of a; 6 and 7 those of b, which are full.
    """
    first, second = min(rows, ROWS), max(rows - ROWS, 0)
    found = np.zeros(COUNTS + 16, np.uint8)
    found[0] = 1  # the palette
    sizes = (first, first, second, second, first, second, ROWS, ROWS)
    found[48 : 48 + REGISTERS] = sizes
    found[16 : 16 + 2 * REGISTERS].view(np.uint16)[:] = [ROW_BYTES if size else 0 for size in sizes]
    return found


def raw_memory(builder: Any, size: int) -> Any:
    """So many bytes on the stack, on a cache line's start; `cgutils.alloca_once` would store zeros one by one."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(_i8, size))
        memory.align = ROW_BYTES
        return builder.bitcast(memory, _pointer)


class _Processor:
    """Emits the instructions. `rows` are those of a register as it is configured."""

    def __init__(self, builder: Any):
        self._builder = builder

    def zero(self, tile: int, rows: Any) -> None:
        """Clear a tile."""
        _instruction(self._builder, f"tilezero %tmm{tile}")

    def load(self, tile: int, address: Any, step: Any, rows: Any) -> None:
        """Fill a tile with rows that lie `step` bytes apart."""
        _instruction(self._builder, f"tileloadd ($0,$1), %tmm{tile}", address, step)

    def store(self, tile: int, address: Any, step: Any, rows: Any) -> None:
        """Write a tile."""
        _instruction(self._builder, f"tilestored %tmm{tile}, ($0,$1)", address, step)

    def multiply(self, c: int, a: int, b: int, rows: Any) -> None:
        """c += a * b."""
        _instruction(self._builder, f"tdpbf16ps %tmm{b}, %tmm{a}, %tmm{c}")


def _instruction(builder: Any, text: str, *operands: Any) -> None:
    """One instruction as it is written, in its place among others and among what reads and writes memory."""
    initialize_native_asmparser()
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in operands])
    builder.asm(kind, text, ",".join(["r"] * len(operands) + ["~{memory}"]), operands, side_effect=True)


class _Emulation:
    """Emits calls of functions that do the same with registers in memory."""

    def __init__(self, builder: Any):
        self._builder = builder
        self._file = raw_memory(builder, REGISTERS * ROWS * ROW_BYTES)

    def zero(self, tile: int, rows: Any) -> None:
        """Clear a tile."""
        self._call(_emulated_zero, self._row(tile), rows)

    def load(self, tile: int, address: Any, step: Any, rows: Any) -> None:
        """Fill a tile with rows that lie `step` bytes apart."""
        self._call(_emulated_copy, self._row(tile), _i64(ROW_BYTES), address, step, rows)

    def store(self, tile: int, address: Any, step: Any, rows: Any) -> None:
        """Write a tile."""
        self._call(_emulated_copy, address, step, self._row(tile), _i64(ROW_BYTES), rows)

    def multiply(self, c: int, a: int, b: int, rows: Any) -> None:
        """c += a * b."""
        self._call(_emulated_product, self._row(c), self._row(a), self._row(b), rows)

    def _row(self, tile: int) -> Any:
        return self._builder.gep(self._file, [_i64(tile * ROWS * ROW_BYTES)])

    def _call(self, body: Callable[..., None], *args: Any) -> None:
        """Call a function that has this body; the first call makes it."""
        module, name = self._builder.module, f"numconv{body.__name__}"
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(ir.VoidType(), [each.type for each in args]), name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            inner = ir.IRBuilder(function.append_basic_block("entry"))
            body(inner, *function.args)
            inner.ret_void()
        self._builder.call(function, args)


def tile_registers(builder: Any, body: str) -> _Processor | _Emulation:
    """What emits the instructions of one of the two bodies."""
    return _Processor(builder) if body == PROCESSOR else _Emulation(builder)


def _vector_at(builder: Any, kind: Any, place: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(place, [offset]), kind.as_pointer())


def _emulated_zero(builder: Any, tile: Any, rows: Any) -> None:
    with rolled(builder, rows) as row:
        builder.store(ir.Constant(_words, None), _vector_at(builder, _words, tile, builder.mul(row, _i64(ROW_BYTES))))


def _emulated_copy(builder: Any, target: Any, target_step: Any, source: Any, source_step: Any, rows: Any) -> None:
    with rolled(builder, rows) as row:
        loaded = builder.load(_vector_at(builder, _words, source, builder.mul(row, source_step)))
        loaded.align = 1
        builder.store(loaded, _vector_at(builder, _words, target, builder.mul(row, target_step))).align = 1


def _flushed(builder: Any, words: Any) -> Any:
    """float32 numbers from their bits, zero with their sign for those that are smaller than 2**-126."""
    exponent = builder.and_(words, ir.Constant(_words, [0x7F800000] * ROWS))
    small = builder.icmp_unsigned("==", exponent, ir.Constant(_words, None))
    sign = builder.and_(words, ir.Constant(_words, [-0x80000000] * ROWS))
    return builder.bitcast(builder.select(small, sign, words), _numbers)


def _halves(builder: Any, words: Any) -> list[Any]:
    """Both numbers of pairs, as float32."""
    first = builder.shl(words, ir.Constant(_words, [16] * ROWS))
    second = builder.and_(words, ir.Constant(_words, [-0x10000] * ROWS))
    return [_flushed(builder, first), _flushed(builder, second)]


def _emulated_product(builder: Any, c: Any, a: Any, b: Any, rows: Any) -> None:
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_numbers, [_numbers] * 3), f"llvm.fma.v{ROWS}f32")
    zeros, undefined = ir.Constant(_words, [0] * ROWS), ir.Constant(_words, ir.Undefined)
    sums = [cgutils.alloca_once(builder, _numbers) for _ in range(2)]

    def flushed(numbers: Any) -> Any:
        return _flushed(builder, builder.bitcast(numbers, _words))

    with rolled(builder, rows) as row:
        line = builder.mul(row, _i64(ROW_BYTES))
        for each in sums:
            builder.store(ir.Constant(_numbers, None), each)
        with rolled(builder, _i64(ROWS)) as pair:
            place = builder.add(line, builder.mul(pair, _i64(4)))
            word = builder.load(builder.bitcast(builder.gep(a, [place]), _i32.as_pointer()))
            spread = builder.shuffle_vector(builder.insert_element(undefined, word, _i32(0)), undefined, zeros)
            other = builder.load(_vector_at(builder, _words, b, builder.mul(pair, _i64(ROW_BYTES))))
            for each, left, right in zip(sums, _halves(builder, spread), _halves(builder, other), strict=True):
                builder.store(flushed(builder.call(fma, [left, right, builder.load(each)])), each)
        target = _vector_at(builder, _numbers, c, line)
        both = flushed(builder.fadd(*map(builder.load, sums)))
        builder.store(flushed(builder.fadd(flushed(builder.load(target)), both)), target)


@intrinsic
def _state(typingctx: Any, body: Any, text: Any, config: Any) -> Any:
    """One of two instructions; the emulation counts it."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if body.value == PROCESSOR:
            _instruction(builder, text.value, *([args[2]] if "$0" in text.value else []))
        else:
            offset = COUNTS + 8 * (text.value == _RELEASE.value)
            place = builder.bitcast(builder.gep(args[2], [_i64(offset)]), _i64.as_pointer())
            builder.atomic_rmw("add", place, _i64(1), "monotonic")
        return context.get_dummy_value()

    return types.void(body, text, config), codegen


_LOAD, _RELEASE = Tag("ldtilecfg ($0)"), Tag("tilerelease")


@kernel
def configure(body: Tag, unused: Tag, config: Address) -> None:
    """Set the sizes of this thread's registers, which clears them; `config`: see `configuration`."""
    _state(body, _LOAD, config)


@kernel
def release(body: Tag, unused: Tag, config: Address) -> None:
    """Give this thread's registers back, so that the system need not keep them from switch to switch."""
    _state(body, _RELEASE, config)
