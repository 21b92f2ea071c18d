"""Loss against training FLOPs: a power law for each architecture that was trained with several budgets, and where two
of them are equal.

The fitted groups of an architecture are those that no other setting of it beats on validation at equal FLOPs, as the
best of several sizes at each budget (Hoffmann et al. 2022, arXiv:2203.15556, section 3.1). The losses are those
of the test split, one for each run.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from statistics import fmean

import numpy as np
from numpy import ndarray

from seqlab.config.influence import CHANGEABLE
from seqlab.report.formats import scaled
from seqlab.report.groups import Group, architecture, grouped, in_json, in_short, with_effect
from seqlab.report.power_law import UNKNOWNS, PowerLaw, f_bound, fit
from seqlab.report.statistics import COVERAGE, Estimate

FEWEST = 4
"""Budgets that a fit takes: one more than it has unknowns."""

LISTED = 3
"""Budgets from which on an architecture is named, fitted or not."""

ALIKE = 0.02
"""Relative difference up to which FLOPs count as equal; ``match=flops`` leaves 1 % to either side."""

FALL = 3
"""The least fall of the loss that is fitted, in standard deviations of a run around the curve."""

IDENTIFIED = "E and a are identified"
"""The verdict where there is nothing to object to."""

POINTS = 200
"""Places over the common range at which two curves are compared."""


@dataclass(frozen=True)
class Fit:
    """The losses of one architecture against its training FLOPs.

    Args:
        label: the architecture, with the settings of its data where several of one name are compared.
        groups: those that are fitted, in ascending order of FLOPs.
        beaten: the architecture's other groups.
        law: the curve; ``None`` without one.
        verdict: why there is no curve, what it cannot tell, or that it can.
    """

    label: str
    groups: tuple[Group, ...]
    beaten: tuple[Group, ...]
    law: PowerLaw | None
    verdict: str

    @property
    def data(self) -> str:
        """The data's name."""
        return self.groups[0].data

    @property
    def runs(self) -> int:
        """The number of runs that are fitted."""
        return sum(len(group.runs) for group in self.groups)

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The least and the greatest FLOPs that were measured."""
        return flops_of(self.groups[0]), flops_of(self.groups[-1])


@dataclass(frozen=True)
class Gap:
    """Two fitted curves over the FLOPs that both were measured at.

    Args:
        first, second: the curves; at the greatest common FLOPs the first one is lower.
        places: FLOPs at which the difference is given: the ends of the common range, and a budget asked for.
        differences: of ``second`` minus ``first`` there.
        crossing: FLOPs at which the curves are equal, if that is at one place of the range.
        equal: where around it no difference is shown, which is the interval of the crossing; ``None`` for an end that
            is not within the range.
        verdict: which curve is shown to be lower, and where: by a band that holds 95 % of the draws over all the range.
    """

    first: Fit
    second: Fit
    places: tuple[float, ...]
    differences: tuple[Estimate, ...]
    crossing: float | None
    equal: tuple[float | None, float | None]
    verdict: str


def flops_of(group: Group) -> float:
    """A group's mean training FLOPs."""
    return fmean(run.summary["flops"] for run in group.runs)


def fits_of(groups: Sequence[Group]) -> list[Fit]:
    """A fit, or why there is none, for each architecture with several budgets; ``groups`` are of the same data."""
    found = []
    for name, same in grouped(groups, lambda group: architecture(group.model)).items():
        budgets = {in_json(budget_of(group)) for group in same}
        fitted = unbeaten([group for group in same if flops_of(group) > 0])
        if len(budgets) > 1 and len(fitted) >= LISTED:
            of_data = [f"{key.split('.')[-1]}={in_short(value)}" for key, value in data_settings(fitted[0])]
            beaten = tuple(group for group in same if group not in fitted)
            found.append(Fit(", ".join([name, *of_data]), tuple(fitted), beaten, *fit_groups(fitted)))
    return found


