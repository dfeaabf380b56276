"""The functions of `copies` for the compiler: their types, and the instructions that they become."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from numconv_cuda.runtime.compiler import extending, types
from numconv_cuda.runtime.launching import capability

from .device_elements import _as_global, _element, _multiply_add, _narrow, _shared_element, _widen

__all__ = [
    "anew",
    "copies_end",
    "copies_wait",
    "copy_grid",
    "copy_grid_wide",
    "copy_sums",
    "copy_sums_wide",
    "entries",
    "index_as",
    "store_tile",
    "vanished",
]

intrinsic = extending.intrinsic
_i32, _i64 = ir.IntType(32), ir.IntType(64)
_GLOBAL, _SHARED = 1, 3
"""LLVM's numbers of the address spaces of device memory and of a block's shared memory."""
_QUAD = 16
"""Bytes of the widest copy, load and store."""
_NONE, _LEAST = (0, 0), (8, 0)
"""Compute capabilities: of no device, and the first with asynchronous copies."""


@intrinsic
def index_as(typingctx: Any, value: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.cast(builder, args[0], sig.args[0], sig.return_type)

    return types.unliteral(like)(value, like), codegen


def _kept(builder: Any, value: Any) -> Any:
    """The integer, of which the compiler does not know how it was computed."""
    move, register = ("mov.u32", "r") if value.type.width == 32 else ("mov.u64", "l")
    kind = ir.FunctionType(value.type, [value.type])
    return builder.call(ir.InlineAsm(kind, f"{move} $0, $1;", f"={register},{register}", side_effect=True), [value])


@intrinsic
def anew(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _kept(builder, args[0])

    return value(value), codegen


# --- copies to shared memory -----------------------------------------------------------------------------------------------------


def _asynchronous() -> bool:
    """Whether the device has asynchronous copies; without a device kernels are compiled for one that has."""
    return capability() == _NONE or capability() >= _LEAST


class _Target:
    """Where copies go and come from: the lowering of an element's copy, with the array and the pointer at hand.

    Parameters
    ----------
    context, builder : object
        Numba's.
    array_type, pointer_type : object
        Numba's types of the shared memory and of the pointer.
    array, pointer : object
        Their values.
    wide : bool
        Whether a copy takes 16 bytes, of elements that need no conversion.
    """

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any, pointer_type: Any, pointer: Any, *, wide: bool):
        self.context, self.builder, self.pointer = context, builder, pointer
        self.number, self.stored = array_type.dtype, pointer_type.dtype
        size = int(self.number.bitwidth) // 8
        self.size = _QUAD if wide else size if self.number == self.stored and size in (4, 8, 16) else 0
        self.together = _QUAD // size if wide else 1
        self._shared = array_type, array

    def copy(self, index: Any, offset: Any, offset_type: Any, there: Any) -> None:
        """Of an element, or of zeros where there is none."""
        if self.size and _asynchronous():
            target = _shared_element(self.context, self.builder, *self._shared, index, types.int64)
            self._copy_bytes(target, _element(self.context, self.builder, self.pointer, offset, offset_type), there)
            return
        for place in range(self.together):
            at, source = self.builder.add(index, index.type(place)), self.builder.add(offset, offset.type(place))
            target = _shared_element(self.context, self.builder, *self._shared, at, types.int64)
            self.builder.store(self._converted(source, offset_type, there), target)

    def _copy_bytes(self, target: Any, source: Any, there: Any) -> None:
        builder = self.builder
        read = builder.select(there, _i32(self.size), _i32(0))
        copy = ir.InlineAsm(
            ir.FunctionType(ir.VoidType(), [_i32, _i64, _i32]),
            f"cp.async.{'cg' if self.size == _QUAD else 'ca'}.shared.global [$0], [$1], {self.size}, $2;",
            "r,l,r,~{memory}",
            side_effect=True,
        )
        builder.call(copy, [builder.ptrtoint(target, _i32), builder.ptrtoint(source, _i64), read])

    def _converted(self, offset: Any, offset_type: Any, there: Any) -> Any:
        context, builder = self.context, self.builder
        zero = context.get_constant_null(self.number)
        with builder.if_else(there) as (found, missing):
            with found:
                value = builder.load(_element(context, builder, self.pointer, offset, offset_type))
                value.set_metadata("invariant.load", builder.module.add_metadata([]))
                widened, last = _widen(context, builder, value, self.stored, self.number), builder.block
            with missing:
                other = builder.block
        result = builder.phi(zero.type)
        result.add_incoming(widened, last)
        result.add_incoming(zero, other)
        return result


def _copy_grid(*, wide: bool) -> Any:
    @intrinsic
    def copy(typingctx: Any, array: Any, at: Any, pitch: Any, pointer: Any, start: Any, step: Any, offsets: Any,
             left: Any, steps: Any, like: Any) -> Any:  # fmt: skip
        kind = offsets.dtype

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            target = _Target(context, builder, array, args[0], pointer, args[3], wide=wide)
            index = context.cast(builder, args[1], sig.args[1], types.int64)
            first, stride = (context.cast(builder, args[i], sig.args[i], kind) for i in (4, 5))
            pitches, limits, moves = ([builder.extract_value(args[i], k) for k in range(2)] for i in (2, 7, 8))
            for line in range(like.count):
                for term in range(offsets.count):
                    number = [_i64(line), _i64(term)]
                    inside = [builder.icmp_signed("<", builder.mul(move, n), context.cast(builder, limit, left.dtype, types.int64))
                              for move, n, limit in zip(moves, number, limits, strict=True)]  # fmt: skip
                    moved = builder.add(first, builder.mul(stride, first.type(line)))
                    place = index
                    for by, n in zip(pitches, number, strict=True):
                        place = builder.add(place, builder.mul(by, n))
                    there = builder.and_(*inside)
                    target.copy(place, builder.add(moved, builder.extract_value(args[6], term)), kind, there)
            return context.get_dummy_value()

        pair = types.UniTuple(types.int64, 2)
        return types.void(array, at, pair, pointer, start, step, offsets, left, pair, like), codegen

    return copy


def _copy_sums(*, wide: bool) -> Any:
    @intrinsic
    def copy(typingctx: Any, array: Any, at: Any, pitch: Any, pointer: Any, lines: Any, terms: Any, sizes: Any, one: Any) -> Any:
        entry, kind = one.count, lines.dtype

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            target = _Target(context, builder, array, args[0], pointer, args[3], wide=wide)
            index = context.cast(builder, args[1], sig.args[1], types.int64)
            pitches = [builder.extract_value(args[2], k) for k in range(2)]

            def total(line: int, term: int, number: int) -> Any:
                parts = builder.extract_value(args[4], line * entry + number), builder.extract_value(args[5], term * entry + number)
                return builder.add(*parts)

            for line in range(lines.count // entry):
                for term in range(terms.count // entry):
                    there = ir.IntType(1)(1)
                    for axis in range(sizes.count):
                        size = context.cast(builder, builder.extract_value(args[6], axis), sizes.dtype, kind)
                        there = builder.and_(there, builder.icmp_unsigned("<", total(line, term, 1 + axis), size))
                    place = index
                    for by, n in zip(pitches, (line, term), strict=True):
                        place = builder.add(place, builder.mul(by, _i64(n)))
                    target.copy(place, total(line, term, 0), kind, there)
            return context.get_dummy_value()

        return types.void(array, at, types.UniTuple(types.int64, 2), pointer, lines, terms, sizes, one), codegen

    return copy


copy_grid, copy_grid_wide = _copy_grid(wide=False), _copy_grid(wide=True)
copy_sums, copy_sums_wide = _copy_sums(wide=False), _copy_sums(wide=True)


def _order(builder: Any, instruction: str) -> None:
    if _asynchronous():
        builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), instruction, "~{memory}", side_effect=True), [])


@intrinsic
def copies_end(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _order(builder, "cp.async.commit_group;")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def copies_wait(typingctx: Any, groups: Any) -> Any:
    if not isinstance(groups, types.IntegerLiteral):
        return None  # the compiler asks again with the literal

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _order(builder, f"cp.async.wait_group {groups.literal_value};")
        return context.get_dummy_value()

    return types.void(groups), codegen


# --- tables and results ----------------------------------------------------------------------------------------------------------


@intrinsic
def entries(typingctx: Any, array: Any, index: Any, step: Any, one: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = context.cast(builder, args[1], sig.args[1], types.int64)
        stride = context.cast(builder, args[2], sig.args[2], types.int64)
        lanes = min(_QUAD * 8 // array.dtype.bitwidth, one.count)
        result = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        for place in range(0, like.count, lanes):
            entry, part = divmod(place, one.count)
            at = builder.add(first, builder.add(builder.mul(stride, _i64(entry)), _i64(part)))
            element = _shared_element(context, builder, sig.args[0], args[0], at, types.int64)
            vector = ir.VectorType(element.type.pointee, lanes)
            loaded = builder.load(builder.bitcast(element, ir.PointerType(vector, _SHARED)))
            loaded.align = lanes * array.dtype.bitwidth // 8
            for lane in range(lanes):
                result = builder.insert_value(result, builder.extract_element(loaded, _i32(lane)), place + lane)
        return result

    return like(array, index, step, one, like), codegen


@intrinsic
def vanished(typingctx: Any, values: Any, zero: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        chains = [args[1]] * 4
        for place in range(values.count):
            value = builder.extract_value(args[0], place)
            chains[place % 4] = _multiply_add(context, builder, zero, value, args[1], chains[place % 4])
        first, *others = chains
        for chain in others:
            first = _multiply_add(context, builder, zero, chain, args[1], first)
        return first

    return zero(values, zero), codegen


@intrinsic
def store_tile(typingctx: Any, pointer: Any, values: Any, rows: Any, ends: Any, columns: Any, steps: Any) -> Any:
    stored, number = pointer.dtype, values.dtype

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, tile, *of_lines = args
        row, end, column, step = ([builder.extract_value(each, i) for i in range(kind.count)]
                                  for each, kind in zip(of_lines, sig.args[2:], strict=True))  # fmt: skip
        start = _kept(builder, builder.ptrtoint(_as_global(builder, args[0]), _i64))
        element = args[0].type.pointee
        size = _i64(context.get_abi_sizeof(element))

        def moved(address: Any, by: Any) -> Any:
            return builder.add(address, builder.mul(context.cast(builder, by, rows.dtype, types.int64), size))

        def at(address: Any, kind: Any) -> Any:
            return builder.inttoptr(address, ir.PointerType(kind, _GLOBAL))

        def one_by_one(i: int, first: int, address: Any) -> None:
            for j in range(first, first + 4):
                with builder.if_then(builder.icmp_signed("<", step[j], end[i])):
                    value = builder.extract_value(tile, i * columns.count + j)
                    builder.store(_narrow(context, builder, value, number, stored), at(moved(address, column[j]), element))

        def neighbours(first: int) -> Any:
            known = [
                builder.icmp_signed("==", column[first + k], builder.add(column[first], column[0].type(k))) for k in range(1, 4)
            ]
            return builder.and_(builder.and_(known[0], known[1]), known[2])

        wide = stored == number and context.get_abi_sizeof(element) == _QUAD // 4
        follow = {first: neighbours(first) for first in range(0, columns.count, 4)} if wide else {}
        for i in range(rows.count):
            address = moved(start, row[i])
            for first in range(0, columns.count, 4):
                if not wide:
                    one_by_one(i, first, address)
                    continue
                place = moved(address, column[first])
                aligned = builder.icmp_unsigned("==", builder.and_(place, _i64(_QUAD - 1)), _i64(0))
                inside = builder.icmp_signed("<", step[first + 3], end[i])
                with builder.if_else(builder.and_(builder.and_(follow[first], aligned), inside)) as (together, apart):
                    with together:
                        lanes = ir.Constant(ir.VectorType(element, 4), ir.Undefined)
                        for lane in range(4):
                            value = builder.extract_value(tile, i * columns.count + first + lane)
                            lanes = builder.insert_element(lanes, value, _i32(lane))
                        builder.store(lanes, at(place, lanes.type)).align = _QUAD
                    with apart:
                        one_by_one(i, first, address)
        return context.get_dummy_value()

    return types.void(pointer, values, rows, ends, columns, steps), codegen
