"""Sizes by the names of their files: ``size=large`` says more than its four numbers."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from seqlab.report.runs import Run

PREFIX = "size."
FOLDER = Path(__file__).parents[3] / "conf" / "size"


def by_size_name(settings: Sequence[dict[str, Any]], runs: Sequence[Run]) -> Sequence[dict[str, Any]]:
    """Settings with the size's name in place of its numbers, where every run has a size by name; else as they are.

    Args:
        settings: those that vary, for each run by flat key.
        runs: of one model and data set.
    """
    if not any(key.startswith(PREFIX) for one in settings for key in one):
        return settings
    names = [size_name(run) for run in runs]
    if None in names:
        return settings
    return [renamed(one, name) for one, name in zip(settings, names, strict=True)]


def renamed(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Settings with a name at the place of the first of the size's numbers."""
    found = {}
    for key, value in settings.items():
        if key.startswith(PREFIX):
            found["size"] = name
        else:
            found[key] = value
    return found


def size_name(run: Run) -> str | None:
    """The file in ``conf/size`` that has all of a run's numbers, after whatever changed them; ``None`` if none has."""
    size = run.config.get("size")
    return next((name for name, numbers in named_sizes(FOLDER) if numbers == size), None)


@cache
def named_sizes(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every size with its numbers; none where the package is installed without the configuration beside it."""
    return [(path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.yaml"))]
