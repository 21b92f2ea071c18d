"""Tables for the screen; JSON, CSV and a plot for the folder."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from seqlab.benchmarks.scan.contestants import OTHERS, Shape
from seqlab.benchmarks.scan.results import OFFICIAL_SOURCE, PASSES, TARGETS, Row


def number(value: float | None) -> str:
    """Three significant digits, of which four at most are decimals."""
    if value is None:
        return "-"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(4, max(0, digits))}f}"


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Forward and forward + backward of the same backend and shape, which stand next to each other."""
    return list(zip(rows[::2], rows[1::2], strict=True))


def gaps(rows: list[Row]) -> list[str]:
    """A line for each backend and pass with rows that were not measured."""
    empty: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status != "measured":
            empty.setdefault((row.backend, row.passes), []).append(row)
    lines = []
    for (backend, passes), missing in empty.items():
        first, more = missing[0], len(missing) - 1
        also = f" (and at {more} more)" if more else ""
        lines.append(f"{backend}, {passes}, {first.status} at {first.shape}{also}: {first.reason}")
    return lines


def results_table(rows: list[Row], title: str) -> Table:
    """A line for each backend and shape; forward / forward + backward in a cell."""
    others = [name for name in OTHERS if any(row.backend == name and row.ms is not None for row in rows)]
    table = Table(title=title, title_justify="left", caption="in each cell: forward / forward + backward")
    table.add_column("B x L x D")
    table.add_column("backend")
    for heading in ("ms", "peak MiB", "first call s", "times the roofline", *(f"{name} / this" for name in others)):
        table.add_column(heading, justify="right")
    previous = None
    for pair in pairs(rows):
        if previous not in (None, pair[0].shape):
            table.add_section()
        columns = ("ms", "peak_mib", "first_call_s", "over_roofline", *(f"times_{name}" for name in others))
        cells = [" / ".join(number(getattr(row, column)) for row in pair) for column in columns]
        cells[1] = cells[1] if pair[0].peak_mib is not None or pair[1].peak_mib is not None else "n/a"
        table.add_row(str(pair[0].shape) if previous != pair[0].shape else "", pair[0].backend, *cells)
        previous = pair[0].shape
    return table


def targets_table(rows: list[Row], device: str) -> Table:
    """Ours beside the published figures, each with its verdict."""
    caption = f"official: {OFFICIAL_SOURCE}; measured here: {device}, {rows[0].dtype}, N = {rows[0].d_state}"
    table = Table(title="Against the published figures", title_justify="left", caption=caption)
    for heading in ("B x L x D", "backend"):
        table.add_column(heading)
    for passes in PASSES:
        for heading in (f"{passes} ms", "official", f"times (>= {TARGETS[passes]:g})", ""):
            table.add_column(heading, justify="right")
    for heading in ("peak MiB", "official", ""):
        table.add_column(heading, justify="right")
    for pair in pairs([row for row in rows if row.official_ms is not None]):
        cells = []
        for row in pair:
            cells += [number(row.ms), f"{row.official_ms:g}", number(row.times_official), verdict(row.target_met)]
        both = pair[1]
        cells += [number(both.peak_mib), f"{both.official_peak_mib:g}", verdict(both.peak_met)]
        table.add_row(str(both.shape), both.backend, *cells)
    return table


def verdict(met: bool | None) -> str:
    return "n/a" if met is None else "[green]met[/]" if met else "[red]missed[/]"


def write_json(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def write_png(path: Path, rows: list[Row], title: str, sweep: bool) -> bool:
    """Time and memory against L, or for each shape if there is no sweep. False if there is no matplotlib."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row.shape for row in rows))
    places = {shape: shape.length if sweep else place for place, shape in enumerate(shapes)}
    figure = Figure(figsize=(14, 5), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    draw(time_axes, rows, places, "ms", PASSES)
    floor = [row for row in rows if row.roofline_ms is not None]
    for passes in PASSES:
        line = {places[row.shape]: row.roofline_ms for row in floor if row.passes == passes}
        if line:
            style = {"color": "0.6", "linestyle": ":" if passes == "forward" else "-.", "label": f"roofline, {passes}"}
            time_axes.plot(*zip(*sorted(line.items()), strict=True), **style)
    draw(memory_axes, rows, places, "peak_mib", PASSES[1:])
    figure.suptitle(title)
    time_axes.set(title="Time of a call", ylabel="milliseconds, median")
    memory_axes.set(title="Peak memory beyond the inputs, forward+backward", ylabel="MiB")
    for axes in (time_axes, memory_axes):
        finish(axes, shapes, sweep)
    figure.legend(handles=time_axes.lines, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120)
    return True


def draw(axes: Any, rows: list[Row], places: dict[Shape, int], column: str, passes: Sequence[str]) -> None:
    """A colour for each backend, dashed for forward alone."""
    names = list(dict.fromkeys(row.backend for row in rows))
    for (colour, name), which in product(enumerate(names), passes):
        mine = [row for row in rows if (row.backend, row.passes) == (name, which)]
        points = sorted((places[row.shape], getattr(row, column)) for row in mine if getattr(row, column) is not None)
        if points:
            style = {"color": f"C{colour}", "marker": "o", "markersize": 4, "label": f"{name}, {which}"}
            axes.plot(*zip(*points, strict=True), linestyle="--" if which == "forward" else "-", **style)


def finish(axes: Any, shapes: list[Shape], sweep: bool) -> None:
    if sweep:
        axes.set_xscale("log", base=2)
        axes.set_xlabel("L, positions")
    else:
        axes.set_xticks(range(len(shapes)), list(map(str, shapes)), rotation=20, fontsize=8)
        axes.set_xlabel("B x L x D")
    if not axes.lines:
        axes.text(0.5, 0.5, "n/a on this device", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
