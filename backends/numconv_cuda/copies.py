"""What kernels that multiply matrices do with shared memory and with tiles of results, beside what `numconv_cuda.elements` has.

Each function exists twice in the same way: see `numconv_cuda.device_copies` and `numconv_cuda.host_copies`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .compiler import SIMULATED

if TYPE_CHECKING or SIMULATED:
    from .host_copies import *
else:
    from .device_copies import *
