"""What all pictures of the tour share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "bare", "picture", "show_map", "stems"]

COLOURS = ("#33415c", "#0077b6", "#d1495b", "#2a9d8f")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
}


@contextmanager
def picture(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """An empty figure of so many inches, written as PNG at the end; no window is opened."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title, fontsize=12)
        yield figure
        figure.savefig(path, dpi=120)


def bare(ax: Axes, title: str = "") -> None:
    """Axes for an image: a title, and no ticks."""
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def show_map(ax: Axes, values: np.ndarray[Any, Any], title: str = "", *, limit: float | None = None, aspect: str = "equal") -> None:
    """A matrix as an image: blue below zero, white at zero, red above; full colour at `limit`."""
    limit = limit or float(np.percentile(np.abs(values), 99.5)) or 1.0
    ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect=aspect)  # type: ignore[arg-type]
    bare(ax, title)


def stems(ax: Axes, positions: np.ndarray[Any, Any], values: np.ndarray[Any, Any], colour: str) -> None:
    """The taps of a 1-D kernel."""
    ax.vlines(positions, 0, values, color=colour, linewidth=1.2)
    if len(values) < 64:
        ax.plot(positions, values, "o", color=colour, markersize=3)
    ax.axhline(0, color="grey", linewidth=0.6)
