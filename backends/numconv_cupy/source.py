"""The CUDA C++ sources and what a host must know to launch them: macros, and the geometry that is passed by value."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, PoolProblem, Problem, WindowProblem

__all__ = ["MAX_NDIM", "NULL", "Kernel", "Strides", "geometry", "kernel", "source_of", "strides_of"]

MAX_NDIM = 8
"""Spatial dimensions that a geometry may have: its arrays are kernel parameters, of which there may be 4 KiB."""

NULL = np.uint64(0)
"""The null pointer as a kernel's argument."""

NO_TILE: Mapping[str, int] = MappingProxyType({})

_FOLDER = pathlib.Path(__file__).parent / "kernels"
_FILES = {
    "conv_forward": "convolution.cu", "conv_input_grad": "convolution.cu", "conv_weight_grad": "convolution.cu",
    "channel_sums": "convolution.cu", "store_sums": "convolution.cu",
    "conv_tiled": "tiled.cu", "sum_parts": "tiled.cu", "conv_planes": "planes.cu",
    "conv_taps": "taps.cu", "channel_totals": "taps.cu",
    "conv_winograd_input": "winograd.cu", "conv_winograd_gradient": "winograd.cu", "conv_winograd_weights": "winograd.cu",
    "conv_winograd_output": "winograd.cu", "conv_winograd_taps": "winograd.cu", "conv_winograd_sums": "winograd.cu",
    "max_pool": "pooling.cu", "add_at_winners": "pooling.cu", "avg_pool": "pooling.cu", "avg_pool_backward": "pooling.cu",
    "lp_pool": "pooling.cu", "lp_pool_backward": "pooling.cu",
    "gather_columns": "im2col.cu", "add_columns": "im2col.cu", "finish_products": "im2col.cu", "sum_gradients": "im2col.cu",
    "repair_border": "im2col.cu",
    "fill_weights_and_sources": "spectra.cu", "fill_gradient_and_sources": "spectra.cu", "multiply_spectra": "spectra.cu",
    "sum_positions": "bias.cu", "store_bias": "bias.cu", "store_blocks": "spectra.cu", "store_gradient": "spectra.cu",
    "gather": "windows.cu", "add_back": "windows.cu", "owners": "windows.cu", "place": "windows.cu", "pick": "windows.cu",
}  # fmt: skip
_INCLUDED = {
    "convolution.cu": ("epilogue.cuh",),
    "tiled.cu": ("epilogue.cuh", "axes.cuh", "sharing.cuh"),
    "taps.cu": ("axes.cuh", "sharing.cuh"),
    "planes.cu": ("epilogue.cuh", "axes.cuh", "sharing.cuh"),
    "im2col.cu": ("epilogue.cuh", "division.cuh"),
    "spectra.cu": ("epilogue.cuh", "division.cuh"),
    "bias.cu": ("division.cuh",),
    "winograd.cu": ("epilogue.cuh",),
}
_TYPES = {
    "float16": "Half", "bfloat16": "BFloat", "float32": "float", "float64": "double",
    "complex64": "Complex<float>", "complex128": "Complex<double>",
    "int8": "signed char", "int16": "short", "int32": "int", "int64": "long long",
    "uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int", "uint64": "unsigned long long",
}  # fmt: skip
_PAD_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
_ACTIVATIONS = (None, "relu", "silu", "gelu")
_SCALARS = ("n", "c", "k", "groups", "pad_mode", "flip", "activation", "parts", "channels_fastest", "bias_step", "count_padding")
_AXES = ("spatial", "window", "output", "stride", "low", "high", "dilation", "first", "count")
_ARRAYS = ("a", "b", "y")

Strides = tuple[int, ...]
"""Steps in elements: batch, channel, spatial axes."""


class Kernel(NamedTuple):
    """A kernel and the macros with which it is compiled: hashable, the key of every cache of compiled code."""

    name: str
    macros: tuple[tuple[str, str], ...]

    @property
    def options(self) -> tuple[str, ...]:
        """The macros as a compiler's options."""
        return tuple(f"-D{key}={value}" for key, value in self.macros)


