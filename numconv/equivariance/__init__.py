"""Equivariance: what a function of sounds, images or volumes does when its input is shifted, turned, mirrored or scaled."""

from .error import EquivarianceError, Residuals, equivariance_error, residuals
from .lattice import Lattice, locate
from .operations import Operation, operation
from .report import Row, measure, plot, table
from .transforms import Transform, parse_transform, reflection, rotation, scaling, translation

__all__ = [
    "EquivarianceError", "Lattice", "Operation", "Residuals", "Row", "Transform", "equivariance_error", "locate", "measure",
    "operation", "parse_transform", "plot", "reflection", "residuals", "rotation", "scaling", "table", "translation",
]  # fmt: skip
