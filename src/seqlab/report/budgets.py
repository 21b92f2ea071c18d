"""Comparing at an equal budget by reading the curves where they are. Nothing is ever extrapolated."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from seqlab.errors import UserError
from seqlab.report.figures import scaled
from seqlab.report.groups import Group
from seqlab.report.rows import AtBudget
from seqlab.report.runs import Run
from seqlab.report.sizes import AtSize
from seqlab.report.statistics import estimate

Axis = Literal["tokens", "flops", "seconds", "params"]
UNITS = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training", "params": "parameters"}
ROUNDING = 1e-9
"""Relative; a budget that two runs share is not lost to the last bit of a float."""


@dataclass(frozen=True)
class At:
    """The equal budget of a comparison.

    Args:
        axis: what is made equal.
        budgets: by data: as asked for, or the largest that every run reaches.
        notes: which groups or seeds cannot be read there, and why.
        sizes: for ``params``: each architecture at the common number of parameters.
    """

    axis: Axis
    budgets: dict[str, float]
    notes: list[str] = field(default_factory=list)
    sizes: list[AtSize] = field(default_factory=list)


def parse_at(text: str) -> tuple[Axis, float | None]:
    """``tokens`` or ``tokens=1e6``: the axis, and the budget if it is given."""
    axis, given, value = text.partition("=")
    if axis not in get_args(Axis):
        remedy = f"Choose from {', '.join(get_args(Axis))}, with a budget if you like: --at tokens=1e6"
        raise UserError("--at", text, "is no budget that runs can share", remedy)
    if not given:
        return axis, None
    try:
        budget = float(value)
    except ValueError:
        budget = float("nan")
    if not 0 < budget < float("inf"):
        raise UserError("--at", text, "the budget has to be a number above 0", "For example --at tokens=1e6")
    return axis, budget


def points(run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """The validation losses of a run that are numbers, over what had been spent by then."""
    curve = run.curves["validation"]
    if axis not in curve:
        return np.empty(0), np.empty(0)
    x, y = curve[axis], curve["loss"]
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def read_at(run: Run, axis: str, budget: float) -> tuple[float, float] | None:
    """Validation loss at a budget, and the best up to it; ``None`` outside what the run was evaluated at."""
    x, y = points(run, axis)
    slack = budget * ROUNDING
    if not len(x) or budget < x[0] - slack or budget > x[-1] + slack:
        return None
    reached = y[x <= budget + slack]
    loss = float(np.interp(budget, x, y))
    return loss, float(reached.min()) if len(reached) else loss


def at_budget(groups: Sequence[Group], axis: Axis, given: float | None) -> tuple[At, dict[str, AtBudget]]:
    """The common budget of each data set, and each group there by label of data and group.

    Args:
        groups: those that are compared.
        axis: ``tokens``, ``flops`` or ``seconds``.
        given: the budget, or ``None`` for the largest that every run of the same data reaches.

    Raises:
        UserError: no run can be read at the budget that is given.
    """
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_data[group.data].append(group)
    budgets, notes, readings = {}, [], {}
    for data, same in by_data.items():
        ends = [x[-1] for group in same for run in group.runs if len(x := points(run, axis)[0])]
        if given is None and not ends:
            notes.append(f"{data}: no run has validation losses over {UNITS[axis]}")
            continue
        budget = budgets[data] = given if given is not None else float(min(ends))
        for group in same:
            reading, missing = read_group(group, axis, budget)
            notes += missing
            if reading is not None:
                readings[group.data, group.label] = reading
    if given is not None and not readings:
        raise read_by_none(groups, axis, given)
    return At(axis, budgets, notes), readings


def read_by_none(groups: Sequence[Group], axis: str, budget: float) -> UserError:
    """A budget that lies outside what every run was evaluated at, with what can be read instead."""
    known = [x for group in groups for run in group.runs if len(x := points(run, axis)[0])]
    typed = f"{axis}={budget:g}"
    if not known:
        remedy = f"Leave it out, or choose another axis from {', '.join(get_args(Axis))}"
        return UserError("--at", typed, f"no run has validation losses over {UNITS[axis]}", remedy)
    common, first, last = (
        float(one) for one in (min(x[-1] for x in known), min(x[0] for x in known), max(x[-1] for x in known))
    )
    rule = f"no run can be read there: they were evaluated from {scaled(first)} to {scaled(last)} {UNITS[axis]}"
    remedy = f"All reach {scaled(common)} ({axis}={common:.6g}), which --at {axis} takes by itself"
    return UserError("--at", typed, rule, remedy)


def read_group(group: Group, axis: str, budget: float) -> tuple[AtBudget | None, list[str]]:
    """A group at a budget, and notes on the seeds that were not evaluated on both sides of it."""
    values: list[tuple[float, float]] = []
    unread: dict[str, list[str]] = defaultdict(list)
    for run in group.runs:
        reading = read_at(run, axis, budget)
        if reading is not None:
            values.append(reading)
            continue
        x, _ = points(run, axis)
        why = (
            f"evaluated from {scaled(x[0])} to {scaled(x[-1])} {UNITS[axis]}"
            if len(x)
            else f"not evaluated over {UNITS[axis]}"
        )
        unread[why].append(str(run.summary["seed"]))
    notes = [
        f"Not at {scaled(budget)} {UNITS[axis]}: {group.label} on {group.data}, seed {', '.join(seeds)}, {why}"
        for why, seeds in unread.items()
    ]
    if not values:
        return None, notes
    losses, bests = zip(*values, strict=True)
    return AtBudget(estimate(losses), estimate(bests)), notes
