"""The tables of a comparison as CSV, Markdown and LaTeX in a folder."""

import csv
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqlab.report.compare import Comparison, Difference, warnings_of
from seqlab.report.fits import Fit, Gap
from seqlab.report.rows import COSTS, Row
from seqlab.report.statistics import Estimate
from seqlab.report.tables import tables_of

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",  # noqa: RUF001
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``comparison.csv``, ``differences.csv``, ``comparison.md`` and ``comparison.tex``; returns their paths.

    With fits of loss to training FLOPs also ``fits.csv`` and ``equal_flops.csv``.
    """
    paths = [folder / name for name in ("comparison.csv", "differences.csv", "comparison.md", "comparison.tex")]
    write_csv(paths[0], list(map(group_cells, comparison.rows)))
    write_csv(paths[1], list(map(difference_cells, comparison.differences)))
    paths[2].write_text(markdown(comparison), encoding="utf-8")
    paths[3].write_text(latex(comparison), encoding="utf-8")
    more = {"fits.csv": list(map(fit_cells, comparison.fits)), "equal_flops.csv": list(map(gap_cells, comparison.gaps))}
    for name, rows in more.items():
        if rows:
            paths.append(folder / name)
            write_csv(paths[-1], rows)
    return paths


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a line of headings, then the rows; a key that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def spread_out(
    name: str, estimate: Estimate | None, parts: Sequence[str] = ("mean", "std", "low", "high", "n")
) -> dict[str, Any]:
    """An estimate's numbers at full precision, each in a column."""
    return {} if estimate is None else {f"{name}_{part}": getattr(estimate, part) for part in parts}


def group_cells(row: Row) -> dict[str, Any]:
    """The line of a group in ``comparison.csv``."""
    group = row.group
    cells = {
        "data": group.data,
        "label": group.label,
        "model": group.model,
        "settings": json.dumps(group.settings, default=str) if group.settings else "",
        "seeds": " ".join(map(str, group.seeds)),
        "left_out": "; ".join(row.left_out),
    }
    names = ("parameters", "parameters_without_embeddings", "active_parameters", "trainable_parameters", "state_bytes")
    cells |= {name: getattr(row, name) for name in (*names, "scan_backend", "precision", "device")}
    cells["data_fingerprint"] = group.runs[0].summary.get("data_fingerprint")
    if row.at is not None:
        cells |= spread_out("validation_loss_at_budget", row.at.loss) | spread_out("best_until_budget", row.at.best)
    for name in COSTS:
        cells |= spread_out(name, getattr(row, name), parts=("mean", "std", "n"))  # costs have no interval
    for part in ("validation", "test"):
        for name, estimate in getattr(row, part).items():
            cells |= spread_out(f"{part}_{name}", estimate)
    for title, curve in row.difficulty.items():
        for value, one in curve.items():
            cells |= spread_out(f"test_accuracy_{title}_{value}".replace(" ", "_").replace(",", ""), one)
    cells |= {f"target {one.asked}": one.verdict for one in row.targets}
    return cells | {"folders": " ".join(str(run.folder) for run in group.runs)}


def difference_cells(one: Difference) -> dict[str, Any]:
    """The line of a difference in ``differences.csv``."""
    names = {"data": one.first.data, "metric": one.metric, "this": one.second.label, "minus_that": one.first.label}
    seeds = " ".join(map(str, one.seeds))
    return names | {"seeds": seeds} | spread_out("difference", one.estimate) | {"verdict": one.verdict}


def fit_cells(one: Fit) -> dict[str, Any]:
    """The line of a fit in ``fits.csv``; ``log_C0`` is natural."""
    names = {"data": one.data, "model": one.label, "budgets": len(one.groups), "runs": one.runs}
    cells = names | dict(zip(("least_flops", "greatest_flops"), one.extent, strict=True))
    if one.law is not None and one.law.is_identified:
        for name, value in (("E", one.law.offset), ("a", one.law.exponent), ("log_C0", one.law.log_scale)):
            cells |= spread_out(name, value, parts=("mean", "low", "high"))
    if one.law is not None:
        cells |= {"scatter": one.law.scatter, "a_without_E": one.law.slope}
    return cells | {"verdict": one.verdict, "groups": "; ".join(group.label for group in one.groups)}


def gap_cells(one: Gap) -> dict[str, Any]:
    """The line of two fits at equal FLOPs in ``equal_flops.csv``."""
    cells = {"data": one.first.data, "this": one.second.label, "minus_that": one.first.label}
    names = ("least", "budget", "greatest") if len(one.places) > 2 else ("least", "greatest")
    for name, place, difference in zip(names, one.places, one.differences, strict=True):
        cells |= {f"{name}_flops": place} | spread_out(name, difference, parts=("mean", "low", "high"))
    ends = dict(zip(("equal_low", "equal_high"), one.equal, strict=True))
    return cells | {"equal_flops": one.crossing} | ends | {"verdict": one.verdict}


def markdown(comparison: Comparison) -> str:
    """Every table, with the warnings above and the folders that were passed over below."""
    warnings = [f"- **{markdown_cell(line)}**" for line in warnings_of(comparison)]
    blocks = ["\n".join(warnings)] if warnings else []
    for table in tables_of(comparison):
        rule = ["---" if is_text else "---:" for is_text in table.is_text]
        rows = [list(map(markdown_cell, line)) for line in (table.headings, *table.lines)]
        rows.insert(1, rule)
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        blocks += [f"## {markdown_cell(table.title)}", lines, *map(markdown_cell, table.notes)]
    if comparison.skipped:
        lines = [f"- {markdown_cell(str(one.folder))}: {markdown_cell(one.why)}" for one in comparison.skipped]
        blocks += ["## Passed over", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def markdown_cell(text: str) -> str:
    """Text in one line, escaped so that Markdown shows it unchanged. An underscore within a word needs no escape.

    Of brackets only those that would make a link are escaped, which those of an interval never do.
    """
    marks = r"([\\`*|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])|!(?=\[))"
    escaped = re.sub(marks, r"\\\1", html.escape(text, quote=False))
    return " ".join(escaped.split())


def latex(comparison: Comparison) -> str:
    r"""A ``table`` for each, for ``\input`` in a document with ``\usepackage{booktabs}``."""
    blocks = ["% Needs \\usepackage{booktabs}. Written by seqlab compare."]
    for table in tables_of(comparison):
        notes = " ".join([*warnings_of(comparison), *table.notes])
        caption = f"{table.title}. {notes}" if notes else table.title
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_cell(caption)}}}",
            rf"\begin{{tabular}}{{{''.join('l' if is_text else 'r' for is_text in table.is_text)}}}",
            r"\toprule",
            latex_line(table.headings),
            r"\midrule",
            *map(latex_line, table.lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def latex_cell(text: str) -> str:
    """Text escaped for LaTeX; a sign before a number is set in math mode."""
    escaped = "".join(LATEX.get(mark, mark) for mark in text)
    return re.sub(r"(?<![\w.])([-+])(?=\d)", r"$\1$", escaped)


def latex_line(cells: Sequence[str]) -> str:
    r"""One row. Cells that begin with a bracket or star are wrapped, else ``\\`` before them would take an argument."""
    wrapped = [f"{{}}{latex_cell(cell)}" if cell.startswith(("[", "*")) else latex_cell(cell) for cell in cells]
    return " & ".join(wrapped) + r" \\"
