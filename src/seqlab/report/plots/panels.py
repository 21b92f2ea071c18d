"""The panels of a data set's charts, for pictures and page: axes, and lines with their style and spread."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from seqlab.report.curves import AXES, is_number
from seqlab.report.difficulty import numbers_of, titles
from seqlab.report.fits import between, common_range, flops_of, leading
from seqlab.report.grids import PARAMETERS
from seqlab.report.groups import Group, architecture, in_order, in_short
from seqlab.report.plots.bands import Band, band_of_estimates, bands, loss_by_position
from seqlab.report.plots.dataset import DataSet
from seqlab.report.plots.style import LINES, Style, styles
from seqlab.report.power_law import central
from seqlab.report.rows import Row
from seqlab.report.statistics import Estimate

COSTS = {
    "parameters": "parameters",
    "flops": "training FLOPs",
    "tokens": "training tokens",
    "wall_seconds": "wall time (s)",
}
"""The costs on the page: a row's attribute, and the title of its axis."""

BEYOND = 3
"""How far fitted curves are extrapolated: this many times the greatest FLOPs of any."""

CURVE_POINTS = 60

MOST_NAMED = 10
"""The most numbers on an axis of which each is labelled."""


@dataclass(frozen=True)
class Axis:
    """A horizontal axis.

    Args:
        title: may have two lines.
        log: logarithmic or linear.
        places: of the swept values; empty on an axis of measured numbers.
        names: of the places; empty for numbers that are too many to name.
    """

    title: str
    log: bool = False
    places: tuple[float, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """One line.

    Args:
        groups: places of the groups in the data set: one for each point, or a single one for all.
        style: its look.
        band: its points and their spread.
    """

    groups: tuple[int, ...]
    style: Style
    band: Band


@dataclass(frozen=True)
class Panel:
    """A pair of axes with their lines.

    Args:
        x: the horizontal axis.
        y: the title of the vertical one.
        lines: of measured values.
        is_share: whether the values of ``y`` lie between 0 and 1.
        fitted: curves through points, with the bands of their interval; a dashed one is extrapolated.
    """

    x: Axis
    y: str
    lines: list[Line]
    is_share: bool = False
    fitted: list[Line] = field(default_factory=list)


def spans(values: Sequence[float], factor: float) -> bool:
    """Whether numbers are positive and span at least a factor, so that a logarithmic axis suits them."""
    return bool(len(values)) and min(values) > 0 and max(values) / min(values) >= factor


def loss_panels(data: DataSet, split: str, points: Mapping[int, int]) -> dict[str, Panel]:
    """Training or validation loss against every axis.

    Args:
        data: whose.
        split: ``train`` or ``validation``.
        points: the most points of a curve, by the group's place; other groups are left out.
    """
    found = {i: bands(data.groups[i], split, most) for i, most in points.items()}
    y = "training loss" if split == "train" else "validation loss"
    return {
        axis: Panel(
            Axis(title),
            y,
            [Line((i,), data.styles[i], by_axis[axis]) for i, by_axis in found.items() if axis in by_axis],
        )
        for axis, title in AXES.items()
    }


def position_panel(data: DataSet, places: Iterable[int]) -> Panel:
    """Test loss by position in the context."""
    found = {i: loss_by_position(data.groups[i]) for i in places}
    lines = [Line((i,), data.styles[i], one) for i, one in found.items() if one is not None and len(one.x) > 1]
    last = max((line.band.x[-1] for line in lines), default=1)
    decades = [10**power for power in range(len(str(int(last))))]
    axis = Axis("position in the context", log=True, places=tuple(decades), names=tuple(map(str, decades)))
    return Panel(axis, "test loss", lines)


def cost_panels(data: DataSet, costs: Mapping[str, str]) -> dict[str, Panel]:
    """Test loss against each cost; ``costs`` are a row's attributes with the titles of their axes."""
    panels = {}
    for key, title in costs.items():
        spent = {i: cost for i, row in enumerate(data.rows) if (cost := cost_of(row, key)) is not None}
        log = min(spent.values(), default=0) > 0
        panels[key] = Panel(
            Axis(title, log),
            "test loss",
            [
                Line((i,), data.styles[i], band_of_estimates([cost], [data.rows[i].test["loss"]]))
                for i, cost in spent.items()
            ],
        )
    return panels


def fit_panels(data: DataSet) -> list[Panel]:
    """Test loss against training FLOPs, as points with fitted curves, and the curves less the leading one.

    Empty without a curve; without the second panel where no other curve meets the leading one.
    """
    looks = styles([architecture(one.groups[0].model) for one in data.fits], data.everyone)
    fits = [one for one in data.fits if one.law is not None]
    if not fits:
        return []
    first, end, x = leading(fits), BEYOND * max(one.extent[1] for one in fits), Axis("training FLOPs", log=True)
    losses, gaps = Panel(x, "test loss", []), Panel(x, f"less that of {first.label}", [])
    for one, look in zip(data.fits, looks, strict=True):
        places = tuple(data.place[id(group)] for group in one.groups)
        means = band_of_estimates(list(map(flops_of, one.groups)), [data.rows[i].test["loss"] for i in places])
        losses.lines.append(Line(places, replace(look, line="none"), means))
        if one.law is None:
            continue
        losses.fitted.append(Line(places, replace(look, line="solid"), curve(one.law.losses, *one.extent)))
        if one.law.is_identified:
            losses.fitted.append(Line(places, replace(look, line="dash"), curve(one.law.losses, one.extent[1], end)))
        if one is not first and (common := common_range([first, one])):
            gaps.fitted.append(Line(places, replace(look, line="solid"), curve(partial(between, first, one), *common)))
    return [losses, gaps] if gaps.fitted else [losses]


def curve(at: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], start: float, end: float) -> Band:
    """A fitted curve between two numbers of FLOPs, with its interval.

    Args:
        at: from FLOPs (points,) to the curve, (points,), and its draws, (draws, points).
        start, end: FLOPs.
    """
    flops = np.geomspace(start, end, CURVE_POINTS)
    mean, draws = at(flops)
    return Band(flops, mean, *central(draws), 1)


