"""Strided input gradients, so transposed convolutions: all phases of the stride together."""