def budget_of(group: Group) -> list[object]:
    """The settings of a group's budget."""
    return [group.runs[0].config["trainer"].get(name) for name in ("steps", "epochs", "tokens")]


def data_settings(group: Group) -> list[tuple[str, object]]:
    """The settings of its data in which a group differs from others of the data's name."""
    return [(key, value) for key, value in group.settings.items() if key.startswith("data.")]


def unbeaten(groups: Sequence[Group]) -> list[Group]:
    """The groups that no other setting beats on validation at equal FLOPs, in ascending order of FLOPs.

    A setting's validation loss is read on the straight line over log C between two of its budgets, and beyond its
    greatest one it is the last. Of one setting all budgets are fitted, whatever their seeds' scatter.
    """
    settings = {
        key: np.array(sorted((math.log(flops_of(group)), group.validation_loss) for group in same)).T
        for key, same in grouped(groups, settings_besides_budget).items()
    }

    def is_beaten(group: Group) -> bool:
        place, own = math.log(flops_of(group)) + ALIKE, settings_besides_budget(group)
        others = (np.interp(place, *line, left=np.inf) for key, line in settings.items() if key != own)
        return min(others, default=np.inf) < group.validation_loss

    return sorted((group for group in groups if not is_beaten(group)), key=flops_of)


def settings_besides_budget(group: Group) -> str:
    """Equal for groups that differ in their budget, and in how often they were evaluated, alone."""
    settings = with_effect(group.runs[0].config).items()
    return in_json([group.model, *sorted((key, value) for key, value in settings if key not in CHANGEABLE)])


def fit_groups(groups: Sequence[Group]) -> tuple[PowerLaw | None, str]:
    """The power law through the runs of groups, if their losses have one, and what it cannot tell."""
    flops, losses = (
        np.array([value(run) for group in groups for run in group.runs])
        for value in (lambda run: run.summary["flops"], lambda run: run.summary["test"]["loss"])
    )
    if len(groups) < FEWEST:
        return None, f"no fit: {len(groups)} budgets, and three unknowns take at least {FEWEST}"
    if losses.min() <= 0:
        return None, "no fit: a loss of 0 or less has no logarithm"
    law = fit(flops, losses)
    high, low = law.losses(np.array([flops.min(), flops.max()]))[0]
    if np.log(high / low) < FALL * law.scatter:
        return None, f"no fit: the loss falls by less than {FALL} times the runs' scatter"
    if not law.has_exponent:
        return law, "a is not identified: the loss has reached its lowest value by the second budget"
    if not law.has_offset:
        return law, f"E and a are not identified: a power law without E fits as well (a = {law.slope:.2g})"
    if misses(law, groups):
        return law, "the curve misses the means by more than the seeds' scatter"
    return law, IDENTIFIED


def misses(law: PowerLaw, groups: Sequence[Group]) -> bool:
    """Whether the means of groups leave the curve by more than seeds explain in 99 of 100 cases: an F test.

    It takes several seeds; what they scatter around their own means is compared with what the means leave.
    """
    logs = [np.log([run.summary["test"]["loss"] for run in group.runs]) for group in groups]
    spare, spare_of_means = law.n - len(groups), len(groups) - UNKNOWNS
    if not spare:
        return False
    of_seeds = sum(float(np.square(one - one.mean()).sum()) for one in logs)
    of_means = law.scatter**2 * (law.n - UNKNOWNS) - of_seeds
    return of_means > f_bound(spare_of_means, spare, 0.99) * spare_of_means / spare * of_seeds


def gaps_of(fits: Sequence[Fit], budget: float | None = None) -> list[Gap]:
    """Every pair of fitted curves of the same data where their measured ranges meet; ``budget``: FLOPs asked for."""
    found = []
    for pair in combinations([one for one in fits if one.law is not None], 2):
        if common := common_range(pair):
            low, high = common
            first = leading(pair)
            (second,) = (one for one in pair if one is not first)
            places = [low, high] if budget is None or not low <= budget <= high else [low, budget, high]
            found.append(gap(first, second, places))
    return found


