"""numconv in JAX, on the CPU: its functions on jax arrays, under jit, grad, vmap and forward differentiation, to any order.

The functions have the options of those of `numconv`, but for `dtype` (convert with `astype`, which is differentiated) and `out`.
Outside of `jax.jit` nothing large is copied; inside, XLA calls back, which copies the result. The settings of `numconv.using` are
those in force when a function is traced. See ``docs/frameworks.md``.
"""

from __future__ import annotations

from numconv.errors import MissingPackageError

try:
    import jax as _jax  # noqa: F401 - whether it is there
except ImportError as error:
    raise MissingPackageError(
        f'numconv.jax needs jax, which cannot be imported ({error}): pip install "numconv-nd[jax]"'
    ) from error

from .functions import avg_pool, conv, conv_transpose, fold, lp_pool, max_pool, max_unpool, pad, unfold

__all__ = ["avg_pool", "conv", "conv_transpose", "fold", "lp_pool", "max_pool", "max_unpool", "pad", "unfold"]
