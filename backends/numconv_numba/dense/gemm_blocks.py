"""The kernel of `implicit_gemm`: a block of outputs, a panel of pixels at a time.

Pixels of a block come in the order of its panels: first whole vectors of neighbours, in what is read and in y, wherever they lie;
then what is left over at the ends of runs. A panel of whole vectors is filled by the first tile that reads it, and tiles store
their results where they belong. One with others is gathered before, and its sums are written by a pass of their own.
"""

from __future__ import annotations

import numpy as np

from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import CONFIGURE, LANES, MULTIPLY, PACK_WEIGHTS
from numconv_numba.geometry import DIMS, GROUPS, OPTION, PARTS, PER_C, PER_K, part
from numconv_numba.matrix_tiles.layers import configure_tiles, pack_layers, release_tiles
from numconv_numba.results import write_rows
from numconv_numba.rows import clear
from numconv_numba.scalar import is_null, pointer, store
from numconv_numba.threads import area_of, parallel_for, parallel_items, taken_items

from .blocked import array_origin, window_steps
from .panels import fill_places, fill_terms, lines_of, run_offset, runs_of
from .slab import CHANNEL, EXTRA, IMAGES, block_extent, block_image, block_images

__all__ = ["CHANNELS", "CHUNK", "DEPTH", "LAYERS", "TAPS", "gemm_kernels"]

# A block's own numbers: output channels and vectors of a tile, input channels (or pairs) of a panel, taps, channels of a group,
# layers of a factor.
CHANNELS, VECTORS, CHUNK, TAPS, DEPTH, LAYERS = range(EXTRA, EXTRA + 6)
UINT8 = Tag("uint8")

# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def arrange(order, pixels, total, run, row, lanes, size):
    """The pixels of a block in the order of its panels; returns how many come in whole vectors, which are first.

    Rows of x have `row` pixels, runs of y `run`: a vector ends in neither.
    """
    filled, whole = 0, 0
    step = row if row == 1 or pixels[1] - pixels[0] == size else 1
    for others in range(2):
        first = 0
        while first < total:
            length, most = step, run - first % run
            while length < most and pixels[first + length] == pixels[first] + length * size:
                length += step
            vectors = length // lanes * lanes
            begin, end = (vectors, length) if others else (0, vectors)
            for i in range(begin, end):
                order[filled + (i - begin)] = first + i
            filled += end - begin
            first += length
        whole = whole if others else filled
    return whole


@helper
def same_extents(g, b, block, other):
    """Whether two blocks have as many images, and as many outputs along each dimension."""
    same = block_images(g, b, block) == block_images(g, b, other)
    for axis in range(g[DIMS]):
        same &= block_extent(g, b, block, axis) == block_extent(g, b, other, axis)
    return same


@helper
def lay_out(pixels, order, image, axis_steps, run, total, lanes, size, g, b, block):
    """Offsets of a block's pixels in what is read, and their order; how many come in whole vectors.

    These are the same for all blocks of the same extents.
    """
    fill_places(pixels, 1, image, axis_steps, g, b, block)
    row = block_extent(g, b, block, g[DIMS] - 1)
    return arrange(order, pixels, total, run, row, lanes, size)


