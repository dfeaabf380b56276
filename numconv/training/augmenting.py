"""More examples from the same: every one is moved a little, differently each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numconv.errors import ProblemError
from numconv.nn.devices import namespace

__all__ = ["Shift"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shift:
    """Move each sample of a batch by a random whole number of positions along every axis.

    Parameters
    ----------
    fraction : float
        How far at most, as a part of the axis; 0 moves nothing.
    mode : str
        What comes in at the border, as `numpy.pad` calls it: "edge" repeats it, "constant" is silence.

    Raises
    ------
    ProblemError
        If the fraction is not between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv.training import Shift
    >>> x = np.arange(1, 9).reshape(1, 1, 8)
    >>> Shift(0.25, "constant")(x, np.random.default_rng(5))
    array([[[2, 3, 4, 5, 6, 7, 8, 0]]])
    """

    fraction: float
    mode: str = "edge"

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ProblemError(f"shift={self.fraction}: it is a part of each axis, from 0 (none) to below 1")

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        """The moved samples, of the shape ``[N, C, *S]`` of x."""
        room = [int(size * self.fraction) for size in x.shape[2:]]
        if not any(room):
            return x
        xp = namespace(x)
        padded = xp.pad(x, [(0, 0), (0, 0), *((most, most) for most in room)], mode=self.mode)
        starts = rng.integers(0, 2 * np.array(room) + 1, size=(x.shape[0], len(room)))
        moved: Array = xp.empty_like(x)
        for n, start in enumerate(starts.tolist()):
            moved[n] = padded[(n, slice(None), *(slice(at, at + size) for at, size in zip(start, x.shape[2:], strict=True)))]
        return moved
