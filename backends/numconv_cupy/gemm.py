"""Batched matrix products: on CuPy by cuBLAS with an explicit compute type, elsewhere by the namespace's ``matmul``.

CuPy's own ``matmul`` takes its compute type from the process (CUPY_TF32, set_compute_type): here the accuracy level of the problem
decides, in every thread on its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .namespaces import namespace

__all__ = ["batched_matmul"]


def batched_matmul(a: Any, b: Any, *, fast: bool = False) -> Any:
    """The products of a batch of matrices, ``[B, I, J] @ [B, J, L] -> [B, I, L]``; a batch of 1 is used for all.

    Parameters
    ----------
    a, b : arrays of one dtype, real or complex floats
        Of any strides: a transposed view costs no copy.
    fast : bool
        Whether factors of single precision may be rounded to TF32.

    Returns
    -------
    array
        Of the dtype of a and b.
    """
    xp = namespace(a)
    if xp.__name__ == "cupy":
        from cupy.cuda import device
        from cupy_backends.cuda.libs import cublas

        return _strided_batched(xp, cublas, device.get_cublas_handle(), a, b, fast)
    return xp.matmul(a, b)


class _Operand(NamedTuple):
    """A batch of row-major matrices as cuBLAS takes it, which knows column-major ones: transposed where the view is."""

    array: Any
    transposed: bool
    leading: int
    step: int


def _operand(xp: Any, array: Any, batch: int) -> _Operand:
    itemsize = array.dtype.itemsize
    matrices, rows, columns = array.shape
    step, row, column = (s // itemsize for s in array.strides)
    if (column == 1 or columns == 1) and row >= max(1, columns):
        transposed, leading = False, row
    elif (row == 1 or rows == 1) and column >= max(1, rows):
        transposed, leading = True, column
    else:
        array = xp.ascontiguousarray(array)
        transposed, leading, step = False, max(1, columns), rows * columns
    return _Operand(array, transposed, leading, 0 if matrices == 1 < batch else step)


def _strided_batched(xp: Any, cublas: Any, handle: int, a: Any, b: Any, fast: bool) -> Any:
    """Row-major ``C = A B`` is column-major ``C' = B' A'``."""
    batch = max(a.shape[0], b.shape[0])
    rows, inner, columns = a.shape[1], a.shape[2], b.shape[2]
    out = xp.empty((batch, rows, columns), a.dtype)
    if not out.size:
        return out
    if not inner:
        out[...] = 0
        return out
    left, right = _operand(xp, b, batch), _operand(xp, a, batch)
    one, zero = np.ones(1, a.dtype), np.zeros(1, a.dtype)
    kind, compute = _types(cublas, a.dtype.name, fast)
    mode = cublas.getPointerMode(handle)
    cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_HOST)
    try:
        cublas.gemmStridedBatchedEx(
            handle, int(left.transposed), int(right.transposed), columns, rows, inner, one.ctypes.data,
            left.array.data.ptr, kind, left.leading, left.step, right.array.data.ptr, kind, right.leading, right.step,
            zero.ctypes.data, out.data.ptr, kind, columns, rows * columns, batch, compute, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
    finally:
        cublas.setPointerMode(handle, mode)
    return out


# cudaDataType (library_types.h): CUDA_R_32F, CUDA_R_64F, CUDA_C_32F, CUDA_C_64F.
_KINDS = {"float32": 0, "float64": 1, "complex64": 4, "complex128": 5}


def _types(cublas: Any, dtype: str, fast: bool) -> tuple[int, int]:
    """cuBLAS's names of the element type, and of the type in which it multiplies."""
    if dtype in ("float64", "complex128"):
        return _KINDS[dtype], cublas.CUBLAS_COMPUTE_64F
    return _KINDS[dtype], cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if fast else cublas.CUBLAS_COMPUTE_32F
