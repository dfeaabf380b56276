"""Second stop, 2-D: several filters over a colour image give several feature maps; stride and pooling make them smaller."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc

from .pictures import bare, picture, show_map
from .report import Report

__all__ = ["bank", "show"]

Array = np.ndarray[Any, Any]

SIZE = 7


def gabor(degrees: float, wavelength: float = 7.0) -> Array:
    """A wave under a bell: answers to edges across its direction."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    angle = np.deg2rad(degrees)
    wave: Array = np.sin(2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle)))
    return unit(wave * bell())


def bell(width: float = 1.6) -> Array:
    """A Gaussian bell, ``[7, 7]``."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    weights: Array = np.exp(-(x**2 + y**2) / (2 * width**2))
    return weights


def unit(kernel: Array) -> Array:
    """The same kernel with weights whose sizes sum to 1, so that feature maps can be compared."""
    scaled: Array = kernel / np.abs(kernel).sum()
    return scaled


def bank() -> dict[str, Array]:
    """Eight filters for colour images, each ``[3, 7, 7]``: a filter spans all channels of its input."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    centre = np.zeros((SIZE, SIZE))
    centre[SIZE // 2, SIZE // 2] = 1
    ring = (x**2 + y**2 - 2 * 1.6**2) * bell()
    slope = unit((x + y) * bell())
    grey = {
        "blur": unit(bell()),
        "edge left to right": unit(x * bell()),
        "edge top to bottom": unit(y * bell()),
        "Laplacian": unit(ring - ring.mean()),
        "emboss": slope + 2 * slope.max() * centre,
        "Gabor, 45 degrees": gabor(45),
        "Gabor, 135 degrees": gabor(135),
    }
    filters = {name: np.stack([kernel / 3] * 3) for name, kernel in grey.items()}
    filters["red against green"] = np.stack([unit(bell()), -unit(bell()), 0 * bell()]) / 2
    return filters


def show(report: Report, photograph: Array) -> None:
    """Filter a photograph, bring its size down in two ways, and draw filters and feature maps."""
    report.section(
        "Photograph: a bank of filters",
        """A colour image is a volume [channels, height, width], and each filter spans all its channels. Eight filters give eight
        feature maps: an output volume. Stride and pooling bring height and width down.""",
    )
    x = photograph.astype(np.float32) / 255
    filters = bank()
    w = np.stack(list(filters.values())).astype(np.float32)
    options: dict[str, Any] = {"padding": "same", "pad_mode": "reflect"}
    maps = report.run("eight filters", nc.conv, x, w, **options)
    strided = report.run("eight filters, stride 2", nc.conv, x, w, stride=2, **options)
    pooled = report.run("max pooling 4 x 4", nc.max_pool, maps, (4, 4))

    field = nc.receptive_field([{"kernel": SIZE}, {"kernel": 4, "stride": 4}]).size[0]
    report.line(f"\n  {shape(x)} through filters {shape(w)} gives {shape(maps)}.")
    report.line(f"  With stride 2 it gives {shape(strided)}; pooled by 4, {shape(pooled)}.")
    report.line(
        f"  One pooled number sees {field} x {field} pixels, and the bank has {w.size:,} weights for {maps.size:,} outputs."
    )
    strength = dict(zip(filters, np.abs(maps).mean(axis=(1, 2)), strict=True))
    first, second = strength["edge left to right"], strength["edge top to bottom"]
    report.line(f"  Mean strength of its edges: {first:.4f} left to right, {second:.4f} top to bottom.")
    draw_filters(report, filters)
    draw_maps(report, x, dict(zip(filters, maps, strict=True)), strided[1], pooled[1])


def shape(array: Array) -> str:
    """For example [3, 427, 640]."""
    return str(list(array.shape))


def draw_filters(report: Report, filters: dict[str, Array]) -> None:
    """A column for each filter, a row for each colour channel."""
    with picture(report.file("filters.png"), 13, 5.4, "Eight filters for colour images, each [3, 7, 7]") as figure:
        grid = figure.subplots(3, len(filters))
        for column, (name, kernel) in zip(grid.T, filters.items(), strict=True):
            limit = float(np.abs(kernel).max())
            for ax, plane in zip(column, kernel, strict=True):
                show_map(ax, plane, limit=limit)
            column[0].set_title(name)
        for ax, channel in zip(grid[:, 0], ("red", "green", "blue"), strict=True):
            ax.set_ylabel(channel)
        bar = figure.colorbar(grid[0, 0].images[0], ax=grid, location="bottom", shrink=0.3, aspect=30, ticks=[])
        bar.set_label("weight: negative, zero, positive (each filter to its own scale)")


def draw_maps(report: Report, x: Array, maps: dict[str, Array], strided: Array, pooled: Array) -> None:
    """The photograph, its feature maps, and one of them made smaller in two ways."""
    with picture(
        report.file("feature_maps.png"), 13, 11, "A photograph and its feature maps (blue: negative, red: positive)"
    ) as figure:
        grid = figure.subplots(4, 3)
        places = iter(grid.flat)
        ax = next(places)
        ax.imshow(x.transpose(1, 2, 0))
        bare(ax, f"photograph {shape(x)}")
        for ax, (name, values) in zip(places, maps.items(), strict=False):
            if name in ("blur", "emboss"):
                ax.imshow(values, cmap="gray")
                bare(ax, f"{name} {shape(values)}")
            else:
                show_map(ax, values, f"{name} {shape(values)}")
        h, w = x.shape[1:]
        made = {"stride 1": maps["edge left to right"], "stride 2": strided, "max pooling by 4": pooled}
        for ax, (name, values) in zip(grid[3], made.items(), strict=True):
            factor = round(w / values.shape[1])
            part = values[h // 3 // factor : 2 * h // 3 // factor, w // 3 // factor : 2 * w // 3 // factor]
            show_map(ax, part, f"edge left to right, {name}: the centre, {shape(part)}")
