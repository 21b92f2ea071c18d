"""The figure of what a loss costs: parameters and training FLOPs, the sizes of a model joined."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seqlab.report.budgets import parameters_of
from seqlab.report.groups import Group, in_json, size_name
from seqlab.report.plots.choices import COSTS, cost_of, pareto_front
from seqlab.report.plots.drawing import FAINT, WIDTH, finish, format_axis, legend_handle, save, wide
from seqlab.report.plots.figures import INTERVAL, Picture
from seqlab.report.plots.style import MARKERS, Style
from seqlab.report.rows import Row

TITLES = COSTS | {"active_parameters": "active parameters"}
MOST_FAMILIES = 12


def cost_figure(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Test loss against what it cost, with the front of those that nothing beats.

    Where every group has a size by name, a colour is a model, a marker a size, and all are drawn alike.
    """
    costs = drawn_costs(picture.rows)
    joined = families(picture.groups)
    sizes = named_sizes(picture.groups, joined)
    looks = marked(picture.styles, sizes)
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True)
    for axes, key in zip(panels, costs, strict=True):
        draw_costs(axes, picture, key, joined, looks if sizes else None)
        axes.set_xlabel(TITLES[key] if len(costs) < 3 or key != "parameters" else "all parameters")
    panels[0].set_ylabel("test loss")
    format_axis(panels[0], "y", log=wide([one.mean for one in picture.test], 20))
    parts = ["Coloured lines: the sizes of one model." if joined else "", "Grey: Pareto front of the means."]
    if "active_parameters" in costs:
        parts.append("Active: those that a token uses, of several experts the ones it visits.")
    start = picture.opening(INTERVAL, picture.groups) if sizes else picture.caption(INTERVAL, every_point=True)
    caption = " ".join([start, *filter(None, parts)])
    entries = legend_of_sizes(picture, looks, sizes) if sizes else picture.legend(line=False, marker=True)
    finish(figure, entries, caption)
    return save(figure, folder, name, caption)


def drawn_costs(rows: Sequence[Row]) -> tuple[str, ...]:
    """A panel each; active parameters where some model has others too."""
    different = any(row.active_parameters != row.parameters for row in rows)
    return ("parameters", "active_parameters", "flops") if different else ("parameters", "flops")


def families(groups: Sequence[Group]) -> list[list[int]]:
    """Places of the groups that are sizes of one model and differ in nothing else, by parameters."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        others = {key: value for key, value in group.settings.items() if not key.startswith("size.")}
        found[in_json([group.model, others])].append(place)
    return [sorted(same, key=lambda i: parameters_of(groups[i])) for same in found.values() if len(same) > 1]


def named_sizes(groups: Sequence[Group], joined: Sequence[Sequence[int]]) -> list[str]:
    """Each group's size by name, if all have one and those of a model are different; else nothing."""
    names = [size_name(group.runs[0]) for group in groups]
    models = {group.model for group in groups}
    one_family_each = len(joined) == len(models) <= MOST_FAMILIES and sum(map(len, joined)) == len(groups)
    if None in names or not one_family_each or len({*zip((g.model for g in groups), names, strict=True)}) < len(names):
        return []
    return [str(name) for name in names]


def marked(styles: Sequence[Style], sizes: Sequence[str]) -> list[Style]:
    """The same colours, with a marker for each size."""
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(sizes))}
    return [Style(style.colour, "solid", markers[size]) for style, size in zip(styles, sizes, strict=False)]


def legend_of_sizes(picture: Picture, looks: Sequence[Style], sizes: Sequence[str]) -> list[tuple[Line2D, str]]:
    """A line for each model, then a grey marker for each size."""
    models = {group.model: legend_handle(look) for group, look in zip(picture.groups, looks, strict=True)}
    markers = {
        size: legend_handle(Style("0.4", "solid", look.marker), line=False, marker=True)
        for size, look in zip(sizes, looks, strict=True)
    }
    return [
        *((line, model) for model, line in models.items()),
        *((line, f"size={size}") for size, line in markers.items()),
    ]


def draw_costs(
    axes: Axes, picture: Picture, key: str, joined: Sequence[Sequence[int]], looks: Sequence[Style] | None
) -> None:
    """A point for each group that has such a cost, lines through the sizes of a model, and the front.

    Args:
        axes: the panel.
        picture: what is drawn.
        key: of ``COSTS``, or the active parameters.
        joined: places of the groups that a line joins.
        looks: of every group where all are drawn alike, else ``None`` and those stand out that the legend names.
    """
    costs = {i: cost for i, row in enumerate(picture.rows) if (cost := cost_of(row, key)) is not None}
    if not costs:
        return
    prominent = picture.prominent if looks is None else list(costs)
    styles = picture.styles if looks is None else looks
    for family in joined:
        on = sorted((i for i in family if i in costs), key=costs.__getitem__)
        if on:
            points = [costs[i] for i in on], [picture.test[i].mean for i in on]
            axes.plot(*points, color=styles[on[0]].colour, linewidth=0.8, alpha=1.5 * FAINT, zorder=1)
    behind = sorted(set(costs) - set(prominent))
    colours = [styles[i].colour for i in behind]
    x, y = [costs[i] for i in behind], [picture.test[i].mean for i in behind]
    axes.scatter(x, y, s=9, c=colours, alpha=FAINT, linewidths=0, zorder=2)
    for i in prominent:
        if i in costs:
            loss, style = picture.test[i], styles[i]
            error = None if loss.low is None else [[loss.mean - loss.low], [loss.high - loss.mean]]
            size = 5 if looks is None else 4
            look = {"color": style.colour, "marker": style.marker, "markersize": size, "elinewidth": 0.9, "capsize": 2}
            axes.errorbar(costs[i], loss.mean, error, zorder=3, **look)
    draw_front(axes, costs, {i: picture.test[i].mean for i in costs})


def draw_front(axes: Axes, costs: dict[int, float], losses: dict[int, float]) -> None:
    """The Pareto front, and an axis with room for its ticks."""
    places = list(costs)
    front = [places[i] for i in pareto_front(list(costs.values()), [losses[i] for i in places])]
    look = {"color": "0.55", "linewidth": 0.9, "drawstyle": "steps-post", "zorder": 1}
    axes.plot([costs[i] for i in front], [losses[i] for i in front], **look)
    low, high = min(costs.values()), max(costs.values())
    if low > 0 and high < 2 * low:  # room for the ticks' names around points that lie together
        axes.set_xlim(low / 1.5, high * 1.5)
    format_axis(axes, "x", log=low > 0)
