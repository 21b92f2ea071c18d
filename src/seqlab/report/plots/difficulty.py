"""The figure of a probe: accuracy against each thing that makes it hard."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter

from seqlab.report.difficulty import Curve, numbers_of, titles
from seqlab.report.plots.choices import grids
from seqlab.report.plots.drawing import WIDTH, draw_estimates, finish, flatten, plain, save, short_number
from seqlab.report.plots.figures import INTERVAL, Picture
from seqlab.report.plots.style import Style
from seqlab.report.plots.sweep import MOST_NAMED, places_of

COLUMNS = 3
HALF = 0.55


def difficulty_figure(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Test accuracy by slice of the test split and at each further test, a line for each model.

    Not for a grid: its places have data of their own, and models would be drawn at different ones.
    """
    if grids([row.group for row in picture.rows]):
        return []
    shown = picture.prominent
    found = titles([picture.rows[i].difficulty for i in shown])
    if not found:
        return []
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else WIDTH * HALF, 0.2 + 1.9 * rows), layout="constrained")
    panels = flatten(figure.subplots(rows, columns, sharey=True, squeeze=False))
    for axes, (title, values) in zip(panels, found.items(), strict=False):
        draw_panel(axes, values, [(picture.rows[i].difficulty.get(title, {}), picture.styles[i]) for i in shown])
        axes.set_xlabel(plain(title.removeprefix("by ").removeprefix("at ")))
        axes.set_title("test split" if title.startswith("by ") else "further tests")
    for axes in panels[len(found) :]:
        axes.remove()
    for axes in panels[: len(found) : columns]:
        axes.set_ylabel("accuracy")
    panels[0].set_ylim(-0.03, 1.03)
    caption = f"{picture.caption(INTERVAL)} Missing points could not be measured."
    finish(figure, picture.legend(marker=True), caption)
    return save(figure, folder, name, caption)


def draw_panel(axes: Axes, values: Sequence[str], curves: Sequence[tuple[Curve, Style]]) -> None:
    """One line a model; values of several numbers stand side by side."""
    numbers = [numbers_of(value) for value in values]
    single = all(one is not None and len(one) == 1 for one in numbers)
    places = places_of(axes, [one[0] for one in numbers] if single else list(values))
    if single and len(values) <= MOST_NAMED:
        axes.xaxis.set_major_formatter(FixedFormatter([short_power(one[0]) for one in numbers]))
    place = dict(zip(values, places, strict=True))
    for curve, style in curves:
        drawn = {value: curve[value] for value in values if value in curve}
        x = [place[value] for value in drawn]
        draw_estimates(axes, x, list(drawn.values()), style, share=True, markersize=3)


def short_power(value: float) -> str:
    """A length on an axis: 16Ki for 16384."""
    for size, unit in ((2**20, "Mi"), (2**10, "Ki")):
        if value >= size and value % size == 0:
            return f"{value / size:g}{unit}"
    return short_number(value)
