"""Curves of a group's runs as one line and one band, thin enough to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy import ndarray

from seqlab.report.groups import Group
from seqlab.report.runs import Run

AXES = ("step", "tokens", "flops", "seconds")


@dataclass(frozen=True)
class Band:
    """One group's loss against one axis: the mean over its seeds, the lowest and the highest.

    ``x``, ``mean``, ``low`` and ``high`` have one value a point, all of them where every seed is; with one seed the
    last three are the same. ``alone`` holds the parts ``(x, y)`` of single seeds where some other seed is not.
    """

    x: ndarray
    mean: ndarray
    low: ndarray
    high: ndarray
    n: int
    alone: tuple[tuple[ndarray, ndarray], ...] = ()

    def beyond_zero(self) -> "Band":
        """The part that a logarithmic axis can show."""
        shown = self.x > 0
        alone = tuple((x[x > 0], y[x > 0]) for x, y in self.alone if (x > 0).any())
        return Band(self.x[shown], self.mean[shown], self.low[shown], self.high[shown], self.n, alone)

    @property
    def ends(self) -> tuple[float, float]:
        """Where the first seed begins and the last one ends."""
        places = np.concatenate([self.x, *(x for x, _ in self.alone)])
        return float(places.min()), float(places.max())

    def losses(self, start: float = -np.inf) -> ndarray:
        """Every value from a place on: the band's edges and the seeds alone."""
        parts = [(self.x, self.low), (self.x, self.high), *self.alone]
        return np.concatenate([y[x >= start] for x, y in parts])


def thin(columns: Sequence[ndarray], points: int) -> list[ndarray]:
    """Columns of equal length with at most so many rows: the means of consecutive rows.

    A mean of all rows, where picking every tenth would draw the noise of one batch.
    """
    length = len(columns[0])
    if length <= points:
        return list(columns)
    starts = np.linspace(0, length, points, endpoint=False).astype(np.intp)
    counts = np.diff(starts, append=length)
    return [np.add.reduceat(column, starts) / counts for column in columns]


def thinned_curve(run: Run, split: str, points: int) -> dict[str, ndarray]:
    """The loss of a run's split with its axes: finite rows only, thinned. Empty without such a curve."""
    columns = run.curves.get(split, {})
    axes = [axis for axis in AXES if axis in columns]
    if "loss" not in columns or not axes:
        return {}
    kept = np.isfinite(columns["loss"])
    for axis in axes:
        kept &= np.isfinite(columns[axis])
    if not kept.any():
        return {}
    rows = [columns[name] if kept.all() else columns[name][kept] for name in (*axes, "loss")]
    return dict(zip((*axes, "loss"), thin(rows, points), strict=True))


def band(curves: Sequence[tuple[ndarray, ndarray]]) -> Band | None:
    """Mean and extent of several curves ``(x, y)`` where all of them are, each alone elsewhere; ``None`` without any.

    Curves measured at different places are interpolated at the places of the first, never beyond an end. Seeds differ
    in their seconds (the first one compiles, a GPU is shared), up to having none in common: then there is no mean.
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
    """The parts of a curve before ``low`` and after ``high``, up to these; the whole where ``low`` is the higher."""
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
    """A group's loss on a split against every axis that its runs have."""
    curves = [curve for run in group.runs if (curve := thinned_curve(run, split, points))]
    axes = [axis for axis in AXES if curves and all(axis in curve for curve in curves)]
    aligned = [axis for axis in axes if alike([curve[axis] for curve in curves])]
    extent = extent_of(np.stack([curve["loss"] for curve in curves])) if aligned else None
    found = {}
    for axis in axes:
        if axis in aligned:  # as steps nearly always are: nothing lies outside, and one extent serves all
            one = Band(curves[0][axis], *extent, len(curves))
        else:
            one = band([(curve[axis], curve["loss"]) for curve in curves])
        if one is not None:
            found[axis] = one
    return found


def alike(places: Sequence[ndarray]) -> bool:
    """Whether curves are measured at the same places, each further than the one before."""
    first, *others = places
    return bool((first[1:] > first[:-1]).all()) and all(np.array_equal(first, other) for other in others)


def extent_of(values: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Mean, lowest and highest over the seeds of values (seeds, points)."""
    return values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def loss_by_position(group: Group, points: int = 64) -> Band | None:
    """Test loss at each position of the context, counted from 1; later positions as means of ever wider bins."""
    losses = [run.summary.get("test_loss_by_position") for run in group.runs]
    losses = [np.array(loss, dtype=float) for loss in losses if loss]
    if not losses or len({len(loss) for loss in losses}) > 1:
        return None
    values = np.stack(losses)  # (seeds, positions), NaN where a task asks for nothing
    x, bins = bins_of(np.isfinite(values).all(axis=0).tobytes(), points)
    if not bins:
        return None
    by_seed = np.stack([values[:, places].mean(axis=1) if len(places) > 1 else values[:, places[0]] for places in bins])
    return Band(x, *extent_of(by_seed.T), len(losses))  # (seeds, bins)


@lru_cache(maxsize=64)
def bins_of(asked: bytes, points: int) -> tuple[ndarray, list[ndarray]]:
    """Where each bin stands, and the positions that it holds, counted from 0.

    Args:
        asked: a flag for each position, whether it counts.
        points: bins at most.
    """
    counts = np.frombuffer(asked, dtype=bool)
    edges = np.unique(np.geomspace(1, len(counts) + 1, points).round().astype(int)) - 1
    bins = [start + np.flatnonzero(counts[start:end]) for start, end in pairwise(edges)]
    bins = [places for places in bins if len(places)]
    return np.array([np.exp(np.log(places + 1).mean()) for places in bins]), bins
