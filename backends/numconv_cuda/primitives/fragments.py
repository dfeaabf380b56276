"""What the kernels of `tensor_products` do with units of 16 bytes: copy them to shared memory, multiply them.

As in `elements` each function exists twice: for the compiler, and for the simulator, where its meaning is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from numconv_cuda.runtime.compiler import SIMULATED

if TYPE_CHECKING or SIMULATED:
    from .host_fragments import *
else:
    from .device_fragments import *
