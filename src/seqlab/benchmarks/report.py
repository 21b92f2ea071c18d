"""Output of results: tables for the screen and in Markdown, JSON, CSV, a picture."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import MARKDOWN
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from seqlab import console
from seqlab.jsonio import dump
from seqlab.places import check_place

COLOURS = {"met": "green", "missed": "red", "grows": "red"}
"""Of cells, by their last word."""


def number(value: float | None, scale: float = 1.0) -> str:
    """Three significant digits of a value times ``scale``, at most four decimals; ``-`` for ``None``."""
    if value is None:
        return "-"
    value *= scale
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(4, max(0, digits))}f}"


def table(title: str, rows: Sequence[Mapping[str, str]], *, names: int = 1, caption: str | None = None) -> Table:
    """A table of rows, which have the same headings.

    Args:
        title: shown above.
        rows: cells by heading.
        names: how many columns on the left are names, aligned left; the others are aligned right. Where several rows
            share a first name, a line separates them from the next.
        caption: shown below.
    """
    below = None if caption is None else escape(caption)
    made = Table(title=escape(title), title_justify="left", caption=below, caption_justify="left")
    for place, heading in enumerate(rows[0] if rows else ()):
        made.add_column(heading, justify="left" if place < names else "right", overflow="fold")
    firsts = [next(iter(row.values())) for row in rows]
    grouped = len(set(firsts)) < len(rows)
    for row, first, after in zip(rows, firsts, [*firsts, None][1:], strict=True):
        cells = (Text(cell, style=COLOURS.get(cell.rpartition(" ")[2], "")) for cell in row.values())
        made.add_row(*cells, end_section=grouped and after != first)
    return made


def write_markdown(path: Path, tables: Iterable[Table]) -> None:
    """Write tables in Markdown. Changes their box style, so they cannot be printed afterwards."""
    with path.open("w", encoding="utf-8") as file:
        out = Console(file=file, width=1000)  # so that no row is wrapped
        for table in tables:
            table.box = MARKDOWN
            for row in table.rows:
                row.end_section = False
            out.print(table)


class Line(NamedTuple):
    """A curve of a panel: its label in the legend, points (x, y), and keywords for matplotlib's ``plot``."""

    label: str
    points: Sequence[tuple[float, float]]
    look: Mapping[str, Any]


class Panel(NamedTuple):
    """Curves on logarithmic axes: titles, unit of y, the curves, and the format of y's ticks."""

    title: str
    unit: str
    lines: Sequence[Line]
    show: Callable[[float], str] = "{:g}".format
    legend: str | None = None  # its title
    xlabel: str | None = None  # in place of the whole figure's


def thousands(count: float) -> str:
    """A power of two as people write it: 8192 is 8k, 1048576 is 1M."""
    for power, prefix in ((20, "M"), (10, "k")):
        if count >= 2**power:
            return f"{count / 2**power:g}{prefix}"
    return f"{count:g}"


def can_draw() -> bool:
    """Whether matplotlib is there; says so if not."""
    if find_spec("matplotlib") is None:
        console.say("No picture without matplotlib: pip install 'seqlab[plots]' adds it.")
        return False
    return True


def write_picture(
    path: Path,
    title: str,
    panels: Sequence[Panel],
    xlabel: str,
    places: Sequence[str] | None = None,
    columns: int = 2,
) -> list[str]:
    """Draw panels in rows. Returns the file's name, or nothing without matplotlib.

    Args:
        path: a PNG file.
        title: of the whole figure.
        panels: to draw.
        xlabel: of every panel.
        places: names for the positions 0, 1, ... of the horizontal axis, which is logarithmic without them.
        columns: panels in a row; up to two have their legends beside them.
    """
    if not can_draw():
        return []
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = math.ceil(len(panels) / columns)
    beside = columns <= 2  # of a legend
    figure = Figure(figsize=((7.5 if beside else 5) * columns, 4.5 * rows), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        axes.set(title=panel.title, ylabel=panel.unit, xlabel=panel.xlabel or xlabel)
        axes.grid(alpha=0.3)
        for line in panel.lines:
            axes.plot(*zip(*line.points, strict=True), label=line.label, markersize=4, **line.look)
        if not panel.lines:
            axes.text(0.5, 0.5, "not known on this device", ha="center", transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            continue
        if places is None:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
        else:
            axes.set_xticks(range(len(places)), places, rotation=20, fontsize=8)
        axes.set_yscale("log", base=2 if panel.unit == "bytes" else 10)
        plain = FuncFormatter(lambda value, _, show=panel.show: show(value))
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())  # else no tick has a number
        place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if beside else {"loc": "best"}
        axes.legend(fontsize=8, title=panel.legend, title_fontsize=8, **place)
    figure.savefig(path, dpi=110)
    return [path.name]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write rows with a line of headings; returns the file's name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return [path.name]


def make_folder(path: Path) -> None:
    """Make the results' folder before anything is measured, so that a mistake here costs no time.

    Raises:
        UserError: it cannot be made.
    """
    check_place("--out", path)
    path.mkdir(parents=True, exist_ok=True)


def finish(
    path: Path | None,
    results: Mapping[str, Any],
    tables: Sequence[Table],
    lines: Iterable[str] = (),
    also: Sequence[str] = (),
) -> None:
    """Write the results, then show the tables, the lines below them, and the names of the files written.

    Args:
        path: a file for the results as JSON, with the tables beside it in Markdown; ``None`` to write nothing.
        results: for the JSON file.
        tables: to show.
        lines: to show below.
        also: names of files in the same folder that were written before.
    """
    out = console.output()
    if not out.is_terminal:
        out.width = max(out.width, 180)  # a table in a file need not fit a screen
    for part in tables:
        out.print(part)
    if path is not None:
        dump(path, results)
        markdown = path.with_suffix(".md")
        write_markdown(markdown, tables)
        lines = [*lines, f"Written to {path.parent}: {', '.join([path.name, markdown.name, *also])}"]
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)
