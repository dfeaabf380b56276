"""The functions of `fragments` for the compiler: the instructions that they become."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from numconv_cuda.runtime.compiler import extending, types

from .device_elements import _NARROW_HALF, _as_global, _shared_element, _to_bfloat, _widen
from .forms import UNITS, Form

__all__ = [
    "commit", "copy_cached_unit", "copy_unit", "fetch_number", "fresh", "keep_float", "keep_number", "multiplier", "narrow",
    "peek_float", "peek_number", "reload", "spreader", "store_unit", "wait_until",
]  # fmt: skip

intrinsic = extending.intrinsic
_i8, _i16, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_GLOBAL, _SHARED = 1, 3
LINE = 16 * UNITS
"""Bytes of a line of a factor along the terms."""


def _narrow(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    """An index in 32 bits, which every unit of a scratch array and of shared memory has."""
    return context.cast(builder, value, kind, types.int32)


def _address(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The address of shared memory, as its instructions take it."""
    return builder.ptrtoint(_shared_element(context, builder, array_type, array, _i64(0), types.int64), _i32)


def _asm(result: Any, arguments: list[Any], text: str, constraints: str, *, volatile: bool = True) -> Any:
    return ir.InlineAsm(ir.FunctionType(result, arguments), text, constraints, side_effect=volatile)


_ROUND = _asm(_i32, [_f32], "cvt.rna.tf32.f32 $0, $1;", "=r,f", volatile=False)


