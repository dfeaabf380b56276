"""A `device.Device` of a host: kernels compiled by a C++ compiler, products and transforms as the libraries' documentation says.

For tests where there is no GPU: it reads and writes the memory of NumPy arrays at the addresses that a device would get.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.plugin import np_dtype

from .device import Launch, Product, Record, Transform
from .on_host import HostKernels
from .source import Kernel

__all__ = ["HostDevice"]


class HostDevice:
    """Addresses are those of NumPy arrays."""

    def __init__(self, kernels: HostKernels):
        self.kernels = kernels
        self.products: list[Product] = []

    def prepare(self, kernel: Kernel, threads: int, records: Sequence[Record]) -> Launch:
        """A loop over all threads."""
        if any(record.nbytes % 8 for record in records):
            raise ValueError("arguments in a row are numbers of 64 bits")
        run = self.kernels.prepare(kernel, threads)
        return lambda arguments: run(*records, *(np.int64(each) for each in arguments))

    def buffer(self, size: int) -> tuple[Any, int]:
        """Filled with NaN, so that nobody reads what was not written."""
        memory = np.full(-(-size // 8) + 32, np.nan)
        return memory, -(-memory.ctypes.data // 256) * 256

    def address(self, array: Any) -> int:
        """Of its first element."""
        found: int = array.ctypes.data
        return found

    def multiply(self, product: Product, a: int, b: int, c: int) -> None:
        """In double precision where factors are single: sums of cuBLAS have no order that a result may depend on."""
        left = _matrices(a, product.dtype, product.batch, product.rows, product.inner, *product.a)
        right = _matrices(b, product.dtype, product.batch, product.inner, product.columns, *product.b)
        out = _matrices(c, product.out_dtype, product.batch, product.rows, product.columns, False, *product.c)
        with np.errstate(all="ignore"):
            out[...] = np.matmul(left.astype(np.float64), right.astype(np.float64)).astype(out.dtype)
        self.products.append(product)

    def transform(self, transform: Transform, values: int, results: int) -> None:
        """Unscaled, and what is read is overwritten, as cuFFT may."""
        lengths = transform.lengths
        half = (transform.batch, *lengths[:-1], lengths[-1] // 2 + 1)
        spectrum = np.dtype("complex64" if transform.dtype == "float32" else "complex128")
        axes = tuple(range(1, len(half)))
        whole = (transform.batch, *lengths)
        with np.errstate(all="ignore"):  # cuFFT never warns
            if transform.inverse:
                source = _array(values, spectrum, half)
                _array(results, np.dtype(transform.dtype), whole)[...] = np.fft.irfftn(source, s=lengths, axes=axes, norm="forward")
            else:
                source = _array(values, np.dtype(transform.dtype), whole)
                _array(results, spectrum, half)[...] = np.fft.rfftn(source, axes=axes)
        source[...] = np.nan


def _array(address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.ndarray(shape, dtype, memoryview((ctypes.c_char * size).from_address(address)))


def _matrices(
    address: int, name: str, batch: int, rows: int, columns: int, turned: bool, leading: int, step: int
) -> np.ndarray[Any, Any]:
    dtype = np_dtype(name)
    if leading < (rows if turned else columns):
        raise ValueError(f"a leading dimension of {leading} for a matrix of {rows} by {columns}")
    stored = (columns, rows) if turned else (rows, columns)
    size = step * (batch - 1) + leading * (stored[0] - 1) + stored[1]
    flat = _array(address, dtype, (size,))
    strides = tuple(each * dtype.itemsize for each in (step, leading, 1))
    view = np.lib.stride_tricks.as_strided(flat, (batch, *stored), strides)
    return view.swapaxes(1, 2) if turned else view
