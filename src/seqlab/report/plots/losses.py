"""The pictures of losses: over training and over the context."""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seqlab.report.curves import AXES
from seqlab.report.plots.captions import ALONE, BANDS, CUT, caption
from seqlab.report.plots.dataset import DataSet
from seqlab.report.plots.drawing import (
    WIDTH,
    Picture,
    draw_background,
    draw_band,
    format_axis,
    format_losses,
    legend_handle,
)
from seqlab.report.plots.panels import Panel, loss_panels, position_panel, spans

POINTS = 120
BACKGROUND_POINTS = 40


def loss_picture(data: DataSet) -> Picture | None:
    """Training and validation loss against every axis."""
    points = dict.fromkeys(data.prominent, POINTS) | dict.fromkeys(data.background, BACKGROUND_POINTS)
    found = [loss_panels(data, split, points) for split in ("train", "validation")]
    found = [panels for panels in found if panels["step"].lines]
    if not found:
        return None
    figure = Figure(figsize=(WIDTH, 0.4 + 1.6 * len(found)), layout="constrained")
    drawn = {axis: title for axis, title in AXES.items() if any(panels[axis].lines for panels in found)}
    grid = figure.subplots(len(found), len(drawn), sharex="col", sharey="row", squeeze=False)
    for place, (axis, title) in enumerate(drawn.items()):
        lines = [line for panels in found for line in panels[axis].lines]
        log = axis not in ("step", "tokens") and spans([line.band.ends[1] for line in lines], 4)
        for row, panels in zip(grid, found, strict=True):
            draw_lines(row[place], data, panels[axis], log=log)
        format_axis(grid[0, place], "x", log=log)
        grid[-1, place].set_xlabel(title)
    is_cut = False
    for row, panels in zip(grid, found, strict=True):
        row[0].set_ylabel(panels["step"].y)
        top = format_losses(row[0], panels["step"].lines)
        is_cut = is_cut or (top is not None and max(line.band.losses().max() for line in panels["step"].lines) > top)
    alone = any(line.band.alone for panels in found for panel in panels.values() for line in panel.lines)
    text = caption(data, BANDS, ALONE if alone else "", CUT if is_cut else "")
    return Picture(figure, legend(data), text)


def position_picture(data: DataSet) -> Picture | None:
    """Test loss by position in the context."""
    panel = position_panel(data, [*data.prominent, *data.background])
    if not panel.lines:
        return None
    figure = Figure(figsize=(WIDTH * 0.6, 2.6), layout="constrained")
    axes = figure.subplots()
    draw_lines(axes, data, panel, log=True)
    axes.set(xlabel=panel.x.title, ylabel=panel.y)
    format_axis(axes, "x", log=True)
    ends = [end for line in panel.lines for end in (line.band.low.min(), line.band.high.max())]
    format_axis(axes, "y", log=spans(ends, 20))
    return Picture(figure, legend(data), caption(data, BANDS, "Later positions: means of ever wider bins."))


def draw_lines(axes: Axes, data: DataSet, panel: Panel, *, log: bool) -> None:
    """Draw the lines of one panel, those that the legend names with their bands."""
    lines = [replace(line, band=line.band.beyond_zero()) for line in panel.lines] if log else panel.lines
    lines = [line for line in lines if len(line.band.x) or line.band.alone]
    named = set(data.prominent)
    draw_background(axes, [line for line in lines if line.groups[0] not in named])
    for line in lines:
        if line.groups[0] in named:
            draw_band(axes, line)


def legend(data: DataSet, *, line: bool = True, marker: bool = False) -> list[tuple[Line2D, str]]:
    """An entry for each prominent group."""
    return [(legend_handle(data.styles[i], line=line, marker=marker), data.groups[i].label) for i in data.prominent]
