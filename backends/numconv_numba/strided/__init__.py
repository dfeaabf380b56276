"""Strided input gradients, so transposed convolutions: all phases of the stride together.

``subpixel``
    Any stride: register tiles leave their results a stride apart, so that the phases interleave in scratch memory. ``phases``
    lists the taps of each.
``interleaved``
    The phases are output channels of one Winograd convolution, whose results are woven together.
``woven``
    Depthwise: the phases of a row are woven together in registers.
``col2im``
    Long kernels and few input channels: one product, whose columns are added up.
"""
