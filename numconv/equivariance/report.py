"""A report: operations times transformations, as rows, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import NumconvError

from .error import EquivarianceError, equivariance_error
from .lattice import locate
from .operations import Operation
from .transforms import Transform

__all__ = ["Row", "measure", "plot", "table"]

_PARTS = EquivarianceError._fields


class Row(NamedTuple):
    """The error of one operation under one transformation; see `EquivarianceError`."""

    layer: str
    transform: str
    error: float
    exact: float
    stride: float
    border: float
    interpolation: float


def measure(operations: Iterable[Operation], x: Any, transforms: Sequence[Transform]) -> list[Row]:
    """The errors of all operations under all transformations.

    Parameters
    ----------
    operations : iterable of Operation
    x : array ``[N, C, *S]``
    transforms : sequence of Transform

    Returns
    -------
    list of Row

    Raises
    ------
    ProblemError
        As for `equivariance_error`.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv.equivariance import measure, operation, table, translation
    >>> x = np.random.default_rng(0).integers(0, 9, (1, 1, 16)).astype(float)
    >>> rows = measure([operation("max pool 2", x)], x, [translation(1), translation(2)])
    >>> [(row.transform, row.layer, row.error == row.stride, row.error == 0) for row in rows]
    [('shift 1', 'max pool 2', True, False), ('shift 2', 'max pool 2', True, True)]
    """
    rows = []
    for each in operations:
        lattice = locate(each.f, x)
        for transform in transforms:
            options: dict[str, Any] = {"channels": each.channels(transform), "pooled": each.pooled, "lattice": lattice}
            rows.append(Row(each.name, transform.name, *equivariance_error(each.f, x, transform, **options)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a text of aligned columns; 0 is exactly 0.

    Parameters
    ----------
    rows : sequence of Row

    Returns
    -------
    str

    Examples
    --------
    >>> from numconv.equivariance import Row, table
    >>> print(table([Row("conv zeros", "shift 1", 0.25, 0.0, 0.0, 0.25, 0.0)]))
    layer       transform     error     exact    stride    border  interpolation
    conv zeros  shift 1        0.25         0         0      0.25              0
    """
    first = max(len(name) for name in ("layer", *(row.layer for row in rows)))
    second = max(len(name) for name in ("transform", *(row.transform for row in rows)))
    lines = [f"{'layer':{first}}  {'transform':{second}}" + "".join(f"{part:>{_width(part)}}" for part in _PARTS)]
    for i, row in enumerate(rows):
        if i and rows[i - 1].layer != row.layer:
            lines.append("")
        values = "".join(f"{_number(getattr(row, part)):>{_width(part)}}" for part in _PARTS)
        lines.append(f"{row.layer:{first}}  {row.transform:{second}}{values}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: str | Path) -> None:
    """Write the rows as a picture: the error and each part as a map of operations times transformations, on one logarithmic scale.

    Parameters
    ----------
    rows : sequence of Row
        Of all operations under the same transformations, as `measure` gives them.
    path : path
        The file; its ending says the format.

    Raises
    ------
    NumconvError
        If matplotlib is missing.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NumconvError('the picture needs matplotlib: pip install "numconv-nd[plot]"') from error
    layers, transforms = list(dict.fromkeys(row.layer for row in rows)), list(dict.fromkeys(row.transform for row in rows))
    figure = Figure(figsize=(2.6 * len(_PARTS) + 2, 0.32 * len(layers) + 2.2), layout="constrained")
    axes = figure.subplots(1, len(_PARTS), sharey=True)
    colours = colormaps["viridis"].with_extremes(under="white", bad="lightgrey")
    for ax, part in zip(axes, _PARTS, strict=True):
        found = {(row.layer, row.transform): getattr(row, part) for row in rows}
        values = np.array([[found.get((layer, transform), math.nan) for transform in transforms] for layer in layers])
        image = ax.imshow(values, norm=LogNorm(1e-3, 2), cmap=colours, aspect="auto")
        ax.set_title(part)
        ax.set_xticks(range(len(transforms)), transforms, rotation=90)
        ax.set_yticks(range(len(layers)), layers)
        for row, column in np.argwhere(values == 0):
            ax.text(column, row, "0", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=axes, extend="min", label="relative norm (white: less than 0.001; 0: exactly)")
    figure.savefig(path, dpi=80)


def _width(part: str) -> int:
    return max(10, len(part) + 2)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"
