"""What the executors of this backend share: addresses of arrays, and the call of a kernel."""

from __future__ import annotations

from typing import Any

__all__ = ["data"]


def data(array: Any) -> int:
    """The address of an array's first element."""
    address: int = array.ctypes.data
    return address
