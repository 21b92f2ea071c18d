"""What is drawn of a comparison: which groups stand out, who is on the Pareto front, what was swept."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from seqlab.report.grids import PARAMETERS, Grid, grid_of, importance, in_order
from seqlab.report.groups import Group, short_names
from seqlab.report.rows import Row
from seqlab.report.statistics import Estimate

PROMINENT = 12
"""Curves that one picture can tell apart; beyond it, the best setting of each model stands out."""

COSTS = {
    "parameters": "parameters",
    "flops": "training FLOPs",
    "tokens": "training tokens",
    "wall_seconds": "wall time (s)",
}
"""What a loss can be held against: a row's attribute, and its axis."""


def validation_loss(group: Group) -> float:
    """The mean of the seeds' best validation losses, which selects; the test split does not."""
    return fmean(run.summary["best_validation"]["loss"] for run in group.runs)


def best_of_models(rows: Sequence[Row]) -> list[int]:
    """Places of each model's best setting on validation, the best model first."""
    best: dict[str, int] = {}
    for place in sorted(range(len(rows)), key=lambda place: rows[place].validation["loss"].mean):
        best.setdefault(rows[place].group.model, place)
    return list(best.values())


def prominent(rows: Sequence[Row]) -> list[int]:
    """Places of the groups to draw with a legend: all, or of too many each model's best."""
    if len(rows) <= PROMINENT:
        return list(range(len(rows)))
    return sorted(best_of_models(rows)[:PROMINENT])


def cost_of(row: Row, key: str) -> float | None:
    """What a group cost: a number of its model, or the mean over its runs; ``None`` where no run says."""
    value = getattr(row, key)
    return value.mean if isinstance(value, Estimate) else value


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Places of the points that no other beats: none costs at most as much at a lower loss, or less at the same."""
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], losses[place])):
        if not front or losses[place] < losses[front[-1]]:
            front.append(place)
    return front


@dataclass(frozen=True)
class Series:
    """Groups of one model that differ in one parameter alone, by its value; ``base`` is where all series meet."""

    parameter: str
    follows: tuple[str, ...]
    model: str
    data: str
    values: tuple[Any, ...]
    groups: tuple[Group, ...]
    base: Group


def sweeps(groups: Sequence[Group]) -> dict[str, list[Series]]:
    """For each swept parameter a series for each model and data set that sweeps it.

    Groups that form a grid over data settings and sizes have a picture of their own and no series. All series of a
    model go through one base setting, the one that most others differ from in a single parameter (of several such, the
    best on validation). Nothing is picked among the rest, so no series is flattered by a search.
    """
    families: dict[tuple[str, str], list[Group]] = defaultdict(list)
    in_grids = {(grid.data, model) for grid in grids(groups) for model in grid.models}
    for group in groups:
        if (group.data, group.model) not in in_grids:
            families[group.data, group.model].append(group)
    found: dict[str, list[Series]] = defaultdict(list)
    for family in families.values():
        for series in family_series(family):
            found[series.parameter].append(series)
    known = [name for name in PARAMETERS if name in found]
    return {name: found[name] for name in [*known, *sorted(set(found) - set(known))]}


def grids(groups: Sequence[Group]) -> list[Grid]:
    """The grid of each data set that has one."""
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_data[group.data].append(group)
    return [grid for same in by_data.values() if (grid := grid_of(same)) is not None]


def family_series(family: Sequence[Group]) -> list[Series]:
    """The series of the groups of one model on one data set.

    Where some groups are in none, settings vary together (a small, a wide and a deep size); two groups that happen to
    differ in one of them are then no sweep, and only series of three and more count.
    """
    parameters = joint_parameters(family)
    if not parameters:
        return []
    cells = [tuple(json.dumps(group.settings.get(keys[0]), default=str) for keys in parameters) for group in family]

    def neighbours(place: int) -> dict[int, list[int]]:
        """For each parameter, the groups that differ from one in that parameter alone."""
        by_parameter: dict[int, list[int]] = defaultdict(list)
        for other, cell in enumerate(cells):
            differing = [i for i, (a, b) in enumerate(zip(cells[place], cell, strict=True)) if a != b]
            if len(differing) == 1:
                by_parameter[differing[0]].append(other)
        return by_parameter

    reach = {place: neighbours(place) for place in range(len(family))}
    base = min(reach, key=lambda place: (-sum(map(len, reach[place].values())), validation_loss(family[place])))
    short = short_names([key for keys in parameters for key in keys])
    reached = len({base, *(place for others in reach[base].values() for place in others)})
    fewest = 2 if reached == len(family) else 3
    series = []
    for i, others in reach[base].items():
        if len(others) + 1 < fewest:
            continue
        key, *follows = parameters[i]
        members = sorted((family[place] for place in {base, *others}), key=lambda group: in_order(group.settings[key]))
        values = tuple(group.settings[key] for group in members)
        one = family[base]
        follows = tuple(short[follow] for follow in follows)
        series.append(Series(short[key], follows, one.model, one.data, values, tuple(members), one))
    return series


def joint_parameters(family: Sequence[Group]) -> list[list[str]]:
    """The keys that vary, those that always change together in one list, the one to name it by first."""
    together: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key in dict.fromkeys(key for group in family for key in group.settings):
        values = [json.dumps(group.settings.get(key), default=str) for group in family]
        pattern = tuple(values.index(value) for value in values)
        if any(pattern):
            together[pattern].append(key)

    return [sorted(keys, key=lambda key: (importance(key), key.split(".")[-1])) for keys in together.values()]
