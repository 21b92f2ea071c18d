"""Comparing at an equal budget: of tokens, FLOPs or seconds on the curves, of parameters between trained sizes.

The loss is interpolated linearly between two evaluations, and over log N between two sizes of an architecture with N
parameters, for each seed that both have. Nothing is extrapolated.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import attrgetter
from typing import NoReturn

import numpy as np

from seqlab.errors import UserError
from seqlab.report.curves import AXES
from seqlab.report.formats import scaled
from seqlab.report.groups import Group, grouped, in_json, with_effect
from seqlab.report.rows import AtBudget
from seqlab.report.runs import Run
from seqlab.report.statistics import Estimate, estimate

UNITS = {axis: title for axis, title in AXES.items() if axis != "step"} | {"params": "parameters"}
"""The axes of ``--at`` and the units of their budgets; steps are no such axis, as batches differ."""

ROUNDING = 1e-9
"""Relative tolerance for the rounding of floats, when a run is read at its last evaluation."""

ALIKE = 0.01
"""Relative difference in parameters up to which two sizes count as equal."""


@dataclass(frozen=True)
class AtSize:
    """An architecture at a number of parameters.

    Args:
        architecture: the models' common name.
        data: trained on.
        parameters: the common number, if there is one.
        between: labels of the sizes it was read from: one with that number, or the two around it.
        validation, test: losses over the seeds; ``None`` where they cannot be read.
        note: why they cannot be read.
    """

    architecture: str
    data: str
    parameters: float | None
    between: tuple[str, ...]
    validation: Estimate | None
    test: Estimate | None
    note: str = ""


@dataclass(frozen=True)
class At:
    """The equal budget of a comparison.

    Args:
        axis: one of ``UNITS``.
        budgets: by data: the one asked for, or the largest that every run reaches.
        notes: which groups or seeds cannot be read there, and why.
        sizes: for ``params``: each architecture at the common number of parameters.
    """

    axis: str
    budgets: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sizes: list[AtSize] = field(default_factory=list)


def parse_at(text: str) -> tuple[str, float | None]:
    """The axis and the budget, ``None`` if not given, of ``tokens`` or ``tokens=1e6``.

    Raises:
        UserError: no such axis, or the budget is no finite number above 0.
    """
    axis, given, value = text.partition("=")
    if axis not in UNITS:
        remedy = f"Choose from {', '.join(UNITS)}, with a budget if you like: --at tokens=1e6"
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
    """The finite validation losses of a run and what had been spent by each: two arrays (evaluations,)."""
    curve = run.curves["validation"]
    if axis not in curve:
        return np.empty(0), np.empty(0)
    x, y = curve[axis], curve["loss"]
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def read_at(run: Run, axis: str, budget: float) -> tuple[float, float] | None:
    """Validation loss at a budget, and the best up to it; ``None`` outside the range in which the run was evaluated."""
    x, y = points(run, axis)
    slack = budget * ROUNDING
    if not len(x) or budget < x[0] - slack or budget > x[-1] + slack:
        return None
    reached = y[x <= budget + slack]
    loss = float(np.interp(budget, x, y))
    return loss, float(reached.min()) if len(reached) else loss


def at_budget(groups: Sequence[Group], axis: str, given: float | None) -> tuple[At, dict[tuple[str, str], AtBudget]]:
    """The common budget of each data set, and each group's losses there by data and label.

    Args:
        groups: those that are compared.
        axis: ``tokens``, ``flops`` or ``seconds``.
        given: the budget, or ``None`` for the largest that every run of the same data reaches.

    Raises:
        UserError: no run can be read at the budget that is given.
    """
    at, readings = At(axis), {}
    for data, same in grouped(groups, attrgetter("data")).items():
        ends = [x[-1] for group in same for run in group.runs if len(x := points(run, axis)[0])]
        if given is None and not ends:
            at.notes.append(f"{data}: no run has validation losses over {UNITS[axis]}")
            continue
        budget = at.budgets[data] = given if given is not None else float(min(ends))
        for group in same:
            reading, missing = read_group(group, axis, budget)
            at.notes.extend(missing)
            if reading is not None:
                readings[group.data, group.label] = reading
    if given is not None and not readings:
        refuse_budget(groups, axis, given)
    return at, readings


def refuse_budget(groups: Sequence[Group], axis: str, budget: float) -> NoReturn:
    """Name the budgets that can be read instead.

    Raises:
        UserError: always.
    """
    known = [x for group in groups for run in group.runs if len(x := points(run, axis)[0])]
    typed = f"{axis}={budget:g}"
    if not known:
        remedy = f"Leave it out, or choose another axis from {', '.join(UNITS)}"
        raise UserError("--at", typed, f"no run has validation losses over {UNITS[axis]}", remedy)
    first, last, common = min(x[0] for x in known), max(x[-1] for x in known), min(x[-1] for x in known)
    rule = f"no run can be read there: they were evaluated from {scaled(first)} to {scaled(last)} {UNITS[axis]}"
    remedy = f"All reach {scaled(common)} ({axis}={common:.6g}), which --at {axis} takes by itself"
    raise UserError("--at", typed, rule, remedy)


def read_group(group: Group, axis: str, budget: float) -> tuple[AtBudget | None, list[str]]:
    """A group at a budget, ``None`` if no seed can be read there, and notes on the seeds that cannot."""
    values: list[tuple[float, float]] = []
    unread: dict[str, list[str]] = defaultdict(list)
    for run in group.runs:
        reading = read_at(run, axis, budget)
        if reading is not None:
            values.append(reading)
            continue
        x, _ = points(run, axis)
        extent = f"from {scaled(x[0])} to {scaled(x[-1])} {UNITS[axis]}" if len(x) else ""
        unread[f"evaluated {extent}" if extent else f"not evaluated over {UNITS[axis]}"].append(
            str(run.summary["seed"])
        )
    notes = [
        f"Not at {scaled(budget)} {UNITS[axis]}: {group.label} on {group.data}, seed {', '.join(seeds)}, {why}"
        for why, seeds in unread.items()
    ]
    return (AtBudget(*map(estimate, zip(*values, strict=True))) if values else None), notes


def losses_of(group: Group, part: str) -> dict[int, float]:
    """Losses by seed; ``part`` is ``best_validation`` or ``test``."""
    return {run.summary["seed"]: run.summary[part]["loss"] for run in group.runs}


def at_parameters(groups: Sequence[Group], given: float | None) -> list[AtSize]:
    """Every architecture at the same number of parameters, for each data set.

    Args:
        groups: those that are compared.
        given: the number, or ``None`` for the largest that lies within every architecture that has several sizes.

    Raises:
        UserError: no architecture can be read at the number that is given.
    """
    found = []
    for same in grouped(groups, attrgetter("data")).values():
        families = architectures(same)
        largest_common = min((family[-1].parameters for family in families if len(family) > 1), default=None)
        found += [read_architecture(family, largest_common if given is None else given) for family in families]
    if given is not None and all(one.test is None for one in found):
        notes = "; ".join(f"{one.architecture}, {one.note}" for one in found[:3]) + ("; ..." if len(found) > 3 else "")
        remedy = "Give a number that lies between trained sizes, or --at params for the largest that all have"
        raise UserError("--at", f"params={given:g}", f"no architecture can be read there: {notes}", remedy)
    return found


def architectures(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one architecture in ascending size; of several with the same size the best on validation."""
    found = []
    for family in grouped(groups, architecture_key).values():
        by_size = grouped(sorted(family, key=attrgetter("parameters")), attrgetter("parameters"))
        found.append([min(same, key=attrgetter("validation_loss")) for same in by_size.values()])
    return found


