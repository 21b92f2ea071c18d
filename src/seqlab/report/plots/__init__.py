"""The pictures of a comparison, as PNG and SVG files; one of each kind for every data set."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from seqlab.errors import UserError
from seqlab.report.compare import Comparison
from seqlab.report.plots.style import styles


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw everything that the runs hold; returns the files, PNG before SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError("plots", "none", "matplotlib is not installed", "pip install -e '.[plots]'")
    from seqlab.report.plots.cost import cost_figure
    from seqlab.report.plots.difficulty import difficulty_figure
    from seqlab.report.plots.drawing import look
    from seqlab.report.plots.figures import Picture, loss_figure, position_figure
    from seqlab.report.plots.grid import grid_figure
    from seqlab.report.plots.sweep import sweep_figure

    kinds: dict[str, Callable[[Picture, Path, str], list[Path]]] = {
        "loss": loss_figure,
        "cost": cost_figure,
        "position": position_figure,
        "sweep": sweep_figure,
        "grid": grid_figure,
        "difficulty": difficulty_figure,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    looks = styles(comparison.groups)
    rows = {id(row.group): row for row in comparison.rows}
    with look():
        for data, name in file_names([group.data for group in comparison.groups]).items():
            mine = [i for i, group in enumerate(comparison.groups) if group.data == data]
            picture = Picture(data, [rows[id(comparison.groups[i])] for i in mine], [looks[i] for i in mine])
            for kind, draw in kinds.items():
                written += draw(picture, folder, f"{name}_{kind}")
    return written


def file_names(data: list[str]) -> dict[str, str]:
    """For each data set a name that every file system takes, no two alike."""
    names: dict[str, str] = {}
    for one in dict.fromkeys(data):
        name = stem = re.sub(r"[^\w.-]+", "_", one, flags=re.ASCII).strip("._")[:60] or "data"
        number = 2
        while name.lower() in {taken.lower() for taken in names.values()}:
            name = f"{stem}_{number}"
            number += 1
        names[one] = name
    return names
