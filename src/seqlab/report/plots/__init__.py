"""The pictures of a comparison, as PNG and SVG files or as bytes; one of each kind for every data set, one for all."""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from seqlab.errors import UserError
from seqlab.report.compare import Comparison
from seqlab.report.plots.dataset import data_sets


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw every picture that the runs have values for; returns the files, PNG before SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    refuse_without_matplotlib()
    from seqlab.report.plots import drawing

    folder.mkdir(parents=True, exist_ok=True)
    return list(chain.from_iterable(drawing.save(one, folder, name) for name, one in drawn(comparison)))


def as_png(comparison: Comparison, *kinds: str, dpi: int = 100) -> dict[str, bytes]:
    """PNG files by name (``wikitext2_loss``): the pictures of some kinds, or all that the runs have values for.

    Raises:
        UserError: matplotlib is not installed.
    """
    refuse_without_matplotlib()
    from seqlab.report.plots import drawing

    return {name: drawing.png_of(one, dpi) for name, one in drawn(comparison, kinds)}


def refuse_without_matplotlib() -> None:
    """Refuse to draw.

    Raises:
        UserError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError("plots", "none", "matplotlib is not installed", "pip install -e '.[plots]'")


def drawn(comparison: Comparison, kinds: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Name and picture of each kind and data set, then ``further_tests``, of all data sets together.

    matplotlib has the settings for them while they are taken.
    """
    from matplotlib import rc_context

    from seqlab.report.plots import drawing
    from seqlab.report.plots.cost import cost_picture
    from seqlab.report.plots.fits import fit_picture
    from seqlab.report.plots.losses import loss_picture, position_picture
    from seqlab.report.plots.values import across_picture, difficulty_picture, grid_picture, sweep_picture

    draws = {
        "loss": loss_picture,
        "cost": cost_picture,
        "fit": fit_picture,
        "position": position_picture,
        "sweep": sweep_picture,
        "grid": grid_picture,
        "difficulty": difficulty_picture,
    }
    data = data_sets(comparison)
    with rc_context(drawing.SETTINGS):
        for one, name in zip(data, file_names([one.name for one in data]), strict=True):
            for kind in [kind for kind in draws if not kinds or kind in kinds]:
                if (picture := draws[kind](one)) is not None:
                    drawing.finish(picture)
                    yield f"{name}_{kind}", picture
        if (not kinds or "tests" in kinds) and (picture := across_picture(data)) is not None:
            drawing.finish(picture)
            yield "further_tests", picture


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
