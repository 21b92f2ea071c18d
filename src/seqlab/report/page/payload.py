"""What the page knows, as containers for JSON: texts for the table, thinned curves, configurations without repeats."""

import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy import ndarray

from seqlab import __version__
from seqlab.report.compare import Comparison, warnings_of
from seqlab.report.difficulty import numbers_of, titles
from seqlab.report.grids import PARAMETERS, headline
from seqlab.report.groups import Group, flatten, in_short
from seqlab.report.page.cells import columns_of, extra_tables
from seqlab.report.plots.bands import AXES, Band, bands, loss_by_position
from seqlab.report.plots.choices import COSTS, best_of_models, cost_of, grids, prominent, sweeps
from seqlab.report.plots.style import architecture, styles
from seqlab.report.rows import Row
from seqlab.report.runs import BySection, Run
from seqlab.report.statistics import Estimate
from seqlab.report.tables import INTERVAL_NOTE, chance_notes

RESULT = "result: "
ENCODER = json.JSONEncoder(default=str)

POINTS = 25_000
"""Of all curves together; each has a share of them."""

FEWEST, MOST = 20, 200
"""Points of one curve."""

FACTS = (
    "status",
    "parameters",
    "steps",
    "tokens",
    "wall_seconds",
    "scan_backend",
    "precision",
    "device_name",
    "data_description",
    "data_fingerprint",
    "versions",
    "git_commit",
    "command",
)
"""Of a run's summary, what may explain a difference that the configuration does not."""


