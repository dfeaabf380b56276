"""Strided input gradients, so transposed convolutions: all phases of the stride together.

``subpixel``
    Any stride: register tiles leave their results a stride apart, so that the phases interleave in scratch memory. ``phases``
    lists the taps of each.
``interleaved``
    By Winograd's tiles: what a block reads is transformed once for all phases, and their results are transformed back side by
    side. ``aligned`` says which place each phase reads; ``interleaved_kernels`` are its drivers.
``woven``
    Depthwise: the phases of a row are woven together in registers.
``patchwise``
    Windows that cover x without overlap: one product, whose results are woven together in registers.
``col2im``
    Long kernels and few input channels: one product, whose columns are added up.

The first two share ``writing``: lines of results of all phases on their way to x.
"""
