"""The page's tables: each cell's text, and the value that it is sorted by."""

import math
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

from seqlab.report.budgets import UNITS
from seqlab.report.compare import Comparison, headlines
from seqlab.report.formats import NONE, Unit, cost, interval, mean, mean_and_std, scaled, scaled_bytes
from seqlab.report.groups import grouped
from seqlab.report.rows import Row
from seqlab.report.statistics import Estimate
from seqlab.report.tables import (
    COST_COLUMNS,
    Table,
    differences_table,
    fit_tables,
    number_of_seeds,
    probe_tables,
    sizes_table,
)

Cell = tuple[str, float | str | None]
"""A text, and the number or text to sort by; ``None`` is sorted last."""

Column = tuple[str, Callable[[Row], Cell]]


def table_of(title: str, headings: list[str], lines: list[list[Cell]], notes: list[str]) -> dict[str, Any]:
    """A table for the template.

    A column is numeric if no cell has a text to sort by; missing numbers are an empty text there. In other columns,
    cells without a number are sorted by their text.
    """
    is_number = [all(not isinstance(line[i][1], str) for line in lines) for i in range(len(headings))]
    missing = ["" if numeric else None for numeric in is_number]
    lines = [
        [(text, key if isinstance(key, int | float) else missing[i]) for i, (text, key) in enumerate(line)]
        for line in lines
    ]
    return {"title": title, "headings": headings, "is_number": is_number, "lines": lines, "notes": notes}


def results_table(comparison: Comparison) -> dict[str, Any]:
    """The main table, a line for each row; ``groups`` are the rows' places among the comparison's groups."""
    rows = comparison.rows
    judged = sorted({"loss", *headlines(rows).values()})  # accuracy before loss
    others = dict.fromkeys(name for row in rows for name in row.test if name not in judged)
    has_inactive = any(row.active_parameters != row.parameters for row in rows)
    columns: list[Column] = [
        ("model", lambda row: (row.group.label, row.group.label)),
        ("data", lambda row: (row.group.data, row.group.data)),
        ("seeds", lambda row: (number_of_seeds(row), len(row.group.runs))),
        *budget_columns(comparison),
        *(column for name in judged for column in judged_columns(name)),
        ("parameters", lambda row: count(row.parameters)),
        ("without embeddings", lambda row: count(row.parameters_without_embeddings)),
        *([("active parameters", lambda row: count(row.active_parameters))] if has_inactive else []),
        ("state of a sequence", lambda row: (scaled_bytes(row.state_bytes), row.state_bytes)),
        *(cost_column(*one) for one in COST_COLUMNS),
        *(column for name in others for column in metric_columns(name)[:1]),
        ("scan backend", lambda row: words(row.scan_backend)),
        ("precision", lambda row: words(row.precision)),
        ("device", lambda row: words(row.device)),
    ]
    headings = [heading for heading, _ in columns]
    table = table_of("Results", headings, [[cell(row) for _, cell in columns] for row in rows], [])
    places = {id(group): i for i, group in enumerate(comparison.groups)}
    return table | {"groups": [places[id(row.group)] for row in rows]}


def judged_columns(name: str) -> list[Column]:
    """The columns of a metric that some data is judged by: validation, then test with its interval."""
    return [
        (f"best validation {name}", lambda row: measured(row.validation.get(name), mean)),
        *metric_columns(name),
    ]


def cost_column(heading: str, name: str, unit_of: Callable[[float], Unit]) -> Column:
    """A cost with its standard deviation, sorted by the mean."""
    return heading, lambda row: measured(getattr(row, name), partial(cost, unit_of=unit_of))


def metric_columns(name: str) -> list[Column]:
    """A metric of the test split and its interval."""
    return [
        (f"test {name.replace('_', ' ')}", lambda row: measured(row.test.get(name), mean_and_std)),
        ("95 % interval", lambda row: interval_of(row.test.get(name))),
    ]


def budget_columns(comparison: Comparison) -> list[Column]:
    """The loss at the equal budget and its interval, if there is a budget."""
    at = comparison.at
    if at is None or not at.budgets:
        return []
    budgets = " / ".join(f"{scaled(value)} {UNITS[at.axis]}" for value in at.budgets.values())
    return [
        (f"validation loss at {budgets}", lambda row: measured(row.at and row.at.loss, mean_and_std)),
        ("95 % interval there", lambda row: interval_of(row.at and row.at.loss)),
    ]


def count(number: int) -> Cell:
    """A whole number."""
    return f"{number:,}", number


def measured(one: Estimate | None, text: Callable[[Estimate | None], str]) -> Cell:
    """An estimate as text, sorted by its mean."""
    return text(one), None if one is None else one.mean


def interval_of(one: Estimate | None) -> Cell:
    """An estimate's interval, sorted by its low end."""
    return interval(one), None if one is None else one.low


def words(text: str | None) -> Cell:
    """A text; the sign for a missing value in place of an empty one."""
    return text or NONE, text or None


def extra_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Tables of probes, fits and paired differences, and the comparison at equal parameters if there is one."""
    found: list[Table] = []
    for data, rows in grouped(comparison.rows, attrgetter("group.data")).items():
        found += probe_tables(data, rows)
    found += fit_tables(comparison)
    found += [sizes_table(comparison)] if comparison.at is not None and comparison.at.sizes else []
    found += [differences_table(comparison.differences)] if comparison.differences else []
    return [
        table_of(one.title, one.headings, [[(text, sort_key(text)) for text in line] for line in one.lines], one.notes)
        for one in found
    ]


def sort_key(text: str) -> float | str | None:
    """The number at the start of a text, or else the text."""
    try:
        number = float(text.split(" ")[0].replace(",", ""))
    except ValueError:
        return None if text in ("", NONE) else text
    return number if math.isfinite(number) else text