def cost_of(row: Row, key: str) -> float | None:
    """A row's attribute as a number, a mean for an estimate; ``None`` where no run recorded it."""
    value = getattr(row, key)
    return value.mean if isinstance(value, Estimate) else value


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Places of the points on the Pareto front, ascending in cost: no other costs at most as much at a lower loss."""
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], losses[place])):
        if not front or losses[place] < losses[front[-1]]:
            front.append(place)
    return front


def sweep_panels(data: DataSet) -> dict[str, Panel]:
    """The metric that the data is judged by against each swept parameter."""
    looks = data.styles_of(list(dict.fromkeys(one.model for series in data.sweeps.values() for one in series)))
    panels = {}
    for parameter, series in data.sweeps.items():
        values = {in_short(value): value for one in series for value in one.values}
        values = dict(sorted(values.items(), key=lambda item: in_order(item[1] if is_number(item[1]) else item[0])))
        follows = sorted({name for one in series for name in one.follows})
        title = PARAMETERS.get(parameter, parameter) + (f"\nwith {', '.join(follows)}" if follows else "")
        axis = axis_of(title, list(values.values()))
        place = dict(zip(values, axis.places, strict=True))
        lines = []
        for one in series:
            x = [place[in_short(value)] for value in one.values]
            lines.append(judged_line(data, dict(zip(x, one.groups, strict=True)), looks))
        panels[parameter] = judged_panel(data, axis, lines)
    return panels


def grid_panels(data: DataSet) -> dict[str, Panel]:
    """The metric that the data is judged by against the size, for each data setting of a grid."""
    grid = data.grid
    if grid is None:
        return {}
    looks = styles_of_grid(data)
    axis = axis_of(PARAMETERS.get(grid.parameter, grid.parameter), grid.sizes, factor=1.5)
    lines = {title: [grid.line(model, title) for model in grid.models] for title in grid.titles}
    return {
        title: judged_panel(data, axis, [judged_line(data, one, looks) for one in some if one])
        for title, some in lines.items()
    }


def styles_of_grid(data: DataSet) -> dict[str, Style]:
    """A style for each model of a grid, each with a dash of its own, since lines often coincide."""
    looks = data.styles_of(list(data.grid.models))
    return {model: replace(style, line=LINES[i % len(LINES)]) for i, (model, style) in enumerate(looks.items())}


def judged_line(data: DataSet, groups: Mapping[float, Group], looks: Mapping[str, Style]) -> Line:
    """One model's groups by their place on the axis, as a line."""
    estimates = [data.headlines[id(group)] for group in groups.values()]
    band = band_of_estimates(list(groups), estimates)
    model = next(iter(groups.values())).model
    return Line(tuple(data.place[id(group)] for group in groups.values()), looks[model], band)


def judged_panel(data: DataSet, axis: Axis, lines: list[Line]) -> Panel:
    """A panel of the metric that the data is judged by."""
    return Panel(axis, "accuracy" if data.is_share else "test loss", lines, data.is_share)


def difficulty_panels(data: DataSet, places: Sequence[int]) -> dict[str, Panel]:
    """Test accuracy by slice of the test split and at each further test, a line for each group."""
    panels = {}
    for title, values in titles([data.rows[i].difficulty for i in places]).items():
        axis = axis_of_difficulty(title, values)
        place = dict(zip(values, axis.places, strict=True))
        lines = []
        for i in places:
            curve = data.rows[i].difficulty.get(title, {})
            drawn = {place[value]: curve[value] for value in values if value in curve}
            if drawn:
                band = band_of_estimates(list(drawn), list(drawn.values()))
                lines.append(Line((i,), data.styles[i], band))
        panels[title] = Panel(axis, "accuracy", lines, is_share=True)
    return panels


def axis_of_difficulty(title: str, values: Sequence[str]) -> Axis:
    """Values of one number each are placed to scale; values of several numbers, or of none, side by side."""
    title = title.removeprefix("by ").removeprefix("at ")
    numbers = [numbers_of(value) for value in values]
    if any(one is None or len(one) > 1 for one in numbers):
        return axis_of(title, values)
    return axis_of(title, [one[0] for one in numbers], name=short_power)


def axis_of(title: str, values: Sequence[Any], *, factor: float = 4, name: Callable[[Any], str] = in_short) -> Axis:
    """An axis of numbers placed to scale, logarithmic if they span the factor; other values are placed side by side."""
    numbers = all(is_number(value) and math.isfinite(value) for value in values)
    places = tuple(values) if numbers else tuple(range(len(values)))
    names = () if numbers and len(values) > MOST_NAMED else tuple(map(name, values))
    return Axis(title, numbers and spans(values, factor), places, names)


def short_power(value: float) -> str:
    """A length: ``16Ki`` for 16384."""
    for size, unit in ((2**20, "Mi"), (2**10, "Ki")):
        if value >= size and value % size == 0:
            return f"{value / size:g}{unit}"
    return short_number(value)


def short_number(value: float, _place: int | None = None) -> str:
    """A tick's label that fits a small panel: ``2.5M`` for 2500000. Matplotlib passes the tick's place too."""
    prefixes = "kMGTPE"
    power = min(len(prefixes), int(math.log10(abs(value)) // 3)) if abs(value) >= 1000 else 0
    return f"{value / 1000**power:.4g}{prefixes[power - 1] if power else ''}"
