"""The kernels of `forward`: block by block, or, where threads could not share the blocks evenly, one phase after the other."""

from __future__ import annotations

from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.blocked import forget
from numconv_numba.dense.panels import fill_places
from numconv_numba.dense.slab import BLOCKS, EXTRA, block_image
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.entries import LANES, OUTPUT, PACK_WEIGHTS, PRODUCT, WEIGHT, WRITE
from numconv_numba.geometry import DIMS, GROUPS, OPTION, PARTS, PER_C, PER_K, part
from numconv_numba.scalar import is_null, pointer
from numconv_numba.threads import area_of, common_area, parallel_for, parallel_items, taken_items

from .inputs import (
    COLUMNS,
    GROUP,
    PANEL,
    ROWS,
    TAPS,
    V_STEP,
    copy_pixels,
    element_counts,
    fill_elements,
    fill_pass,
    inner_window,
    input_steps,
    phase_range,
    phase_taps,
    place_steps,
    spread_step,
    tile_extents,
    transform_inputs,
    transform_pixels,
)
from .layout import CHANNELS_AT_ONCE

__all__ = [
    "AREAS", "CHUNK", "IN_PANELS", "ITEMS_OF_THREAD", "KERNELS", "M_STEP", "PLACES", "RESULTS", "SHARED", "SLABS", "SPARE",
    "TABLES", "TRANSFORMED", "UNPACKED", "bind_weights", "element_table", "fill_term_tables", "multiply_elements",
    "share_weights", "tile_steps", "transform_outputs", "winograd", "winograd_phases",
]  # fmt: skip

# A block's own numbers, beside those of `winograd.inputs`: input channels of a pass, whether transformed weights are kept from
# block to block, tiles rounded up to register tiles, elements from one element to the next of the products and of transformed
# weights.
CHUNK, KEPT, PLACES, M_STEP, U_STEP = (EXTRA + i for i in (2, 3, 4, 8, 10))
UINT8 = Tag("uint8")
# The form of w: as it lies, transformed, or packed in panels that are transformed when they are needed; or as it lies, to be
# transformed into the common memory first.
UNPACKED, TRANSFORMED, IN_PANELS, SHARED = range(4)
ITEMS_OF_THREAD = 4
"""Items of a phase for each thread."""


@helper
def transform_weights(u, u_step, packed, w, form, count, start, passed, first, channels, g, b, tools, at):
    """Transformed weights of a panel of `count` output channels, elements `u_step` bytes apart: [element][phase][c][tap][lane].

    `w`: of the panel; `packed`: where it is packed before, unless it is in that form. `channels` from `first` on, of a pass of
    `passed` from `start` on, whose phases follow each other.
    """
    taps, width, inner = b[TAPS], b[PANEL] * itemsize(at), inner_window(g)
    _, phases = element_counts(g, b)
    vectors = b[PANEL] // tools[LANES]
    for begin in range(0, channels, CHANNELS_AT_ONCE):
        several = min(CHANNELS_AT_ONCE, channels - begin)
        kernels = packed
        if form == IN_PANELS:
            kernels = w + (first + begin) * taps * inner * width
        else:
            invoke(tools[PACK_WEIGHTS], tools, packed, w, count, first + begin, several, taps * inner, width, g)
        for phase in range(phases):
            from_tap, row_step, column_step, rows, columns = phase_taps(phase, width, g)
            target = u + (phase * passed + first + begin - start) * taps * width
            invoke(
                tools[WEIGHT], kernels + from_tap, row_step, column_step, rows, columns, vectors, target, u_step, several * taps,
                inner * width, width,
            )  # fmt: skip


@helper
def fill_term_tables(terms, steps, axis_steps, g, b, size):
    """Where the terms of a pass lie, then those of the last one, of fewer channels; see `fill_pass`."""
    _, phases = element_counts(g, b)
    fill_pass(pointer(terms, INT64), b[CHUNK], steps, axis_steps, g, b, size)
    last = terms + 8 * b[CHUNK] * phases * b[TAPS]
    fill_pass(pointer(last, INT64), g[PER_C] % b[CHUNK], steps, axis_steps, g, b, size)


