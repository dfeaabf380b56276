"""The kernel of `fused`: tiles laid out once, and panels of weights packed, transformed in registers and multiplied."""

from __future__ import annotations

from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.slab import BLOCKS, EXTRA, block_image
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import FUSED, HALVE, PACK_WEIGHTS, PIXELS, READ_SQUARES, WRITE
from numconv_numba.geometry import DIMS, OPTION, PARTS, PER_C, PER_K, part
from numconv_numba.microkernels.fused_product import FUSED_TILES, is_fused
from numconv_numba.microkernels.halved_product import HALVED_TAPS, halve, halved_product
from numconv_numba.rows import clear
from numconv_numba.scalar import address, is_null, pointer
from numconv_numba.threads import area_of, parallel_items, taken_items

from .inputs import COLUMNS, PANEL, ROWS, V_STEP, element_counts, phase_taps, tile_extents, tiles_of_axis
from .kernels import IN_PANELS, transform_outputs

__all__ = ["KERNELS"]

# A block's own numbers, beside those of `winograd.inputs`: input channels of a pass; elements from image to image of transformed
# input; channels that are transformed together; places of tiles; elements from one element to the next of the products, from row to
# row of transformed input in the order of the products, and from tile to tile of it before.
CHUNK, IMAGE_STEP, SLAB, PLACES, M_STEP, ROWS_STEP, PITCH = (EXTRA + i for i in (2, 3, 6, 4, 8, 9, 10))


# The parts of a worker's scratch memory: packed and transformed input of some channels, all of it in the order of the products,
# products, results, packed weights, a spare tile, half-transformed weights.
SLABS, INPUTS, LAID_OUT, PRODUCTS, RESULTS, SMALL, SPARE, HALVED, AREAS = range(9)


@helper
def lay_out_inputs(rows, inputs, slabs, x, block, g, b, tools, at):
    """The transformed input of a block, [row][c][column][tile]; tiles that are not there are zero."""
    size, per_c, (count, _) = itemsize(at), g[PER_C], element_counts(g, b)
    planes, lines, _, tiles, _ = tile_extents(g, b, block)
    across = b[ROWS_STEP] // (g[PER_C] * b[PLACES])
    column = across * b[PLACES] * size
    if planes * lines * tiles < b[PLACES]:
        clear(inputs, count * b[V_STEP], at)
    for first in range(0, per_c, b[SLAB]):
        end = min(first + b[SLAB], per_c)
        invoke(tools[PIXELS], tools, inputs - first * size, slabs, x, b[IMAGE_STEP], first, end, block, g, b)
        for row in range(count // across):
            source, target = inputs + row * across * b[V_STEP] * size, rows + (row * b[ROWS_STEP] * size + first * column)
            invoke(
                tools[READ_SQUARES], source, b[PITCH] * size, across * b[PLACES], end - first, address(0), 0, target, column
            )  # fmt: skip


@helper
def ends_of(block, g, b):
    """Whether tiles lie two by two, and the lower ones, and the right ones, have no fourth row, or column, of outputs."""
    _, _, height, _, length = tile_extents(g, b, block)
    square = (tiles_of_axis(b, g[DIMS], 0) == 2) & (tiles_of_axis(b, g[DIMS], 1) == 2)
    return 1 if square & (height < 2 * b[ROWS]) else 0, 1 if square & (length < 2 * b[COLUMNS]) else 0


@helper
def multiply_rows(products, kernels, halved, rows, passed, resume, last, ends, g, b, tools, at):
    """The products of packed weights of so many channels with all tiles, added to those of the channels before.

    `halved`: for half-transformed weights, if products take these.
    """
    size = itemsize(at)
    width, per_tile = b[PANEL] * size, FUSED_TILES
    from_tap, row_step, column_step, n_rows, n_columns = phase_taps(0, width, g)
    source, each = kernels + from_tap, n_rows * n_columns * width
    if tools[HALVE] != 0:
        invoke(tools[HALVE], source, row_step, column_step, each, passed, halved, b[CHUNK] * HALVED_TAPS * width)
        source, row_step, column_step, each = halved, b[CHUNK] * HALVED_TAPS * width, width, HALVED_TAPS * width
    for tile in range(0, b[PLACES], per_tile):
        invoke(
            tools[FUSED], source, row_step, column_step, each, rows + tile * size, b[PLACES] * size, b[ROWS_STEP] * size, passed,
            products + tile * width, b[M_STEP] * size, resume, last, ends[0], ends[1],
        )  # fmt: skip


@helper
def _blocks(worker, queue, args):
    at, scratch, areas, tools, splits, form, x, w, bias, y, status, g, b = args
    per_c, per_k, size = g[PER_C], g[PER_K], itemsize(at)
    xs, ws, ys, width = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), b[PANEL] * itemsize(at)
    own = area_of(scratch, areas, AREAS, worker)
    rows, products, results, small = own + areas[LAID_OUT], own + areas[PRODUCTS], own + areas[RESULTS], own + areas[SMALL]
    _, _, _, n_rows, n_columns = phase_taps(0, width, g)
    taps, panels, where, column = n_rows * n_columns, -(-per_k // b[PANEL]), -1, b[ROWS_STEP] // per_c
    for item in taken_items(queue, worker):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        if item // splits != where:
            where = item // splits
            source = x + (block_image(b, g[DIMS], block) * g[xs] + group * g[xs + 1])
            lay_out_inputs(rows, own + areas[INPUTS], own + areas[SLABS], source, block, g, b, tools, at)
        for panel in range(panels * (item % splits) // splits, panels * (item % splits + 1) // splits):
            k = panel * b[PANEL]
            used, w_k = min(per_k - k, b[PANEL]), w + (group * g[ws] + k * g[ws + 1])
            if form == IN_PANELS:
                w_k = w + (group * panels + panel) * per_c * taps * width
            for first in range(0, per_c, b[CHUNK]):
                passed, kernels = min(b[CHUNK], per_c - first), w_k + first * taps * width
                if form != IN_PANELS:
                    kernels = small
                    invoke(tools[PACK_WEIGHTS], tools, small, w_k, used, first, passed, taps, width, g)
                resume, last = 1 if first > 0 else 0, 1 if first + passed == per_c else 0
                multiply_rows(
                    products, kernels, own + areas[HALVED], rows + first * column * size, passed, resume, last,
                    ends_of(block, g, b), g, b, tools, at,
                )  # fmt: skip
            steps = b[IMAGE_STEP] // b[PITCH], tiles_of_axis(b, g[DIMS], 1), 1
            transform_outputs(results, products, steps, own + areas[SPARE], block, 1, g, b, tools, at)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target = y + (group * g[ys + 1] + k * g[ys + 2])
            invoke(tools[WRITE], tools, results, width, used, shift, g[OPTION], target, status, block, g, b)


@kernel
def fused_winograd(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int, form: int,
    x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of tiles for some of the panels.

    w lies as the vector g says, or is IN_PANELS. `status` gets a 1 for each image of which a sum is not finite.
    """
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (
            at, scratch, pointer(areas, INT64), pointer(tools, INT64), splits, form, x, w, bias, y, status,
            pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


KERNELS = Unit(
    "winograd.fused",
    lambda acc, shape, lanes: [] if is_fused(shape) else [(each, ((*shape, lanes), acc)) for each in (halve, halved_product)],
    called=lambda acc, shape, lanes: [(fused_winograd, (acc,))],
)
