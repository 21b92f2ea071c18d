"""The charts of the page: the panels of the pictures, with every group."""

from typing import Any

from seqlab.report.plots.dataset import DataSet
from seqlab.report.plots.panels import (
    COSTS,
    cost_panels,
    difficulty_panels,
    fit_panels,
    grid_panels,
    loss_panels,
    position_panel,
    spans,
    sweep_panels,
)

POINTS = 25_000
"""The most points of all curves together, which each has a share of."""

FEWEST, MOST = 20, 200
"""Limits for the points of one curve."""


def charts_of(data: DataSet, groups: int) -> list[dict[str, Any]]:
    """Every chart of a data set, which shows one of its panels at a time.

    ``by`` names the choice that selects the panel: the ``axis`` of the curves, or the ``cost``. Where ``of_models`` is
    true, a line has several groups of a model, and is shown if any of the model's groups is.

    Args:
        data: whose.
        groups: how many the whole comparison has; its curves share ``POINTS``.
    """
    everyone = range(len(data.rows))
    points = dict.fromkeys(everyone, min(MOST, max(FEWEST, POINTS // (2 * groups))))
    charts = [
        {"title": "Training loss", "by": "axis", "panels": loss_panels(data, "train", points)},
        {"title": "Validation loss", "by": "axis", "panels": loss_panels(data, "validation", points)},
        {"title": "Test loss and what it cost", "by": "cost", "panels": cost_panels(data, COSTS)},
        {"title": "Test loss by position in the context", "panels": {"": position_panel(data, everyone)}},
    ]
    for title, panel in zip(
        ("Fitted test loss", "Difference of the fitted test losses"), fit_panels(data), strict=False
    ):
        charts.append({"title": title, "panels": {"": panel}, "of_models": True})
    swept = {f"Sweep: {parameter}": panel for parameter, panel in sweep_panels(data).items()}
    swept |= {f"Sweep at {setting}": panel for setting, panel in grid_panels(data).items()}
    by_difficulty = {f"Accuracy {name}": panel for name, panel in difficulty_panels(data, everyone).items()}
    for title, panel in (swept | by_difficulty).items():
        charts.append({"title": title, "panels": {"": panel}, "small": True, "of_models": title in swept})
    return charts


def is_logarithmic(data: DataSet) -> bool:
    """Whether the losses span so much that the page starts with a logarithmic axis."""
    panel = loss_panels(data, "validation", dict.fromkeys(data.prominent, FEWEST))["step"]
    return spans([end for line in panel.lines for end in line.band.extent], 20)