@helper
def element_table(tables, g, b):
    """Where the table of the elements lies, behind those of tiles and terms."""
    _, phases = element_counts(g, b)
    return tables + 8 * (b[PLACES] + (b[CHUNK] + g[PER_C] % b[CHUNK]) * phases * b[TAPS])


@helper
def multiply_elements(products, u, u_step, v, tables, tiles, begin, end, passed, resume, g, b, tools, at):
    """The products of elements begin..end of the tiles with those of a panel, summed over a pass of channels.

    Of each element over the phases that have it. `tables`: of the tiles, then see `fill_term_tables`.
    """
    size, each = itemsize(at), passed * b[TAPS]
    width, (_, phases) = b[PANEL] * size, element_counts(g, b)
    terms = tables + 8 * (b[PLACES] + (0 if passed == b[CHUNK] else b[CHUNK] * phases * b[TAPS]))
    for element in range(begin, end):
        low, high = phase_range(element, g, b)
        invoke(
            tools[PRODUCT], u + (element * u_step + low * each * width), v + element * b[V_STEP] * size, tables,
            products + element * b[M_STEP] * size, tiles, (high - low) * each, terms + 8 * low * each, width,
            resume,
        )  # fmt: skip


@helper
def tile_steps(g, b, block):
    """The places of neighbouring planes, rows and tiles, where all tiles of a block follow each other."""
    _, lines, _, tiles, _ = tile_extents(g, b, block)
    return lines * tiles, tiles, 1


