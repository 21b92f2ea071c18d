"""Which parameters were swept: groups that differ from a base setting in a single parameter."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from seqlab.report.grids import PARAMETERS, grid_of, importance
from seqlab.report.groups import Group, by_pattern, grouped, in_json, in_order, short_names


@dataclass(frozen=True)
class Series:
    """Groups of one model that differ in one parameter only, by its value.

    ``base`` is the group that all series of the model contain. ``follows`` are the parameters that always change along.
    """

    parameter: str
    follows: tuple[str, ...]
    model: str
    values: tuple[Any, ...]
    groups: tuple[Group, ...]
    base: Group


def sweeps(groups: Sequence[Group]) -> dict[str, list[Series]]:
    """For each parameter swept on one data set, a series for each model that sweeps it.

    Models that form a grid over data settings and sizes have a picture of their own and no series. All series of a
    model contain one base setting: the one from which most others differ in a single parameter, and of several such the
    best on validation. Other groups are not selected by their results, which would favour models with more settings.
    """
    grid = grid_of(groups)
    others = [group for group in groups if grid is None or group.model not in grid.models]
    families = grouped(others, attrgetter("model")).values()
    found = grouped((series for family in families for series in family_series(family)), attrgetter("parameter"))
    known = [name for name in PARAMETERS if name in found]
    return {name: found[name] for name in [*known, *sorted(set(found) - set(known))]}


def family_series(family: Sequence[Group]) -> list[Series]:
    """The series of the groups of one model on one data set.

    Where some groups are in no series, settings vary together, as in named sizes. Two groups that happen to differ in
    one parameter are then no sweep, and only series of at least three count.
    """
    parameters = joint_parameters(family)
    if not parameters:
        return []
    cells = [tuple(in_json(group.settings[keys[0]]) for keys in parameters) for group in family]

    def neighbours(place: int) -> dict[int, list[int]]:
        """For each parameter, the groups that differ from one in that parameter alone."""
        by_parameter: dict[int, list[int]] = defaultdict(list)
        for other, cell in enumerate(cells):
            differing = [i for i, (a, b) in enumerate(zip(cells[place], cell, strict=True)) if a != b]
            if len(differing) == 1:
                by_parameter[differing[0]].append(other)
        return by_parameter

    reach = {place: neighbours(place) for place in range(len(family))}
    base = min(reach, key=lambda place: (-sum(map(len, reach[place].values())), family[place].validation_loss))
    short = short_names([key for keys in parameters for key in keys])
    reached = 1 + sum(map(len, reach[base].values()))
    fewest = 2 if reached == len(family) else 3
    series = []
    for i, others in reach[base].items():
        if len(others) + 1 < fewest:
            continue
        key, *follows = parameters[i]
        members = sorted((family[place] for place in (base, *others)), key=lambda group: in_order(group.settings[key]))
        series.append(
            Series(
                parameter=short[key],
                follows=tuple(short[follow] for follow in follows),
                model=family[base].model,
                values=tuple(group.settings[key] for group in members),
                groups=tuple(members),
                base=family[base],
            )
        )
    return series


def joint_parameters(family: Sequence[Group]) -> list[list[str]]:
    """The keys that vary; those that always change together are in one list, the most important first."""
    together = [keys for pattern, keys in by_pattern([group.settings for group in family]).items() if any(pattern)]
    return [sorted(keys, key=lambda key: (importance(key), key.split(".")[-1])) for keys in together]
