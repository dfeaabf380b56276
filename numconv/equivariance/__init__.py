"""Equivariance: what a function of sounds, images or volumes does when its input is shifted, turned, mirrored or scaled."""

from .error import EquivarianceError, Residuals, equivariance_error, residuals
from .lattice import Lattice, locate
from .transforms import Transform, parse_transform, reflection, rotation, scaling, translation

__all__ = [
    "EquivarianceError", "Lattice", "Residuals", "Transform", "equivariance_error", "locate", "parse_transform", "reflection",
    "residuals", "rotation", "scaling", "translation",
]  # fmt: skip
