"""Microkernels: the innermost loops, emitted as LLVM vector code.

``emit``
    Vectors of the host's width: loads, stores, masks; which register tiles fit the host.
``memory``
    Vectors of another dtype in memory than in arithmetic.
``tiles``
    Register tiles with the lanes over pixels, inlined into the kernel that uses them.
``product``
    Register tiles with the lanes over channels, compiled alone and reached by address, so that one driver serves every shape.
``gemm``
    Register tiles over pixels that were gathered before, which write their results themselves.
``amx``, ``amx_gemm``, ``amx_product``
    AMX's matrix tiles, or their emulation, and what ``gemm`` and ``product`` do on them.
``sliding``, ``rolling``
    Register tiles over several rows of results of one channel: tile by tile, and down a strip.
``correlation``
    Register tiles over the taps of a weight gradient, the lanes over pixels.
``planes``, ``plane_gradients``
    Register tiles that sweep over planes where they lie, and those of their weight gradients.
``channelwise``, ``channel_gradients``
    Register tiles with the lanes over channels that are neighbours in memory, and those of their weight gradients.
``transpose``
    Square blocks transposed in registers, and results written through them.
``copies``
    Rows packed: zeros around them, phases apart.
``padding``
    Rows with the padding beside them.
``activation``
    Rows with bias and relu, silu or gelu.
``transforms``
    Winograd's transforms of input, weights and results, and their adjoints.
``fused_product``, ``halved_product``, ``rows``
    Products with kernels that are transformed on the way, and between transforms of rows.
``dots``, ``combinations``
    Inner products of rows, and sums of rows, that are read where they lie.
``conjugate``
    Products of spectra.
``windows``, ``reduction``, ``crosswise``, ``boxes``
    Rows of windows: the lanes over results, along the window, and over channels; averages by shuffles.
``row_access``, ``stacks``, ``totals``, ``moves``, ``lines``
    Rows as such: elements a stride apart, rows reduced with others, summed, moved; sums of a tile on their way to y.
``peak``
    Nothing but multiply-adds, and nothing but copies: what measurements are compared with.

Shapes travel in tags, never in a closure: a closure would miss the disk cache.
"""
