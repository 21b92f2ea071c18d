"""The figure of a sweep over data settings and one size: a panel for each data setting."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seqlab.report.grids import PARAMETERS, Grid, bounds_of, grid_of
from seqlab.report.plots.drawing import WIDTH, draw_estimates, finish, flatten, legend_handle, plain, save
from seqlab.report.plots.figures import INTERVAL, Picture
from seqlab.report.plots.style import LINES, Style, styles_of_models
from seqlab.report.plots.sweep import places_of, value_axis

COLUMNS = 4
MOST_PANELS = 16
SPREAD = 0.5
"""The part of the gap between two sizes that the models' markers at one size take."""

TARGET = {"color": "0.2", "linewidth": 0.6, "linestyle": (0, (5, 3)), "zorder": 4}


def grid_figure(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Accuracy (or test loss) against the size, a line a model: figure 2 of Zoology (Arora et al. 2023)."""
    grid = grid_of(picture.groups)
    if grid is None:
        return []
    looks = styles_of_models(list(grid.models), [group.model for group in picture.groups])
    looks = {model: replace(look, line=LINES[i % len(LINES)]) for i, (model, look) in enumerate(looks.items())}
    bounds = bounds_of(grid, picture.headline)
    titles = grid.titles[:MOST_PANELS]
    rows = -(-len(titles) // COLUMNS)
    columns = -(-len(titles) // rows)
    figure = Figure(figsize=(WIDTH * max(0.6, columns / COLUMNS), 0.3 + 1.75 * rows), layout="constrained")
    panels = flatten(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False))
    for axes, title in zip(panels, titles, strict=False):
        draw_panel(axes, picture, grid, title, looks)
        for bound in bounds:
            axes.axhline(bound, **TARGET)
        axes.set_title(plain(title, 40))
    for axes in panels[len(titles) :]:
        axes.remove()
    for i, axes in enumerate(panels[: len(titles)]):
        axes.tick_params(labelbottom=i + columns >= len(titles))
    for axes in panels[max(0, len(titles) - columns) : len(titles)]:
        axes.set_xlabel(plain(PARAMETERS.get(grid.parameter, grid.parameter)))
    value_axis(picture, panels[: len(titles) : columns])
    caption = caption_of(picture, grid)
    entries = [(legend_handle(looks[model], marker=True), model) for model in grid.models]
    entries += [(Line2D([], [], **TARGET), f"target {bound:g}") for bound in bounds]
    finish(figure, entries, caption)
    return save(figure, folder, name, caption)


def draw_panel(axes: Axes, picture: Picture, grid: Grid, title: str, looks: dict[str, Style]) -> None:
    """A line a model, each a little beside its neighbours: what lies on one height would hide one another."""
    places = places_of(axes, grid.sizes, factor=1.5)
    beside = aside(places, len(grid.models), log=axes.get_xscale() == "log")
    for model, shifted in zip(grid.models, beside, strict=True):
        line = grid.line(model, title)
        place = dict(zip(grid.sizes, shifted, strict=True))
        estimates = [picture.headlines[id(group)] for group in line.values()]
        x = [place[size] for size in line]
        draw_estimates(axes, x, estimates, looks[model], share=picture.is_share, markersize=3)


def aside(places: Sequence[float], n: int, *, log: bool) -> list[list[float]]:
    """The places of ``n`` lines on one axis, side by side around the true ones within a part of the smallest gap."""
    at = np.log(places) if log else np.array(places, dtype=float)
    gap = np.diff(at).min() if len(at) > 1 else 0.0
    shifts = SPREAD * gap * (np.arange(n) / (n - 1) - 0.5) if n > 1 else np.zeros(1)
    moved = at + shifts[:, None]  # (lines, places)
    return (np.exp(moved) if log else moved).tolist()


def caption_of(picture: Picture, grid: Grid) -> str:
    """What stands behind the points, and what is not there."""
    drawn = [group for points in grid.models.values() for group in points.values()]
    parts = [picture.opening(INTERVAL, drawn)]
    for bound, models in bounds_of(grid, picture.headline).items():
        if len(models) < len(grid.models):
            parts.append(f"The target {bound:g} is for {' and '.join(models)}.")
    if len(grid.models) > 1:
        parts.append("Models stand side by side at each size.")
    if len(grid.titles) > MOST_PANELS:
        parts.append(f"The first {MOST_PANELS} of {len(grid.titles)} data settings.")
    if grid.follows:
        parts.append(f"Also different from place to place: {', '.join(grid.follows)}.")
    if grid.missing:
        places = len(grid.titles) * len(grid.sizes) * len(grid.models)
        parts.append(f"Missing points: {grid.missing} of {places} places have no completed run.")
    if grid.left_out:
        parts.append(f"Not drawn, with several settings at one place: {', '.join(grid.left_out)}.")
    return " ".join(parts)
