"""What a model costs: a table of its layers."""

from __future__ import annotations

import math

import numpy as np

from numconv.plugin import np_dtype

from .layer import Layer, Shape

__all__ = ["summarise"]


def summarise(model: Layer, shape: Shape, dtype: str) -> str:
    """A table: each layer's output shape, parameters and FLOPs, and the bytes that training takes."""
    rng = np.random.default_rng(0)
    rows, values = [], math.prod(shape)
    total = flops = 0
    for prefix, layer, x_shape in model.leaves(shape):
        y_shape = layer.output_shape(x_shape)
        count = sum(array.size for array in layer.initial(x_shape, rng).values())
        rows.append((prefix.rstrip(".") or "-", repr(layer), str(list(y_shape)), f"{count:,}", f"{layer.flops(x_shape):,}"))
        total += count
        flops += layer.flops(x_shape)
        values += math.prod(y_shape)
    size = np_dtype(dtype).itemsize
    heads = ("", "layer", "output [C, *S]", "parameters", "FLOPs")
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(5)]
    aligned = "<<<>>"
    lines = [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, aligned, widths, strict=True)).rstrip() for row in [heads, *rows]
    ]
    lines.append(f"input {list(shape)}; {total:,} parameters; {flops:,} FLOPs a sample, forward")
    lines.append(
        f"training: {2 * total * size:,} bytes for parameters and gradients, {2 * values * size:,} bytes a sample for activations "
        "and gradients"
    )
    return "\n".join(lines)
