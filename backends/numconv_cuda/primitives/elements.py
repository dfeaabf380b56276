"""What kernels do with elements: read, widen, multiply and add, round, write.

Each function exists twice. `device_elements` gives the compiler the instructions; `host_elements` is what
the simulator runs, and the place to read what each of them means. Types select, never values: `like` is a number of the dtype in
which a kernel computes, the accumulation dtype of its problem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from numconv_cuda.runtime.compiler import SIMULATED

if TYPE_CHECKING or SIMULATED:
    from .host_elements import *
else:
    from .device_elements import *