@helper
def transform_outputs(sums, products, steps, spare, block, apart, g, b, tools, at):
    """The results of a block, [pixel][lane], panels so far apart, from the products of its tiles, [element][tile][lane].

    `steps`: from plane to plane of tiles, from row to row and from tile to tile.
    """
    size, rows, columns = itemsize(at), b[ROWS], b[COLUMNS]
    width, step, vectors = b[PANEL] * size, b[M_STEP] * size, b[PANEL] // tools[LANES]
    planes, lines, height, tiles, length = tile_extents(g, b, block)
    pixel = apart * width
    for line in range(planes * lines):
        row = line % lines * rows
        start = (line // lines * height + row) * length
        for tile in range(tiles):
            column, place = tile * columns, line // lines * steps[0] + line % lines * steps[1] + tile * steps[2]
            source, target = products + place * width, sums + (start + column) * pixel
            if (row + rows <= height) & (column + columns <= length):
                invoke(tools[OUTPUT], source, step, vectors, target, length * pixel, pixel)
            else:
                invoke(tools[OUTPUT], source, step, vectors, spare, columns * width, width)
                inside = min(rows, height - row), min(columns, length - column)
                copy_pixels(target, spare, inside[0], inside[1], length * pixel, pixel, columns * width, width, tools, at)


# The parts of a worker's scratch memory: tables, packed and transformed input, products, results of a panel, packed weights and a
# spare tile, transformed weights, which of them are there.
TABLES, SLABS, INPUTS, PRODUCTS, RESULTS, SMALL, SPARE, WEIGHTS, READY, AREAS = range(10)


@helper
def _blocks(worker, queue, args):
    at, scratch, areas, tools, splits, form, x, w, bias, y, status, g, b = args
    ndim, per_c, per_k, size = g[DIMS], g[PER_C], g[PER_K], itemsize(at)
    xs, ws, ys, width = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), b[PANEL] * itemsize(at)
    count, phases = element_counts(g, b)
    own = area_of(scratch, areas, AREAS, worker)
    tables, slabs, inputs, products = own + areas[TABLES], own + areas[SLABS], own + areas[INPUTS], own + areas[PRODUCTS]
    results, small, spare, weights = own + areas[RESULTS], own + areas[SMALL], own + areas[SPARE], own + areas[WEIGHTS]
    ready, panels = pointer(own + areas[READY], UINT8), -(-per_k // b[PANEL])
    elements = element_table(tables, g, b)
    axis_steps = pointer(elements + 8 * count * phases, INT64)
    u_step = b[U_STEP] * size
    plane = place_steps(axis_steps, g, b, size)
    steps = input_steps(per_c, plane, g, b, tools)
    fill_term_tables(tables + 8 * b[PLACES], steps, axis_steps, g, b, size)
    fill_elements(pointer(elements, INT64), g, b, size)
    where, of_group, tiles = -1, -1, 0
    for item in taken_items(queue, worker):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        n = block_image(b, ndim, block)
        if item // splits != where:
            where = item // splits
            tiles = fill_places(pointer(tables, INT64), b[GROUP], steps[0] * size, axis_steps, g, b, block)
            source = x + (n * g[xs] + group * g[xs + 1])
            transform_inputs(inputs, slabs, elements, source, per_c, 0, per_c, block, plane, g, b, tools, at)
        if group != of_group:
            of_group = group
            forget(ready, panels)
        for panel in range(panels * (item % splits) // splits, panels * (item % splits + 1) // splits):
            k = panel * b[PANEL]
            used = min(per_k - k, b[PANEL])
            w_k = w + (group * g[ws] + k * g[ws + 1])
            if form == IN_PANELS:
                w_k = w + (group * panels + panel) * per_c * b[TAPS] * inner_window(g) * width
            for first in range(0, per_c, b[CHUNK]):
                passed = min(b[CHUNK], per_c - first)
                before = first * phases * b[TAPS] * width
                u, step = weights + (panel * count * u_step + before if b[KEPT] else 0), u_step
                if form == TRANSFORMED:
                    step = spread_step(per_c * phases * b[TAPS] * width)
                    u = w + ((group * panels + panel) * count * step + before)
                elif not (b[KEPT] and ready[panel]):
                    transform_weights(u, step, small, w_k, form, used, first, passed, first, passed, g, b, tools, at)
                v, resume = inputs + first * steps[2] * size, 1 if first > 0 else 0
                multiply_elements(products, u, step, v, tables, tiles, 0, count, passed, resume, g, b, tools, at)
            ready[panel] = 1
            transform_outputs(results, products, tile_steps(g, b, block), spare, block, 1, g, b, tools, at)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target = y + (group * g[ys + 1] + k * g[ys + 2])
            invoke(tools[WRITE], tools, results, width, used, shift, g[OPTION], target, status, block, g, b)


@helper
def _panels(begin, end, args):
    at, tools, form, ranges, w, target, g, b = args
    ws, per_c, per_k, width, panels = part(g, PARTS + 1), g[PER_C], g[PER_K], b[PANEL] * itemsize(at), -(-g[PER_K] // b[PANEL])
    count, phases = element_counts(g, b)
    step, taps = spread_step(per_c * phases * b[TAPS] * width), b[TAPS] * inner_window(g)
    small, units = scratch(CHANNELS_AT_ONCE * taps * width), -(-per_c // CHANNELS_AT_ONCE)
    for item in range(begin, end):
        panel, one = item // ranges, item % ranges
        group, k = panel // panels, panel % panels * b[PANEL]
        first = units * one // ranges * CHANNELS_AT_ONCE
        channels = min(per_c, units * (one + 1) // ranges * CHANNELS_AT_ONCE) - first
        source, used = w + (group * g[ws] + k * g[ws + 1]), min(per_k - k, b[PANEL])
        if form == IN_PANELS:
            place = target + (panel * per_c + first) * taps * width
            invoke(tools[PACK_WEIGHTS], tools, place, source, used, first, channels, taps, width, g)
        else:
            end = first + channels
            while first < end:
                start = first // b[CHUNK] * b[CHUNK]
                passed = min(b[CHUNK], per_c - start)
                several = min(start + passed, end) - first
                place = target + (panel * count * step + start * phases * b[TAPS] * width)
                transform_weights(
                    place, step, memory(small), source, UNPACKED, used, start, passed, first, several, g, b, tools, at
                )
                first += several
    release(small)


@helper
def share_weights(region, workers, form, w, target, g, b, tools, at):
    """All panels of w in a form for `winograd`, by all workers."""
    panels = -(-g[PER_K] // b[PANEL]) * g[GROUPS]
    ranges = min(-(-g[PER_C] // CHANNELS_AT_ONCE), -(-ITEMS_OF_THREAD * workers // panels))
    parallel_for(region, workers, panels * ranges, _panels, (at, tools, form, ranges, w, target, g, b))


@kernel
def winograd(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int, form: int,
    x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of tiles for some of the panels.

    `tools`: see `tools_for`; w has one of the forms above, and lies as the vector g says if it is UNPACKED. `status` gets a 1 for
    each image of which a sum is not finite. The bias is in the accumulation dtype.
    """
    tables, offsets, sizes, cutting = pointer(tools, INT64), pointer(areas, INT64), pointer(g, INT64), pointer(b, INT64)
    u, ready = w, form
    if form == SHARED:
        u, ready = common_area(scratch, offsets, AREAS, workers), TRANSFORMED
        share_weights(region, workers, TRANSFORMED, w, u, sizes, cutting, tables, at)
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (at, scratch, offsets, tables, splits, ready, x, u, bias, y, status, sizes, cutting),
    )


@kernel
def bind_weights(
    at: Tag, region: int, workers: int, items: int, tools: Address, form: int, w: Address, target: Address, g: Address, b: Address
) -> None:
    """All panels of w in a form for `winograd`."""
    share_weights(region, workers, form, w, target, pointer(g, INT64), pointer(b, INT64), pointer(tools, INT64), at)


# How they are shared: where transformed input and products lie in the common memory, behind the weights; ranges of channels of a
# block, of so many channels at least, and parts of the elements of a panel.
AT_INPUTS, AT_PRODUCTS, RANGES, UNIT, PARTS_OF_ELEMENTS = range(5)


@helper
def _inputs(worker, queue, args):
    at, scratch, areas, tools, phase, x, v, g, b = args
    per_c, size, xs = g[PER_C], itemsize(at), part(g, PARTS)
    count, phases = element_counts(g, b)
    own = area_of(scratch, areas, AREAS, worker)
    elements = element_table(own + areas[TABLES], g, b)
    plane = place_steps(pointer(elements + 8 * count * phases, INT64), g, b, size)
    fill_elements(pointer(elements, INT64), g, b, size)
    units = -(-per_c // phase[UNIT])
    for item in taken_items(queue, worker):
        where, one = item // phase[RANGES], item % phase[RANGES]
        block, group = where % b[BLOCKS], where // b[BLOCKS]
        first = min(per_c, units * one // phase[RANGES] * phase[UNIT])
        last = min(per_c, units * (one + 1) // phase[RANGES] * phase[UNIT])
        source = x + (block_image(b, g[DIMS], block) * g[xs] + group * g[xs + 1])
        target = v + where * count * b[V_STEP] * size
        transform_inputs(target, own + areas[SLABS], elements, source, per_c, first, last, block, plane, g, b, tools, at)


@helper
def _products(worker, queue, args):
    at, scratch, areas, tools, phase, u, v, m, g, b = args
    per_c, size, width = g[PER_C], itemsize(at), b[PANEL] * itemsize(at)
    count, phases = element_counts(g, b)
    tables = area_of(scratch, areas, AREAS, worker) + areas[TABLES]
    axis_steps = pointer(element_table(tables, g, b) + 8 * count * phases, INT64)
    plane = place_steps(axis_steps, g, b, size)
    steps = input_steps(per_c, plane, g, b, tools)
    fill_term_tables(tables + 8 * b[PLACES], steps, axis_steps, g, b, size)
    panels, parts, step = -(-g[PER_K] // b[PANEL]), phase[PARTS_OF_ELEMENTS], spread_step(per_c * phases * b[TAPS] * width)
    filled, tiles = -1, 0
    for item in taken_items(queue, worker):
        panel, where, one = item // parts % panels, item // parts // panels, item % parts
        block, group = where % b[BLOCKS], where // b[BLOCKS]
        if where != filled:
            filled = where
            tiles = fill_places(pointer(tables, INT64), b[GROUP], steps[0] * size, axis_steps, g, b, block)
        weights, inputs = u + (group * panels + panel) * count * step, v + where * count * b[V_STEP] * size
        target = m + (where * panels + panel) * count * b[M_STEP] * size
        for element in range(count * one // parts, count * (one + 1) // parts):
            for first in range(0, per_c, b[CHUNK]):
                a, c = weights + first * phases * b[TAPS] * width, inputs + first * steps[2] * size
                passed, resume = min(b[CHUNK], per_c - first), 1 if first > 0 else 0
                multiply_elements(target, a, step, c, tables, tiles, element, element + 1, passed, resume, g, b, tools, at)


@helper
def _outputs(worker, queue, args):
    at, scratch, areas, tools, m, bias, y, status, g, b = args
    per_k, size, ys = g[PER_K], itemsize(at), part(g, PARTS + 2)
    count, _ = element_counts(g, b)
    own, panels = area_of(scratch, areas, AREAS, worker), -(-per_k // b[PANEL])
    results, spare = own + areas[RESULTS], own + areas[SPARE]
    for item in taken_items(queue, worker):
        k, where = item % panels * b[PANEL], item // panels
        block, group = where % b[BLOCKS], where // b[BLOCKS]
        transform_outputs(results, m + item * count * b[M_STEP] * size, tile_steps(g, b, block), spare, block, 1, g, b, tools, at)
        shift = bias if is_null(bias) else bias + (group * per_k + k) * size
        target, used = y + (group * g[ys + 1] + k * g[ys + 2]), min(per_k - k, b[PANEL])
        invoke(tools[WRITE], tools, results, b[PANEL] * size, used, shift, g[OPTION], target, status, block, g, b)


@kernel
def winograd_phases(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, phases: Address, form: int,
    x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """What `winograd` computes, for few blocks: all workers transform weights, then input, then multiply, then transform back.

    w is TRANSFORMED, or lies as the vector g says.
    """
    tables, offsets, phase = pointer(tools, INT64), pointer(areas, INT64), pointer(phases, INT64)
    sizes, cutting = pointer(g, INT64), pointer(b, INT64)
    common = common_area(scratch, offsets, AREAS, workers)
    v, m = common + phase[AT_INPUTS], common + phase[AT_PRODUCTS]
    panels, blocks = -(-sizes[PER_K] // cutting[PANEL]), cutting[BLOCKS] * sizes[GROUPS]
    u = w
    if form != TRANSFORMED:
        u = common
        share_weights(region, workers, TRANSFORMED, w, u, sizes, cutting, tables, at)
    shares = blocks * phase[RANGES]
    parallel_items(
        region, workers, shares, _inputs, (at, scratch, offsets, tables, phase, x, v, sizes, cutting)
    )  # fmt: skip
    shares = blocks * panels * phase[PARTS_OF_ELEMENTS]
    parallel_items(
        region, workers, shares, _products, (at, scratch, offsets, tables, phase, u, v, m, sizes, cutting)
    )  # fmt: skip
    shares = blocks * panels
    parallel_items(
        region, workers, shares, _outputs, (at, scratch, offsets, tables, m, bias, y, status, sizes, cutting)
    )  # fmt: skip


KERNELS = Unit(
    "winograd.kernels",
    lambda dtype, acc: [(transform_pixels, (dtype, acc))],
    called=lambda dtype, acc: [(winograd, (acc,))],
)
