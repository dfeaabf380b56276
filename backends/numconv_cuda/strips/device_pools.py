"""The functions of `pool_terms` for the compiler: every term of a strip of pooling written out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from numconv_cuda.runtime.compiler import extending, types

from .device_strips import _i32, _pair, _rows, _tuple
from .strips import Pooled, Run

__all__ = ["strip_chosen", "strip_max", "strip_means", "strip_shares", "strip_strays", "strip_winners"]

intrinsic = extending.intrinsic


def _larger(builder: Any, value: Any, best: Any) -> Any:
    """Whether a value replaces the best so far: a larger one or the first NaN."""
    return builder.and_(builder.fcmp_unordered("ugt", value, best), builder.fcmp_ordered("ord", best, best))


def strip_max(pooled: Pooled, *, indexed: bool) -> Any:
    """The intrinsic that takes the largest elements of a strip's windows, and their places."""
    strip, columns = pooled.windows, pooled.windows.columns.sources

    @intrinsic
    def take(typingctx, best, places, pointer, offset, position, sizes, steps):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source = _rows(context, builder, sig, args, 2, best.dtype, columns, strip.source, strip.unit)
            row, column = source.position
            kind = row.type
            values = [builder.extract_value(args[0], place) for place in range(strip.results)]
            found = [builder.extract_value(args[1], place) for place in range(strip.results if indexed else 0)]
            for number in strip.rows.order:
                loaded = source.load(number)
                if indexed:
                    at = builder.add(builder.mul(builder.add(row, kind(number)), source.sizes[1]), column)
                for o, _ in strip.rows.readers(number):
                    for place, terms in enumerate(strip.columns.terms):
                        for _, at_column in terms:
                            which, (value, there) = o * strip.width + place, loaded[at_column]
                            better = _larger(builder, value, values[which])
                            if indexed:
                                better = builder.or_(better, builder.icmp_signed("<", found[which], found[which].type(0)))
                            taken = builder.and_(there, better)
                            values[which] = builder.select(taken, value, values[which])
                            if indexed:
                                here = context.cast(builder, builder.add(at, kind(at_column)), sizes.dtype, places.dtype)
                                found[which] = builder.select(taken, here, found[which])
            results = [_tuple(context, builder, best, values), _tuple(context, builder, places, found) if indexed else args[1]]
            return context.make_tuple(builder, sig.return_type, results)

        return types.Tuple((best, places))(best, places, pointer, offset, position, sizes, steps), codegen

    return take


def _counts(builder: Any, first: Any, at: Sequence[Sequence[int]], floor: Any, reach: Any) -> list[Any]:
    """How many of some positions behind the first lie from the floor on within its reach, for each list of positions."""
    found = []
    for places in at:
        count = _i32(0)
        for place in places:
            position = builder.sub(builder.add(first, first.type(place)), floor)
            count = builder.add(count, builder.zext(builder.icmp_unsigned("<", position, reach), _i32))
        found.append(count)
    return found


def _quotient(builder: Any, value: Any, rows: Any, columns: Any) -> Any:
    return builder.fdiv(value, builder.sitofp(builder.mul(rows, columns), value.type))


def strip_means(pooled: Pooled) -> Any:
    """The intrinsic that divides the sums of a strip's windows by the elements that count."""
    strip = pooled.windows

    @intrinsic
    def divide(typingctx, acc, position, floors, reaches):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            first, floor, reach = (_pair(context, builder, sig, args, place, floors.dtype) for place in (1, 2, 3))
            axes = [[[source for _, source in terms] for terms in axis.terms] for axis in strip[:2]]
            rows, columns = (_counts(builder, first[i], axes[i], floor[i], reach[i]) for i in range(2))
            means = []
            for which in range(strip.results):
                o, place = divmod(which, strip.width)
                means.append(_quotient(builder, builder.extract_value(args[0], which), rows[o], columns[place]))
            return _tuple(context, builder, acc, means)

        return acc(acc, position, floors, reaches), codegen

    return divide


def strip_shares(pooled: Pooled) -> Any:
    """The intrinsic that adds to a strip of gradients its shares of the windows' gradients."""
    strip, columns = pooled.elements, pooled.elements.columns.sources

    @intrinsic
    def add_shares(typingctx, acc, pointer, offset, position, sizes, steps, window, floors, reaches):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            grads = _rows(context, builder, sig, args, 1, acc.dtype, columns, strip.source, strip.unit)
            first, floor, reach = (_pair(context, builder, sig, args, place, floors.dtype) for place in (6, 7, 8))
            counts = [_counts(builder, first[i], pooled.reads[i], floor[i], reach[i]) for i in range(2)]
            sums = [builder.extract_value(args[0], place) for place in range(strip.results)]
            for number in strip.rows.order:
                loaded = grads.load(number)
                shares = {
                    at: (_quotient(builder, value, counts[0][number], counts[1][at]), there)
                    for at, (value, there) in loaded.items()
                }
                for o, _ in strip.rows.readers(number):
                    for place, terms in enumerate(strip.columns.terms):
                        for _, at_column in terms:
                            which, (share, there) = o * strip.width + place, shares[at_column]
                            sums[which] = builder.select(there, builder.fadd(sums[which], share), sums[which])
            return _tuple(context, builder, acc, sums)

        return acc(acc, pointer, offset, position, sizes, steps, window, floors, reaches), codegen

    return add_shares


