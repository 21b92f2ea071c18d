"""The charts of the page: the panels that the pictures have too, with every group."""

from typing import Any

from seqlab.report.plots.dataset import DataSet
from seqlab.report.plots.panels import (
    COSTS,
    cost_panels,
    difficulty_panels,
    grid_panels,
    loss_panels,
    position_panel,
    spans,
    sweep_panels,
)

POINTS = 25_000
"""Of all curves together; each has a share of them."""

FEWEST, MOST = 20, 200
"""Points of one curve."""


def charts_of(data: DataSet, groups: int) -> list[dict[str, Any]]:
    """Every chart of a data set, which shows one of its panels at a time.

    ``by`` names the reader's choice among them: the ``axis`` of the curves, or the ``cost``. In a chart ``of_models`` a
    line has several groups of one model, and is shown if any group of the model is.

    Args:
        data: of which.
        groups: of the whole comparison, which share the page's points.
    """
    everyone = range(len(data.rows))
    points = dict.fromkeys(everyone, min(MOST, max(FEWEST, POINTS // (2 * groups))))
    charts = [
        {"title": "Training loss", "by": "axis", "panels": loss_panels(data, "train", points)},
        {"title": "Validation loss", "by": "axis", "panels": loss_panels(data, "validation", points)},
        {"title": "Test loss and what it cost", "by": "cost", "panels": cost_panels(data, COSTS)},
        {"title": "Test loss by position in the context", "panels": {"": position_panel(data, everyone)}},
    ]
    swept = {f"Sweep: {parameter}": panel for parameter, panel in sweep_panels(data).items()}
    swept |= {f"Sweep at {setting}": panel for setting, panel in grid_panels(data).items()}
    by_difficulty = {f"Accuracy {name}": panel for name, panel in difficulty_panels(data, everyone).items()}
    for title, panel in (swept | by_difficulty).items():
        charts.append({"title": title, "panels": {"": panel}, "small": True, "of_models": title in swept})
    return charts


def is_logarithmic(data: DataSet) -> bool:
    """Whether the losses span so much that only a logarithmic axis shows them all."""
    panel = loss_panels(data, "validation", dict.fromkeys(data.prominent, FEWEST))["step"]
    return spans([end for line in panel.lines for end in line.band.extent], 20)
