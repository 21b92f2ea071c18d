"""The page's tables: what a cell shows, and what it is sorted by."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from seqlab.analysis.budgets import UNITS
from seqlab.analysis.compare import Comparison
from seqlab.analysis.figures import NONE, duration, interval, mean, mean_and_std, scaled, scaled_bytes
from seqlab.analysis.rows import Row
from seqlab.analysis.sheets import Sheet, differences_sheet, number_of_seeds, probe_sheets, sizes_sheet
from seqlab.analysis.statistics import Estimate

Cell = list[Any]
"""Text, and a number or text to sort by; ``None`` is sorted last."""


def columns_of(comparison: Comparison, groups: Sequence[int]) -> dict[str, Any]:
    """The main table: headings, and for each row its group's place and its cells."""
    rows = comparison.rows
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("model", lambda row: [row.group.label, row.group.label]),
        ("data", lambda row: [row.group.data, row.group.data]),
        ("seeds", lambda row: [number_of_seeds(row), len(row.group.runs)]),
        *budget_columns(comparison),
        ("best validation loss", lambda row: estimate_cell(row.validation["loss"], mean)),
        *metric_columns("loss"),
        ("parameters", lambda row: [f"{row.parameters:,}", row.parameters]),
        (
            "without embeddings",
            lambda row: [f"{row.parameters_without_embeddings:,}", row.parameters_without_embeddings],
        ),
        *active_columns(comparison),
        ("state of a sequence", lambda row: [scaled_bytes(row.state_bytes), row.state_bytes]),
        ("training FLOPs", lambda row: amount_cell(row.flops, scaled)),
        ("tokens", lambda row: amount_cell(row.tokens, scaled)),
        ("wall time", lambda row: amount_cell(row.wall_seconds, duration)),
        ("tokens/s", lambda row: amount_cell(row.tokens_per_second, scaled)),
        ("peak memory", lambda row: amount_cell(row.peak_memory_bytes, scaled_bytes)),
    ]
    for name in dict.fromkeys(name for row in rows for name in row.test if name != "loss"):
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


def amount_cell(one: Estimate | None, text: Callable[[float | None], str]) -> Cell:
    value = None if one is None else one.mean
    return [text(value), value]


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