def strip_winners(pooled: Pooled) -> Any:
    """The intrinsic that gives a strip of gradients those of the windows whose largest elements are in it."""
    strip = pooled.elements
    columns = sorted({place for places in pooled.reads[1] for place in places})

    @intrinsic
    def add_won(typingctx, acc, grad, g_offset, output, outputs, g_steps, x, offset, position, sizes, steps):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            grads = _rows(context, builder, sig, args, 1, acc.dtype, strip.columns.sources, strip.source, strip.unit)
            source = _rows(context, builder, sig, args, 6, acc.dtype, columns, Run(), strip.unit)
            rows = {place: source.load(place) for place in sorted({place for places in pooled.reads[0] for place in places})}
            sums = [builder.extract_value(args[0], place) for place in range(strip.results)]
            for number in strip.rows.order:
                loaded = grads.load(number)
                won = {at: _winner(builder, [[rows[r][c] for c in pooled.reads[1][at]] for r in pooled.reads[0][number]])
                       for at in strip.columns.sources}  # fmt: skip
                for o, tap in strip.rows.readers(number):
                    for place, terms in enumerate(strip.columns.terms):
                        for other, at in terms:
                            which, (value, there) = o * strip.width + place, loaded[at]
                            mine = builder.icmp_signed("==", won[at], _i32(tap * strip.window[1] + other))
                            total = builder.fadd(sums[which], value)
                            sums[which] = builder.select(builder.and_(mine, there), total, sums[which])
            return _tuple(context, builder, acc, sums)

        return acc(acc, grad, g_offset, output, outputs, g_steps, x, offset, position, sizes, steps), codegen

    return add_won


def _winner(builder: Any, window: Sequence[Sequence[tuple[Any, Any]]]) -> Any:
    """The tap of the largest element of a window; -1 without one."""
    best, winner = None, _i32(-1)
    elements = [element for row in window for element in row]
    for tap, (value, there) in enumerate(elements):
        better = builder.icmp_signed("<", winner, _i32(0))
        if best is not None:
            better = builder.or_(better, _larger(builder, value, best))
        taken = builder.and_(there, better)
        best = value if best is None else builder.select(taken, value, best)
        winner = builder.select(taken, _i32(tap), winner)
    return winner


def strip_chosen(pooled: Pooled) -> Any:
    """The intrinsic that gives a strip of gradients those of the windows whose indices are in it."""
    strip, columns = pooled.elements, pooled.elements.columns.sources

    @intrinsic
    def add_chosen(typingctx, acc, grad, g_offset, output, outputs, g_steps, indices, offset, steps, place):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            grads = _rows(context, builder, sig, args, 1, acc.dtype, columns, strip.source, strip.unit)
            whole = outputs.dtype
            at = context.cast(builder, args[7], sig.args[7], whole)
            pairs = [grads.position, grads.sizes, _pair(context, builder, sig, args, 8, whole)]
            chosen = type(grads)(context, builder, types.int64, types.int64, args[6], at, *pairs, columns, Run(), strip.unit)
            first, width = _pair(context, builder, sig, args, 9, types.int64)
            sums = [builder.extract_value(args[0], which) for which in range(strip.results)]
            for number in strip.rows.order:
                loaded, taken = grads.load(number), chosen.load(number)
                for o, _ in strip.rows.readers(number):
                    line = builder.add(first, builder.mul(width, width.type(o)))
                    for column, terms in enumerate(strip.columns.terms):
                        here = builder.add(line, line.type(column))
                        for _, at_column in terms:
                            which, (value, there), (index, _) = o * strip.width + column, loaded[at_column], taken[at_column]
                            mine = builder.and_(there, builder.icmp_signed("==", index, here))
                            sums[which] = builder.select(mine, builder.fadd(sums[which], value), sums[which])
            return _tuple(context, builder, acc, sums)

        return acc(acc, grad, g_offset, output, outputs, g_steps, indices, offset, steps, place), codegen

    return add_chosen


def strip_strays(pooled: Pooled) -> Any:
    """The intrinsic that tells whether one of a strip's indices lies outside its window."""
    strip = pooled.windows

    @intrinsic
    def strayed(typingctx, indices, offset, first, outputs, steps, position, sizes):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source = _rows(context, builder, sig, args, 0, types.int64, range(strip.width), strip.result, strip.unit)
            row, column = _pair(context, builder, sig, args, 5, sizes.dtype)
            limits = _pair(context, builder, sig, args, 6, sizes.dtype)
            found = context.get_constant(types.boolean, False)
            for o, rows in enumerate(strip.rows.terms):
                loaded = source.load(o)
                for place, columns in enumerate(strip.columns.terms):
                    index, there = loaded[place]
                    strays = there
                    for (_, r), (_, c) in itertools.product(rows, columns):
                        at = builder.add(row, row.type(r)), builder.add(column, column.type(c))
                        inside = [builder.icmp_unsigned("<", each, limit) for each, limit in zip(at, limits, strict=True)]
                        flat = context.cast(builder, builder.add(builder.mul(at[0], limits[1]), at[1]), sizes.dtype, types.int64)
                        same = builder.and_(builder.and_(*inside), builder.icmp_signed("==", index, flat))
                        strays = builder.and_(strays, builder.not_(same))
                    found = builder.or_(found, builder.zext(strays, found.type) if found.type != strays.type else strays)
            return found

        return types.boolean(indices, offset, first, outputs, steps, position, sizes), codegen

    return strayed
