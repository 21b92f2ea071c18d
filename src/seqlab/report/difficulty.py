"""Accuracy against the difficulty of a probe: slices of the test split, and further test sets."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from seqlab.report.statistics import Estimate, estimate_of_shares
from seqlab.runs.targets import changes_of

Curve = dict[str, Estimate]
"""Accuracy over the seeds by the value of the difficulty, as text, ascending."""


def accuracies(summaries: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The accuracy of one group's runs at each difficulty, by title: ``by distance``, ``at length``."""
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for summary in summaries:
        for name, values in (summary.get("test_slices") or {}).items():
            for value, row in values.items():
                seen[f"by {name}"][value].append(row.get("accuracy"))
        for name, row in (summary.get("further_tests") or {}).items():
            key, value = changes_of(name)
            seen[f"at {key}"][value].append(row.get("accuracy"))
    curves = {
        title: {
            value: estimate_of_shares(measured)
            for value in in_order(values)
            if (measured := [accuracy for accuracy in values[value] if accuracy is not None])
        }
        for title, values in seen.items()
    }
    return {title: curve for title, curve in curves.items() if curve}


def in_order(values: Iterable[str]) -> list[str]:
    """Values in ascending order, compared number by number; those without numbers last."""
    return sorted(values, key=lambda value: (numbers_of(value) is None, numbers_of(value) or (), value))


def numbers_of(value: str) -> tuple[float, ...] | None:
    """``(512.0, 64.0)`` of ``512, 64``; ``None`` where a part is no finite number."""
    try:
        numbers = tuple(map(float, value.split(", ")))
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def titles(curves: Sequence[dict[str, Curve]]) -> dict[str, list[str]]:
    """Every title with its values among the groups, in order.

    A slice with a single value in every group is left out, as it is the whole test split; a single further test is not.
    """
    values: dict[str, set[str]] = defaultdict(set)
    for by_title in curves:
        for title, curve in by_title.items():
            values[title] |= set(curve)
    return {
        title: in_order(values[title])
        for title in values
        if title.startswith("at ") or any(len(curve.get(title, {})) > 1 for curve in curves)
    }
