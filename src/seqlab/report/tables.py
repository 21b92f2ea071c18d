"""A comparison on the screen, and as CSV, Markdown and LaTeX in a folder."""

import csv
import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from seqlab.report.compare import Comparison
from seqlab.report.mismatches import warnings_of
from seqlab.report.rows import COSTS, Row
from seqlab.report.sheets import DIFFERENCES, Sheet, sheets_of
from seqlab.report.statistics import Estimate

PRINTED_DIFFERENCES = 30


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """``comparison.csv``, ``differences.csv``, ``comparison.md`` and ``comparison.tex``."""
    paths = [folder / name for name in ("comparison.csv", "differences.csv", "comparison.md", "comparison.tex")]
    write_csv(paths[0], [csv_row(row) for row in comparison.rows])
    write_csv(paths[1], list(csv_differences(comparison)))
    paths[2].write_text(markdown(comparison), encoding="utf-8")
    paths[3].write_text(latex(comparison), encoding="utf-8")
    return paths


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line of headings, then the rows; a key that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def spread_out(
    name: str, estimate: Estimate | None, parts: Sequence[str] = ("mean", "std", "low", "high", "n")
) -> dict[str, Any]:
    """An estimate's numbers in full, each in a column of its own."""
    return {} if estimate is None else {f"{name}_{part}": getattr(estimate, part) for part in parts}


def csv_row(row: Row) -> dict[str, Any]:
    """Everything that is known of a group."""
    group = row.group
    cells = {
        "data": group.data,
        "label": group.label,
        "model": group.model,
        "settings": json.dumps(group.settings, default=str) if group.settings else "",
        "seeds": " ".join(map(str, group.seeds)),
        "left_out": "; ".join(row.left_out),
        "parameters": row.parameters,
        "parameters_without_embeddings": row.parameters_without_embeddings,
        "active_parameters": row.active_parameters,
        "state_bytes": row.state_bytes,
        "scan_backend": row.scan_backend,
        "precision": row.precision,
        "device": row.device,
        "data_fingerprint": group.runs[0].summary.get("data_fingerprint"),
    }
    if row.at is not None:
        cells |= spread_out("validation_loss_at_budget", row.at.loss) | spread_out("best_until_budget", row.at.best)
    for name in COSTS:
        cells |= spread_out(name, getattr(row, name), parts=("mean", "std", "n"))  # a cost is no estimate of a truth
    for part in ("validation", "test"):
        for name, estimate in getattr(row, part).items():
            cells |= spread_out(f"{part}_{name}", estimate)
    for title, curve in row.difficulty.items():
        for value, one in curve.items():
            cells |= spread_out(f"test_accuracy_{title}_{value}".replace(" ", "_").replace(",", ""), one)
    for one in row.targets:
        cells[f"target {one.asked}"] = one.verdict
    cells["folders"] = " ".join(str(run.folder) for run in group.runs)
    return cells


