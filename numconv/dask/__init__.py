"""numconv on Dask arrays: convolutions, pooling and their gradients, chunk by chunk, for what is larger than memory.

Everything is lazy. Chunks along the batch, the groups and space stay where they are, but that borders move to where a window
begins; each is read with the few elements of the next one that its windows reach (`dask.array.overlap`). Channels that a sum runs
over come into one chunk, and chunks along space become smaller for it, so that every sum is that of one call of numconv: at
``accuracy="strict"`` the result has its bits.

The settings of `numconv.using` are those in force when an array is made, in whatever thread it is computed later. See
``docs/frameworks.md``.
"""

from __future__ import annotations

from numconv.errors import MissingPackageError

try:
    import dask.array as _array  # noqa: F401 - whether it is there
except ImportError as error:
    raise MissingPackageError(
        f'numconv.dask needs dask, which cannot be imported ({error}): pip install "numconv-nd[dask]"'
    ) from error

from .functions import conv, conv_backward, conv_input_grad, conv_transpose, conv_transpose_backward, conv_weight_grad
from .pooling import (
    avg_pool,
    avg_pool_backward,
    lp_pool,
    lp_pool_backward,
    max_pool,
    max_pool_backward,
    max_unpool,
    max_unpool_backward,
)

__all__ = [
    "avg_pool", "avg_pool_backward", "conv", "conv_backward", "conv_input_grad", "conv_transpose", "conv_transpose_backward",
    "conv_weight_grad", "lp_pool", "lp_pool_backward", "max_pool", "max_pool_backward", "max_unpool", "max_unpool_backward",
]  # fmt: skip
