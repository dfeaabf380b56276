"""What kernels do with strips (`strips`): load, add up, write.

Each function exists twice, as those of `elements` do: in `device_strips` for the compiler, and in
`host_strips` for the simulator, where one reads what it means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from numconv_cuda.runtime.compiler import SIMULATED

if TYPE_CHECKING or SIMULATED:
    from .host_strips import *
else:
    from .device_strips import *
