"""Winograd's algorithm: fewer multiplications for short kernels.

``forward`` and ``weights`` are the implementations for many tiles, ``fused`` that for few, whose kernels are transformed on the
way to their products, ``rows`` that for few channels, along the columns alone, and ``dilated`` that for kernels with a dilation.
``tiles`` says which tiles there are for a problem, ``turned`` along which dimensions they lie, ``layout`` how a forward convolution
is cut and what it costs, ``kernels`` and ``fused_kernels`` are the drivers, and ``inputs`` is the transform of x, which they share
with weight gradients. The transforms themselves are in `microkernels.transforms`.
"""