def payload(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page shows."""
    groups = comparison.groups
    rows = {id(row.group): row for row in comparison.rows}
    place = {id(group): i for i, group in enumerate(groups)}
    runs = [run for group in groups for run in group.runs]
    return {
        "version": __version__,
        "written": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "warnings": warnings_of(comparison),
        "skipped": [[str(one.folder), one.why] for one in comparison.skipped],
        "note": " ".join([INTERVAL_NOTE, *chances_of(comparison.rows)]),
        "costs": COSTS,
        "table": columns_of(comparison, [place[id(row.group)] for row in comparison.rows]),
        "extra": extra_tables(comparison),
        "groups": described(groups, [rows[id(group)] for group in groups]),
        "measures": {data: measure_of(rows) for data, rows in by_data(comparison.rows).items()},
        "sweeps": described_sweeps(groups, place),
        "grids": described_grids(groups, place),
        "difficulties": described_difficulties(comparison.rows, place),
        "runs": [[str(run.folder), i, run.summary["seed"]] for i, group in enumerate(groups) for run in group.runs],
        "settings": settings_of(runs),
    }


def described(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each group's look, costs, test loss and curves."""
    points = min(MOST, max(FEWEST, POINTS // max(1, 2 * len(groups))))
    first = places_by_data(rows, prominent)
    best = places_by_data(rows, best_of_models)
    return [
        {
            "label": group.label,
            "model": group.model,
            "architecture": architecture(group.model),
            "data": group.data,
            "colour": style.colour,
            "line": style.line,
            "marker": style.marker,
            "first": i in first,
            "best": i in best,
            "seeds": len(group.runs),
            "costs": {key: cost_of(row, key) for key in COSTS},
            "test": described_estimate(row.test["loss"]),
            "accuracy": described_estimate(row.test["accuracy"]) if "accuracy" in row.test else None,
            "curves": {split: described_curves(bands(group, split, points)) for split in ("train", "validation")},
            "position": described_band(loss_by_position(group)),
        }
        for i, (group, row, style) in enumerate(zip(groups, rows, styles(groups), strict=True))
    ]


def places_by_data(rows: Sequence[Row], choose: Callable[[list[Row]], list[int]]) -> set[int]:
    """What a choice among the rows of each data set takes."""
    found: set[int] = set()
    for data in {row.group.data for row in rows}:
        mine = [i for i, row in enumerate(rows) if row.group.data == data]
        found |= {mine[i] for i in choose([rows[i] for i in mine])}
    return found


def described_estimate(one: Estimate) -> list[float | None]:
    return [one.mean, one.low, one.high]


def described_curves(curves: dict[str, Band]) -> dict[str, Any]:
    """A band for each axis; for one that is a multiple of the steps, only the factor."""
    found: dict[str, Any] = {}
    steps = curves.get("step")
    for axis in AXES:
        if axis not in curves or not len(curves[axis].x):  # seeds with no place in common have no band
            continue
        factor = factor_of(steps, curves[axis]) if axis != "step" else None
        found[axis] = described_band(curves[axis]) if factor is None else {"factor": factor}
    return found


def factor_of(steps: Band | None, other: Band) -> float | None:
    """By what to multiply the steps to get an axis; ``None`` if nothing does."""
    if steps is None or len(steps.x) != len(other.x) or not steps.x[-1]:
        return None
    factor = float(other.x[-1] / steps.x[-1])
    same = close(other.x, factor * steps.x, 1e-6) and (other.mean is steps.mean or close(other.mean, steps.mean, 1e-9))
    return factor if same and math.isfinite(factor) else None


def close(values: ndarray, others: ndarray, relative: float) -> bool:
    """``np.allclose`` of finite numbers, in a fifth of its time."""
    return bool((np.abs(values - others) <= 1e-8 + relative * np.abs(others)).all())


def described_band(one: Band | None) -> dict[str, list[float]] | None:
    if one is None:
        return None
    found = {"x": short(one.x, 6), "y": short(one.mean)}
    return found if one.n == 1 else found | {"low": short(one.low), "high": short(one.high)}


def short(values: ndarray, digits: int = 5) -> list[float]:
    """Numbers with so many significant digits, which a chart cannot tell from all of them."""
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


def described_sweeps(groups: Sequence[Group], place: dict[int, int]) -> list[dict[str, Any]]:
    return [
        {
            "parameter": parameter,
            "title": PARAMETERS.get(parameter, parameter),
            "series": [
                {
                    "model": one.model,
                    "data": one.data,
                    "follows": list(one.follows),
                    "values": [number_or_text(value) for value in one.values],
                    "groups": [place[id(group)] for group in one.groups],
                    "base": place[id(one.base)],
                }
                for one in series
            ],
        }
        for parameter, series in sweeps(groups).items()
    ]


def by_data(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {data: [row for row in rows if row.group.data == data] for data in {row.group.data for row in rows}}


def chances_of(rows: Sequence[Row]) -> list[str]:
    """What a guess reaches on each data set that says it."""
    each = by_data(rows)
    return [note for data, same in each.items() for note in chance_notes(same, data if len(each) > 1 else "")]


def measure_of(rows: Sequence[Row]) -> str:
    """Which of a group's estimates its data is judged by: ``accuracy`` or ``test`` (the loss)."""
    return "test" if headline(rows) == "loss" else headline(rows)


def described_grids(groups: Sequence[Group], place: dict[int, int]) -> list[dict[str, Any]]:
    """A panel for each data setting of each grid: by model its group at each size, ``None`` without a run."""
    return [
        {
            "data": grid.data,
            "title": title,
            "axis": PARAMETERS.get(grid.parameter, grid.parameter),
            "sizes": list(grid.sizes),
            "lines": [
                [place[id(line[size])] if size in line else None for size in grid.sizes]
                for model in grid.models
                if (line := grid.line(model, title))
            ],
        }
        for grid in grids(groups)
        for title in grid.titles
    ]


def described_difficulties(rows: Sequence[Row], place: dict[int, int]) -> list[dict[str, Any]]:
    """Accuracy against each difficulty of each data set: its values, and each group's mean and interval at them."""
    found = []
    for data in dict.fromkeys(row.group.data for row in rows):
        mine = [row for row in rows if row.group.data == data]
        for title, values in titles([row.difficulty for row in mine]).items():
            curves = {place[id(row.group)]: row.difficulty[title] for row in mine if title in row.difficulty}
            points = {
                i: [described_estimate(curve[value]) if value in curve else None for value in values]
                for i, curve in curves.items()
            }
            numbers = [numbers_of(value) for value in values]
            single = all(one is not None and len(one) == 1 for one in numbers)
            shown = [one[0] for one in numbers] if single else values
            found.append({"data": data, "title": title, "values": shown, "points": points})
    return found


def number_or_text(value: Any) -> float | str:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else in_short(value)


def settings_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each setting and fact once, with its different values and which run has which (none where all have the first)."""
    section_in_text = BySection(lambda name, section: in_text(flatten(section, name)))
    known: list[dict[str, str]] = []
    for run in runs:
        known.append({})
        for name, section in run.config.items():
            known[-1] |= section_in_text(name, section)
        known[-1] |= in_text({f"{RESULT}{key}": value for key, value in facts_of(run).items()})
    found = []
    keys = dict.fromkeys(key for one in known for key in one)
    for key in sorted(keys, key=lambda key: key.startswith(RESULT)):
        texts = [one.get(key) for one in known]
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        entry = {"key": key, "values": list(index)}
        found.append(entry if len(index) == 1 else entry | {"of": [index[text] for text in texts]})
    return found


def facts_of(run: Run) -> dict[str, Any]:
    """What is known of a run besides its configuration, flat."""
    facts = {name: run.summary[name] for name in FACTS if name in run.summary}
    losses = {f"{name} loss": run.summary[name].get("loss") for name in ("best_validation", "test")}
    return flatten(facts) | losses


def in_text(flat: dict[str, Any]) -> dict[str, str]:
    return {key: as_text(value) for key, value in flat.items()}


def as_text(value: Any) -> str:
    """A setting as YAML would show it, near enough to read."""
    return value if isinstance(value, str) else ENCODER.encode(value)