def csv_differences(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for one in comparison.differences:
        names = {"data": one.first.data, "metric": one.metric, "this": one.second.label, "minus_that": one.first.label}
        seeds = " ".join(map(str, one.seeds))
        yield names | {"seeds": seeds} | spread_out("difference", one.estimate) | {"verdict": one.verdict}


def screen(comparison: Comparison, width: int) -> Iterator[Table | Text]:
    """What ``compare.py`` prints: what is not alike, then the tables, then what was passed over.

    Args:
        comparison: what to show.
        width: characters in a line; a table that is wider goes on below, with its names again.
    """
    for line in warnings_of(comparison):
        yield Text(line, style="yellow")
    for sheet in sheets_of(comparison):
        lines, notes = sheet.lines, list(sheet.notes)
        if sheet.title == DIFFERENCES and len(lines) > PRINTED_DIFFERENCES:
            notes.append(f"The first {PRINTED_DIFFERENCES} of {len(lines)}; differences.csv has all.")
            lines = lines[:PRINTED_DIFFERENCES]
        yield Text(sheet.title, style="table.title")  # not the table's own, which a narrow table would wrap
        for part in columns_that_fit(sheet, width):
            yield rich_table(sheet, lines, part, width)
        if notes:
            yield Text(" ".join(notes), style="table.caption")
    if comparison.skipped:
        yield skipped_table(comparison)


def columns_that_fit(sheet: Sheet, width: int) -> list[list[int]]:
    """The columns of a sheet in parts no wider than a line, each beginning with the names."""
    sizes = [column_width(sheet, i) + len(" │ ") for i in range(len(sheet.headings))]
    names = sum(sizes[: sheet.names]) + 1
    parts, used = [[]], names
    for i in range(sheet.names, len(sheet.headings)):
        if parts[-1] and used + sizes[i] > width:
            parts.append([])
            used = names
        parts[-1].append(i)
        used += sizes[i]
    return [[*range(sheet.names), *part] for part in parts]


def column_width(sheet: Sheet, i: int) -> int:
    """Characters that a column needs so that no word is broken; headings may take several lines."""
    return max([len(line[i]) for line in sheet.lines] + list(map(len, sheet.headings[i].split())))


def rich_table(sheet: Sheet, lines: Sequence[list[str]], columns: Sequence[int], width: int) -> Table:
    """Some columns of some of a sheet's lines."""
    table = Table()
    least = {i: column_width(sheet, i) for i in columns}
    whole = {i: max(least[i], len(sheet.headings[i])) for i in columns}  # with the heading in one line
    needed = sum(least.values()) + len(" │ ") * len(columns) + 1
    roomy = sum(whole.values()) + needed - sum(least.values())
    for i in columns:
        side = "left" if sheet.is_text[i] else "right"
        fixed = least[i] if needed <= width < roomy else None
        table.add_column(Text(sheet.headings[i]), justify=side, overflow="fold", width=fixed)
    for line in lines:
        table.add_row(*(Text(line[i]) for i in columns))
    return table


def skipped_table(comparison: Comparison) -> Table:
    table = Table(title=f"Passed over: {len(comparison.skipped)}", title_justify="left")
    table.add_column("folder", overflow="fold")
    table.add_column("why", overflow="fold")
    by_reason: dict[str, list[str]] = {}
    for one in comparison.skipped:
        by_reason.setdefault(one.why, []).append(str(one.folder))
    for why, folders in by_reason.items():  # comparison.md names every folder
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        table.add_row(Text(folders[0] + more), Text(why))
    return table


def markdown(comparison: Comparison) -> str:
    """Every table, with what is not alike above them and what was passed over below."""
    parts = [f"- **{markdown_cell(line)}**" for line in warnings_of(comparison)]
    blocks = ["\n".join(parts)] if parts else []
    for sheet in sheets_of(comparison):
        rule = ["---" if is_text else "---:" for is_text in sheet.is_text]
        rows = [
            list(map(markdown_cell, sheet.headings)),
            rule,
            *(list(map(markdown_cell, line)) for line in sheet.lines),
        ]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        blocks += [f"## {markdown_cell(sheet.title)}", table, *map(markdown_cell, sheet.notes)]
    if comparison.skipped:
        lines = [f"- {markdown_cell(str(one.folder))}: {markdown_cell(one.why)}" for one in comparison.skipped]
        blocks += ["## Passed over", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def markdown_cell(text: str) -> str:
    """Text that Markdown shows as it is, in one line; an underscore within a word is safe already.

    Of brackets only those are escaped that would make a link, as an interval's never do.
    """
    marks = r"([\\`*|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])|!(?=\[))"
    escaped = re.sub(marks, r"\\\1", html.escape(text, quote=False))
    return " ".join(escaped.split())


def latex(comparison: Comparison) -> str:
    r"""A ``table`` for each sheet, for ``\input`` in a document with ``\usepackage{booktabs}``."""
    blocks = ["% Needs \\usepackage{booktabs}. Written by scripts/compare.py."]
    warnings = warnings_of(comparison)
    for sheet in sheets_of(comparison):
        notes = [*warnings, *sheet.notes]
        caption = ". ".join([sheet.title, " ".join(notes)]) if notes else sheet.title
        columns = "".join("l" if is_text else "r" for is_text in sheet.is_text)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_cell(caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            latex_line(sheet.headings),
            r"\midrule",
            *map(latex_line, sheet.lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


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


def latex_cell(text: str) -> str:
    """Text that LaTeX sets as it is; a minus sign before a number is one."""
    escaped = "".join(LATEX.get(mark, mark) for mark in text)
    return re.sub(r"(?<![\w.])([-+])(?=\d)", r"$\1$", escaped)


def latex_line(cells: Sequence[str]) -> str:
    r"""One row. A cell that begins with a bracket or star is wrapped, or ``\\`` before it would take it for its own."""
    wrapped = [f"{{}}{latex_cell(cell)}" if cell.startswith(("[", "*")) else latex_cell(cell) for cell in cells]
    return " & ".join(wrapped) + r" \\"
