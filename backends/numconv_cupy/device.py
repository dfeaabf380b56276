"""What prepared executors ask of a device: memory, launches, products of cuBLAS and transforms of cuFFT, by addresses.

CuPy's operations on arrays cost 15 to 50 us each before anything runs. So an executor prepares everything that follows from shapes
and strides, and a call only adds addresses: one allocation, then launches and calls of the libraries with CuPy's handles.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from numconv.plugin import DeviceArray, cupy_view

from .launching import THREADS, _compiled
from .source import Kernel

__all__ = ["CupyDevice", "Device", "Product", "Transform"]

Launch = Callable[[Sequence[int]], None]
"""Runs a prepared kernel with the arguments behind its records: addresses and numbers."""
Record = np.ndarray[Any, Any]
"""An array of one record, which a launch passes by value."""


class Product(NamedTuple):
    """A batch of products of row-major matrices, ``C [rows, columns] = A [rows, inner] B [inner, columns]``.

    Leading dimensions and steps from one matrix of the batch to the next are in elements.
    """

    rows: int
    inner: int
    columns: int
    a: tuple[bool, int, int]
    """Whether A is stored transposed, the distance of its stored rows, and its step."""
    b: tuple[bool, int, int]
    c: tuple[int, int]
    batch: int
    dtype: str
    """Of the factors."""
    out_dtype: str
    tf32: bool = False


class Transform(NamedTuple):
    """A batch of transforms over all axes, of contiguous arrays: real values to half spectra, or back without any scaling."""

    lengths: tuple[int, ...]
    batch: int
    dtype: str
    """Of the values, float32 or float64."""
    inverse: bool


class Device(Protocol):
    """What runs prepared steps: CuPy, or in tests a host."""

    def prepare(self, kernel: Kernel, threads: int, records: Sequence[Record]) -> Launch:
        """A kernel for so many threads, whose arguments begin with records; all are numbers of 64 bits in a row."""

    def buffer(self, size: int) -> tuple[Any, int]:
        """What keeps so many bytes of working memory alive, and their address."""

    def address(self, array: Any) -> int:
        """The address of the first element of an array, ready on the caller's stream."""

    def multiply(self, product: Product, a: int, b: int, c: int) -> None:
        """Products of matrices at addresses."""

    def transform(self, transform: Transform, values: int, results: int) -> None:
        """Transforms from one address to another; they may overwrite what they read."""


_BUFFER, _SIZE, _END = 1, 2, 0
"""CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END: arguments in a row."""


