"""Results as pictures: a roofline, and the ratio to each peer by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numconv.errors import BackendUnavailableError

from .results import Measurement, Results

__all__ = ["draw"]


def draw(results: Results, folder: Path, suffix: str = "svg") -> list[Path]:
    """Write ``roofline-PASS`` and, where there are peers, ``ratios-PASS`` for each pass.

    Parameters
    ----------
    results
        What was measured.
    folder : Path
        Made where it is missing.
    suffix : str
        The format: svg, png, pdf.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    BackendUnavailableError
        If matplotlib is missing.

    References
    ----------
    S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore architectures",
    Communications of the ACM 52 (2009), section 3.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise BackendUnavailableError('pictures need matplotlib: pip install "numconv-nd[plot]"') from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # The same results give the same file: a picture in a repository changes with its figures only.
    with mpl.rc_context({"svg.hashsalt": "numconv", "font.size": 9}):
        for direction in results.passes:
            rows = [row for row in results.of(direction) if not math.isnan(row.ours)]
            figures = {"roofline": _roofline(rows), "ratios": _ratios(rows, list(results.peers)) if results.peers else None}
            for name, figure in figures.items():
                if figure is None:
                    continue
                figure.suptitle(_title(name, direction, results))
                path = folder / f"{name}-{direction}.{suffix}"
                figure.savefig(path, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
    return written


def _title(name: str, direction: str, results: Results) -> str:
    what = {"roofline": "speed and limits", "ratios": "speed beside other libraries"}[name]
    return f"numconv {results.version}, {direction}: {what}\n{results.machine['processor']}, {results.date[:10]}"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of its own: no state of pyplot, no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _roofline(rows: Sequence[Measurement]) -> Any:
    """GFLOP/s over operations a byte, with the limits of float32 and float64 as they were measured."""
    figure, axes = _figure(8, 5.5)
    intensity = [row.flops / row.bytes for row in rows]
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        points = [(row.flops / row.bytes, row.flops / row.ours / 1e9) for row in own]
        axes.plot(*zip(*points, strict=True), "o", label=group, markersize=5)
    for row in rows:
        axes.annotate(row.name, (row.flops / row.bytes, row.flops / row.ours / 1e9), (3, 3), textcoords="offset points", fontsize=5)
    for dtype, style in (("float32", "-"), ("float64", "--")):
        own = [row for row in rows if row.dtype == dtype and not math.isnan(row.floor)]
        if own:
            peak, bandwidth = max(row.multiply_adds for row in own), max(row.copies for row in own)
            ends = sorted({min(intensity) / 2, peak / bandwidth, max(intensity) * 2})
            axes.plot(
                ends, [min(peak, bandwidth * x) / 1e9 for x in ends], style, color="0.3", linewidth=1, label=f"limits, {dtype}"
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte read or written", ylabel="GFLOP/s of the direct algorithm")
    axes.grid(visible=True, which="both", linewidth=0.3, alpha=0.5)
    axes.legend(fontsize=7)
    return figure


def _ratios(rows: Sequence[Measurement], peers: Sequence[str]) -> Any:
    """A line a row: each peer's time over numconv's."""
    from matplotlib.ticker import LogLocator

    figure, axes = _figure(8, 1.6 + 0.2 * len(rows))
    places = range(len(rows))[::-1]
    for peer, marker in zip(peers, "osD^vP*", strict=False):
        axes.plot([row.ratio(peer) for row in rows], places, marker, label=peer, markersize=5, alpha=0.8)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("the peer's time over numconv's: right of 1, numconv is faster")
    axes.grid(visible=True, which="major", linewidth=0.3, alpha=0.5)
    axes.legend(fontsize=7, ncols=len(peers), loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.9 / (1 + len(rows))))
    return figure
