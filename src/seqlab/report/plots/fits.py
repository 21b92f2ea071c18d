"""The picture of fitted power laws: test loss against training FLOPs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from seqlab.report.fits import IDENTIFIED
from seqlab.report.plots.captions import BARS, joined, opening
from seqlab.report.plots.dataset import DataSet
from seqlab.report.plots.drawing import FAINT, WIDTH, Picture, draw_points, legend_handle, linestyle
from seqlab.report.plots.labels import plain
from seqlab.report.plots.panels import Line, Panel, fit_panels, short_number

HEIGHTS = (3.3, 1.5)
"""Of the two panels, in inches."""

MOST_LABELS = 12
LABEL, LOWEST = 0.052, -0.06
"""The height of a line of text and the place of the lowest name, as shares of the axes' height."""

BEATEN = "Faint: settings that another of the model beats on validation at equal FLOPs; they are not fitted."


def fit_picture(data: DataSet) -> Picture | None:
    """Test loss as points with intervals, the fitted curves with their bands, and the curves less the leading one."""
    panels = fit_panels(data)
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, sum(HEIGHTS[: len(panels)])), layout="constrained")
    ratios = {"height_ratios": HEIGHTS[: len(panels)]}
    grid = figure.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        axes.set(xscale="log", ylabel=panel.y)
        for line in panel.fitted:
            draw_curve(axes, line)
    for axes in grid[1:]:
        axes.axhline(0, color="0.4", linewidth=0.8, zorder=1)
    grid[-1].set_xlabel(panels[0].x.title)
    draw_measured(grid[0], data, panels[0])
    names = [one.label for one in data.fits]
    is_direct = len(names) <= MOST_LABELS
    if is_direct:
        name_at_the_end(grid[0], panels[0], names)
    entries = zip(panels[0].lines, names, strict=True)
    legend = [] if is_direct else [(legend_handle(line.style, line=False, marker=True), name) for line, name in entries]
    return Picture(figure, legend, caption_of_fits(data, panels))


def caption_of_fits(data: DataSet, panels: Sequence[Panel]) -> str:
    """The caption, which names the models that have no curve, or one that something is to be said about."""
    return joined(
        opening(data, BARS, [group for one in data.fits for group in one.groups]),
        "Curves: L(C) = E + (C / C0)^-a with its 95 % interval by bootstrap, dashed where extrapolated.",
        BEATEN if any(one.beaten for one in data.fits) else "",
        "Below: the differences of the curves." if len(panels) > 1 else "",
        *(f"{one.label}: {one.verdict}." for one in data.fits if one.verdict != IDENTIFIED),
    )


def draw_measured(axes: Axes, data: DataSet, panel: Panel) -> None:
    """The groups that are fitted as points with their intervals, the others as faint points, on logarithmic axes."""
    axes.set_yscale("log")
    for one, line in zip(data.fits, panel.lines, strict=True):
        draw_points(axes, line, markersize=3.5, markeredgewidth=0.3, markeredgecolor="white", zorder=4)
        rows = [data.rows[data.place[id(group)]] for group in one.beaten]
        places = [(row.flops.mean, row.test["loss"].mean) for row in rows if row.flops and row.flops.mean > 0]
        axes.scatter(*np.reshape(places, (-1, 2)).T, s=7, color=line.style.colour, alpha=FAINT, linewidths=0, zorder=1)
    ends = [line.band.x[place] for line in (*panel.lines, *panel.fitted) for place in (0, -1)]
    axes.set_xlim(min(ends) / 1.3, max(ends) * 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        format_logarithmic(axis)


def draw_curve(axes: Axes, line: Line) -> None:
    """A fitted curve with its band, which is lighter where it is extrapolated."""
    band, style = line.band, line.style
    axes.plot(band.x, band.mean, color=style.colour, linestyle=linestyle(style), linewidth=1.1, zorder=3)
    alpha = 0.2 if style.line == "solid" else 0.1
    axes.fill_between(band.x, band.low, band.high, color=style.colour, alpha=alpha, linewidth=0, zorder=2)


def format_logarithmic(axis: Axis) -> None:
    """Ticks of a logarithmic axis: labels at round numbers, minor ticks between."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    if decades < 0.8:
        major, minor = np.arange(1, 10, 0.2 if decades < 0.4 else 0.5), np.arange(1, 10, 0.1)
    else:
        major, minor = (1, 2, 5) if decades < 3 else (1,), np.arange(1, 10)
    axis.set_major_locator(LogLocator(subs=major))
    axis.set_minor_locator(LogLocator(subs=minor))
    axis.set_major_formatter(FuncFormatter(short_number))
    axis.set_minor_formatter(NullFormatter())


def name_at_the_end(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    """Each name in its colour at the right of the axes, as near as others' names allow to the end of its line."""
    last = {line.groups: line.band for line in (*panel.lines, *panel.fitted)}
    ends = [(last[line.groups].x[-1], last[line.groups].mean[-1]) for line in panel.lines]
    to_axes = axes.transScale + axes.transLimits
    heights = spread([float(to_axes.transform(end)[1]) for end in ends])
    for end, height, line, name in zip(ends, heights, panel.lines, names, strict=True):
        leader = {"arrowstyle": "-", "color": line.style.colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 0}
        look = {"color": line.style.colour, "va": "center", "fontsize": 7.5, "arrowprops": leader}
        axes.annotate(f"     {plain(name)}", end, (1.03, height), textcoords="axes fraction", **look)
        mark = {"color": line.style.colour, "transform": axes.transAxes, "clip_on": False}
        axes.plot(1.042, height, line.style.marker, markersize=3.5, **mark)


def spread(heights: Sequence[float]) -> list[float]:
    """Heights, as shares of the axes, moved as little as it takes to be ``LABEL`` apart, and in their order."""
    order = np.argsort(heights, kind="stable")
    steps = LABEL * np.arange(len(order))
    blocks: list[list[float]] = []  # of labels that touch: heights less their steps, which share a mean
    for height in np.asarray(heights)[order] - steps:
        blocks.append([float(height)])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = np.concatenate([[np.mean(block)] * len(block) for block in blocks])
    placed = np.clip(placed, LOWEST, 1 - steps[-1]) + steps
    found = np.empty(len(order))
    found[order] = placed
    return found.tolist()
