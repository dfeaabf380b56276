"""Winograd's algorithm: fewer multiplications for short kernels.

``forward`` and ``weights`` are the implementations. ``tiles`` says which tiles there are for a problem, ``layout`` how a forward
convolution is cut and what it costs, ``kernels`` are its drivers, and ``inputs`` is the transform of x, which both share. The
transforms themselves are in `microkernels.transforms`.
"""
