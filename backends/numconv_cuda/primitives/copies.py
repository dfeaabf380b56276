"""What kernels that multiply matrices do with shared memory and with tiles of results, beside what `elements` has.

Each function exists twice in the same way: see `device_copies` and `host_copies`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from numconv_cuda.runtime.compiler import SIMULATED

if TYPE_CHECKING or SIMULATED:
    from .host_copies import *
else:
    from .device_copies import *
