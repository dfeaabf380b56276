"""The kernels of `interleaved`: tiles of all phases of a stride, block by block."""

from __future__ import annotations

from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.panels import fill_places
from numconv_numba.dense.slab import BLOCKS, block_image
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import LANES, PRODUCT, WEIGHT
from numconv_numba.geometry import DIMS, GROUPS, OPTION, PARTS, PER_C, PER_K, part
from numconv_numba.rows import clear
from numconv_numba.scalar import is_null, pointer
from numconv_numba.threads import area_of, common_area, parallel_items, taken_items
from numconv_numba.winograd.inputs import (
    COLUMNS,
    GROUP,
    PANEL,
    ROWS,
    TAPS,
    V_STEP,
    element_counts,
    fill_elements,
    inner_axis,
    input_steps,
    place_steps,
    spread_step,
    transform_inputs,
)
from numconv_numba.winograd.kernels import (
    CHUNK,
    ITEMS_OF_THREAD,
    M_STEP,
    PLACES,
    SHARED,
    TRANSFORMED,
    tile_steps,
    transform_outputs,
)
from numconv_numba.winograd.layout import CHANNELS_AT_ONCE

from .subpixel import pack_kernels
from .writing import INNER, LEADS, own_entries, write_phases

__all__ = [
    "COLUMN_STEP", "KERNELS", "KERNEL_TAPS", "LEAD_PHASES", "OWN", "PANEL_BYTES", "PHASE_ENTRIES", "ROW_STEP", "VECTOR", "WINDOWS",
]  # fmt: skip

# What the kernels know of the phases, behind what `writing` knows: taps of a kernel, and from tap to tap of a phase along the rows
# and the columns; how many windows, and entries of the vector of one; bytes of a panel of transformed weights; phases of the
# dimensions before the last two. Then the entries of each phase, for those of the last two dimensions the first entry and the taps
# of each, and of each of these taps its number in w and its place in the window.
KERNEL_TAPS, ROW_STEP, COLUMN_STEP, WINDOWS, VECTOR, PANEL_BYTES, LEAD_PHASES, OWN = range(8)
# Of a phase: its window, taps along the rows and columns, its first tap, where its transformed weights lie in a panel, its phase of
# the dimensions before the last two.
WINDOW, N_ROWS, N_COLUMNS, FIRST, PLACE, LEAD, PHASE_ENTRIES = range(7)


@helper
def phase_entry(p, ndim, phase, which):
    """An entry of a phase."""
    return p[own_entries(ndim) + OWN + phase * PHASE_ENTRIES + which]


@helper
def lead_taps(p, ndim, lead):
    """The first entry, and how many taps, of a phase of the dimensions before the last two."""
    place = own_entries(ndim) + OWN + p[LEADS] * p[INNER] * PHASE_ENTRIES + 2 * lead
    return own_entries(ndim) + p[place], p[place + 1]


@helper
def fill_lead_terms(table, of_channel, axis_steps, b, p, ndim):
    """The byte offset of each term of a pass, [lead phase][c][tap]; `of_channel`: bytes from channel to channel."""
    axes = max(ndim - 2, 0)
    for lead in range(p[own_entries(ndim) + LEAD_PHASES]):
        entry, count = lead_taps(p, ndim, lead)
        for tap in range(count):
            offset = 0
            for axis in range(axes):
                offset += p[entry + tap * (1 + axes) + 1 + axis] * axis_steps[axis]
            for c in range(b[CHUNK]):
                table[lead * b[CHUNK] * b[TAPS] + c * count + tap] = offset + c * of_channel


@helper
def transform_phase(u, u_step, kernels, channels, phase, p, g, b, tools, at):
    """The transformed weights of a phase, elements `u_step` bytes apart, from packed kernels of so many channels of y."""
    ndim, width, own = g[DIMS], b[PANEL] * itemsize(at), own_entries(g[DIMS])
    entry, count = lead_taps(p, ndim, phase_entry(p, ndim, phase, LEAD))
    first, rows, columns = (
        phase_entry(p, ndim, phase, FIRST),
        phase_entry(p, ndim, phase, N_ROWS),
        phase_entry(p, ndim, phase, N_COLUMNS),
    )
    for tap in range(count):
        source = kernels + (first + p[entry + tap * (1 + max(ndim - 2, 0))]) * width
        invoke(
            tools[WEIGHT], source, p[own + ROW_STEP] * width, p[own + COLUMN_STEP] * width, rows, columns, b[PANEL] // tools[LANES],
            u + tap * width, u_step, channels, p[own + KERNEL_TAPS] * width, count * width,
        )  # fmt: skip


