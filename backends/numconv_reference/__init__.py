"""The reference backend of numconv: plain NumPy, slow, and written to be obviously right.

It supports every problem, so every other backend is tested against it, and it is what remains when nothing faster is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from numconv.plugin import Implementation, Verdict, __version__

__all__ = ["ReferenceBackend", "backend"]


@functools.cache
def _implementations() -> tuple[Implementation, ...]:
    from .conv import Direct
    from .pooling import Pool
    from .windows import Windows

    return (Direct(), Pool(), Windows())


class ReferenceBackend:
    """The plugin: needs nothing but NumPy."""

    name = "reference"
    device = "cpu"
    automatic = True
    version = __version__

    def availability(self) -> Verdict:
        """Yes, always."""
        return Verdict.yes()

    def implementations(self) -> Sequence[Implementation]:
        """One for convolution, one for pooling, one for operations that move values."""
        return _implementations()


backend = ReferenceBackend()
