"""Kernels around fast Fourier transforms: blocks gathered from an array, products of spectra, blocks scattered into an array.

A *unit* is what is transformed together: a block of one phase of the outputs, of one image and one group, with all its planes
(channels, and phases of taps). Units are numbered group, image, phase, block, the last one fastest. A `walk` says where the
elements of units lie in an array; it is a vector of int64 with a head and one row of numbers a dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from numconv_numba.activations import activated, rectified
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, kernel
from numconv_numba.elements import INT64, itemsize
from numconv_numba.geometry import MODES, source_index
from numconv_numba.microkernels.conjugate import add_conjugates
from numconv_numba.rows import clear
from numconv_numba.scalar import add, cast, inlined, is_null, load, pointer, store, wide_vectors, zero

from .nonfinite import classified, marked

__all__ = ["transforming", "walk"]

# The head of a walk, and what it has of each dimension.
W_DIMS, W_MODE, W_IMAGES, W_CHANNELS, W_PHASES, W_BLOCKS, W_TAPS, W_N_STEP, W_G_STEP, W_C_STEP, W_HEAD = range(11)
LENGTH, LIMIT, SIZE, START, PER_BLOCK, PER_PHASE, PER_TAP, STEP, BYTES, BLOCKS, PHASES, TAPS, COLUMNS = range(13)


def walk(mode: str, images: int, channels: int, steps: Sequence[int], rows: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    """The vector: `steps` are the bytes from image to image, group to group and channel to channel.

    A row has, of one dimension, the length of a transform and how much of it is used, the size of the array, the first position, by
    how much a block, a phase of the outputs, a phase of the taps and a step move it, the bytes from position to position, and how
    many blocks, phases of outputs and phases of taps there are.
    """
    totals = [1, 1, 1]
    for row in rows:
        totals = [total * row[BLOCKS + i] for i, total in enumerate(totals)]
    blocks, phases, taps = totals
    head = (len(rows), MODES[mode], images, channels, phases, blocks, taps, *steps)
    return np.array([*head, *(value for row in rows for value in row)], np.int64)


@helper
def entry(v, axis, which):
    """A number of a dimension."""
    return v[W_HEAD + axis * COLUMNS + which]


@helper
def first_position(v, axis, unit, tap):
    """The first position along a dimension of a unit, for a phase of the taps."""
    ndim, block, phase = v[W_DIMS], unit % v[W_BLOCKS], unit // v[W_BLOCKS] % v[W_PHASES]
    for other in range(ndim - 1, axis, -1):
        block //= entry(v, other, BLOCKS)
        phase //= entry(v, other, PHASES)
        tap //= entry(v, other, TAPS)
    start = entry(v, axis, START) + block % entry(v, axis, BLOCKS) * entry(v, axis, PER_BLOCK)
    start += phase % entry(v, axis, PHASES) * entry(v, axis, PER_PHASE)
    return start + tap % entry(v, axis, TAPS) * entry(v, axis, PER_TAP)


@helper
def plane_offset(v, unit, channel):
    """The byte offset of a channel of a unit's group in its image."""
    rest = unit // (v[W_BLOCKS] * v[W_PHASES])
    return rest % v[W_IMAGES] * v[W_N_STEP] + rest // v[W_IMAGES] * v[W_G_STEP] + channel * v[W_C_STEP]


@helper
def row_place(v, unit, tap, row):
    """Whether a row of a plane has elements in the array, and its byte offset."""
    inside, offset = True, 0
    for axis in range(v[W_DIMS] - 2, -1, -1):
        i = row % entry(v, axis, LENGTH)
        row //= entry(v, axis, LENGTH)
        index = source_index(first_position(v, axis, unit, tap) + i * entry(v, axis, STEP), entry(v, axis, SIZE), v[W_MODE])
        inside = inside and index >= 0 and i < entry(v, axis, LIMIT)
        offset += index * entry(v, axis, BYTES)
    return inside, offset