@helper
def multiply_phase(products, u, u_step, v, tables, terms, count, rows, columns, tiles, resume, g, b, tools, at):
    """The products of the tiles with a phase of so many rows and columns of taps, over a pass of `count` terms.

    Where it has a tap less than others, its polynomial is of a lower degree, and zero at infinity: the last element.
    """
    size = itemsize(at)
    elements, _ = element_counts(g, b)
    row_taps, column_taps = inner_axis(g, 1)[2], inner_axis(g, 0)[2]
    across = b[COLUMNS] + column_taps - 1
    last_row = b[ROWS] + row_taps - 2 if rows < row_taps else -1
    last_column = across - 1 if columns < column_taps else -1
    for element in range(elements):
        target = products + element * b[M_STEP] * size
        if (element // across == last_row) | (element % across == last_column):
            clear(target, 0 if resume else b[PLACES] * b[PANEL], at)
        else:
            invoke(
                tools[PRODUCT], u + element * u_step, v + element * b[V_STEP] * size, tables, target, tiles, count,
                terms, b[PANEL] * size, resume,
            )  # fmt: skip


# The parts of a worker's scratch memory: tables, packed and transformed input, products, results of a panel, packed weights, a
# spare tile, transformed weights.
TABLES, SLABS, INPUTS, PRODUCTS, RESULTS, PACKED, SPARE, WEIGHTS, AREAS = range(9)


@helper
def _blocks(worker, queue, args):
    (
        at, scratch, areas, tools, write, parted, splits, form, y, w, bias, x, status, vectors, g, h, b, p,
    ) = args  # fmt: skip
    ndim, depth, per_k, size, own = g[DIMS], g[PER_C], g[PER_K], itemsize(at), own_entries(g[DIMS])
    ys, ws, xs, width = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), b[PANEL] * itemsize(at)
    count, _ = element_counts(g, b)
    area = area_of(scratch, areas, AREAS, worker)
    tables, slabs, inputs, products = area + areas[TABLES], area + areas[SLABS], area + areas[INPUTS], area + areas[PRODUCTS]
    results, packed, spare, weights = area + areas[RESULTS], area + areas[PACKED], area + areas[SPARE], area + areas[WEIGHTS]
    terms = tables + 8 * b[PLACES]
    elements = terms + 8 * p[own + LEAD_PHASES] * b[CHUNK] * b[TAPS]
    axis_steps = pointer(elements + 8 * count, INT64)
    plane = place_steps(axis_steps, g, b, size)
    steps = input_steps(depth, plane, g, b, tools)
    fill_lead_terms(pointer(terms, INT64), steps[2] * size, axis_steps, b, p, ndim)
    fill_elements(pointer(elements, INT64), g, b, size)
    panels, leads, each = -(-per_k // b[PANEL]), p[LEADS], count * b[V_STEP] * size
    where, ready, tiles = -1, -1, 0
    for item in taken_items(queue, worker):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        if item // splits != where:
            where, source = item // splits, y + (block_image(b, ndim, block) * g[ys] + group * g[ys + 1])
            tiles = fill_places(pointer(tables, INT64), b[GROUP], steps[0] * size, axis_steps, g, b, block)
            for window in range(p[own + WINDOWS]):
                one = pointer(vectors + 8 * window * p[own + VECTOR], INT64)
                transform_inputs(inputs + window * each, slabs, elements, source, depth, 0, depth, block, plane, one, b, tools, at)
        for unit in range(panels * leads * (item % splits) // splits, panels * leads * (item % splits + 1) // splits):
            panel, k = group * panels + unit // leads, unit // leads * b[PANEL]
            columns = min(per_k - k, b[PANEL])
            if form != TRANSFORMED and panel != ready:
                ready = panel
                kernels = w + (group * g[ws] + k * g[ws + 1])
                pack_kernels(packed, kernels, columns, 0, depth, p[own + KERNEL_TAPS], parted, h, b, tools, at)
            for inner in range(p[INNER]):
                phase = unit % leads * p[INNER] + inner
                lead = phase_entry(p, ndim, phase, LEAD)
                v, of_lead = inputs + phase_entry(p, ndim, phase, WINDOW) * each, terms + 8 * lead * b[CHUNK] * b[TAPS]
                taps = lead_taps(p, ndim, lead)[1]
                for first in range(0, depth, b[CHUNK]):
                    passed, resume = min(b[CHUNK], depth - first), 1 if first > 0 else 0
                    u, u_step = weights, spread_step(b[CHUNK] * taps * width)
                    if form == TRANSFORMED:
                        u_step = spread_step(depth * taps * width)
                        u = w + (panel * p[own + PANEL_BYTES] + phase_entry(p, ndim, phase, PLACE) + first * taps * width)
                    else:
                        kernels = packed + first * p[own + KERNEL_TAPS] * width
                        transform_phase(u, u_step, kernels, passed, phase, p, g, b, tools, at)
                    multiply_phase(
                        products, u, u_step, v + first * steps[2] * size, tables, of_lead, passed * taps,
                        phase_entry(p, ndim, phase, N_ROWS), phase_entry(p, ndim, phase, N_COLUMNS), tiles, resume, g, b, tools, at,
                    )  # fmt: skip
                sums, order = results + inner * width, tile_steps(g, b, block)
                transform_outputs(sums, products, order, spare, block, p[INNER], g, b, tools, at)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target = x + (group * g[xs + 1] + k * g[xs + 2])
            invoke(write, tools, results, width, columns, shift, g[OPTION], target, status, block, unit % leads, g, b, p)


@helper
def _weights(worker, queue, args):
    at, scratch, areas, tools, parted, ranges, w, u, g, h, b, p = args
    ndim, ws, depth, width, panels = g[DIMS], part(g, PARTS + 1), g[PER_C], b[PANEL] * itemsize(at), -(-g[PER_K] // b[PANEL])
    packed = area_of(scratch, areas, AREAS, worker) + areas[PACKED]
    own, units = own_entries(ndim), -(-depth // CHANNELS_AT_ONCE)
    for item in taken_items(queue, worker):
        panel, one = item // ranges, item % ranges
        k = panel % panels * b[PANEL]
        source, target = w + (panel // panels * g[ws] + k * g[ws + 1]), u + panel * p[own + PANEL_BYTES]
        last = min(depth, units * (one + 1) // ranges * CHANNELS_AT_ONCE)
        for c in range(units * one // ranges * CHANNELS_AT_ONCE, last, CHANNELS_AT_ONCE):
            several = min(CHANNELS_AT_ONCE, last - c)
            columns = min(g[PER_K] - k, b[PANEL])
            pack_kernels(packed, source, columns, c, several, p[own + KERNEL_TAPS], parted, h, b, tools, at)
            for phase in range(p[LEADS] * p[INNER]):
                taps = lead_taps(p, ndim, phase_entry(p, ndim, phase, LEAD))[1]
                place = target + (phase_entry(p, ndim, phase, PLACE) + c * taps * width)
                transform_phase(place, spread_step(depth * taps * width), packed, several, phase, p, g, b, tools, at)


@helper
def share_weights(region, workers, scratch, areas, parted, w, u, g, h, b, p, tools, at):
    """All panels of w, transformed, by all workers."""
    panels = -(-g[PER_K] // b[PANEL]) * g[GROUPS]
    ranges = min(-(-g[PER_C] // CHANNELS_AT_ONCE), -(-ITEMS_OF_THREAD * workers // panels))
    items = panels * ranges
    parallel_items(
        region, workers, items, _weights, (at, scratch, areas, tools, parted, ranges, w, u, g, h, b, p)
    )  # fmt: skip


@kernel
def interleaved(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, write: int, parted: int,
    splits: int, form: int, y: Address, w: Address, bias: Address, x: Address, status: Address, g: Address, h: Address, b: Address,
    p: Address,
) -> None:  # fmt: skip
    """x from y and w: an item is a block of tiles, for some of the panels and phases of all dimensions but the last.

    `tools`: see `tools_for`; `write`: the address of `write_phases`; `parted`: see `pack_kernels`. w is TRANSFORMED, or lies as the
    vector `h` says, and is first transformed by all if it is SHARED. `status` gets a 1 for each image of which a sum is not finite.
    The bias is in the accumulation dtype. `g`: the vectors of all windows.
    """
    tables, offsets, sizes, kernels = pointer(tools, INT64), pointer(areas, INT64), pointer(g, INT64), pointer(h, INT64)
    cutting, phases, u, ready = pointer(b, INT64), pointer(p, INT64), w, form
    if form == SHARED:
        u, ready = common_area(scratch, offsets, AREAS, workers), TRANSFORMED
        share_weights(region, workers, scratch, offsets, parted, w, u, sizes, kernels, cutting, phases, tables, at)
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (
            at, scratch, offsets, tables, write, parted, splits, ready, y, u, bias, x, status, g, sizes, kernels,
            cutting, phases,
        ),
    )  # fmt: skip


@kernel
def transform_weights(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, parted: int, w: Address,
    target: Address, g: Address, h: Address, b: Address, p: Address,
) -> None:  # fmt: skip
    """All panels of w, transformed, for `interleaved`."""
    share_weights(
        region, workers, scratch, pointer(areas, INT64), parted, w, target, pointer(g, INT64), pointer(h, INT64),
        pointer(b, INT64), pointer(p, INT64), pointer(tools, INT64), at,
    )  # fmt: skip


KERNELS = Unit(
    "interleaved.kernels",
    lambda out, acc: [(write_phases, (out, acc))],
    called=lambda out, acc: [(interleaved, (acc,)), (transform_weights, (acc,))],
)