@intrinsic
def fetch_number(typingctx: Any, pointer: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        offset = context.cast(builder, args[1], sig.args[1], types.int64)
        value = builder.load(_as_global(builder, builder.gep(args[0], [offset])))
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
        return value

    return types.int32(pointer, index), codegen


@intrinsic
def narrow(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _narrow(context, builder, args[0], sig.args[0])

    return types.int32(value), codegen


def _unit_copier(cache: str) -> Any:
    """The copy of a unit by way of the second-level cache alone (cg), or through that of the multiprocessor too (ca)."""

    @intrinsic
    def copy(typingctx: Any, shared: Any, unit: Any, pointer: Any, place: Any, more: Any, there: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            unit, place, more = (_narrow(context, builder, args[i], sig.args[i]) for i in (1, 3, 4))
            to = builder.add(_address(context, builder, sig.args[0], args[0]), builder.shl(unit, _i32(4)))
            found = context.cast(builder, args[5], sig.args[5], types.boolean)
            offset = builder.select(found, builder.add(place, more), _i32(0))
            source = builder.bitcast(_as_global(builder, args[2]), ir.PointerType(_i8, _GLOBAL))
            source = builder.gep(source, [builder.shl(builder.sext(offset, _i64), _i64(4))])
            size = builder.select(found, _i32(16), _i32(0))
            text = f"cp.async.{cache}.shared.global [$0], [$1], 16, $2;"
            builder.call(_asm(ir.VoidType(), [_i32, source.type, _i32], text, "r,l,r,~{memory}"), [to, source, size])
            return context.get_dummy_value()

        return types.void(shared, unit, pointer, place, more, there), codegen

    return copy


copy_unit, copy_cached_unit = _unit_copier("cg"), _unit_copier("ca")


@intrinsic
def commit(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.call(_asm(ir.VoidType(), [], "cp.async.commit_group;", "~{memory}"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def wait_until(typingctx: Any, pending: Any) -> Any:
    if not isinstance(pending, types.IntegerLiteral):
        return None  # the compiler asks again with the literal

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        text = f"cp.async.wait_group {pending.literal_value};"
        builder.call(_asm(ir.VoidType(), [], text, "~{memory}"), [])
        return context.get_dummy_value()

    return types.void(pending), codegen


@intrinsic
def store_unit(typingctx: Any, pointer: Any, unit: Any, values: Any) -> Any:
    stored = pointer.dtype

    def word(builder: Any, numbers: list[Any]) -> Any:
        if stored == types.float32:
            return builder.call(_ROUND, numbers)
        if stored == types.uint16:
            low, high = (builder.zext(_to_bfloat(builder, number), _i32) for number in numbers)
        else:
            low, high = (builder.zext(builder.call(_NARROW_HALF, [number]), _i32) for number in numbers)
        return builder.or_(low, builder.shl(high, _i32(16)))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = [builder.extract_value(args[2], place) for place in range(values.count)]
        step = values.count // 4
        vector = ir.Constant(ir.VectorType(_i32, 4), ir.Undefined)
        for place in range(4):
            vector = builder.insert_element(vector, word(builder, numbers[place * step : place * step + step]), _i32(place))
        first = builder.bitcast(_as_global(builder, args[0]), ir.PointerType(vector.type, _GLOBAL))
        offset = context.cast(builder, args[1], sig.args[1], types.int64)
        builder.store(vector, builder.gep(first, [offset])).align = 16
        return context.get_dummy_value()

    return types.void(pointer, unit, values), codegen


@intrinsic
def peek_float(typingctx: Any, shared: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.load(_shared_element(context, builder, shared, args[0], args[1], sig.args[1])), _f32)

    return types.float32(shared, index), codegen


@intrinsic
def reload(typingctx: Any, pointer: Any, index: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        offset = context.cast(builder, args[1], sig.args[1], types.int64)
        value = builder.load(_as_global(builder, builder.gep(args[0], [offset])))
        return _widen(context, builder, value, sig.args[0].dtype, sig.return_type)

    return like(pointer, index, like), codegen


@intrinsic
def fresh(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.call(_asm(_i32, [_i32], "mov.b32 $0, $1;", "=r,r"), [_narrow(context, builder, args[0], sig.args[0])])

    return types.int32(value), codegen


@intrinsic
def peek_number(typingctx: Any, shared: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_shared_element(context, builder, shared, args[0], args[1], sig.args[1]))

    return types.int32(shared, index), codegen


@intrinsic
def keep_float(typingctx: Any, shared: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = builder.bitcast(args[2], _i32)
        builder.store(number, _shared_element(context, builder, shared, args[0], args[1], sig.args[1]))
        return context.get_dummy_value()

    return types.void(shared, index, types.float32), codegen


@intrinsic
def keep_number(typingctx: Any, shared: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = _narrow(context, builder, args[2], sig.args[2])
        builder.store(number, _shared_element(context, builder, shared, args[0], args[1], sig.args[1]))
        return context.get_dummy_value()

    return types.void(shared, index, value), codegen


# --- products ------------------------------------------------------------------------------------------------------------------


def _matrices(builder: Any, address: Any, offset: int, *, transposed: bool) -> list[Any]:
    """Four matrices of eight rows of 16 bytes, whose rows' addresses four groups of eight lanes give, spread over a warp."""
    kind = ir.LiteralStructType([_i32] * 4)
    turned = ".trans" if transposed else ""
    text = f"ldmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 {{$0,$1,$2,$3}}, [$4+{offset}];"
    found = builder.call(_asm(kind, [_i32], text, "=r,=r,=r,=r,r,~{memory}"), [address])
    return [builder.extract_value(found, place) for place in range(4)]


def _word(builder: Any, address: Any, offset: int) -> Any:
    return builder.call(_asm(_i32, [_i32], f"ld.shared.b32 $0, [$1+{offset}];", "=r,r,~{memory}"), [address])


def _bits(builder: Any, lane: Any) -> tuple[Any, Any, Any]:
    """A lane's place in its group of eight, and the two bits of the number of the group."""
    return tuple(builder.and_(builder.lshr(lane, _i32(shift)), _i32(mask)) for shift, mask in ((0, 7), (3, 1), (4, 1)))


class _Along:
    """How a lane loads its registers of a factor along the terms: `pairs` times four, of 16 lines and two units each."""

    def __init__(self, form: Form, which: int, builder: Any, start: Any, first: Any, lane: Any, pairs: int):
        self.builder, self.pairs = builder, pairs
        low, near, far = _bits(builder, lane)
        upper, unit = (far, near) if which else (near, far)
        line = builder.add(first, builder.add(low, builder.shl(upper, _i32(3))))
        self.base = builder.add(start, builder.mul(line, _i32(LINE)))
        shift, mask, _ = form.swizzle(which)
        turn = builder.and_(builder.lshr(low, _i32(shift)), _i32(mask))
        self.unit = builder.shl(builder.xor(unit, turn), _i32(4))

    def at(self, step: int) -> list[list[Any]]:
        """Of a step through the slice."""
        address = self.builder.add(self.base, self.builder.xor(self.unit, _i32(32 * step)))
        return [_matrices(self.builder, address, pair * 16 * LINE, transposed=False) for pair in range(self.pairs)]


class _Across:
    """The same of a factor across the terms whose elements have 16 bits."""

    def __init__(self, form: Form, which: int, builder: Any, start: Any, first: Any, lane: Any, pairs: int):
        self.builder, self.pitch = builder, form.tile[which] * 2
        low, near, far = _bits(builder, lane)
        upper, unit = (near, far) if which else (far, near)
        term = builder.add(low, builder.shl(upper, _i32(3)))
        base = builder.add(start, builder.mul(term, _i32(self.pitch)))
        unit = builder.add(unit, builder.lshr(first, _i32(3)))
        turn = builder.and_(low, _i32(form.swizzle(which)[1]))
        places = (builder.xor(builder.add(unit, _i32(2 * pair)), turn) for pair in range(pairs))
        self.addresses = [builder.add(base, builder.shl(place, _i32(4))) for place in places]

    def at(self, step: int) -> list[list[Any]]:
        """Of a step through the slice."""
        return [_matrices(self.builder, address, step * 16 * self.pitch, transposed=True) for address in self.addresses]


class _Words:
    """The same of a factor across the terms whose elements have 32 bits, loaded one by one."""

    def __init__(self, form: Form, which: int, builder: Any, start: Any, first: Any, lane: Any, pairs: int):
        self.builder, self.pitch, self.which = builder, form.tile[which] * 4, which
        term, begin = builder.and_(lane, _i32(3)), builder.add(first, builder.lshr(lane, _i32(2)))
        _, mask, step = form.swizzle(which)
        turn = builder.mul(builder.and_(term, _i32(mask)), _i32(4 * step))
        base = builder.add(start, builder.mul(term, _i32(self.pitch)))
        # The part of a warp begins at a multiple of 32 lines, so that the turn stays within 32, and every fourth address repeats.
        places = (builder.add(begin, builder.xor(_i32(8 * part), turn)) for part in range(4))
        self.addresses, self.pairs = [builder.add(base, builder.shl(place, _i32(2))) for place in places], pairs

    def at(self, step: int) -> list[list[Any]]:
        """Of a step through the slice."""

        def word(part: int, term: int) -> Any:
            return _word(self.builder, self.addresses[part % 4], (step * 8 + term) * self.pitch + part // 4 * 32 * 4)

        found = []
        for part in range(0, 2 * self.pairs, 2):
            four = [word(part, 0), word(part + 1, 0), word(part, 4), word(part + 1, 4)]
            found.append([four[place] for place in ((0, 2, 1, 3) if self.which else (0, 1, 2, 3))])
        return found


def _loader(form: Form, which: int) -> Any:
    if not form.across[which]:
        return _Along
    return _Words if form.each == 4 else _Across


_KINDS = {"float32": ("tf32", 8), "float16": ("f16", 16), "bfloat16": ("bf16", 16)}


def _product_of(dtype: str) -> Any:
    kind, depth = _KINDS[dtype]
    return _asm(
        ir.LiteralStructType([_f32] * 4),
        [_i32] * 6 + [_f32] * 4,
        f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
    )


def _taken(form: Form, builder: Any, registers: list[list[Any]]) -> list[list[Any]]:
    """Registers of a factor, rounded if they were not."""
    if form.packed or form.each != 4:
        return registers
    return [[builder.call(_ROUND, [builder.bitcast(each, _f32)]) for each in four] for four in registers]


def multiplier(form: Form) -> Any:
    high, wide = form.tile.blocks

    @intrinsic
    def multiply(typingctx: Any, acc: Any, shared: Any, stage: Any, row: Any, column: Any, lane: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            stage, row, column, lane = (_narrow(context, builder, args[i], sig.args[i]) for i in range(2, 6))
            start = builder.add(_address(context, builder, sig.args[1], args[1]), builder.shl(stage, _i32(4)))
            first = _loader(form, 0)(form, 0, builder, start, row, lane, high)
            behind = builder.add(start, _i32(form.tile.rows * LINE))
            second = _loader(form, 1)(form, 1, builder, behind, column, lane, wide // 2)
            product = _product_of(form.dtype)
            values = [builder.extract_value(args[0], place) for place in range(acc.count)]
            for step in range(UNITS // 2):
                left, pairs = (_taken(form, builder, each.at(step)) for each in (first, second))
                right = [pair[half : half + 2] for pair in pairs for half in (0, 2)]
                for i, a in enumerate(left):
                    for j, b in enumerate(right):
                        at = (i * wide + j) * 4
                        new = builder.call(product, [*a, *b, *values[at : at + 4]])
                        values[at : at + 4] = [builder.extract_value(new, part) for part in range(4)]
            result = args[0]
            for place, value in enumerate(values):
                result = builder.insert_value(result, value, place)
            return result

        return acc(acc, shared, stage, row, column, lane), codegen

    return multiply


def spreader(form: Form) -> Any:
    high, wide = form.tile.blocks

    @intrinsic
    def spread(typingctx: Any, shared: Any, acc: Any, row: Any, column: Any, lane: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            row, column, lane = (_narrow(context, builder, args[i], sig.args[i]) for i in range(2, 5))
            row = builder.add(row, builder.lshr(lane, _i32(2)))
            column = builder.add(column, builder.shl(builder.and_(lane, _i32(3)), _i32(1)))
            first = builder.add(builder.mul(row, _i32(form.pitch)), column)
            element = _shared_element(context, builder, sig.args[0], args[0], first, types.int32)
            pair = ir.VectorType(_f32, 2)
            for i in range(high):
                for half in range(2):
                    for j in range(wide):
                        at = (i * wide + j) * 4 + half * 2
                        vector = ir.Constant(pair, ir.Undefined)
                        for part in range(2):
                            vector = builder.insert_element(vector, builder.extract_value(args[1], at + part), _i32(part))
                        place = builder.gep(element, [_i32((i * 16 + half * 8) * form.pitch + j * 8)])
                        builder.store(vector, builder.bitcast(place, ir.PointerType(pair, _SHARED))).align = 8
            return context.get_dummy_value()

        return types.void(shared, acc, row, column, lane), codegen

    return spread
