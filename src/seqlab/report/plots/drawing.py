"""Parts that several figures share: axes, bands, the legend, and a figure on its way to a file."""

import re
import textwrap
import warnings
from collections.abc import Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from seqlab.report.plots.bands import Band
from seqlab.report.plots.style import Style
from seqlab.report.statistics import Estimate

WIDTH = 7.0
"""Inches: the text of a page in two columns; letters are of the size of its footnotes."""

DPI = 180

LOOK = {
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
}
DASHES: dict[str, Any] = {"longdash": (0, (8, 2)), "longdashdot": (0, (8, 2, 1, 2))}
TITLES = {"step": "steps", "tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training"}
FAINT = 0.3
MOST_LINES = 4
FIRST = 0.02
"""The share of a training's steps whose losses may leave the frame."""


def plain(text: str, longest: int = 70) -> str:
    """Text that matplotlib draws as it stands: no mathematics, not hidden by an underscore; wrapped, in a few lines."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if len(text) > longest:
        text = textwrap.fill(text, longest, max_lines=MOST_LINES, placeholder="…")
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def shortened(texts: Sequence[str], longest: int) -> list[str]:
    """Names side by side without what is too much of them: first their common beginning, then ends that tell no more.

    Where two of them differ later than at ``longest`` letters, they stay as long as it takes to tell them apart.
    """
    if max(map(len, texts), default=0) <= longest:
        return list(texts)
    different = dict.fromkeys(texts)
    common = alike_for(list(different)) if len(different) > 1 else 0
    bodies = {text: text if common < 2 else f"…{text[common:]}" for text in different}

    def told(text: str) -> str:
        body = bodies[text]
        alike = (alike_for([body, other]) for one, other in bodies.items() if one != text)
        end = max(longest - 1, *(n + 1 for n in alike), 0)
        return body if end >= len(body) - 1 else f"{body[:end]}…"

    return [told(text) for text in texts]


def alike_for(texts: Sequence[str]) -> int:
    """Letters at the beginning that all texts share."""
    columns = zip(*texts, strict=False)
    return next((i for i, letters in enumerate(columns) if len(set(letters)) > 1), min(map(len, texts)))


def linestyle(style: Style) -> Any:
    return DASHES.get(style.line, style.line)


def draw_band(axes: Axes, band: Band, style: Style) -> None:
    """A line with its band, and thin lines of single seeds beyond it; a marker where there is but one point."""
    look = {"color": style.colour, "linestyle": linestyle(style), "zorder": 3}
    axes.plot(band.x, band.mean, marker=style.marker if len(band.x) == 1 and not band.alone else None, **look)
    for x, y in band.alone:
        axes.plot(x, y, marker=style.marker if len(x) == 1 else None, markersize=2, linewidth=0.6, alpha=0.7, **look)
    if band.n > 1:
        axes.fill_between(band.x, band.low, band.high, color=style.colour, alpha=0.2, linewidth=0, zorder=2)


def draw_estimates(
    axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], style: Style, *, share: bool = False, **more: Any
) -> None:
    """Means as a line with markers and the intervals as bars; bars of a share end at 0 and 1."""
    low, high = (0.0, 1.0) if share else (-np.inf, np.inf)
    means = [one.mean for one in estimates]
    below = [0.0 if one.low is None else one.mean - max(one.low, low) for one in estimates]
    above = [0.0 if one.high is None else min(one.high, high) - one.mean for one in estimates]
    look = {"color": style.colour, "linestyle": linestyle(style), "marker": style.marker, **more}
    axes.errorbar(x, means, [below, above], elinewidth=0.9, capsize=2, **look)


def draw_background(axes: Axes, curves: Sequence[Band], styles: Sequence[Style]) -> None:
    """Thin lines without bands, as one artist: hundreds of them take no longer than one."""
    drawn = [
        (np.column_stack(part), style.colour)
        for band, style in zip(curves, styles, strict=True)
        for part in ((band.x, band.mean), *band.alone)
        if len(part[0])
    ]
    lines, colours = [line for line, _ in drawn], [colour for _, colour in drawn]
    axes.add_collection(LineCollection(lines, colors=colours, alpha=FAINT, linewidths=0.5, zorder=1))
    axes.autoscale_view()


def wide(values: Sequence[float], factor: float) -> bool:
    """Whether positive numbers span so large a factor that a logarithmic axis is due."""
    return bool(len(values)) and min(values) > 0 and max(values) / min(values) >= factor


def short_number(value: float, _place: int | None = None) -> str:
    """A tick's name that fits at paper width: 2.5M for 2500000."""
    prefixes = "kMGTPE"
    power = min(len(prefixes), int(np.log10(abs(value)) // 3)) if abs(value) >= 1000 else 0
    return f"{value / 1000**power:.4g}{prefixes[power - 1] if power else ''}"


def format_axis(axes: Axes, which: str, *, log: bool) -> None:
    """A linear or logarithmic axis, with few enough ticks for a narrow panel."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    few = 4 if which == "x" else 5
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        low, high = axis.get_view_interval()
        decades = np.log10(high / low)
        if decades < 1.5:  # at most one power of ten would be named
            steps = (1, 1.5, 2, 3, 5, 7) if decades < 0.6 else (1, 2, 5)
            axis.set_major_locator(LogLocator(subs=steps))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(LogLocator(numticks=4))
            axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(few, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(short_number))


def legend_handle(style: Style, *, line: bool = True, marker: bool = False) -> Line2D:
    return Line2D(
        [],
        [],
        color=style.colour,
        linestyle=linestyle(style) if line else "none",
        marker=style.marker if marker else None,
    )


def finish(figure: Figure, entries: Sequence[tuple[Line2D, str]], caption: str) -> None:
    """A legend for the whole figure above its panels and the caption beneath, each given room of its own."""
    labels = list(map(plain, shortened([label for _, label in entries], 3 * 60)))
    parts = [label.split("\n") for label in labels]
    longest = max((len(line) for lines in parts for line in lines), default=0)
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 17 // (longest + 8))))
    rows = -(-len(labels) // columns)
    highest = max(map(len, parts), default=0)
    lines = textwrap.wrap(caption, int(figure.get_figwidth() * 21))
    figure.set_figheight(figure.get_figheight() + 0.16 * rows * highest + 0.12 * len(lines))
    if labels:
        figure.legend(
            [handle for handle, _ in entries],
            labels,
            loc="outside upper center",
            ncols=-(-len(labels) // rows),
            frameon=False,
            handlelength=2.8,
            columnspacing=1.5,
            borderpad=0.1,
        )
    figure.supxlabel("\n".join(plain(line, len(line)) for line in lines), fontsize=6.5, color="0.35")


def save(figure: Figure, folder: Path, name: str, caption: str) -> list[Path]:
    """The figure as PNG and SVG, the same bytes every time, with the caption as description."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a label in another script
        canvas.draw()
        figure.set_layout_engine("none")  # the layout is made; the other file need not make it again
        description = PngInfo()
        description.add_itxt("Description", caption)
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(png, pnginfo=description, dpi=(DPI, DPI))
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Description": caption, "Date": None})
    svg.write_text(PLACE.sub(r"\1 \2 \3", text.getvalue()), encoding="utf-8")
    return [png, svg]


PLACE = re.compile(r"\b([ML]) (-?\d+\.\d\d)\d* (-?\d+\.\d\d)\d*")
"""A point of a path; a hundredth of a point is enough."""


def look() -> Any:
    """The settings of every figure, as a context."""
    return mpl.rc_context(LOOK)


def limits(curves: Sequence[Band], start: float = FIRST) -> tuple[float, float] | None:
    """Limits of a loss axis: everything but what only the first part of training shows.

    Args:
        curves: losses against an axis that begins at zero, as steps do.
        start: the share of each curve of more than two points that may leave the frame at the top.
    """
    highs = [band.losses(start * band.ends[1] if len(band.x) > 2 else -np.inf).max() for band in curves]
    lows = [band.losses().min() for band in curves]
    if not highs or not np.isfinite([*highs, *lows]).all():
        return None
    low, high = min(lows), max(highs)
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def flatten(axes: Any) -> list[Axes]:
    return list(chain.from_iterable(np.atleast_2d(axes)))
