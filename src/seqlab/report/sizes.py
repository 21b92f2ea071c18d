"""Comparing architectures at equal parameters, between the sizes that were trained.

Symbols: N parameters. Between two neighbouring sizes the loss is read on the straight line over log N, for each seed
that both have.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from seqlab.errors import UserError
from seqlab.report.groups import Group, in_json, with_effect
from seqlab.report.statistics import Estimate, estimate

ALIKE = 0.01
"""Relative difference in parameters up to which two sizes count as equal."""


@dataclass(frozen=True)
class AtSize:
    """An architecture at a number of parameters.

    Args:
        architecture: the models' common name.
        data: trained on.
        parameters: the common number, if there is one.
        between: labels of the sizes that it was read from: one that has that many, or its two neighbours.
        validation, test: losses over the seeds; ``None`` where they cannot be read.
        note: why not.
    """

    architecture: str
    data: str
    parameters: float | None
    between: tuple[str, ...]
    validation: Estimate | None
    test: Estimate | None
    note: str = ""


def parameters_of(group: Group) -> int:
    return group.runs[0].summary["parameters"]


def architecture_key(group: Group) -> str:
    """Equal for groups whose models differ in sizes alone, with the same data, training and precision."""
    run = group.runs[0]
    flat = {
        key: value
        for key, value in with_effect(run.config).items()
        if not key.startswith("model.") or isinstance(value, bool) or not isinstance(value, int | float)
    }
    facts = [run.summary.get(name) for name in ("data", "data_fingerprint", "device")]
    return in_json([facts, sorted(flat.items())])


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one architecture by size; of several with the same size the one that validation prefers."""
    by_key: dict[str, dict[int, Group]] = defaultdict(dict)
    for group in groups:
        sizes = by_key[architecture_key(group)]
        rival = sizes.get(parameters_of(group))
        if rival is None or mean_validation(group) < mean_validation(rival):
            sizes[parameters_of(group)] = group
    return [[sizes[n] for n in sorted(sizes)] for sizes in by_key.values()]


def mean_validation(group: Group) -> float:
    losses = [run.summary["best_validation"]["loss"] for run in group.runs]
    return sum(losses) / len(losses)


def name_of(family: Sequence[Group]) -> str:
    """The words that the names of an architecture's sizes begin with, or all the names."""
    models = dict.fromkeys(group.model for group in family)
    words = [set(words) for words in zip(*(model.split("_") for model in models), strict=False)]
    common = takewhile(lambda different: len(different) == 1, words)
    return "_".join(word for (word,) in common) or " / ".join(models)


def at_parameters(groups: Sequence[Group], given: float | None) -> list[AtSize]:
    """Every architecture at the same number of parameters, for each data set.

    Args:
        groups: those that are compared.
        given: the number, or ``None`` for the largest that lies within every architecture that has several sizes.

    Raises:
        UserError: no architecture can be read at the number that is given.
    """
    found = []
    for data in dict.fromkeys(group.data for group in groups):
        same = families([group for group in groups if group.data == data])
        target = given if given is not None else largest_common(same)
        found += [read_family(family, target) for family in same]
    if given is not None and all(one.test is None for one in found):
        notes = "; ".join(f"{one.architecture}, {one.note}" for one in found[:3]) + ("; ..." if len(found) > 3 else "")
        remedy = "Give a number that lies between trained sizes, or --at params for the largest that all have"
        raise UserError("--at", f"params={given:g}", f"no architecture can be read there: {notes}", remedy)
    return found


def largest_common(same: Sequence[Sequence[Group]]) -> float | None:
    """The largest number of parameters that no architecture with several sizes ends below."""
    return min((parameters_of(family[-1]) for family in same if len(family) > 1), default=None)


def read_family(family: Sequence[Group], target: float | None) -> AtSize:
    """One architecture at a number of parameters, or why it cannot be read there."""
    name, data = name_of(family), family[0].data

    def unread(note: str) -> AtSize:
        return AtSize(name, data, target, (), None, None, note)

    sizes = [parameters_of(group) for group in family]
    if target is None:
        return unread(f"one size only: {sizes[0]:,} parameters")
    nearest = min(family, key=lambda group: abs(parameters_of(group) - target))
    if abs(parameters_of(nearest) - target) <= ALIKE * target:
        losses = [[run.summary[part]["loss"] for run in nearest.runs] for part in ("best_validation", "test")]
        return AtSize(name, data, target, (nearest.label,), *map(estimate, losses))
    if len(family) == 1:
        return unread(f"one size only: {sizes[0]:,} parameters")
    if not sizes[0] <= target <= sizes[-1]:
        return unread(f"its sizes go from {sizes[0]:,} to {sizes[-1]:,} parameters, and nothing is extrapolated")
    above = next(i for i, size in enumerate(sizes) if size > target)
    low, high = family[above - 1], family[above]
    seeds = sorted(set(low.seeds) & set(high.seeds))
    if not seeds:
        return unread(f"{low.label} and {high.label} have no seed in common")
    weight = math.log(target / sizes[above - 1]) / math.log(sizes[above] / sizes[above - 1])
    estimates = [estimate(between(low, high, seeds, weight, part)) for part in ("best_validation", "test")]
    return AtSize(name, data, target, (low.label, high.label), *estimates)


def between(low: Group, high: Group, seeds: Sequence[int], weight: float, part: str) -> list[float]:
    """Losses between two groups, a seed each; ``weight`` is the upper one's."""
    losses = [{run.summary["seed"]: run.summary[part]["loss"] for run in group.runs} for group in (low, high)]
    return [(1 - weight) * losses[0][seed] + weight * losses[1][seed] for seed in seeds]
