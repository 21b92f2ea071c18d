"""Sizes by the names under which they were chosen: ``size=large`` says more than its four numbers."""

from collections.abc import Sequence
from typing import Any

import yaml

from seqlab.analysis.runs import Run

PREFIX = "size."


def by_size_name(settings: Sequence[dict[str, Any]], runs: Sequence[Run]) -> Sequence[dict[str, Any]]:
    """Settings with the size's name in place of its numbers, where that tells exactly as much; else as they are.

    Args:
        settings: those that vary, for each run by flat key.
        runs: of one model and data set.
    """
    if not any(key.startswith(PREFIX) for one in settings for key in one):
        return settings
    names = [chosen_size(run) for run in runs]
    pairs = {(name, str(run.config.get("size"))) for name, run in zip(names, runs, strict=True)}
    if None in names or not len(pairs) == len(set(names)) == len({size for _, size in pairs}):
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


def chosen_size(run: Run) -> str | None:
    """The file in ``conf/size`` that a run took whole; ``None`` if it changed a part of it or does not say."""
    try:
        overrides = read_yaml(run, "overrides.yaml")
        choices = read_yaml(run, "hydra.yaml")["hydra"]["runtime"]["choices"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    if not isinstance(overrides, list) or any(str(one).lstrip("+~").startswith(PREFIX) for one in overrides):
        return None
    name = choices.get("size") if isinstance(choices, dict) else None
    return name if isinstance(name, str) else None


def read_yaml(run: Run, name: str) -> Any:
    """One of the files that Hydra leaves beside a run's results."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((run.folder / ".hydra" / name).read_bytes(), loader)