class CupyDevice:
    """The current device of CuPy and its current stream; nothing here waits for them."""

    def prepare(self, kernel: Kernel, threads: int, records: Sequence[Record]) -> Launch:
        """Compiled by NVRTC at its first launch, kept in CuPy's cache on disk, and launched by the driver's own function."""
        import cupy

        driver, stream, here = cupy.cuda.driver, cupy.cuda.get_current_stream, cupy.cuda.runtime.getDevice
        compiled = _compiled(kernel)
        functions: dict[int, int] = {}  # of each device
        blocks = -(-threads // THREADS)
        before = array("q", b"".join(record.tobytes() for record in records))

        def launch(arguments: Sequence[int]) -> None:
            device = here()
            function = functions.get(device)
            if function is None:
                function = functions[device] = compiled.kernel.ptr
            values = array("q", before)
            values.extend(arguments)
            size = array("Q", (8 * len(values),))
            packed = array("Q", (_BUFFER, values.buffer_info()[0], _SIZE, size.buffer_info()[0], _END))
            driver.launchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, stream().ptr, 0, packed.buffer_info()[0])

        return launch

    def buffer(self, size: int) -> tuple[Any, int]:
        """From CuPy's memory pool, or the caller's allocator there."""
        import cupy

        memory = cupy.cuda.alloc(size)
        return memory, memory.ptr

    def address(self, array: Any) -> int:
        """Of an array of CuPy or another library, for whose stream CuPy's waits."""
        if isinstance(array, DeviceArray) and array.stream is None:
            return array.pointer
        found: int = cupy_view(array).data.ptr
        return found

    def multiply(self, product: Product, a: int, b: int, c: int) -> None:
        """By cuBLAS, whose matrices are column-major: ``C' = B' A'``."""
        cublas, get_handle = _cublas()
        one, zero, kind, out_kind, compute, fast_mode = _prepared(product)
        handle = get_handle()
        pointers, math_mode = cublas.getPointerMode(handle), cublas.getMathMode(handle)
        (a_turned, a_leading, a_step), (b_turned, b_leading, b_step) = product.a, product.b
        cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_HOST)
        cublas.setMathMode(handle, fast_mode)
        try:
            cublas.gemmStridedBatchedEx(
                handle, int(b_turned), int(a_turned), product.columns, product.rows, product.inner, one,
                b, kind, b_leading, b_step, a, kind, a_leading, a_step,
                zero, c, out_kind, product.c[0], product.c[1], product.batch, compute, cublas.CUBLAS_GEMM_DEFAULT,
            )  # fmt: skip
        finally:
            cublas.setPointerMode(handle, pointers)
            cublas.setMathMode(handle, math_mode)

    def transform(self, transform: Transform, values: int, results: int) -> None:
        """By cuFFT, with a plan from CuPy's cache, which is one a thread and device; one a stream too, for its work area."""
        from cupy.cuda import stream

        plan = _plan(transform, stream.get_current_stream().ptr)
        plan.fft(_At(_Pointer(values)), _At(_Pointer(results)), 0)


class _Pointer(NamedTuple):
    ptr: int


class _At(NamedTuple):
    """What cuFFT's plans in CuPy read of an array."""

    data: _Pointer


@functools.cache
def _cublas() -> tuple[Any, Callable[[], int]]:
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    return cublas, device.get_cublas_handle


# cudaDataType (library_types.h): CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF.
_KINDS = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_NO_NARROW_SUMS = 16
"""CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: partial sums of halves stay float32."""
_SCALARS = {name: (np.ones(1, name), np.zeros(1, name)) for name in ("float32", "float64")}


@functools.lru_cache(maxsize=1024)
def _prepared(product: Product) -> tuple[int, int, int, int, int, int]:
    """The addresses of one and zero, cuBLAS's names of the element types, and in which it multiplies, and its math mode."""
    cublas, _ = _cublas()
    wide = product.dtype == "float64"
    one, zero = _SCALARS["float64" if wide else "float32"]
    single = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if product.tf32 else cublas.CUBLAS_COMPUTE_32F
    compute = cublas.CUBLAS_COMPUTE_64F if wide else single
    kinds = _KINDS[product.dtype], _KINDS[product.out_dtype]
    return one.ctypes.data, zero.ctypes.data, *kinds, compute, _NO_NARROW_SUMS if product.dtype in ("float16", "bfloat16") else 0


def _plan(transform: Transform, stream: int) -> Any:
    import cupy
    from cupy.cuda import cufft

    cache = cupy.fft.config.get_plan_cache()
    key = ("numconv", *transform, stream)
    plan = cache.get(key)
    if plan is None:
        kinds = {
            ("float32", False): cufft.CUFFT_R2C, ("float32", True): cufft.CUFFT_C2R,
            ("float64", False): cufft.CUFFT_D2Z, ("float64", True): cufft.CUFFT_Z2D,
        }  # fmt: skip
        last = len(transform.lengths) - 1
        half = (*transform.lengths[:-1], transform.lengths[-1] // 2 + 1)
        reads, writes = (half, transform.lengths) if transform.inverse else (transform.lengths, half)
        plan = cufft.PlanNd(transform.lengths, reads, 1, int(np.prod(reads)), writes, 1, int(np.prod(writes)),
                            kinds[transform.dtype, transform.inverse], transform.batch, "C", last, writes[-1])  # fmt: skip
        cache[key] = plan
    return plan
