"""The groups of one data set, with what all their charts share: styles, the groups in the legend, the metric."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter

from seqlab.report.compare import Comparison
from seqlab.report.fits import Fit
from seqlab.report.grids import Grid, grid_of, headline
from seqlab.report.groups import Group, grouped
from seqlab.report.plots.style import Style, styles
from seqlab.report.plots.sweeps import Series, sweeps
from seqlab.report.rows import Row
from seqlab.report.statistics import Estimate

PROMINENT = 12
"""The most groups that a legend names; of more, it names the best setting of each model."""

MOST_BACKGROUND = 60


@dataclass(frozen=True)
class DataSet:
    """What the charts of one data set are drawn from.

    Args:
        name: the data's.
        rows: one for each group.
        styles: the style of each group.
        everyone: every model of the comparison, among which colours are chosen.
        fits: of the data's losses to training FLOPs.
    """

    name: str
    rows: list[Row]
    styles: list[Style]
    everyone: list[str]
    fits: list[Fit] = field(default_factory=list)

    @cached_property
    def groups(self) -> list[Group]:
        """The group of each row."""
        return [row.group for row in self.rows]

    @cached_property
    def place(self) -> dict[int, int]:
        """Each group's place among the rows, by the group's ``id``."""
        return {id(group): i for i, group in enumerate(self.groups)}

    @cached_property
    def headline(self) -> str:
        """The metric that the data is judged by."""
        return headline(self.rows)

    @property
    def is_share(self) -> bool:
        """Whether that metric lies between 0 and 1."""
        return self.headline != "loss"

    @cached_property
    def headlines(self) -> dict[int, Estimate]:
        """Each group's value of that metric on the test split, by the group's ``id``."""
        return {id(row.group): row.test[self.headline] for row in self.rows}

    @cached_property
    def prominent(self) -> list[int]:
        """Places of the groups that the legend names: all, or of too many each model's best."""
        return prominent(self.rows)

    @cached_property
    def background(self) -> list[int]:
        """Places of the groups that are drawn without a name, at most ``MOST_BACKGROUND``, the best on validation."""
        others = set(range(len(self.rows))) - set(self.prominent)
        return sorted(others, key=lambda place: self.rows[place].validation["loss"].mean)[:MOST_BACKGROUND]

    @cached_property
    def sweeps(self) -> dict[str, list[Series]]:
        """The series of each swept parameter."""
        return sweeps(self.groups)

    @cached_property
    def grid(self) -> Grid | None:
        """The grid over data settings and sizes, if the groups form one."""
        return grid_of(self.groups)

    def styles_of(self, models: Sequence[str]) -> dict[str, Style]:
        """One style for each model, for lines that join its settings."""
        return dict(zip(models, styles(models, self.everyone), strict=True))


def data_sets(comparison: Comparison) -> list[DataSet]:
    """The data sets of a comparison, in the order of its groups."""
    rows = {id(row.group): row for row in comparison.rows}
    everyone = [group.model for group in comparison.groups]
    by_data = grouped((rows[id(group)] for group in comparison.groups), attrgetter("group.data"))
    return [
        DataSet(
            name,
            same,
            styles([row.group.model for row in same], everyone),
            everyone,
            [one for one in comparison.fits if one.data == name],
        )
        for name, same in by_data.items()
    ]


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
