"""Accuracy against what makes a probe hard: slices of the test split, and test sets beyond training."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from seqlab.report.statistics import Estimate, estimate_of_shares

SLICES, FURTHER = "by ", "at "
"""What titles begin with."""

Curve = dict[str, Estimate]
"""By value of the difficulty, as text and in ascending order, accuracy over the seeds."""


def accuracies(summaries: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """What the runs of one group reached at each difficulty, by title: ``by distance``, ``at length``."""
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for summary in summaries:
        for title, values in accuracies_of(summary).items():
            for value, accuracy in values.items():
                seen[title][value].append(accuracy)
    return {title: {value: estimate_of_shares(seen[title][value]) for value in in_order(seen[title])} for title in seen}


def accuracies_of(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """One run's accuracies by title and value; whatever was not measured is left out."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, values in (summary.get("test_slices") or {}).items():
        for value, row in values.items():
            found[f"{SLICES}{name}"][value] = row.get("accuracy")
    for name, row in (summary.get("further_tests") or {}).items():
        key, value = changes_of(name)
        found[f"{FURTHER}{key}"][value] = row.get("accuracy")
    measured = {title: {v: a for v, a in values.items() if a is not None} for title, values in found.items()}
    return {title: values for title, values in measured.items() if values}


def changes_of(name: str) -> tuple[str, str]:
    """What a further test changes and to what: ``length=512,pairs=64`` is ``length, pairs`` and ``512, 64``."""
    changes = [change.partition("=") for change in name.split(",")]
    return ", ".join(key for key, _, _ in changes), ", ".join(value or key for key, _, value in changes)


def in_order(values: Sequence[str]) -> list[str]:
    """Values in ascending order, each compared number by number; those that are no numbers last."""
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

    Slices are left out where no group has several, for a single one is the whole test split again; a single further
    test is not.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for by_title in curves:
        for title, curve in by_title.items():
            found[title] |= set(curve)
    return {
        title: in_order(list(values))
        for title, values in found.items()
        if title.startswith(FURTHER) or any(len(curve.get(title, {})) > 1 for curve in curves)
    }
