"""The figure of a hyper-parameter sweep: one panel a parameter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from seqlab.report.curves import is_number
from seqlab.report.grids import PARAMETERS, in_order
from seqlab.report.groups import in_short
from seqlab.report.plots.choices import Series, sweeps
from seqlab.report.plots.drawing import (
    WIDTH,
    draw_estimates,
    finish,
    flatten,
    format_axis,
    legend_handle,
    plain,
    save,
    shortened,
    wide,
)
from seqlab.report.plots.figures import INTERVAL, Picture
from seqlab.report.plots.style import Style, styles_of_models

COLUMNS = 3
MOST_PANELS = 12
MOST_NAMED = 10


def sweep_figure(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Final test loss, or accuracy where the data has it, against each swept parameter."""
    found = dict(list(sweeps(picture.groups).items())[:MOST_PANELS])
    if not found:
        return []
    models = list(dict.fromkeys(one.model for series in found.values() for one in series))
    looks = styles_of_models(models, [group.model for group in picture.groups])
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    width = WIDTH if columns > 1 else WIDTH * 0.55
    figure = Figure(figsize=(width, 0.2 + 1.75 * rows), layout="constrained")
    panels = flatten(figure.subplots(rows, columns, sharey=True, squeeze=False))
    for axes, series in zip(panels, found.values(), strict=False):
        draw_series(axes, picture, series, looks)
    for axes in panels[len(found) :]:
        axes.remove()
    value_axis(picture, panels[: len(found) : columns])
    drawn = [group for series in found.values() for group in series[0].groups]
    caption = f"{picture.opening(INTERVAL, drawn)} {bases(found)}"
    finish(figure, [(legend_handle(looks[model], marker=True), model) for model in models], caption)
    return save(figure, folder, name, caption)


def value_axis(picture: Picture, first: Sequence[Axes]) -> None:
    """The axis that panels share, named at the first of each row."""
    for axes in first:
        axes.set_ylabel("accuracy" if picture.is_share else "test loss")
    if picture.is_share:
        first[0].set_ylim(-0.03, 1.03)


def bases(found: dict[str, list[Series]]) -> str:
    """Where each model's series meet, for the caption: the settings that stay as they are in the other panels."""
    by_model = {one.model: one for series in found.values() for one in series}
    said = [f"{model} ({settings_of(one)})" for model, one in by_model.items()]
    if len(found) == 1:
        return "Nothing else changes along a line." if not next(iter(found.values()))[0].follows else ""
    return f"Each panel changes one parameter of a base setting: {'; '.join(said)}."


def settings_of(series: Series) -> str:
    return ", ".join(f"{key.split('.')[-1]} {in_short(value)}" for key, value in series.base.settings.items())


def draw_series(axes: Axes, picture: Picture, series: Sequence[Series], looks: dict[str, Style]) -> None:
    values = sorted({value_key(value) for one in series for value in one.values}, key=lambda pair: in_order(pair[1]))
    places = places_of(axes, [value for _, value in values])
    place = {name: x for (name, _), x in zip(values, places, strict=True)}
    for one in series:
        estimates = [picture.headlines[id(group)] for group in one.groups]
        x = [place[value_key(value)[0]] for value in one.values]
        draw_estimates(axes, x, estimates, looks[one.model], share=picture.is_share)
    follows = sorted({name for one in series for name in one.follows})
    axes.set_xlabel(title_of(series[0].parameter, follows))


def value_key(value: Any) -> tuple[str, Any]:
    return in_short(value), value if is_number(value) else in_short(value)


def places_of(axes: Axes, values: Sequence[Any], factor: float = 4) -> Sequence[float]:
    """Where each value stands on the axis: numbers to scale, anything else side by side; of few every one is named.

    Numbers that span the factor stand on a logarithmic axis.
    """
    numbers = all(map(is_number, values))
    log = numbers and wide(values, factor)
    places = list(values) if numbers else list(range(len(values)))
    axes.margins(x=0.12)
    if numbers and len(values) > MOST_NAMED:
        axes.set_xlim(min(values), max(values))
        format_axis(axes, "x", log=log)
        return places
    if log:
        axes.set_xscale("log")
    every = -(-len(places) // MOST_NAMED)
    names = shortened(list(map(in_short, values)), 12)
    axes.xaxis.set_major_locator(FixedLocator(places[::every]))
    axes.xaxis.set_major_formatter(FixedFormatter([plain(name) for name in names[::every]]))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(places) > 6 or not numbers:
        axes.tick_params(axis="x", rotation=35 if len(places) > 3 else 0)
    return places


def title_of(parameter: str, follows: Sequence[str]) -> str:
    """A swept parameter's axis, with whatever changed along with it."""
    title = plain(PARAMETERS.get(parameter, parameter))
    return f"{title}\n{plain('with ' + ', '.join(follows), 40)}" if follows else title
