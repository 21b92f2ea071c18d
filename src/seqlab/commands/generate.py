"""Sample text from a model that a run trained, or from a pretrained checkpoint.

    seqlab generate run=outputs/<run folder> prompt="ROMEO:"
    seqlab generate init_from=<folder, or a name on the hub> prompt="The capital of France is"
    seqlab generate run=outputs/<run folder> prompt="the meaning of" temperature=0.8 top_k=40 stop=$'\\n'

The text streams to standard output as it is sampled.

    run              the folder that training left; its best weights by validation are used
    init_from        in place of run: a checkpoint of transformers with its tokenizer.json
    prompt           what to continue; none is the start of a line
    temperature      1 draws as the model says, 0 takes the likeliest token always; default 1
    top_k, top_p     draw from the k likeliest tokens (the first of equals), or from the fewest that hold the share p;
                     default: from all
    max_new_tokens   default 200; learned positions end at the length that a model was trained with
    stop             text that ends a sample; a checkpoint's own end of a text does, too
    n                samples; number i is drawn with seed + i
    seed             default 0
    device           auto, cpu or cuda
    precision        float32, bf16 or fp16: of the weights and what is computed with them; default float32
    untrained        true: sample even where only the weights from before training are intact; default false
    trust            your own package, if the run has parts of it (several: with commas between); see docs/security.md
    data.dir, data.cache_dir    folders of the corpus, if not those of the run
"""

import logging
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from seqlab import console
from seqlab.commands.options import command, key_values
from seqlab.errors import UserError, printable
from seqlab.inference.generate import Text, generate_text
from seqlab.inference.sampling import Sampling
from seqlab.pretrained import load_with_text
from seqlab.runs.build import choose_device
from seqlab.runs.load import load_run
from seqlab.runs.process import reset_global_state
from seqlab.runs.trust import packages
from seqlab.training.precision import DTYPES, Precision, check_precision

SETTINGS: dict[str, tuple[Any, Any]] = {  # type and default
    "run": (str | None, None),
    "init_from": (str | None, None),
    "prompt": (str, ""),
    "temperature": (float, 1.0),
    "top_k": (int | None, None),
    "top_p": (float | None, None),
    "max_new_tokens": (PositiveInt, 200),
    "stop": (str | None, None),
    "n": (PositiveInt, 1),
    "seed": (Annotated[int, Field(ge=0, lt=2**63)], 0),
    "device": (Literal["auto", "cpu", "cuda"], "auto"),
    "precision": (Precision, "float32"),
    "untrained": (bool, False),
    "trust": (str | None, None),
    "data.dir": (str | None, None),
    "data.cache_dir": (str | None, None),
}


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The settings, from ``key=value`` arguments; prints the help and exits if that is asked for.

    Raises:
        UserError: an argument is no setting or has a wrong value, or there is not one of ``run`` and ``init_from``.
    """
    settings = key_values(argv, SETTINGS, __doc__)
    if not settings["run"] and not settings["init_from"]:
        raise UserError("run", "missing", "names the model to sample from", "Give run=outputs/<run folder>")
    if settings["run"] and settings["init_from"]:
        rule = f"names a model, and run={settings['run']} does"
        raise UserError("init_from", settings["init_from"], rule, "Leave one of them out")
    return settings


def load(settings: dict[str, Any]) -> tuple[nn.Module, Text]:
    """The model, on the device in the precision, and what turns text into its tokens.

    Raises:
        UserError: the run was not trained on text, or the checkpoint cannot be used.
    """
    device = choose_device(settings["device"])
    reset_global_state(settings["seed"])
    model, text = load_with_text(settings["init_from"]) if settings["init_from"] else of_run(settings, device)
    check_precision(model, device, settings["precision"])
    return model.to(device, DTYPES[settings["precision"]]), text


def of_run(settings: dict[str, Any], device: torch.device) -> tuple[nn.Module, Text]:
    """The run's model and data.

    Raises:
        UserError: the run was not trained on text.
    """
    elsewhere = {key: settings[f"data.{key}"] for key in ("dir", "cache_dir") if settings[f"data.{key}"] is not None}
    trust = {"trust": packages(settings["trust"]), "untrained": settings["untrained"]}
    trained = load_run(Path(settings["run"]), device, data=elsewhere, **trust)
    if not hasattr(trained.data, "decode"):
        rule = f"was trained on {trained.data.description}, which is no text"
        remedy = "Name a run on a corpus, for example data=tiny_shakespeare"
        raise UserError("run", settings["run"], rule, remedy)
    return trained.model, trained.data


def run(settings: dict[str, Any]) -> int:
    """Load the model and write what it samples to standard output. Returns the exit status."""
    logging.basicConfig(handlers=[console.ConsoleHandler()], level=logging.WARNING, format="%(message)s")
    shown = printable if sys.stdout.isatty() else str  # a file takes the text as it is
    sampling = Sampling(settings["temperature"], settings["top_k"], settings["top_p"])
    model, text = load(settings)
    for number in range(settings["n"]):
        pieces = generate_text(
            model,
            text,
            settings["prompt"],
            sampling,
            max_new_tokens=settings["max_new_tokens"],
            seed=settings["seed"] + number,
            stop=settings["stop"],
        )
        if settings["n"] > 1:
            print(f"--- {number + 1} of {settings['n']}")
        prompt = text.decode(text.encode(settings["prompt"]))  # as the model sees it
        try:
            for piece in chain([prompt], pieces):
                print(shown(piece), end="", flush=True)
        finally:
            print(flush=True)
    return 0


main = command(parse, run)
