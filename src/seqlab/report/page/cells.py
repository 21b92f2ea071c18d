"""The page's tables: what a cell shows, and what it is sorted by."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from seqlab.report.budgets import UNITS
from seqlab.report.compare import Comparison, headlines
from seqlab.report.formats import (
    NONE,
    Unit,
    bytes_of,
    cost,
    interval,
    mean,
    mean_and_std,
    prefix_of,
    scaled,
    scaled_bytes,
    time_of,
)
from seqlab.report.rows import Row
from seqlab.report.statistics import Estimate
from seqlab.report.tables import Table as Sheet
from seqlab.report.tables import differences_table as differences_sheet
from seqlab.report.tables import number_of_seeds
from seqlab.report.tables import probe_tables as probe_sheets
from seqlab.report.tables import sizes_table as sizes_sheet

Cell = list[Any]
"""Text, and a number or text to sort by; ``None`` is sorted last."""


def columns_of(comparison: Comparison, groups: Sequence[int]) -> dict[str, Any]:
    """The main table: headings, and for each row its group's place and its cells."""
    rows = comparison.rows
    judged = sorted({"loss", *headlines(rows).values()})  # an accuracy stands before the loss
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("model", lambda row: [row.group.label, row.group.label]),
        ("data", lambda row: [row.group.data, row.group.data]),
        ("seeds", lambda row: [number_of_seeds(row), len(row.group.runs)]),
        *budget_columns(comparison),
        *(column for name in judged for column in judged_columns(name)),
        ("parameters", lambda row: [f"{row.parameters:,}", row.parameters]),
        (
            "without embeddings",
            lambda row: [f"{row.parameters_without_embeddings:,}", row.parameters_without_embeddings],
        ),
        *active_columns(comparison),
        ("state of a sequence", lambda row: [scaled_bytes(row.state_bytes), row.state_bytes]),
        ("training FLOPs", lambda row: cost_cell(row.flops, prefix_of)),
        ("tokens", lambda row: cost_cell(row.tokens, prefix_of)),
        ("wall time", lambda row: cost_cell(row.wall_seconds, time_of)),
        ("tokens/s", lambda row: cost_cell(row.tokens_per_second, prefix_of)),
        ("peak memory", lambda row: cost_cell(row.peak_memory_bytes, bytes_of)),
    ]
    for name in dict.fromkeys(name for row in rows for name in row.test if name not in judged):
        columns += metric_columns(name)[:1]
    columns += [
        ("scan backend", lambda row: text_cell(row.scan_backend)),
        ("precision", lambda row: text_cell(row.precision)),
        ("device", lambda row: text_cell(row.device)),
    ]
    cells = [[cell(row) for _, cell in columns] for row in rows]
    return {
        "headings": [heading for heading, _ in columns],
        "rows": [{"group": group, "cells": line} for group, line in zip(groups, cells, strict=True)],
    }


def judged_columns(name: str) -> list[tuple[str, Callable[[Row], Cell]]]:
    """A metric that some data is judged by: on validation, which selects, and on test with its interval."""
    return [
        (f"best validation {name}", lambda row: estimate_cell(row.validation.get(name), mean)),
        *metric_columns(name),
    ]


def metric_columns(name: str) -> list[tuple[str, Callable[[Row], Cell]]]:
    heading = "test loss" if name == "loss" else f"test {name.replace('_', ' ')}"
    return [
        (heading, lambda row: estimate_cell(row.test.get(name), mean_and_std)),
        ("95 % interval", lambda row: interval_cell(row.test.get(name))),
    ]


def active_columns(comparison: Comparison) -> list[tuple[str, Callable[[Row], Cell]]]:
    """The parameters that a token uses, where a model has others."""
    if all(row.active_parameters == row.parameters for row in comparison.rows):
        return []
    return [("active parameters", lambda row: [f"{row.active_parameters:,}", row.active_parameters])]


def budget_columns(comparison: Comparison) -> list[tuple[str, Callable[[Row], Cell]]]:
    """The loss at the equal budget, if there is one."""
    at = comparison.at
    if at is None or not at.budgets:
        return []
    budgets = " / ".join(f"{scaled(value)} {UNITS[at.axis]}" for value in at.budgets.values())

    def loss(row: Row) -> Estimate | None:
        return None if row.at is None else row.at.loss

    return [
        (f"validation loss at {budgets}", lambda row: estimate_cell(loss(row), mean_and_std)),
        ("95 % interval there", lambda row: interval_cell(loss(row))),
    ]


def estimate_cell(one: Estimate | None, text: Callable[[Estimate | None], str]) -> Cell:
    return [text(one), None if one is None else one.mean]


def interval_cell(one: Estimate | None) -> Cell:
    return [interval(one), None if one is None else one.low]


def cost_cell(one: Estimate | None, unit_of: Callable[[float], Unit]) -> Cell:
    return [cost(one, unit_of), None if one is None else one.mean]


def text_cell(text: str | None) -> Cell:
    return [text or NONE, text or None]


def extra_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Probes' accuracies and targets, paired differences, and equal parameters if they were asked for."""
    sheets = []
    for data in dict.fromkeys(row.group.data for row in comparison.rows):
        sheets += probe_sheets(data, [row for row in comparison.rows if row.group.data == data])
    sheets += [sizes_sheet(comparison)] if comparison.at is not None and comparison.at.sizes else []
    sheets += [differences_sheet(comparison.differences)] if comparison.differences else []
    return [described_sheet(sheet) for sheet in sheets]


def described_sheet(sheet: Sheet) -> dict[str, Any]:
    return {
        "title": sheet.title,
        "headings": sheet.headings,
        "rows": [{"cells": [[text, sort_key(text)] for text in line]} for line in sheet.lines],
        "notes": sheet.notes,
    }


def sort_key(text: str) -> float | str | None:
    """The number that a text begins with, or the text."""
    try:
        number = float(text.split(" ")[0].replace(",", ""))
    except ValueError:
        return None if text in ("", NONE) else text
    return number if math.isfinite(number) else text
