"""Executors whose kernels read weights in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["ContiguousExecutor"]


class ContiguousExecutor:
    """A convolution with contiguous weights: those of a call, or an own copy of them."""

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        self._run(outs, ins, self._ready(ins[1]))

    def bind(self, w: Any) -> Callable[[Any, Any], None]:
        """The executor with its own copy of w."""
        own = np.array(w, order="C")
        ready = self._ready(own)
        return lambda outs, ins: self._run(outs, (ins[0], own, *ins[1:]), ready)

    def _ready(self, w: Any) -> Any:
        return np.ascontiguousarray(w)

    def _run(self, outs: Any, ins: Any, w: Any) -> None:
        """Compute with contiguous weights; `ins` has those of the call."""
        raise NotImplementedError
