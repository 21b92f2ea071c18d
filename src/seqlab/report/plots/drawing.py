"""Parts that several pictures share: axes, lines, panels, the legend, and writing to files."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from seqlab.report.plots.labels import plain, shortened
from seqlab.report.plots.panels import MOST_NAMED, Axis, Line, Panel, short_number, spans
from seqlab.report.plots.style import Style

WIDTH = 7.0
"""Inches: the width of a page's text, whose footnotes have letters of the same size."""

DPI = 180

SETTINGS = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "seqlab",
    "text.parse_math": False,
}
DASHES: dict[str, Any] = {
    "dash": "dashed",
    "dot": "dotted",
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 2, 1, 2)),
}
FAINT = 0.3
SHARE_LIMITS = (-0.03, 1.03)
"""Limits of an axis for values between 0 and 1."""


@dataclass(frozen=True)
class Picture:
    """A drawn figure with the entries of its legend and its caption."""

    figure: Figure
    legend: list[tuple[Line2D, str]]
    caption: str


def linestyle(style: Style) -> Any:
    """A style's dash for matplotlib."""
    return DASHES.get(style.line, style.line)


def legend_handle(style: Style, *, line: bool = True, marker: bool = False) -> Line2D:
    """A line without points, for the legend."""
    return Line2D(
        [],
        [],
        color=style.colour,
        linestyle=linestyle(style) if line else "none",
        marker=style.marker if marker else None,
    )


def draw_band(axes: Axes, line: Line) -> None:
    """A line with its band, thin lines where seeds are single, and a marker where there is a single point."""
    band, style = line.band, line.style
    line_style = {"color": style.colour, "linestyle": linestyle(style), "zorder": 3}
    axes.plot(band.x, band.mean, marker=style.marker if len(band.x) == 1 and not band.alone else None, **line_style)
    thin = {"markersize": 2, "linewidth": 0.6, "alpha": 0.7, **line_style}
    for x, y in band.alone:
        axes.plot(x, y, marker=style.marker if len(x) == 1 else None, **thin)
    if band.n > 1:
        axes.fill_between(band.x, band.low, band.high, color=style.colour, alpha=0.2, linewidth=0, zorder=2)


def draw_background(axes: Axes, lines: Sequence[Line]) -> None:
    """Thin lines without bands, as one artist, which draws hundreds of them as fast as one."""
    drawn = [
        (np.column_stack(part), line.style.colour)
        for line in lines
        for part in ((line.band.x, line.band.mean), *line.band.alone)
        if len(part[0])
    ]
    parts, colours = [part for part, _ in drawn], [colour for _, colour in drawn]
    axes.add_collection(LineCollection(parts, colors=colours, alpha=FAINT, linewidths=0.5, zorder=1))
    axes.autoscale_view()


def draw_points(axes: Axes, line: Line, **more: Any) -> None:
    """Means as a line with markers, intervals as bars; ``more`` are keywords for ``errorbar``."""
    band, style = line.band, line.style
    bars = None if np.isnan(band.low).all() else np.nan_to_num([band.mean - band.low, band.high - band.mean])
    axes.errorbar(
        band.x,
        band.mean,
        bars,
        color=style.colour,
        linestyle=linestyle(style),
        marker=style.marker,
        elinewidth=0.9,
        capsize=2,
        **more,
    )


def draw_panels(
    panels: Sequence[Panel], *, columns: int, width: float, height: float, sharex: bool = False, **more: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of panels with a common vertical axis, labelled at the first of each row.

    Args:
        panels: of swept values, at least one.
        columns: of panels.
        width: of the figure, in inches.
        height: of a panel with its axis, in inches.
        sharex: whether all have one horizontal axis.
        more: for ``draw_points``.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(width, 0.2 + height * rows), layout="constrained")
    grid = list(chain.from_iterable(figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False)))
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        for line in panel.lines:
            draw_points(axes, line, **more)
        format_values(axes, panel.x)
    for axes in grid[: len(panels) : columns]:
        axes.set_ylabel(panels[0].y)
    if panels[0].is_share:
        grid[0].set_ylim(SHARE_LIMITS)
    return figure, grid[: len(panels)]