@helper
def place_runs(lines, g, b, block):
    """Where in y the runs of a block begin; how many pixels make a run, an image and the block."""
    inner, run = runs_of(g, b, block, PARTS + 2)
    each, n = lines_of(inner, g, b, block), block_image(b, g[DIMS], block)
    total = block_images(g, b, block) * each * run
    for line in range(total // run):
        lines[line] = (n + line // each) * g[part(g, PARTS + 2)] + run_offset(line % each, inner, g, b, block)
    return run, each * run, total


@helper
def panel_width(left, most, lanes):
    """Pixels of the next panel, of `most` vectors; the last two are about equal, for one of a vector alone takes longer."""
    vectors = -(-left // lanes)
    if most < vectors < 2 * most:
        return (vectors + 1) // 2 * lanes
    return min(left, most * lanes)


@helper
def panel_pieces(pieces, order, pixels, first, count, whole, lanes, size):
    """Pixels of a panel, from `first` on in the order, as runs of neighbours, no longer than a vector: (source, target, length).

    So many pixels of the order come in `whole` vectors of neighbours.
    """
    filled, start = 0, 0
    while start < count:
        source, most = pixels[order[first + start]], min(lanes, count - start)
        length = lanes if first + start < whole else 1
        while length < most and pixels[order[first + start + length]] == source + length * size:
            length += 1
        pieces[3 * filled], pieces[3 * filled + 1], pieces[3 * filled + 2] = source, start * size, length
        filled += 1
        start += length
    return filled


@helper
def place_vectors(places, order, lines, run, first, count, lanes, q_step):
    """Where in y the vectors of a panel begin; returns whether the pixels of each are neighbours there.

    Runs of y have `run` pixels and begin at the bytes `lines`.
    """
    together, line = True, order[first] // run
    for start in range(0, count, lanes):
        pixel, length = order[first + start], min(lanes, count - start)
        if (pixel < line * run) | (pixel >= (line + 1) * run):  # dividing takes longer than all else here
            line = pixel // run
        begin = pixel - line * run
        places[start // lanes] = lines[line] + begin * q_step
        together &= (order[first + start + length - 1] - pixel == length - 1) & (begin + length <= run)
    return together


@helper
def fill_taps(terms, taps, channels, channel, count, layers, layer_step):
    """The offset of each term in a slab: of every tap in each channel, in each layer."""
    for c in range(channels):
        for tap in range(count):
            for layer in range(layers):
                terms[(c * count + tap) * layers + layer] = taps[tap] + c * channel + layer * layer_step


@helper
def write_runs(sums, width, rows, pixels, order, lines, k, bias, y, g, tools, yt, at):
    """Sums of a panel for `rows` output channels from k on. `pixels`: the first one, how many, and those of a run of y."""
    ys, size, (start, used, run) = part(g, PARTS + 2), itemsize(at), pixels
    k_step, q_step = g[ys + 2], g[ys + 3 + g[DIMS] - 1]
    done = 0
    while done < used:
        pixel, count = order[start + done], 1
        most = min(run - pixel % run, used - done)
        while count < most and order[start + done + count] == pixel + count:
            count += 1
        target = y + (k * k_step + lines[pixel // run] + pixel % run * q_step)
        write_rows(sums + done * size, width, rows, count, bias, g[OPTION], target, k_step, q_step, tools, yt, at)
        done += count


@helper
def multiply_tiles(
    tiles, k, w, y, tables, pixels, vectors, passed, resume, last, bias, areas, x, count, ahead, steps, g, b, tools, yt, at
):  # fmt: skip
    """So many tiles of output channels from k on, with `passed` terms that begin at w; returns whether a sum is not finite.

    `areas`: the panel, the sums of these tiles, offsets of terms, pieces. `tables`: the order of pixels, where runs of y begin,
    where vectors of the panel go, and whether tiles can store them. `pixels`: see `write_runs`. `ahead`: see `gemm`.
    """
    size, k_step, used = itemsize(at), g[part(g, PARTS + 2) + 2], pixels[1]
    panel, sums, offsets, pieces = areas
    order, lines, places, plain = tables
    shift = bias if is_null(bias) else bias + k * size
    bad = invoke(
        tools[MULTIPLY], vectors, panel, passed, w, steps[0], steps[1], steps[2], tiles, sums, resume, 1 if last and plain else 0,
        y + k * k_step, k_step, places, used, shift, g[OPTION], x, offsets, pieces, count, ahead,
    )  # fmt: skip
    if last and not plain:
        write_runs(sums, vectors * tools[LANES] * size, tiles * b[CHANNELS], pixels, order, lines, k, shift, y, g, tools, yt, at)
    return last and bad != 0


@helper
def multiply_panel(
    first_tile, last_tile, w, w_last, y, tables, pixels, areas, x, channel, found, following, bias, steps, g, b, tools, yt, at
):  # fmt: skip
    """The outputs of a panel for the tiles first_tile .. last_tile; w and y at the group's first output channel.

    `found`: pieces that are gathered, or -1 where the first tile fills the panel. `following`: the bytes from its first pixel to
    that of the next panel, or 0.
    """
    depth, per_k, channels = b[DEPTH], g[PER_K], b[CHANNELS]
    vectors, size = -(-pixels[1] // tools[LANES]), itemsize(at)
    panel, sums, offsets, pieces = areas
    if (found >= 0) & (pixels[1] < vectors * tools[LANES]):
        # stray bits could be denormal numbers, which are slow
        clear(panel, b[CHUNK] * b[TAPS] * b[LAYERS] * vectors * tools[LANES], at)
    whole, bad = max(min(last_tile, per_k // channels) - first_tile, 0), False
    for first in range(0, depth, b[CHUNK]):
        passed, resume, last = min(b[CHUNK], depth - first) * b[TAPS], 1 if first > 0 else 0, first + b[CHUNK] >= depth
        count = found
        # the next channels of this panel, or the first ones of the next panel
        ahead = (following - first * channel if following else 0) if last else b[CHUNK] * channel
        # a last tile that is not full overlaps the one before, whose channels it computes again
        for ending in range(2):
            tiles = (1 if first_tile + whole < last_tile else 0) if ending else whole
            if tiles > 0:
                k, offset, done = first_tile * channels, first_tile * steps[2], 0
                if ending:
                    k, offset, done = per_k - channels, w_last, whole * channels * vectors * tools[LANES] * size
                bad |= multiply_tiles(
                    tiles, k, w + (offset + first * b[TAPS] * steps[0]), y, tables, pixels, vectors, passed, resume, last, bias,
                    (panel, sums + done, offsets, pieces), x + first * channel, count, ahead, steps, g, b, tools, yt, at,
                )  # fmt: skip
                count = 0
    return bad


@helper
def _blocks(worker, queue, args):
    (
        yt, at, scratch, areas, tables, splits, in_place, taps, x, w, w_group, w_last, steps, bias, y, status, g, b,
    ) = args  # fmt: skip
    tools = pointer(tables, INT64)
    ndim, per_k, size = g[DIMS], g[PER_K], itemsize(at)
    xs, ys, tiles = part(g, PARTS), part(g, PARTS + 2), -(-g[PER_K] // b[CHANNELS])
    q_step = g[ys + 3 + ndim - 1]
    own = area_of(scratch, areas, AREAS, worker)
    pixels, terms = pointer(own + areas[PIXELS], INT64), pointer(own + areas[TERMS], INT64)
    axis_steps, pieces = pointer(own + areas[STEPS], INT64), pointer(own + areas[PIECES], INT64)
    lines, order = pointer(own + areas[LINES], INT64), pointer(own + areas[ORDER], INT64)
    places = pointer(own + areas[PLACES], INT64)
    window_steps(axis_steps, in_place, g, b, size)
    image, channel = (g[xs], g[xs + 2]) if in_place else (b[DEPTH] * b[CHANNEL] * size, b[CHANNEL] * size)
    if in_place:
        fill_terms(terms, b[CHUNK], channel, ndim, axis_steps, g)
    else:
        fill_taps(terms, taps, b[CHUNK], channel, b[TAPS], b[LAYERS], b[IMAGES] * image)
    parts = own + areas[PANEL], own + areas[SUMS], own + areas[TERMS], own + areas[PIECES]
    where, laid, source, run, plane, total, whole = -1, -1, x, 1, 1, 0, 0
    configure_tiles(tools)
    for item in taken_items(queue, worker):
        group, block = item // splits % g[GROUPS], item // splits // g[GROUPS]
        n = block_image(b, ndim, block)
        if block != laid:  # all groups have the same
            run, plane, total = place_runs(lines, g, b, block)
            if laid < 0 or not same_extents(g, b, block, laid):
                whole = lay_out(pixels, order, image, axis_steps, run, total, tools[LANES], size, g, b, block)
            laid = block
        if item // splits != where:
            where, source = item // splits, x + (n * g[xs] + group * g[xs + 1])
            if in_place:
                source = source + array_origin(g, b, block)
            else:
                slab, images = own + areas[SLAB], block_images(g, b, block)
                pack_layers(tables, b[LAYERS], b[IMAGES] * image, slab, source, block, images, g[PER_C], g, b)
                source = slab
        first_tile, last_tile = tiles * (item % splits) // splits, tiles * (item % splits + 1) // splits
        shift = bias if is_null(bias) else bias + group * per_k * size
        start = 0
        while start < total:
            used = panel_width(total - start, b[VECTORS], tools[LANES])
            following = pixels[order[start + used]] - pixels[order[start]] if start + used < total else 0
            found = panel_pieces(pieces, order, pixels, start, used, whole, tools[LANES], size)
            if (tools[CONFIGURE] == 0) & (start + used <= whole):
                found = -1
            # sums as a tile stores them, or some that need more
            plain = place_vectors(places, order, lines, run, start, used, tools[LANES], q_step)
            plain &= (q_step == itemsize(yt)) & (g[OPTION] <= 1)
            if multiply_panel(
                first_tile, last_tile, w + group * w_group, w_last, y + group * g[ys + 1],
                (order, lines, own + areas[PLACES], plain), (start, used, run), parts, source, channel, found, following, shift,
                steps, g, b, tools, yt, at,
            ):  # fmt: skip
                for i in range(start, start + used):
                    store(status + (n + order[i] // plane), np.uint8(1), UINT8)
            start += used
    release_tiles(tools)


# The parts of a worker's scratch memory: offsets of pixels, of runs in y, pixels in the order of panels, offsets of terms, bytes
# from position to position, pieces of a panel and where its vectors go; the slab, a panel, sums of all output channels.
PIXELS, LINES, ORDER, TERMS, STEPS, PIECES, PLACES, SLAB, PANEL, SUMS, AREAS = range(11)


@kernel
def implicit_gemm(
    yt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int,
    in_place: int, taps: Address, x: Address, w: Address, w_step: int, w_k: int, w_tile: int, w_group: int, w_last: int,
    bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of outputs for some of the tiles of output channels.

    `tools`: see `tools_for`, or a table for each layer; `taps`: the byte offset of each tap in a channel of the slab. Weights lie
    `w_step` bytes apart from term to term, `w_k` from channel to channel of a tile, `w_tile` from tile to tile and `w_group` from
    group to group; the last tile, which ends with the last channel, starts at `w_last`. `status` gets a 1 for each image of which
    a sum is not finite. Weights and bias are in the accumulation dtype.
    """
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (
            yt, at, scratch, pointer(areas, INT64), tools, splits, in_place,
            pointer(taps, INT64), x, w, w_group, w_last, (w_step, w_k, w_tile), bias, y, status, pointer(g, INT64),
            pointer(b, INT64),
        ),
    )  # fmt: skip


@helper
def _tiles(begin, end, args):
    at, tools, w, target, g, b = args
    ws, depth, per_k, width = part(g, PARTS + 1), b[DEPTH], g[PER_K], b[CHANNELS] * itemsize(at)
    tiles = -(-per_k // b[CHANNELS])
    for item in range(begin, end):
        group, k = item // tiles, min(item % tiles * b[CHANNELS], per_k - b[CHANNELS])
        place, source = target + item * depth * b[TAPS] * width, w + (group * g[ws] + k * g[ws + 1])
        invoke(tools[PACK_WEIGHTS], tools, place, source, b[CHANNELS], 0, depth, b[TAPS], width, g)


@kernel
def pack_tiles(
    at: Tag, region: int, workers: int, items: int, tools: Address, w: Address, target: Address, g: Address, b: Address
) -> None:
    """All tiles of w, ``[tile][c][tap][channel]``: an item is a tile of a group."""
    parallel_for(region, workers, items, _tiles, (at, pointer(tools, INT64), w, target, pointer(g, INT64), pointer(b, INT64)))


gemm_kernels = Unit("implicit_gemm.kernels", called=lambda out, acc: [(implicit_gemm, (out, acc)), (pack_tiles, (acc,))])
