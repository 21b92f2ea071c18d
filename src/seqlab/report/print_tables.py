"""The tables of a comparison on the screen, fitted to its width."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter

import rich.table
from rich.text import Text

from seqlab.report.compare import ONE_SEED, Comparison, first_few, warnings_of
from seqlab.report.groups import grouped
from seqlab.report.runs import Skipped
from seqlab.report.tables import DIFFERENCES, Table, tables_of

PRINTED_DIFFERENCES = 30
BORDER = len(" │ ")


def screen(comparison: Comparison, width: int) -> Iterator[rich.table.Table | Text]:
    """What ``compare.py`` prints: warnings, the tables, then the folders that were passed over.

    Args:
        comparison: what to show.
        width: characters in a line; the columns of a wider table continue below, with the names repeated.
    """
    for line in warnings_of(comparison):
        yield Text(line, style="yellow")
    for table in tables_of(comparison):
        if table.title == DIFFERENCES and len(table.lines) > PRINTED_DIFFERENCES:
            more = f"{PRINTED_DIFFERENCES} of {len(table.lines)}, with intervals first; differences.csv has all."
            told = sorted(table.lines, key=lambda line: line[-1] == ONE_SEED)
            table = replace(table, lines=told[:PRINTED_DIFFERENCES], notes=[*table.notes, more])
        yield Text(table.title, style="table.title")  # a title of the table itself is wrapped where the table is narrow
        for columns in columns_that_fit(table, width):
            yield rich_table(table, columns, width)
        if table.notes:
            yield Text(" ".join(table.notes), style="table.caption")
    if comparison.skipped:
        yield skipped_table(comparison.skipped)


def columns_that_fit(table: Table, width: int) -> list[list[int]]:
    """The columns of a table in parts no wider than a line, each beginning with the names."""
    sizes = [least_width(table, i) + BORDER for i in range(len(table.headings))]
    names = sum(sizes[: table.names]) + 1
    parts, used = [[]], names
    for i in range(table.names, len(table.headings)):
        if parts[-1] and used + sizes[i] > width:
            parts.append([])
            used = names
        parts[-1].append(i)
        used += sizes[i]
    return [[*range(table.names), *part] for part in parts]


def least_width(table: Table, i: int) -> int:
    """Characters that a column needs so that no word is broken; headings may be wrapped."""
    return max([len(line[i]) for line in table.lines] + list(map(len, table.headings[i].split())))


def rich_table(table: Table, columns: Sequence[int], width: int) -> rich.table.Table:
    """Some columns of a table; headings are not wrapped if the width allows it."""
    least = {i: least_width(table, i) for i in columns}
    whole = {i: max(least[i], len(table.headings[i])) for i in columns}
    others = BORDER * len(columns) + 1
    widths = next((sizes for sizes in (whole, least) if sum(sizes.values()) + others <= width), {})
    shown = rich.table.Table()
    for i in columns:
        side = "left" if table.is_text[i] else "right"
        shown.add_column(Text(table.headings[i]), justify=side, overflow="fold", width=widths.get(i))
    for line in table.lines:
        shown.add_row(*(Text(line[i]) for i in columns))
    return shown


def skipped_table(skipped: Sequence[Skipped]) -> rich.table.Table:
    """One folder for each reason, with the number of others; comparison.md names every folder."""
    table = rich.table.Table(title=f"Passed over: {len(skipped)}", title_justify="left")
    table.add_column("folder", overflow="fold")
    table.add_column("why", overflow="fold")
    for why, same in grouped(skipped, attrgetter("why")).items():
        table.add_row(Text(first_few([one.folder for one in same], 1, "")), Text(why))
    return table
