"""The figures of one data set; each function draws one, or nothing where the runs hold nothing of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seqlab.formatting import counted
from seqlab.report.grids import headline
from seqlab.report.groups import Group
from seqlab.report.plots.bands import AXES, Band, bands, loss_by_position
from seqlab.report.plots.choices import prominent
from seqlab.report.plots.drawing import (
    FIRST,
    TITLES,
    WIDTH,
    draw_background,
    draw_band,
    finish,
    format_axis,
    legend_handle,
    limits,
    save,
    wide,
)
from seqlab.report.plots.style import Style
from seqlab.report.rows import Row
from seqlab.report.statistics import INTERVAL as OF_MEAN
from seqlab.report.statistics import Estimate

POINTS = 120
BACKGROUND_POINTS = 40
MOST_BACKGROUND = 60
EXTENT = "bands: lowest and highest seed"
ALONE = "Thin lines: single seeds, where others have not begun or have ended."
CUT = (
    f"Left out at the top: losses that only the first {100 * FIRST:.0f} % of the steps have, "
    "since their fall would flatten all that follows."
)
INTERVAL = f"bars: {OF_MEAN}"


@dataclass(frozen=True)
class Picture:
    """What the figures of one data set are drawn from: groups with the look and the test loss of each."""

    data: str
    rows: list[Row]
    styles: list[Style]

    @cached_property
    def groups(self) -> list[Group]:
        return [row.group for row in self.rows]

    @cached_property
    def test(self) -> list[Estimate]:
        return [row.test["loss"] for row in self.rows]

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
        """Each group's test metric that the data is judged by, by the group's ``id``."""
        return {id(row.group): row.test[self.headline] for row in self.rows}

    @cached_property
    def prominent(self) -> list[int]:
        """Places of the groups that the legend names."""
        return prominent(self.rows)

    @cached_property
    def background(self) -> list[int]:
        """Places of the groups that are drawn without a name; of very many others those that validation prefers."""
        others = set(range(len(self.rows))) - set(self.prominent)
        return sorted(others, key=lambda place: self.rows[place].validation["loss"].mean)[:MOST_BACKGROUND]

    def seeds(self) -> str:
        """How many runs stand behind a line, for a caption."""
        counts = sorted({len(group.runs) for group in self.groups})
        if counts == [1]:
            return "One seed, so no interval"
        return (
            f"Mean over {counted(counts[0], 'seed')}"
            if len(counts) == 1
            else f"Mean over {counts[0]} to {counts[-1]} seeds"
        )

    def opening(self, extent: str, groups: Iterable[Group]) -> str:
        """How a caption begins; ``extent`` says what shows the spread, if one of the groups drawn has any."""
        several = any(len(group.runs) > 1 for group in groups)
        return f"{self.data}. {self.seeds()}{'; ' + extent if several else ''}."

    def caption(self, extent: str, *, every_point: bool = False) -> str:
        others, drawn = len(self.groups) - len(self.prominent), len(self.background)
        faint = (
            f"the {others} others" if drawn == others or every_point else f"the next best {drawn} of {others} others"
        )
        stand_out = f" In the legend: each model's best setting on validation; faint: {faint}."
        return self.opening(extent, self.groups) + (stand_out if others else "")

    def legend(self, *, line: bool = True, marker: bool = False) -> list[tuple[Line2D, str]]:
        return [(legend_handle(self.styles[i], line=line, marker=marker), self.groups[i].label) for i in self.prominent]


def loss_figure(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Training and validation loss against every axis."""
    splits = {"train": "training loss", "validation": "validation loss"}
    found = {split: curves_of(picture, split) for split in splits}
    found = {split: curves for split, curves in found.items() if curves}
    if not found:
        return []
    figure = Figure(figsize=(WIDTH, 0.4 + 1.6 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), len(AXES), sharex="col", sharey="row", squeeze=False)
    for place, axis in enumerate(AXES):
        panels = [{i: one[axis] for i, one in curves.items() if axis in one} for curves in found.values()]
        log = axis in ("flops", "seconds") and wide([one.ends[1] for panel in panels for one in panel.values()], 4)
        for row, panel in zip(grid, panels, strict=True):
            draw_curves(row[place], picture, panel, log=log)
        format_axis(grid[0, place], "x", log=log)
        grid[-1, place].set_xlabel(TITLES[axis])
    cut = False
    for row, (split, curves) in zip(grid, found.items(), strict=True):
        by_step = [by_axis.get("step") or next(iter(by_axis.values())) for by_axis in curves.values()]
        top = finish_losses(row, splits[split], by_step)
        cut = cut or (top is not None and max(one.losses().max() for one in by_step) > top)
    several = any(one.alone for curves in found.values() for by_axis in curves.values() for one in by_axis.values())
    parts = [picture.caption(EXTENT), ALONE if several else "", CUT if cut else ""]
    caption = " ".join(part for part in parts if part)
    finish(figure, picture.legend(), caption)
    return save(figure, folder, name, caption)


def curves_of(picture: Picture, split: str) -> dict[int, dict[str, Band]]:
    """By group, its loss on a split against every axis, with fewer points in the background."""
    wanted = dict.fromkeys(picture.prominent, POINTS) | dict.fromkeys(picture.background, BACKGROUND_POINTS)
    found = {i: bands(picture.groups[i], split, points) for i, points in wanted.items()}
    return {i: by_axis for i, by_axis in found.items() if by_axis}


def draw_curves(axes: Axes, picture: Picture, curves: dict[int, Band], *, log: bool) -> None:
    """The lines of one panel, those that the legend names with their bands."""
    drawn = {i: curve.beyond_zero() if log else curve for i, curve in curves.items()}
    drawn = {i: curve for i, curve in drawn.items() if len(curve.x) or curve.alone}
    behind = [i for i in picture.background if i in drawn]
    draw_background(axes, [drawn[i] for i in behind], [picture.styles[i] for i in behind])
    for i in picture.prominent:
        if i in drawn:
            draw_band(axes, drawn[i], picture.styles[i])


def finish_losses(row: Sequence[Axes], title: str, curves: Sequence[Band]) -> float | None:
    """The loss axis that a row of panels shares, for curves against steps; returns where it ends at the top."""
    row[0].set_ylabel(title)
    extent = limits(curves)
    if extent is None:
        return None
    lows = [band.losses().min() for band in curves]
    log = wide([*lows, extent[1]], 20)
    if log:
        extent = min(lows) * 0.9, extent[1]
    row[0].set_ylim(*extent)
    format_axis(row[0], "y", log=log)
    return extent[1]


def position_figure(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Test loss by position in the context."""
    found = {i: loss_by_position(picture.groups[i]) for i in [*picture.prominent, *picture.background]}
    curves = {i: curve for i, curve in found.items() if curve is not None and len(curve.x) > 1}
    if not curves:
        return []
    figure = Figure(figsize=(WIDTH * 0.6, 2.6), layout="constrained")
    axes = figure.subplots()
    draw_curves(axes, picture, curves, log=True)
    axes.set(xlabel="position in the context", ylabel="test loss")
    format_axis(axes, "x", log=True)
    ends = [end for curve in curves.values() for end in (curve.low.min(), curve.high.max())]
    format_axis(axes, "y", log=wide(ends, 20))
    caption = f"{picture.caption(EXTENT)} Later positions: means of ever wider bins."
    finish(figure, picture.legend(), caption)
    return save(figure, folder, name, caption)
