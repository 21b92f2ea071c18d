"""The figure of a sweep over data settings and one size: a panel for each data setting."""

from pathlib import Path

from matplotlib.figure import Figure

from seqlab.analysis.grids import PARAMETERS, Grid, grid_of
from seqlab.analysis.plots.drawing import WIDTH, draw_estimates, finish, flatten, legend_handle, plain, save
from seqlab.analysis.plots.figures import INTERVAL, Picture
from seqlab.analysis.plots.style import styles_of_models
from seqlab.analysis.plots.sweep import places_of, value_axis

COLUMNS = 4
MOST_PANELS = 16


def grid_figure(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Accuracy (or test loss) against the size, a line a model: figure 2 of Zoology (Arora et al. 2023)."""
    grid = grid_of(picture.groups)
    if grid is None:
        return []
    looks = styles_of_models(list(grid.models), [group.model for group in picture.groups])
    titles = grid.titles[:MOST_PANELS]
    rows = -(-len(titles) // COLUMNS)
    columns = -(-len(titles) // rows)
    figure = Figure(figsize=(WIDTH * max(0.6, columns / COLUMNS), 0.3 + 1.75 * rows), layout="constrained")
    panels = flatten(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False))
    for axes, title in zip(panels, titles, strict=False):
        place = dict(zip(grid.sizes, places_of(axes, grid.sizes, factor=1.5), strict=True))
        for model in grid.models:
            line = grid.line(model, title)
            estimates = [picture.headlines[id(group)] for group in line.values()]
            draw_estimates(axes, [place[size] for size in line], estimates, looks[model], share=picture.is_share)
        axes.set_title(plain(title, 40))
    for axes in panels[len(titles) :]:
        axes.remove()
    for i, axes in enumerate(panels[: len(titles)]):
        axes.tick_params(labelbottom=i + columns >= len(titles))
    for axes in panels[max(0, len(titles) - columns) : len(titles)]:
        axes.set_xlabel(plain(PARAMETERS.get(grid.parameter, grid.parameter)))
    value_axis(picture, panels[: len(titles) : columns])
    caption = caption_of(picture, grid)
    finish(figure, [(legend_handle(looks[model], marker=True), model) for model in grid.models], caption)
    return save(figure, folder, name, caption)


def caption_of(picture: Picture, grid: Grid) -> str:
    """What stands behind the points, and what is not there."""
    several = any(len(group.runs) > 1 for points in grid.models.values() for group in points.values())
    parts = [f"{picture.data}. {picture.seeds()}{'; ' + INTERVAL if several else ''}."]
    if len(grid.titles) > MOST_PANELS:
        parts.append(f"The first {MOST_PANELS} of {len(grid.titles)} data settings.")
    if grid.follows:
        parts.append(f"Also different from place to place: {', '.join(grid.follows)}.")
    if grid.missing:
        places = len(grid.titles) * len(grid.sizes) * len(grid.models)
        parts.append(f"Missing points: {grid.missing} of {places} places have no completed run.")
    if grid.left_out:
        parts.append(f"Not drawn, with several settings at one place: {', '.join(grid.left_out)}.")
    return " ".join(parts)
