"""Write the model of a run as a folder that transformers loads.

    seqlab export run=outputs/<run folder> to=<new folder>

The folder has config.json, safetensors, the tokenizer and a model card, for AutoModelForCausalLM and AutoTokenizer. A
model that no class of transformers computes is refused.

    run              the folder that training left; its best weights by validation are written
    to               the folder to write, which must not exist, or be empty
    untrained        true: write even where only the weights from before training are intact; default false
    trust            your own package, if the run has parts of it (several: with commas between); see docs/security.md
    data.dir, data.files, data.cache_dir    where the corpus is, if not where the run found it
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seqlab import console
from seqlab.commands.options import command
from seqlab.commands.settings import Kinds, read_settings
from seqlab.commands.trained import OF_RUN, load_trained
from seqlab.errors import UserError
from seqlab.models.counting import count_parameters
from seqlab.pretrained.export import check_new, export

SETTINGS: Kinds = {
    "run": (str, None),
    "to": (str, None),
    **OF_RUN,
}


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The settings, from ``key=value`` arguments; prints the help and exits if that is asked for.

    Raises:
        UserError: an argument is no setting or has a wrong value, or ``run`` or ``to`` is missing.
    """
    settings = read_settings(argv, SETTINGS, __doc__)
    for key, what in {"run": "outputs/<run folder>", "to": "<new folder>"}.items():
        if not settings[key]:
            rule = "names the run whose model is exported" if key == "run" else "names the folder to write"
            raise UserError(key, "missing", rule, f"Give {key}={what}")
    return settings


def run(settings: dict[str, Any]) -> int:
    """Load the model and write it. Returns the exit status."""
    logging.basicConfig(handlers=[console.ConsoleHandler()], level=logging.WARNING, format="%(message)s")
    folder, to = Path(settings["run"]), Path(settings["to"])
    check_new(to)
    trained = load_trained(settings, torch.device("cpu"))
    found = export(trained, folder, to)
    parameters = count_parameters(trained.model)["parameters"]
    console.say(f"{to} has the {found.architecture} of step {trained.step:,}, of {parameters:,} parameters.")
    return 0


main = command(parse, run)
