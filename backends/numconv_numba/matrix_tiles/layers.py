"""Factors in layers for matrix tiles: bfloat16 numbers themselves, or float32 numbers as sums of two or three of them.

A layer is packed like any bfloat16 array, from what one part of each float32 is (see `halves.take_part`): so drivers pack as often
as there are layers, each time with that layer's table of tools.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.elements import INT64
from numconv_numba.entries import CONFIGURATION, CONFIGURE, COUNT, PACK, READ, RELEASE
from numconv_numba.halves import BFLOAT_PARTS
from numconv_numba.microkernels.amx import configuration, configure, release
from numconv_numba.rows import clear
from numconv_numba.scalar import address, load, pointer, wide_vectors
from numconv_numba.tools import tools_for

__all__ = ["configure_tiles", "keeps_layers", "layer_tables", "layer_tools", "pack_layers", "read_layers", "release_tiles"]

FLOAT, WORD = Tag("float32"), Tag("uint32")
_PARTS: Any = ("external_loop", "buffered", "zerosize_ok")
LEAST = 2.0**-50
"""Two numbers of at least this magnitude have products of layers above 2**-126, and errors of sums far below their product's."""


def layer_tables(dtype: str, layers: int, body: str, rows: int, entries: dict[int, int], **options: Any) -> np.ndarray[Any, Any]:
    """A table of tools for each layer of arrays of `dtype`, ``[layer][tool]``.

    Parameters
    ----------
    dtype : str
    layers : int
        1 for bfloat16.
    body : str
        Of kernels on matrix tiles: see `microkernels.amx`.
    rows : int
        Of the blocks of a product, for their `configuration`.
    entries : dict of int to int
        Addresses of the kernels that replace those of `tools_for`.
    **options
        Of `tools_for`.
    """
    names = BFLOAT_PARTS[:layers] if dtype == "float32" else (dtype,)
    tables = np.stack([tools_for(name, "float32", 16, **options) for name in names])
    tables[:, CONFIGURE] = configure.address(body, None)
    tables[:, RELEASE] = release.address(body, None)
    tables[:, CONFIGURATION] = _kept(rows)
    for place, found in entries.items():
        tables[:, place] = found
    return tables


@functools.cache
def _kept(rows: int) -> int:
    """The address of a configuration, which stays where it is."""
    return int(configuration(rows).ctypes.data)


@kernel
def least_bits(x: Address, count: int) -> int:
    """The bits of the smallest magnitude of so many float32 numbers but zero, less 1."""
    wide_vectors()
    least = np.uint32(0xFFFFFFFF)
    for i in range(count):
        least = min(least, np.uint32((load(x + 4 * i, WORD) & np.uint32(0x7FFFFFFF)) - np.uint32(1)))
    return int(least)


def keeps_layers(array: np.ndarray[Any, Any]) -> bool:
    """Whether no number of a float32 array loses a layer that counts to the tiles' flushing: all are 0 or `LEAST` or larger."""
    least: Any = least_bits.specialise()
    limit = int(np.float32(LEAST).view(np.uint32)) - 1
    parts: Any = np.nditer(array, _PARTS, order="K", buffersize=1 << 16)
    return all(least(part, part.size) >= limit for part in parts)


@helper
def configure_tiles(tools):
    """Set the sizes of this thread's matrix registers, if these tools use them."""
    if tools[CONFIGURE] != 0:
        invoke(tools[CONFIGURE], address(tools[CONFIGURATION]))


@helper
def release_tiles(tools):
    """Give them back."""
    if tools[RELEASE] != 0:
        invoke(tools[RELEASE], address(tools[CONFIGURATION]))


@helper
def layer_tools(tables, layer):
    """The address of a layer's table."""
    return tables + layer * (8 * COUNT)


@helper
def pack_layers(tables, layers, layer_step, slab, x, block, images, channels, g, b):
    """The slab of a block in each of its layers, which lie `layer_step` bytes apart: see `slab.pack_slab`."""
    for layer in range(layers):
        own = layer_tools(tables, layer)
        invoke(pointer(own, INT64)[PACK], own, slab + layer * layer_step, x, block, images, channels, g, b)


@helper
def read_layers(tables, layers, rows, target, width, columns, y, block, count, g, b):
    """`count` rows of factors of a panel in each of its layers, zeros after them up to `rows`: see `panels.read_panel`."""
    for layer in range(layers):
        own, place = layer_tools(tables, layer), target + layer * rows * width
        invoke(pointer(own, INT64)[READ], own, place, width, columns, y, block, g, b)
        clear(place + count * width, (rows - count) * width // 4, FLOAT)