@helper
def inner_range(v, start):
    """The part of a row's used places whose positions, from `start`, lie in the array."""
    axis = v[W_DIMS] - 1
    step, size, limit = entry(v, axis, STEP), entry(v, axis, SIZE), entry(v, axis, LIMIT)
    low = min(max(0, -(start // step)), limit)
    return low, max(low, min(limit, (size - start + step - 1) // step))


@helper
def gather_run(target, source, count, step, code, xt, at):
    """A run of elements; returns how many are not finite, or belong to a class."""
    wide_vectors()
    bad = 0
    if code > 0:
        for i in range(count):
            value = classified(load(source + i * step, xt, at), code)
            bad += 0 if value == 0 else 1
            store(target + i * itemsize(at), value, at)
    elif step == itemsize(xt):
        for i in range(count):
            value = load(source + i * itemsize(xt), xt, at)
            bad += 0 if value - value == 0 else 1
            store(target + i * itemsize(at), classified(value, 0), at)
    else:
        for i in range(count):
            value = load(source + i * step, xt, at)
            bad += 0 if value - value == 0 else 1
            store(target + i * itemsize(at), classified(value, 0), at)
    return bad


@helper
def gather_row(target, source, start, code, v, xt, at):
    """A row of a plane, padding in place; returns what `gather_run` does."""
    axis = v[W_DIMS] - 1
    step, size, bytes_ = entry(v, axis, STEP), entry(v, axis, SIZE), entry(v, axis, BYTES)
    low, high = inner_range(v, start)
    limit, length, each = entry(v, axis, LIMIT), entry(v, axis, LENGTH), itemsize(at)
    bad = gather_run(target + low * each, source + (start + low * step) * bytes_, high - low, step * bytes_, code, xt, at)
    if v[W_MODE] == 0:
        clear(target, low, at)
        clear(target + high * each, length - high, at)
        return bad
    for i in range(low):
        bad += gather_run(target + i * each, source + source_index(start + i * step, size, v[W_MODE]) * bytes_, 1, 0, code, xt, at)
    for i in range(high, limit):
        bad += gather_run(target + i * each, source + source_index(start + i * step, size, v[W_MODE]) * bytes_, 1, 0, code, xt, at)
    clear(target + limit * each, length - limit, at)
    return bad


@kernel
def gather(xt: Tag, at: Tag, code: int, x: Address, target: Address, first: int, count: int, vector: Address) -> int:
    """The planes of the units first..first + count, [unit][channel][phase of taps][*lengths], for a `walk` through x.

    `code`: a class of numbers, see `nonfinite`; returns how many belong to it. With VALUE what is not finite becomes zero, and this
    is counted.
    """
    v, bad = pointer(vector, INT64), 0
    axis = v[W_DIMS] - 1
    length, rows = entry(v, axis, LENGTH), 1
    for other in range(axis):
        rows *= entry(v, other, LENGTH)
    plane = 0
    for unit in range(first, first + count):
        for channel in range(v[W_CHANNELS]):
            source = x + plane_offset(v, unit, channel)
            for tap in range(v[W_TAPS]):
                start = first_position(v, axis, unit, tap)
                for row in range(rows):
                    place = target + (plane * rows + row) * length * itemsize(at)
                    inside, offset = row_place(v, unit, tap, row)
                    if inside:
                        bad += gather_row(place, source + offset, start, code, v, xt, at)
                    else:
                        clear(place, length, at)
                plane += 1
    return bad


def rounded(value: Any, anchor: float) -> Any:
    """A value rounded to the last place that a sum with `anchor` has; with 0 the value itself."""
    raise NotImplementedError("for kernels only")


@overload(rounded)
def _rounded(value, anchor):
    if isinstance(value, types.Complex):
        part = value.underlying_float
        return lambda value, anchor: complex((value.real + part(anchor)) - part(anchor), (value.imag + part(anchor)) - part(anchor))
    kind = value
    return lambda value, anchor: (value + kind(anchor)) - kind(anchor)


@helper
def result(source, anchor, st, at):
    """A sum in its own dtype, from what a transform gave."""
    return cast(rounded(load(source, st), anchor), at)


@helper
def smooth_run(source, target, count, step, anchor, shift, code, st, yt, at):
    """`scatter_run` for silu and gelu: a loop that becomes vectors where `step` and `code` are constants."""
    inlined()
    bad = 0
    for i in range(count):
        value = result(source + i * itemsize(st), anchor, st, at)
        bad += 0 if value - value == 0 else 1
        store(target + i * step, activated(add(value, shift), code), yt)
    return bad


@helper
def scatter_run(source, target, count, step, anchor, shift, code, st, yt, at):
    """A run of results: rounding, bias, activation; returns how many sums are not finite."""
    wide_vectors()
    bad, wide = 0, itemsize(st)
    if code == 0 and step == itemsize(yt):
        for i in range(count):
            value = result(source + i * wide, anchor, st, at)
            bad += 0 if value - value == 0 else 1
            store(target + i * itemsize(yt), add(value, shift), yt)
    elif code <= 1:
        for i in range(count):
            value = result(source + i * wide, anchor, st, at)
            bad += 0 if value - value == 0 else 1
            store(target + i * step, rectified(add(value, shift), code), yt)
    elif step != itemsize(yt):
        bad = smooth_run(source, target, count, step, anchor, shift, code, st, yt, at)
    elif code == 2:
        bad = smooth_run(source, target, count, itemsize(yt), anchor, shift, 2, st, yt, at)
    else:
        bad = smooth_run(source, target, count, itemsize(yt), anchor, shift, 3, st, yt, at)
    return bad


@helper
def mark_run(source, target, count, step, becomes, shift, code, st, yt, at):
    """A run of counts: a result of which one is not zero becomes what `marked` says."""
    for i in range(count):
        if abs(load(source + i * itemsize(st), st)) > 0.5:
            value = add(marked(load(target + i * step, yt, at), becomes), shift)
            store(target + i * step, rectified(value, code) if code <= 1 else activated(value, code), yt)
    return 0


@kernel
def scatter(
    st: Tag, yt: Tag, at: Tag, source: Address, anchor: float, becomes: int, bias: Address, code: int, y: Address, first: int,
    count: int, vector: Address,
) -> int:  # fmt: skip
    """The results of the units first..first + count, [unit][channel][*lengths], into y; returns how many sums are not finite.

    Sums are rounded to the last place of `anchor`, see `rounded`. If `becomes` is not negative, the planes are counts of terms that
    are not finite, and results with any are overwritten, see `nonfinite`. The bias is in the dtype of sums, `at`; `code` is that of
    the activation.
    """
    v, bad = pointer(vector, INT64), 0
    axis, channels = v[W_DIMS] - 1, v[W_CHANNELS]
    length, rows, step = entry(v, axis, LENGTH), 1, entry(v, axis, STEP) * entry(v, axis, BYTES)
    for other in range(axis):
        rows *= entry(v, other, LENGTH)
    for plane in range(count * channels):
        unit, channel = first + plane // channels, plane % channels
        start = first_position(v, axis, unit, 0)
        _, many = inner_range(v, start)
        target = y + (plane_offset(v, unit, channel) + start * entry(v, axis, BYTES))
        shift = zero(at)
        if not is_null(bias):
            shift = load(bias + (unit // (v[W_BLOCKS] * v[W_PHASES] * v[W_IMAGES]) * channels + channel) * itemsize(at), at)
        for row in range(rows):
            inside, offset = row_place(v, unit, 0, row)
            place = source + (plane * rows + row) * length * itemsize(st)
            if inside and becomes < 0:
                bad += scatter_run(place, target + offset, many, step, anchor, shift, code, st, yt, at)
            elif inside:
                mark_run(place, target + offset, many, step, becomes, shift, code, st, yt, at)
    return bad


RUN = 256
"""Elements of spectra that are multiplied for all units of a task before the next ones: they stay in the first-level cache."""
ONE, TWO, FOUR = Tag(1), Tag(2), Tag(4)


@helper
def add_terms(rows, x, w, y, count, terms, x_row, x_term, w_term, y_row, resume, lanes, part):
    """y[row] = the sum over the terms of x[row, term] * conj(w[term]) for one or two rows, added to y if `resume`."""
    whole = terms // 4 * 4
    for term in range(0, whole, 4):
        source, factor, go_on = x + term * x_term, w + term * w_term, resume or term > 0
        add_conjugates(rows, FOUR, lanes, part, source, factor, y, count, x_row, x_term, w_term, y_row, go_on)
    for term in range(whole, terms):
        source, factor, go_on = x + term * x_term, w + term * w_term, resume or term > 0
        add_conjugates(rows, ONE, lanes, part, source, factor, y, count, x_row, x_term, w_term, y_row, go_on)


@helper
def add_rows(x, w, y, count, rows, terms, x_row, x_term, w_term, y_row, resume, lanes, part):
    """`add_terms` for any number of rows."""
    for row in range(0, rows - 1, 2):
        add_terms(TWO, x + row * x_row, w, y + row * y_row, count, terms, x_row, x_term, w_term, y_row, resume, lanes, part)
    if rows % 2:
        last = rows - 1
        add_terms(ONE, x + last * x_row, w, y + last * y_row, count, terms, x_row, x_term, w_term, y_row, resume, lanes, part)


@kernel
def multiply(
    lanes: Tag, part: Tag, x: Address, w: Address, y: Address, first: int, count: int, units: int, inputs: int, outputs: int,
    length: int,
) -> None:  # fmt: skip
    """y[unit, k] = the sum over c of x[unit, c] * conj(w[group, k, c]), for the units first..first + count.

    x and y begin with the first of these units; a group has `units` units. All are spectra of `length` complex numbers with parts
    of the dtype `part`.
    """
    each = 2 * itemsize(part)
    size = length * each
    for begin in range(0, length, RUN):
        for k in range(outputs):
            unit = 0
            while unit < count:
                group = (first + unit) // units
                together = min(count - unit, (group + 1) * units - first - unit)
                source, target = x + (unit * inputs * size + begin * each), y + ((unit * outputs + k) * size + begin * each)
                factor = w + ((group * outputs + k) * inputs * size + begin * each)
                add_rows(
                    source, factor, target, min(RUN, length - begin), together, inputs, inputs * size, size, size, outputs * size,
                    False, lanes, part,
                )  # fmt: skip
                unit += together


@kernel
def correlate(
    lanes: Tag, part: Tag, x: Address, y: Address, sums: Address, first: int, count: int, units: int, base: int, inputs: int,
    outputs: int, length: int,
) -> None:  # fmt: skip
    """sums[group, k, c] += x[unit, c] * conj(y[unit, k]) over the units first..first + count, in their order.

    x and y begin with the first of these units, the sums with the group `base`; a group has `units` units.
    """
    each = 2 * itemsize(part)
    size = length * each
    for begin in range(0, length, RUN):
        for k in range(outputs):
            unit = 0
            while unit < count:
                group = (first + unit) // units
                together = min(count - unit, (group + 1) * units - first - unit)
                source, factor = x + (unit * inputs * size + begin * each), y + ((unit * outputs + k) * size + begin * each)
                target = sums + (((group - base) * outputs + k) * inputs * size + begin * each)
                add_rows(
                    source, factor, target, min(RUN, length - begin), inputs, together, size, inputs * size, outputs * size, size,
                    True, lanes, part,
                )  # fmt: skip
                unit += together


transforming = Unit(
    "spectra.transforming",
    called=lambda dtype, arithmetic, out, acc, lanes, part: [
        (gather, (dtype, arithmetic)),
        (scatter, (arithmetic, out, acc)),
        (multiply, (lanes, part)),
        (correlate, (lanes, part)),
    ],
)
"""The four of a problem's dtypes, in this order: its convolution needs three of them and its gradients the fourth."""