def kernel(name: str, problem: Problem, tile: Mapping[str, int] = NO_TILE, *, outputs: str = "") -> Kernel:
    """The kernel `name` for the dtypes and the number of dimensions of a problem.

    Parameters
    ----------
    name : str
    problem : ConvProblem, PoolProblem or WindowProblem
    tile : mapping
        Numbers for which the kernel is compiled, by their macros: tiles, variants.
    outputs : str
        The dtype of the outputs, if it is not that of the problem.
    """
    return _kernel(name, problem.ndim, problem.dtype, problem.acc_dtype, outputs or problem.out_dtype, tuple(tile.items()))


@functools.lru_cache(maxsize=4096)
def _kernel(name: str, ndim: int, dtype: str, acc_dtype: str, out_dtype: str, tile: tuple[tuple[str, int], ...]) -> Kernel:
    macros = {
        "NDIM": str(ndim),
        "IN": _TYPES[dtype],
        "ACC": _TYPES[acc_dtype],
        "OUT": _TYPES[out_dtype],
        "GEOMETRY_BYTES": str(_layout(ndim).itemsize),
        _guard(name): "1",
    }
    macros |= {key: str(value) for key, value in tile}
    return Kernel(name, tuple(macros.items()))


def _guard(name: str) -> str:
    return "CONV_WEIGHT_GRAD" if name == "channel_sums" else name.upper()


@functools.cache
def source_of(name: str) -> str:
    """The source that holds a kernel, with what it includes."""
    files = ("common.cuh", *_INCLUDED.get(_FILES[name], ()), _FILES[name])
    return "\n".join((_FOLDER / file).read_text(encoding="utf-8") for file in files)


@functools.cache
def _layout(ndim: int) -> np.dtype[Any]:
    fields: list[tuple[Any, ...]] = [(name, np.int64) for name in _SCALARS]
    fields.append(("p", np.float64))
    fields += [(name, np.int64, (ndim,)) for name in _AXES]
    fields += [(name, np.int64, (ndim + 2,)) for name in _ARRAYS]
    return np.dtype(fields)


def strides_of(array: Any) -> Strides:
    """The steps of an array in elements."""
    itemsize = array.dtype.itemsize
    return tuple(step // itemsize for step in array.strides)


def geometry(problem: Problem, a: Strides = (), b: Strides = (), y: Strides = (), **fields: Any) -> np.ndarray[Any, Any]:
    """A problem as a kernel takes it: an array of one record, which a launch passes by value.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    a, b, y : tuple of int
        The strides of the kernel's arrays, see its source.
    **fields
        Fields that differ from the problem's: parts, channels_fastest, bias_step, first, count, n, c.
    """
    return _record(problem, a, b, y, tuple(fields.items()))


@functools.lru_cache(maxsize=4096)
def _record(problem: Any, a: Strides, b: Strides, y: Strides, fields: tuple[tuple[str, Any], ...]) -> np.ndarray[Any, Any]:
    values = _problem_fields(problem) | dict(fields)
    record = np.zeros(1, _layout(len(values["spatial"])))
    for name, value in values.items():
        record[name] = value
    for name, strides in (("a", a), ("b", b), ("y", y)):
        record[name][0, : len(strides)] = strides
    record.flags.writeable = False  # all launches for these strides share it
    return record


def _problem_fields(problem: ConvProblem | PoolProblem | WindowProblem) -> dict[str, Any]:
    ndim = len(problem.spatial)
    window = problem.kernel if isinstance(problem, ConvProblem) else problem.window
    lows, highs = zip(*problem.padding, strict=True)
    return {
        "n": problem.n, "c": problem.c, "k": getattr(problem, "k", problem.c), "groups": getattr(problem, "groups", 1),
        "pad_mode": _PAD_MODES.index(getattr(problem, "pad_mode", "zeros")),
        "flip": getattr(problem, "flip", False), "activation": _ACTIVATIONS.index(getattr(problem, "activation", None)),
        "parts": 1, "bias_step": 1, "count_padding": getattr(problem, "count_include_pad", True), "p": getattr(problem, "p", 0.0),
        "spatial": problem.spatial, "window": window, "output": problem.output,
        "stride": problem.stride, "low": lows, "high": highs, "dilation": problem.dilation,
        "first": (0,) * ndim, "count": problem.output,
    }  # fmt: skip
