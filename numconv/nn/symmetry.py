"""Groups of rotations and reflections that map a grid to itself, as plain data: how they permute kernels and themselves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import ProblemError

__all__ = ["GROUPS", "Group", "symmetry_group"]

Array = np.ndarray[Any, Any]
Matrix = tuple[tuple[int, ...], ...]

_TURN_01: Matrix = ((0, -1, 0), (1, 0, 0), (0, 0, 1))
_TURN_12: Matrix = ((1, 0, 0), (0, 0, -1), (0, 1, 0))

GROUPS: dict[str, tuple[Matrix, ...]] = {
    "mirror": (((-1,),),),
    "p4": (((0, -1), (1, 0)),),
    "p4m": (((0, -1), (1, 0)), ((1, 0), (0, -1))),
    "cube": (_TURN_12, _TURN_01),
    "cube_m": (_TURN_12, _TURN_01, ((-1, 0, 0), (0, -1, 0), (0, 0, -1))),
}
"""What generates each group: a line reversed (2 elements), quarter turns of the plane (4), these and reflections (8), rotations
of a cube (24), these and reflections (48)."""


class Group(NamedTuple):
    """A finite group of matrices whose entries are 0, 1 and -1, and which so map a grid to itself.

    Attributes
    ----------
    name : str
    elements : tuple of matrix
        The identity first. An element g moves what is at p, seen from the centre, to g p.
    """

    name: str
    elements: tuple[Matrix, ...]

    @property
    def ndim(self) -> int:
        """The number of spatial dimensions."""
        return len(self.elements[0])

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.elements)

    def products(self) -> Array:
        """``[order, order]``: the position of ``g h`` among the elements, for g and h in their order."""
        place = {element: i for i, element in enumerate(self.elements)}
        return np.array([[place[_product(g, h)] for h in self.elements] for g in self.elements])

    def quotients(self) -> Array:
        """``[order, order]``: the position of ``g^-1 h``."""
        products = self.products()
        inverses = np.argmin(products, axis=1)  # the identity has position 0
        return np.asarray(products[inverses])

    def channels(self, element: int, count: int) -> Array:
        """How an element permutes the channels of a layer's output: channel ``k * order + h`` comes from ``k * order + g^-1 h``.

        Parameters
        ----------
        element : int
            The position of g.
        count : int
            Output channels K of the layer, each with `order` members.

        Returns
        -------
        array ``[K * order]``
            As `numconv.equivariance.equivariance_error` takes it.
        """
        return np.asarray(np.arange(count)[:, None] * self.order + self.quotients()[element]).reshape(-1)

    def taps(self, window: int) -> Array:
        """``[order, prod(R)]``: tap r of the kernel turned by g comes from tap ``g^-1 r``, flat and row-major."""
        shape = (window,) * self.ndim
        # twice the distance from the centre is whole, also where the centre lies between taps
        doubled = 2 * np.stack(np.unravel_index(np.arange(window**self.ndim), shape)) - (window - 1)
        inverses = np.array(self.elements).transpose(0, 2, 1)
        return np.stack([np.ravel_multi_index(tuple((g @ doubled + window - 1) // 2), shape) for g in inverses])

    def members_and_taps(self, window: int) -> Array:
        """``[order, order * prod(R)]``: the same for kernels on the group; member h and tap r come from ``g^-1 h``, ``g^-1 r``."""
        taps = self.taps(window)
        found: Array = self.quotients()[:, :, None] * taps.shape[1] + taps[:, None, :]
        return found.reshape(self.order, -1)

    def nearest(self, matrix: Sequence[Sequence[float]]) -> int:
        """The position of the element that is the most like a matrix; of the first one, if several are."""
        distances = [float(np.linalg.norm(np.asarray(matrix) - np.asarray(g))) for g in self.elements]
        return int(np.argmin(np.round(distances, 9)))


def symmetry_group(name: str) -> Group:
    """The group of this name.

    Parameters
    ----------
    name : {"mirror", "p4", "p4m", "cube", "cube_m"}
        In 1, 2, 2, 3 and 3 dimensions, see `GROUPS`.

    Returns
    -------
    Group

    Raises
    ------
    ProblemError
        If there is no such group.

    Examples
    --------
    >>> from numconv.nn.symmetry import symmetry_group
    >>> [symmetry_group(name).order for name in ("mirror", "p4", "p4m", "cube", "cube_m")]
    [2, 4, 8, 24, 48]
    """
    given: Any = name
    if not isinstance(given, str) or given not in GROUPS:
        raise ProblemError(f"no group is called {name!r}; known are {', '.join(GROUPS)}")
    return _generated(name)


@functools.cache
def _generated(name: str) -> Group:
    """The group with all products of its generators."""
    generators = GROUPS[name]
    ndim = len(generators[0])
    identity: Matrix = tuple(tuple(int(i == j) for j in range(ndim)) for i in range(ndim))
    elements, before = [identity], 0
    while before < len(elements):  # until products give nothing new
        new, before = elements[before:], len(elements)
        for element, generator in itertools.product(new, generators):
            product = _product(element, generator)
            if product not in elements:
                elements.append(product)
    return Group(name, tuple(elements))


def _product(g: Matrix, h: Matrix) -> Matrix:
    return tuple(tuple(int(value) for value in row) for row in np.array(g) @ np.array(h))
