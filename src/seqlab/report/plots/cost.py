"""The picture of loss against cost: parameters and training FLOPs, with lines through the sizes of a model."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seqlab.report.groups import Group, grouped, in_json, size_name
from seqlab.report.plots.captions import BARS, caption, joined, opening
from seqlab.report.plots.dataset import DataSet
from seqlab.report.plots.drawing import FAINT, WIDTH, Picture, draw_points, format_axis, legend_handle
from seqlab.report.plots.losses import legend
from seqlab.report.plots.panels import COSTS, Panel, cost_panels, pareto_front, spans
from seqlab.report.plots.style import MARKERS, Style

MOST_FAMILIES = 12


def cost_picture(data: DataSet) -> Picture | None:
    """Test loss against parameters and FLOPs, with the Pareto front.

    Where every group has a size by name, colours stand for models, markers for sizes, and no group is faint.
    """
    costs = {"parameters": "parameters", "flops": COSTS["flops"]}
    some_inactive = any(row.active_parameters != row.parameters for row in data.rows)
    if some_inactive:
        costs = {"parameters": "all parameters", "active_parameters": "active parameters", "flops": COSTS["flops"]}
    joined_sizes = families(data.groups)
    sizes = named_sizes(data.groups, joined_sizes)
    looks = styles_by_size(data.styles, sizes) if sizes else data.styles
    in_front = range(len(data.rows)) if sizes else data.prominent
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    grid = figure.subplots(1, len(costs), sharey=True)
    for axes, panel in zip(grid, cost_panels(data, costs).values(), strict=True):
        axes.set_xlabel(panel.x.title)
        draw_costs(axes, panel, looks, in_front, joined_sizes, markersize=4 if sizes else 5)
    grid[0].set_ylabel("test loss")
    format_axis(grid[0], "y", log=spans([row.test["loss"].mean for row in data.rows], 20))
    text = joined(
        opening(data, BARS, data.groups) if sizes else caption(data, BARS, every_point=True),
        "Coloured lines: the sizes of one model." if joined_sizes else "",
        "Grey: Pareto front of the means.",
        "Active: those that a token uses, of several experts the ones it visits." if some_inactive else "",
    )
    entries = legend_of_sizes(data, looks, sizes) if sizes else legend(data, line=False, marker=True)
    return Picture(figure, entries, text)


def families(groups: Sequence[Group]) -> list[list[int]]:
    """Places of the groups that are sizes of one model and differ in nothing else, by parameters."""

    def model(place: int) -> str:
        others = {key: value for key, value in groups[place].settings.items() if not key.startswith("size.")}
        return in_json([groups[place].model, others])

    found = grouped(range(len(groups)), model).values()
    return [sorted(same, key=lambda place: groups[place].parameters) for same in found if len(same) > 1]


def named_sizes(groups: Sequence[Group], joined_sizes: Sequence[Sequence[int]]) -> list[str]:
    """Each group's size by name; nothing if a size has no name or the sizes of a model do not form a single family."""
    names = [size_name(group.runs[0]) for group in groups]
    models = [group.model for group in groups]
    one_family_each = len(joined_sizes) == len(set(models)) <= MOST_FAMILIES
    all_joined = sum(map(len, joined_sizes)) == len(groups)
    if None in names or not one_family_each or not all_joined or len({*zip(models, names, strict=True)}) < len(names):
        return []
    return [str(name) for name in names]


def styles_by_size(styles: Sequence[Style], sizes: Sequence[str]) -> list[Style]:
    """The same colours, with a marker for each size."""
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(sizes))}
    return [Style(style.colour, "solid", markers[size]) for style, size in zip(styles, sizes, strict=True)]


def legend_of_sizes(data: DataSet, looks: Sequence[Style], sizes: Sequence[str]) -> list[tuple[Line2D, str]]:
    """A line for each model, then a grey marker for each size."""
    models = {group.model: legend_handle(look) for group, look in zip(data.groups, looks, strict=True)}
    markers = {
        f"size={size}": legend_handle(Style("0.4", "solid", look.marker), line=False, marker=True)
        for size, look in zip(sizes, looks, strict=True)
    }
    return [(handle, label) for label, handle in (models | markers).items()]


def draw_costs(
    axes: Axes,
    panel: Panel,
    looks: Sequence[Style],
    in_front: Collection[int],
    joined_sizes: Sequence[Sequence[int]],
    markersize: float,
) -> None:
    """A point for each group that has such a cost, lines through the sizes of a model, and the Pareto front.

    Args:
        axes: to draw on.
        panel: what to draw.
        looks: the style of each group.
        in_front: places of the groups with a marker and a bar; the others are faint points.
        joined_sizes: places of the groups that a line joins.
        markersize: of the groups in front, in points.
    """
    points = {line.groups[0]: (line.band.x[0], line.band.mean[0]) for line in panel.lines}
    if not points:
        return
    for family in joined_sizes:
        on = sorted((i for i in family if i in points), key=lambda i: points[i][0])
        if on:
            colour = looks[on[0]].colour
            axes.plot(*zip(*map(points.get, on), strict=True), color=colour, linewidth=0.8, alpha=1.5 * FAINT, zorder=1)
    behind = [i for i in points if i not in in_front]
    x, y = np.array([points[i] for i in behind]).reshape(-1, 2).T
    axes.scatter(x, y, s=9, c=[looks[i].colour for i in behind], alpha=FAINT, linewidths=0, zorder=2)
    for line in panel.lines:
        if line.groups[0] in in_front:
            draw_points(axes, replace(line, style=looks[line.groups[0]]), markersize=markersize, zorder=3)
    costs, losses = map(list, zip(*points.values(), strict=True))
    front = pareto_front(costs, losses)
    step = {"color": "0.55", "linewidth": 0.9, "drawstyle": "steps-post", "zorder": 1}
    axes.plot([costs[i] for i in front], [losses[i] for i in front], **step)
    if panel.x.log and max(costs) < 2 * min(costs):  # room for tick labels around close points
        axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    format_axis(axes, "x", log=panel.x.log)
