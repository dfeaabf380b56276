"""What kernels do with strips (`numconv_cuda.strips`): load, add up, write.

Each function exists twice, as those of `numconv_cuda.elements` do: in `numconv_cuda.device_strips` for the compiler, and in
`numconv_cuda.host_strips` for the simulator, where one reads what it means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .compiler import SIMULATED

if TYPE_CHECKING or SIMULATED:
    from .host_strips import *
else:
    from .device_strips import *