def architecture_key(group: Group) -> str:
    """Equal for groups whose models differ in sizes only, with the same data, training and precision."""
    run = group.runs[0]
    flat = {
        key: value
        for key, value in with_effect(run.config).items()
        if not key.startswith("model.") or isinstance(value, bool) or not isinstance(value, int | float)
    }
    facts = [run.summary.get(name) for name in ("data", "data_fingerprint", "device")]
    return in_json([facts, sorted(flat.items())])


def name_of(family: Sequence[Group]) -> str:
    """The words with which all names of an architecture's sizes begin, or else all the names."""
    models = dict.fromkeys(group.model for group in family)
    words = [set(words) for words in zip(*(model.split("_") for model in models), strict=False)]
    common = takewhile(lambda different: len(different) == 1, words)
    return "_".join(word for (word,) in common) or " / ".join(models)


def read_architecture(family: Sequence[Group], target: float | None) -> AtSize:
    """One architecture at ``target`` parameters, or why it cannot be read there; ``family`` has its sizes ascending."""

    def unread(note: str) -> AtSize:
        return AtSize(name_of(family), family[0].data, target, (), None, None, note)

    sizes = [group.parameters for group in family]
    nearest = min(family, key=lambda group: abs(group.parameters - (target or 0)))
    if target is not None and abs(nearest.parameters - target) <= ALIKE * target:
        low, high, weight = nearest, nearest, 1.0
    elif target is None or len(family) == 1:
        return unread(f"one size only: {sizes[0]:,} parameters")
    elif not sizes[0] <= target <= sizes[-1]:
        return unread(f"its sizes go from {sizes[0]:,} to {sizes[-1]:,} parameters, and nothing is extrapolated")
    else:
        above = next(i for i, size in enumerate(sizes) if size > target)
        low, high = family[above - 1], family[above]
        weight = math.log(target / sizes[above - 1]) / math.log(sizes[above] / sizes[above - 1])
    if not set(low.seeds) & set(high.seeds):
        return unread(f"{low.label} and {high.label} have no seed in common")
    losses = [estimate_between(low, high, weight, part) for part in ("best_validation", "test")]
    return AtSize(name_of(family), family[0].data, target, tuple(dict.fromkeys((low.label, high.label))), *losses)


def estimate_between(low: Group, high: Group, weight: float, part: str) -> Estimate:
    """The loss over the seeds that two sizes have in common, interpolated; ``weight`` is that of ``high``."""
    first, second = losses_of(low, part), losses_of(high, part)
    return estimate(
        [(1 - weight) * first[seed] + weight * second[seed] for seed in sorted(first.keys() & second.keys())]
    )
