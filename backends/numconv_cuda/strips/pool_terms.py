"""What kernels of pooling do with strips; each function exists twice, as those of `strip_terms`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numconv_cuda.runtime.compiler import SIMULATED

if TYPE_CHECKING or SIMULATED:
    from .host_pools import *
else:
    from .device_pools import *