def gap(first: Fit, second: Fit, places: Sequence[float]) -> Gap:
    """Two curves between the first and the last of ``places``, in FLOPs."""
    here = np.array(places)
    mean, draws = between(first, second, here)
    differences = tuple(first.law.estimate(*one) for one in zip(mean, draws.T, strict=True))
    grid = np.geomspace(here[0], here[-1], POINTS)
    mean, draws = between(first, second, grid)
    shown = np.sign(mean) * (np.abs(mean) > half_width(mean, draws))  # 1 where the first is shown to be better
    crossing, equal = crossing_of(grid, mean, shown)
    return Gap(first, second, tuple(places), differences, crossing, equal, verdict_of(first, second, grid, shown))


def leading(fits: Sequence[Fit]) -> Fit:
    """Of several fitted curves, the lowest at the greatest FLOPs that all were measured at."""
    end = np.array([min(one.extent[1] for one in fits)])
    return min(fits, key=lambda one: one.law.losses(end)[0][0])


def common_range(fits: Iterable[Fit]) -> tuple[float, float] | None:
    """The least and the greatest FLOPs that all were measured at; ``None`` where they do not meet."""
    lows, highs = zip(*(one.extent for one in fits), strict=True)
    return (max(lows), min(highs)) if max(lows) < min(highs) else None


def between(first: Fit, second: Fit, flops: ndarray) -> tuple[ndarray, ndarray]:
    """The second loss minus the first at FLOPs (points,), and its draws: (points,) and (DRAWS, points)."""
    one, other = first.law.losses(flops), second.law.losses(flops)
    return other[0] - one[0], other[1] - one[1]


def half_width(mean: ndarray, draws: ndarray) -> ndarray:
    """Half the width of a band around means (points,) that holds 95 % of draws (DRAWS, points) at all points."""
    std = np.maximum(draws.std(axis=0), 1e-12)
    return std * np.quantile((np.abs(draws - mean) / std).max(axis=1), COVERAGE)


def crossing_of(grid: ndarray, mean: ndarray, shown: ndarray) -> tuple[float | None, tuple[float | None, float | None]]:
    """Where the mean difference at FLOPs (points,) is zero, if at one place, and the ends of what is not shown around.

    These are the interval of the crossing: the FLOPs at which the band of the difference holds zero.
    """
    changes = np.flatnonzero(np.sign(mean[1:]) != np.sign(mean[:-1]))
    if len(changes) != 1:
        return None, (None, None)
    place = changes[0]
    share = mean[place] / (mean[place] - mean[place + 1])
    crossing = float(grid[place] * (grid[place + 1] / grid[place]) ** share)
    before, after = np.flatnonzero(shown[: place + 1]), np.flatnonzero(shown[place + 1 :])
    low = float(grid[before[-1]]) if len(before) else None
    return crossing, (low, float(grid[place + 1 + after[0]]) if len(after) else None)


def verdict_of(first: Fit, second: Fit, grid: ndarray, shown: ndarray) -> str:
    """Which curve is shown to be lower, and at which FLOPs (points,)."""
    edges = [0, *(np.flatnonzero(np.diff(shown)) + 1), len(shown)]
    ranges: dict[str, list[str]] = {}
    for start, end in pairwise(edges):
        low, high = scaled(grid[start]), scaled(grid[end - 1])
        if start == 0:
            where = "throughout" if end == len(shown) else f"below {high}"
        else:
            where = f"above {low}" if end == len(shown) else f"between {low} and {high}"
        if shown[start]:
            ranges.setdefault((first if shown[start] > 0 else second).label, []).append(where)
    found = [f"{label} is better {' and '.join(places)}" for label, places in ranges.items()]
    return ", ".join(found) or "no difference shown"
