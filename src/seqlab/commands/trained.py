"""The run folder that a command reads: the settings that say where its parts are, and its model and data."""

from pathlib import Path
from typing import Any

import torch

from seqlab.commands.settings import Kinds
from seqlab.runs.load import Trained, load_run
from seqlab.runs.trust import packages

OF_DATA = ("dir", "files", "cache_dir")

OF_RUN: Kinds = {
    "untrained": (bool, False),
    "trust": (str | None, None),
    **{f"data.{key}": (str | None, None) for key in OF_DATA},
}
"""Settings of a command that reads a run, besides ``run``."""


def load_trained(settings: dict[str, Any], device: torch.device) -> Trained:
    """The model of ``run`` and its data, as the settings ``OF_RUN`` say.

    Raises:
        UserError: as ``seqlab.runs.load.load_run``.
    """
    elsewhere = {key: value for key in OF_DATA if (value := settings[f"data.{key}"]) is not None}
    trust = packages(settings["trust"])
    return load_run(Path(settings["run"]), device, data=elsewhere, trust=trust, untrained=settings["untrained"])
