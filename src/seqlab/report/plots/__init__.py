"""The pictures of a comparison, as PNG and SVG files; one of each kind for every data set."""

import re
from importlib.util import find_spec
from pathlib import Path

from seqlab.errors import UserError
from seqlab.report.compare import Comparison
from seqlab.report.plots.dataset import data_sets


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw every picture that the runs have values for; returns the files, PNG before SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError("plots", "none", "matplotlib is not installed", "pip install -e '.[plots]'")
    from matplotlib import rc_context

    from seqlab.report.plots import drawing
    from seqlab.report.plots.cost import cost_picture
    from seqlab.report.plots.fits import fit_picture
    from seqlab.report.plots.losses import loss_picture, position_picture
    from seqlab.report.plots.values import difficulty_picture, grid_picture, sweep_picture

    kinds = {
        "loss": loss_picture,
        "cost": cost_picture,
        "fit": fit_picture,
        "position": position_picture,
        "sweep": sweep_picture,
        "grid": grid_picture,
        "difficulty": difficulty_picture,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    data = data_sets(comparison)
    with rc_context(drawing.SETTINGS):
        for one, name in zip(data, file_names([one.name for one in data]), strict=True):
            for kind, draw in kinds.items():
                if (picture := draw(one)) is not None:
                    drawing.finish(picture)
                    written += drawing.save(picture, folder, f"{name}_{kind}")
    return written


def file_names(data: list[str]) -> list[str]:
    """A file name for each data set, valid on every file system and unique without regard to case."""
    names: list[str] = []
    for one in data:
        name = stem = re.sub(r"[^\w.-]+", "_", one, flags=re.ASCII).strip("._")[:60] or "data"
        number = 2
        while name.lower() in {taken.lower() for taken in names}:
            name = f"{stem}_{number}"
            number += 1
        names.append(name)
    return names