def format_values(axes: Axes, axis: Axis) -> None:
    """The axis of swept values, each labelled if they are few."""
    axes.set_xlabel("\n".join(plain(line, 40) for line in axis.title.split("\n")))
    axes.margins(x=0.12)
    if not axis.names:
        axes.set_xlim(min(axis.places), max(axis.places))
        format_axis(axes, "x", log=axis.log)
        return
    if axis.log:
        axes.set_xscale("log")
    every = -(-len(axis.places) // MOST_NAMED)
    names = list(map(plain, shortened(axis.names, 12)))
    axes.xaxis.set_major_locator(FixedLocator(axis.places[::every]))
    axes.xaxis.set_major_formatter(FixedFormatter(names[::every]))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(names) > 6 or max(map(len, names)) > 6:
        axes.tick_params(axis="x", rotation=35 if len(names) > 3 else 0)


def format_axis(axes: Axes, which: str, *, log: bool) -> None:
    """A linear or logarithmic axis with ticks for a narrow panel; ``which`` is ``x`` or ``y``."""
    axis = getattr(axes, f"{which}axis")
    if log:
        getattr(axes, f"set_{which}scale")("log")
        low, high = axis.get_view_interval()
        decades = np.log10(high / low)
        if decades < 1.5:  # with at most one power of ten to label
            steps = (1, 1.5, 2, 3, 5, 7) if decades < 0.6 else (1, 2, 5)
            axis.set_major_locator(LogLocator(subs=steps))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(LogLocator(numticks=4))
            axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(4 if which == "x" else 5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(short_number))


def format_losses(axes: Axes, lines: Sequence[Line]) -> float | None:
    """The axis of losses that fall during training, for lines against steps; returns its upper end."""
    extents = [line.band.extent for line in lines]
    if not extents or not np.isfinite(extents).all():
        return None
    low, high = min(low for low, _ in extents), max(high for _, high in extents)
    margin = 0.03 * (high - low) or 0.5
    log = spans([low, high + margin], 20)
    axes.set_ylim(low * 0.9 if log else low - margin, high + margin)
    format_axis(axes, "y", log=log)
    return high + margin


def finish(picture: Picture) -> None:
    """Add a legend above the panels and the caption beneath, and make the figure higher by their heights."""
    figure = picture.figure
    labels = list(map(plain, shortened([label for _, label in picture.legend], 3 * 60)))
    parts = [label.split("\n") for label in labels]
    longest = max((len(line) for lines in parts for line in lines), default=0)
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 17 // (longest + 8))))
    rows = -(-len(labels) // columns)
    highest = max(map(len, parts), default=0)
    lines = wrap(picture.caption, int(figure.get_figwidth() * 21))
    figure.set_figheight(figure.get_figheight() + 0.16 * rows * highest + 0.12 * len(lines))
    if labels:
        figure.legend(
            [handle for handle, _ in picture.legend],
            labels,
            loc="outside upper center",
            ncols=-(-len(labels) // rows),
            frameon=False,
            handlelength=2.8,
            columnspacing=1.5,
            borderpad=0.1,
        )
    figure.supxlabel("\n".join(plain(line, len(line)) for line in lines), fontsize=6.5, color="0.35")


def png_of(picture: Picture, dpi: int = DPI) -> bytes:
    """The figure as a PNG, the same bytes each time, with the caption as description."""
    canvas = FigureCanvasAgg(picture.figure)
    picture.figure.set_dpi(dpi)
    with odd_letters():
        canvas.draw()
    description = PngInfo()
    description.add_itxt("Description", picture.caption)
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = BytesIO()
    pixels.quantize(256, dither=Image.Dither.NONE).save(file, "png", pnginfo=description, dpi=(dpi, dpi))
    return file.getvalue()


@contextmanager
def odd_letters() -> Iterator[None]:
    """Within, a label in another script than the font has is no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Write the figure as PNG and SVG, the same bytes each time, with the caption as description; returns the paths."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    png.write_bytes(png_of(picture))
    picture.figure.set_layout_engine("none")  # keep the layout for the other file
    text = StringIO()
    with odd_letters():
        picture.figure.savefig(text, format="svg", metadata={"Description": picture.caption, "Date": None})
    svg.write_text(PLACE.sub(r"\1 \2 \3", text.getvalue()), encoding="utf-8")
    return [png, svg]


PLACE = re.compile(r"\b([ML]) (-?\d+\.\d\d)\d* (-?\d+\.\d\d)\d*")
"""The coordinates in an SVG path, in points, with more than two decimals."""
