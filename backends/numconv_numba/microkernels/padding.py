"""Rows of planes with the padding beside them: copied a column of vectors at a time, whose masks are made once."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled

__all__ = ["place_rows"]


@intrinsic
def _place_rows(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, x_row: Any, x_plane: Any, y: Any, y_row: Any, y_plane: Any, planes: Any,
    rows: Any, before: Any, size: Any, vectors: Any, pairs: Any, borders: Any,
) -> Any:  # fmt: skip
    check_kinds((lanes, dtype), (x, y, pairs))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_row, x_plane, y, y_row, y_plane, planes, rows, before, size, vectors, pairs, borders = args
        emit = Emitter(builder, dtype, lanes.value)
        item, ahead = before.type(emit.width // emit.lanes), builder.mul(planes, x_plane)

        def each_row(source: Any, target: Any, copy: Any) -> None:
            with cgutils.for_range(builder, rows) as row:
                copy(emit.at(source, builder.mul(row.index, x_row)), emit.at(target, builder.mul(row.index, y_row)))

        with cgutils.for_range(builder, planes) as plane:
            source, target = emit.at(x, builder.mul(plane.index, x_plane)), emit.at(y, builder.mul(plane.index, y_plane))
            with rolled(builder, vectors) as vector:
                place = builder.mul(vector, before.type(emit.lanes))
                position = builder.sub(place, before)
                inside = builder.and_(emit.first(builder.sub(size, position)), builder.not_(emit.first(builder.neg(position))))
                here, there = emit.at(source, builder.mul(position, item)), emit.at(target, builder.mul(place, item))

                def copy(a: Any, b: Any, inside: Any = inside) -> None:
                    emit.prefetch(emit.at(a, ahead), write=False)
                    emit.store(emit.load_masked(a, inside), b)

                each_row(here, there, copy)
            with rolled(builder, borders) as border:
                entry = builder.mul(border, before.type(2))
                to, of = emit.offset(pairs, entry), emit.offset(pairs, builder.add(entry, before.type(1)))
                here, there = emit.at(source, builder.mul(of, item)), emit.at(target, builder.mul(to, item))
                each_row(here, there, lambda a, b: emit.store_one(emit.load_one(a), b))
        return context.get_dummy_value()

    n = types.int64
    return types.void(lanes, dtype, x, n, n, y, n, n, n, n, n, n, n, pairs, n), codegen


@kernel(emitted=True)
def place_rows(
    lanes: Tag, dtype: Tag, x: Address, x_row: int, x_plane: int, y: Address, y_row: int, y_plane: int, planes: int, rows: int,
    before: int, size: int, vectors: int, pairs: Address, borders: int,
) -> None:  # fmt: skip
    """y[before + i] = x[i] for i < size, in so many rows of so many planes, and y[place] = x[source] for `borders` pairs of them.

    Rows of y are written in whole vectors, with zeros elsewhere; as many planes that follow in x are prefetched. Rows and planes
    lie `x_row`, `x_plane`, `y_row` and `y_plane` bytes apart; `pairs` are int64 numbers.
    """
    _place_rows(lanes, dtype, x, x_row, x_plane, y, y_row, y_plane, planes, rows, before, size, vectors, pairs, borders)
