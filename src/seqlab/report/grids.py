"""Sweeps over data settings and one size: accuracy in every combination, and the size that each setting needs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seqlab.config.overrides import flatten
from seqlab.report.curves import is_number
from seqlab.report.formats import NONE
from seqlab.report.groups import FINGERPRINT, Group, in_json, in_order, in_short, short_names
from seqlab.report.rows import Row
from seqlab.report.statistics import Estimate
from seqlab.runs.targets import is_for

PARAMETERS = {
    "d_model": "width (d_model)",
    "n_layers": "layers",
    "n_heads": "attention heads",
    "d_state": "state size (d_state)",
    "length": "context length",
    "lr": "learning rate",
}
"""Titles of swept parameters, in the order of their panels; any other follows under its own name."""

ENOUGH = 0.99
"""Accuracy from which a task counts as solved."""

Points = dict[tuple[str, float], Group]
"""Groups of one model by data setting (its title) and size."""


@dataclass(frozen=True)
class Grid:
    """Every model at every data setting and size, as far as runs completed.

    Args:
        parameter: the size's short name.
        titles: of the data settings, in order: ``length 64, pairs 4``.
        sizes: in ascending order.
        models: by name; places without a completed run are absent.
        follows: which other settings change along with the data setting or the size.
        left_out: models with several settings at one place, of which none is picked.
    """

    parameter: str
    titles: tuple[str, ...]
    sizes: tuple[float, ...]
    models: dict[str, Points]
    follows: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def missing(self) -> int:
        """Places without a completed run."""
        return len(self.titles) * len(self.sizes) * len(self.models) - sum(map(len, self.models.values()))

    def line(self, model: str, title: str) -> dict[float, Group]:
        """One model at one data setting, by size."""
        points = self.models[model]
        return {size: points[title, size] for size in self.sizes if (title, size) in points}


def headline(rows: Sequence[Row]) -> str:
    """The test metric to judge rows of one data set by: accuracy where the data has it, as probes do, else the loss."""
    return "accuracy" if rows and all("accuracy" in row.test for row in rows) else "loss"


def importance(key: str) -> int:
    """A sort key of dotted keys: the place of its last name in ``PARAMETERS``, other names after these."""
    names = [*PARAMETERS, name := key.split(".")[-1]]
    return names.index(name)


def grid_of(groups: Sequence[Group]) -> Grid | None:
    """The grid that groups of one data set form, ``None`` where they form none.

    They do if some model was trained at several sizes in each of several data settings; runs that vary one thing at a
    time around a base setting do not.
    """
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    data_keys = sorted((key for key in keys if key.startswith("data.")), key=importance)
    sizes = sorted((key for key in keys if key.startswith("size.")), key=importance)
    if not data_keys:
        return None
    flats = [flatten(group.runs[0].config) for group in groups]
    titles = titles_of(data_keys, flats)
    candidates = (grid_over(groups, size, [flat.get(size) for flat in flats], titles, data_keys) for size in sizes)
    return next(filter(None, candidates), None)


def titles_of(keys: Sequence[str], flats: Sequence[dict[str, Any]]) -> list[str]:
    """Each configuration's data setting in words; lists are left out unless settings differ in nothing else."""

    def different(some: Sequence[str]) -> int:
        return len({in_json([flat.get(key) for key in some]) for flat in flats})

    simple = [key for key in keys if not any(isinstance(flat.get(key), list) for flat in flats)]
    named = simple if different(simple) == different(keys) else keys
    names = short_names(list(named))
    return [", ".join(f"{names[key]} {in_short(flat.get(key))}" for key in named) for flat in flats]


def grid_over(
    groups: Sequence[Group], size: str, sizes: Sequence[Any], titles: Sequence[str], data_keys: Sequence[str]
) -> Grid | None:
    """The grid over one size setting; ``None`` if the groups form none.

    Args:
        groups: of one data set.
        size: the setting's dotted key.
        sizes: its value in each group.
        titles: each group's data setting in words.
        data_keys: the dotted keys of the data settings.
    """
    places: dict[str, dict[tuple[str, float], list[Group]]] = defaultdict(lambda: defaultdict(list))
    for group, value, title in zip(groups, sizes, titles, strict=True):
        if is_number(value):
            places[group.model][title, value].append(group)
    models = {
        model: {place: same[0] for place, same in points.items()}
        for model, points in places.items()
        if all(len(same) == 1 for same in points.values())
    }
    if not any(crosses(points) for points in models.values()):
        return None
    examples = {title: group for points in models.values() for (title, _), group in points.items()}
    flats = {title: flatten(group.runs[0].config) for title, group in examples.items()}
    keys = dict.fromkeys(key for points in models.values() for group in points.values() for key in group.settings)
    names = short_names(list(keys))
    return Grid(
        parameter=names[size],
        titles=tuple(sorted(flats, key=lambda title: [in_order(flats[title].get(key)) for key in data_keys])),
        sizes=tuple(sorted({value for points in models.values() for _, value in points})),
        models=models,
        follows=tuple(names[key] for key in keys if key not in (size, FINGERPRINT, *data_keys)),
        left_out=tuple(model for model in places if model not in models),
    )


def crosses(points: Points) -> bool:
    """Whether at least two data settings have several sizes each."""
    titles = [title for title, _ in points]
    return sum(titles.count(title) > 1 for title in set(titles)) > 1


def bounds_of(grid: Grid, metric: str) -> dict[float, tuple[str, ...]]:
    """The bounds that a target sets for a metric at every place of a grid, with the models that it is for.

    Args:
        grid: of which.
        metric: of the test split.

    Returns:
        By bound, the models' names in the grid's order; without the bounds set at only some of a model's places.
    """
    found: dict[float, list[str]] = defaultdict(list)
    for model, points in grid.models.items():
        asked = [
            {bound for target in run.summary.get("targets") or [] for bound in bounds_for(target, model, metric)}
            for group in points.values()
            for run in group.runs
        ]
        for bound in sorted(set.intersection(*asked)):
            found[bound].append(model)
    return {bound: tuple(models) for bound, models in found.items()}


def bounds_for(target: dict[str, Any], model: str, metric: str) -> list[float]:
    """The bounds that a judged target sets for a model's metric of the test split; a published figure is no bound."""
    if target["metric"] != f"test.{metric}" or not is_for(target["rule"], model):
        return []
    return [target["rule"][name] for name in ("at_least", "at_most") if target["rule"].get(name) is not None]


def sizes_needed(grid: Grid, accuracy: dict[int, Estimate]) -> list[list[str]]:
    """A line for each model: its name, and for each data setting the smallest size with an accuracy of ``ENOUGH``.

    Args:
        grid: of which.
        accuracy: of each group, by its ``id``.
    """

    def needed(model: str, title: str) -> str:
        line = grid.line(model, title)
        solved = [size for size, group in line.items() if accuracy[id(group)].mean >= ENOUGH]
        if not line:
            return NONE
        if not solved:
            return "none" if len(line) == len(grid.sizes) else f"none of {', '.join(map(in_short, line))}"
        untried = any(size < solved[0] and size not in line for size in grid.sizes)
        return f"at most {in_short(solved[0])}" if untried else in_short(solved[0])

    return [[model, *(needed(model, title) for title in grid.titles)] for model in grid.models]
