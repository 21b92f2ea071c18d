"""The captions of the pictures."""

from collections.abc import Iterable
from typing import Any

from seqlab.formatting import counted
from seqlab.report.grids import Grid, bounds_of
from seqlab.report.groups import Group, in_short
from seqlab.report.plots.bands import FIRST
from seqlab.report.plots.dataset import DataSet
from seqlab.report.plots.sweeps import Series
from seqlab.report.statistics import INTERVAL

BANDS = "bands: lowest and highest seed"
BARS = f"bars: {INTERVAL}"
ALONE = "Thin lines: single seeds, where others have not begun or have ended."
CUT = (
    f"Left out at the top: losses that only the first {100 * FIRST:.0f} % of the steps have, "
    "since their fall would flatten all that follows."
)


def opening(data: DataSet, spread: str, groups: Iterable[Group]) -> str:
    """The beginning of a caption: data, seeds, and what shows the spread if any of ``groups`` has several runs."""
    several = any(len(group.runs) > 1 for group in groups)
    return f"{data.name}. {seeds(data)}{'; ' + spread if several else ''}."


def seeds(*data: DataSet) -> str:
    """The number of seeds that a line is a mean over."""
    counts = sorted({len(group.runs) for one in data for group in one.groups})
    if counts == [1]:
        return "One seed, so no interval"
    if len(counts) == 1:
        return f"Mean over {counted(counts[0], 'seed')}"
    return f"Mean over {counts[0]} to {counts[-1]} seeds"


def caption(data: DataSet, spread: str, *more: str, every_point: bool = False) -> str:
    """A caption: its opening, which groups the legend names, and ``more``; ``every_point``: all groups are drawn."""
    others, drawn = len(data.groups) - len(data.prominent), len(data.background)
    faint = f"the {others} others" if drawn == others or every_point else f"the next best {drawn} of {others} others"
    stand_out = f"In the legend: each model's best setting on validation; faint: {faint}." if others else ""
    return joined(opening(data, spread, data.groups), stand_out, *more)


def joined(*sentences: str) -> str:
    """Sentences without the empty ones."""
    return " ".join(filter(None, sentences))


def bases(sweeps: dict[str, list[Series]]) -> str:
    """The base setting of each model, which the series of all panels share."""
    if len(sweeps) == 1:
        return "Nothing else changes along a line." if not next(iter(sweeps.values()))[0].follows else ""
    by_model = {one.model: one.base.settings for series in sweeps.values() for one in series}
    described = [f"{model} ({settings_in_words(base)})" for model, base in by_model.items()]
    return f"Each panel changes one parameter of a base setting: {'; '.join(described)}."


def settings_in_words(settings: dict[str, Any]) -> str:
    """Settings with short keys and values."""
    return ", ".join(f"{key.split('.')[-1]} {in_short(value)}" for key, value in settings.items())


def caption_of_grid(data: DataSet, grid: Grid, most_panels: int) -> str:
    """The caption of a grid: its groups, and what is missing or not drawn."""
    drawn = [group for points in grid.models.values() for group in points.values()]
    places = len(grid.titles) * len(grid.sizes) * len(grid.models)
    of_some = [
        f"The target {bound:g} is for {' and '.join(models)}."
        for bound, models in bounds_of(grid, data.headline).items()
        if len(models) < len(grid.models)
    ]
    left_out = f"Not drawn, with several settings at one place: {', '.join(grid.left_out)}."
    return joined(
        opening(data, BARS, drawn),
        *of_some,
        "Models stand side by side at each size." if len(grid.models) > 1 else "",
        f"The first {most_panels} of {len(grid.titles)} data settings." if len(grid.titles) > most_panels else "",
        f"Also different from place to place: {', '.join(grid.follows)}." if grid.follows else "",
        f"Missing points: {grid.missing} of {places} places have no completed run." if grid.missing else "",
        left_out if grid.left_out else "",
    )
