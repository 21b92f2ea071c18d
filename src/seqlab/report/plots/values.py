"""The pictures of results against settings: swept parameters, grids of data settings and sizes, difficulty."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.lines import Line2D

from seqlab.report.grids import bounds_of
from seqlab.report.plots.captions import BARS, bases, caption, caption_of_grid, joined, opening, seeds
from seqlab.report.plots.dataset import PROMINENT, DataSet
from seqlab.report.plots.drawing import WIDTH, Picture, draw_panels, legend_handle
from seqlab.report.plots.labels import plain
from seqlab.report.plots.losses import legend
from seqlab.report.plots.panels import Panel, difficulty_panels, grid_panels, styles_of_grid, sweep_panels
from seqlab.report.plots.style import Style, styles

COLUMNS = 3
GRID_COLUMNS = 4
MOST_SWEEPS = 12
MOST_SETTINGS = 16
SPREAD = 0.5
"""The share of the gap between two sizes over which the models' markers at one size are spread."""

TARGET = {"color": "0.2", "linewidth": 0.6, "linestyle": (0, (5, 3)), "zorder": 4}


def sweep_picture(data: DataSet) -> Picture | None:
    """Test loss, or accuracy where the data has it, against each swept parameter, a panel each."""
    sweeps = dict(list(data.sweeps.items())[:MOST_SWEEPS])
    if not sweeps:
        return None
    panels = [panel for name, panel in sweep_panels(data).items() if name in sweeps]
    columns = min(COLUMNS, len(panels))
    figure, _ = draw_panels(panels, columns=columns, width=WIDTH if columns > 1 else WIDTH * 0.55, height=1.75)
    models = {one.model: None for series in sweeps.values() for one in series}
    drawn = [group for series in sweeps.values() for group in series[0].groups]
    text = joined(opening(data, BARS, drawn), bases(sweeps))
    return Picture(figure, legend_of_models(data.styles_of(list(models))), text)


def grid_picture(data: DataSet) -> Picture | None:
    """Accuracy (or test loss) against the size, a line for each model: figure 2 of Zoology (Arora et al. 2023)."""
    grid = data.grid
    if grid is None:
        return None
    found = dict(list(grid_panels(data).items())[:MOST_SETTINGS])
    panels = [side_by_side(panel, data) for panel in found.values()]
    rows = -(-len(panels) // GRID_COLUMNS)
    columns = -(-len(panels) // rows)
    width = WIDTH * max(0.6, columns / GRID_COLUMNS)
    figure, grid_of_axes = draw_panels(panels, columns=columns, width=width, height=1.75, sharex=True, markersize=3)
    bounds = bounds_of(grid, data.headline)
    for i, (axes, title) in enumerate(zip(grid_of_axes, found, strict=True)):
        axes.set_title(plain(title, 40))
        for bound in bounds:
            axes.axhline(bound, **TARGET)
        if i + columns < len(panels):
            axes.tick_params(labelbottom=False)
            axes.set_xlabel("")
    entries = legend_of_models(styles_of_grid(data)) + [
        (Line2D([], [], **TARGET), f"target {bound:g}") for bound in bounds
    ]
    return Picture(figure, entries, caption_of_grid(data, grid, MOST_SETTINGS))


def side_by_side(panel: Panel, data: DataSet) -> Panel:
    """Each model's line moved a little to the side, so that markers at the same place do not hide one another.

    Together they take the share ``SPREAD`` of the smallest gap between two sizes.
    """
    axis, models = panel.x, list(data.grid.models)
    places = np.log(axis.places) if axis.log else np.array(axis.places, dtype=float)
    gap = np.diff(places).min() if len(places) > 1 else 0.0
    lines = []
    for line in panel.lines:
        place = models.index(data.groups[line.groups[0]].model)
        shift = SPREAD * gap * (place / (len(models) - 1) - 0.5) if len(models) > 1 else 0.0
        x = line.band.x * np.exp(shift) if axis.log else line.band.x + shift
        lines.append(replace(line, band=replace(line.band, x=x)))
    return replace(panel, lines=lines)


def difficulty_picture(data: DataSet) -> Picture | None:
    """Test accuracy by slice of the test split and at each further test, a line for each model.

    Not for a grid, where each place has data of its own.
    """
    found = {} if data.grid else difficulty_panels(data, data.prominent)
    if not found:
        return None
    columns = min(COLUMNS, len(found))
    width = WIDTH if columns > 1 else WIDTH * 0.55
    figure, grid = draw_panels(list(found.values()), columns=columns, width=width, height=1.9, markersize=3)
    for axes, title in zip(grid, found, strict=True):
        axes.set_title("test split" if title.startswith("by ") else "further tests")
    return Picture(figure, legend(data, marker=True), caption(data, BARS, "Missing points could not be measured."))


def across_picture(data: Sequence[DataSet]) -> Picture | None:
    """Accuracy at further tests that several data sets share, a panel each: which model does which task.

    A label has one style in all of them. None where fewer than two share a test, or a legend would be too long.
    """
    at = {one.name: difficulty_panels(one, one.prominent) for one in data if not one.grid}
    title, names = most_shared(
        {name: [title for title in panels if title.startswith("at ")] for name, panels in at.items()}
    )
    shown = [one for one in data if one.name in names]
    groups = {group.label: group for one in shown for group in one.groups}
    drawn = {group.label for one in shown for group in (one.groups[i] for i in one.prominent)}
    groups = {label: group for label, group in groups.items() if label in drawn}
    if len(shown) < 2 or len(groups) > PROMINENT:
        return None
    looks = dict(zip(groups, styles([one.model for one in groups.values()], shown[0].everyone), strict=True))
    panels = [
        replace(panel, lines=[replace(line, style=looks[one.groups[line.groups[0]].label]) for line in panel.lines])
        for one in shown
        for panel in [at[one.name][title]]
    ]
    columns = min(COLUMNS, len(panels))
    figure, grid = draw_panels(panels, columns=columns, width=WIDTH, height=1.75, markersize=3)
    for axes, one in zip(grid, shown, strict=True):
        axes.set_title(plain(one.name, 40))
    entries = [(legend_handle(style, marker=True), label) for label, style in looks.items()]
    several = any(len(group.runs) > 1 for group in groups.values())
    text = joined(f"{seeds(*shown)}{'; ' + BARS if several else ''}.", "Missing points could not be measured.")
    return Picture(figure, entries, text)


def most_shared(titles: dict[str, list[str]]) -> tuple[str, list[str]]:
    """The title that most data sets have, the first of equals, and their names; of none an empty list."""
    owners: dict[str, list[str]] = {"": []}
    for name, own in titles.items():
        for title in own:
            owners.setdefault(title, []).append(name)
    return max(owners.items(), key=lambda item: len(item[1]))


def legend_of_models(looks: dict[str, Style]) -> list[tuple[Line2D, str]]:
    """An entry for each model."""
    return [(legend_handle(style, marker=True), model) for model, style in looks.items()]
