"""Winograd's algorithm: fewer multiplications for short kernels."""
