"""Curves of a group's runs as one line and one band, with few enough points to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray

from seqlab.report.curves import AXES
from seqlab.report.groups import Group
from seqlab.report.runs import Run
from seqlab.report.statistics import Estimate

FIRST = 0.02
"""The share of the steps, at the start, whose losses may leave the frame: their fall would flatten the rest."""


@dataclass(frozen=True)
class Band:
    """A line with its spread, over ``n`` seeds.

    ``x``, ``mean``, ``low`` and ``high`` are arrays (points,). The ends of a curve are the lowest and the highest seed,
    where every seed has values; with one seed the three are the same array. The ends of an estimate are those of its
    interval, NaN without one. ``alone`` holds the parts ``(x, y)`` of single seeds where another has no values.
    """

    x: ndarray
    mean: ndarray
    low: ndarray
    high: ndarray
    n: int
    alone: tuple[tuple[ndarray, ndarray], ...] = ()

    def beyond_zero(self) -> "Band":
        """The part with x above zero, for a logarithmic axis."""
        shown = self.x > 0
        alone = tuple((x[x > 0], y[x > 0]) for x, y in self.alone if (x > 0).any())
        return Band(self.x[shown], self.mean[shown], self.low[shown], self.high[shown], self.n, alone)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest x of any seed."""
        places = np.concatenate([self.x, *(x for x, _ in self.alone)])
        return float(places.min()), float(places.max())

    def losses(self, start: float = -np.inf) -> ndarray:
        """Every value from ``start`` on, (values,): the band's edges and the single seeds."""
        parts = [(self.x, self.low), (self.x, self.high), *self.alone]
        return np.concatenate([y[x >= start] for x, y in parts])

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest loss, of more than two points the highest without the first steps."""
        late = self.losses(FIRST * self.ends[1]) if len(self.x) > 2 else self.losses()
        return float(self.losses().min()), float(late.max())


def band_of_estimates(x: Sequence[float], estimates: Sequence[Estimate]) -> Band:
    """Means with their intervals."""
    ends = [[np.nan, np.nan] if one.low is None else [one.low, one.high] for one in estimates]
    low, high = np.array(ends, dtype=float).reshape(-1, 2).T
    means = np.array([one.mean for one in estimates])
    return Band(np.array(x, dtype=float), means, low, high, max((one.n for one in estimates), default=0))


def thin(columns: Sequence[ndarray], points: int) -> ndarray:
    """Columns (columns, rows) reduced to at most ``points`` rows, the means of consecutive rows: (columns, points).

    A mean of all rows, since every tenth row alone would show the noise of single batches.
    """
    values = np.asarray(columns)
    if values.shape[1] <= points:
        return values
    starts, counts = parts(values.shape[1], points)
    return np.add.reduceat(values, starts, axis=1) / counts


@lru_cache(maxsize=64)
def parts(length: int, points: int) -> tuple[ndarray, ndarray]:
    """Where each of ``points`` parts of a length begins, (points,), and how long it is, (points,)."""
    starts = np.linspace(0, length, points, endpoint=False).astype(np.intp)
    return starts, np.diff(starts, append=length)


def thinned_curve(run: Run, split: str, points: int) -> dict[str, ndarray]:
    """A run's loss on a split where it is finite, and the axes recorded throughout: arrays (points,) by name.

    Empty without such a curve.
    """
    columns = run.curves.get(split, {})
    if "loss" not in columns:
        return {}
    kept = np.isfinite(columns["loss"])
    axes = [axis for axis in AXES if axis in columns and np.isfinite(columns[axis][kept]).all()]
    if not kept.any() or not axes:
        return {}
    names = [*axes, "loss"]
    values = np.stack([columns[name] for name in names])[:, kept]  # (axes and loss, rows)
    return dict(zip(names, thin(values, points), strict=True))


def band(curves: Sequence[tuple[ndarray, ndarray]]) -> Band | None:
    """Mean and extent of several curves ``(x, y)``, arrays (points,), where all have values; the rest alone.

    Curves measured at different places are interpolated at the places of the first, never beyond an end. Seeds differ
    in their seconds (the first one compiles, a GPU is shared). If they have none in common, there is no mean. ``None``
    without any curve.
    """
    if not curves:
        return None
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    first = curves[0][0]
    grid = first[(first >= low) & (first <= high)]
    if high > low:
        grid = np.unique(np.concatenate([grid, [low, high]]))
    alone = tuple(part for curve in curves for part in outside(curve, low, high))
    if not len(grid):
        return Band(grid, grid, grid, grid, len(curves), alone)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # (seeds, points)
    return Band(grid, *extent_of(values), len(curves), alone)


def outside(curve: tuple[ndarray, ndarray], low: float, high: float) -> list[tuple[ndarray, ndarray]]:
    """The parts of a curve, arrays (points,), before ``low`` and after ``high``; all of it if ``low`` is higher."""
    x, y = curve
    if low > high:
        return [curve]
    parts = []
    for kept, end in ((x < low, low), (x > high, high)):
        if kept.any():
            places = np.sort(np.append(x[kept], end))
            parts.append((places, np.interp(places, x, y)))
    return parts


def bands(group: Group, split: str, points: int) -> dict[str, Band]:
    """A group's loss on a split against every axis that all of its runs have."""
    curves = [curve for run in group.runs if (curve := thinned_curve(run, split, points))]
    extent = None
    found = {}
    for axis in AXES:
        if not curves or not all(axis in curve for curve in curves):
            continue
        if alike([curve[axis] for curve in curves]):  # as steps nearly always are; these axes share the extent
            extent = extent or extent_of(np.stack([curve["loss"] for curve in curves]))
            found[axis] = Band(curves[0][axis], *extent, len(curves))
        else:
            found[axis] = band([(curve[axis], curve["loss"]) for curve in curves])
    return found


def alike(places: Sequence[ndarray]) -> bool:
    """Whether curves have the same places, arrays (points,), in ascending order."""
    first, *others = places
    return bool((first[1:] > first[:-1]).all()) and all(np.array_equal(first, other) for other in others)


def extent_of(values: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Mean, lowest and highest of values (seeds, points) over the seeds, each (points,); with one seed one array."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    return values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def loss_by_position(group: Group, points: int = 64) -> Band | None:
    """Test loss at each position of the context, counted from 1; later positions are averaged in ever wider bins.

    ``None`` where no run has such losses, or where their numbers differ.
    """
    losses = [loss for run in group.runs if (loss := run.summary.get("test_loss_by_position"))]
    if not losses or len({len(loss) for loss in losses}) > 1:
        return None
    values = np.array(losses, dtype=float)  # (seeds, positions), NaN where a task asks for nothing
    asked = np.flatnonzero(np.isfinite(values).all(axis=0))
    if not len(asked):
        return None
    edges = np.unique(np.geomspace(1, values.shape[1] + 1, points).round())
    bins = np.searchsorted(edges, asked + 1, side="right")  # of each position
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    counts = np.diff(starts, append=len(asked))
    x = np.exp(np.add.reduceat(np.log(asked + 1), starts) / counts)
    return Band(x, *extent_of(np.add.reduceat(values[:, asked], starts, axis=1) / counts), len(losses))
