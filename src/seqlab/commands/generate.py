"""Sample text from a model that a run trained.

    seqlab generate run=outputs/<run folder> prompt="ROMEO:"
    seqlab generate run=outputs/<run folder> prompt="the meaning of" temperature=0.8 top_k=40 stop=$'\\n'

The text streams to standard output as it is sampled.

    run              the folder that training left; its best weights by validation are used
    prompt           what to continue; none is the start of a line
    temperature      1 draws as the model says, 0 takes the likeliest token always; default 1
    top_k, top_p     draw from the k likeliest tokens (the first of equals), or from the fewest that hold the share p;
                     default: from all
    max_new_tokens   default 200; learned positions end at the length that a model was trained with
    stop             text that ends a sample
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
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from seqlab import console
from seqlab.commands.options import command
from seqlab.commands.settings import Kinds, read_settings
from seqlab.errors import UserError, printable
from seqlab.inference.generate import generate_text
from seqlab.inference.sampling import Sampling
from seqlab.runs.build import choose_device
from seqlab.runs.load import Trained, load_run, refuse_no_text
from seqlab.runs.process import reset_global_state
from seqlab.runs.trust import packages
from seqlab.training.precision import DTYPES, Precision, check_precision

SETTINGS: Kinds = {
    "run": (str, None),
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
        UserError: an argument is no setting or has a wrong value, or ``run`` is missing.
    """
    settings = read_settings(argv, SETTINGS, __doc__)
    if not settings["run"]:
        raise UserError("run", "missing", "names the model to sample from", "Give run=outputs/<run folder>")
    return settings


def load(settings: dict[str, Any]) -> Trained:
    """The run's model and data."""
    device = choose_device(settings["device"])
    reset_global_state(settings["seed"])
    elsewhere = {key: settings[f"data.{key}"] for key in ("dir", "cache_dir") if settings[f"data.{key}"] is not None}
    trust = {"trust": packages(settings["trust"]), "untrained": settings["untrained"]}
    trained = load_run(Path(settings["run"]), device, data=elsewhere, **trust)
    refuse_no_text(trained, settings["run"])
    check_precision(trained.model, device, settings["precision"])
    trained.model.to(DTYPES[settings["precision"]])
    return trained


def sampling_of(settings: dict[str, Any]) -> Sampling:
    """How a token is drawn."""
    return Sampling(settings["temperature"], settings["top_k"], settings["top_p"])


def sampled(trained: Trained, settings: dict[str, Any], seed: int) -> Iterator[str]:
    """The prompt as the model sees it, and the text that follows, in pieces.

    Raises:
        UserError: a symbol of the prompt is not in the vocabulary, or the model has too few learned positions.
    """
    pieces = generate_text(
        trained.model,
        trained.data,
        settings["prompt"],
        sampling_of(settings),
        max_new_tokens=settings["max_new_tokens"],
        seed=seed,
        stop=settings["stop"],
    )
    return chain([trained.data.decode(trained.data.encode(settings["prompt"]))], pieces)


def run(settings: dict[str, Any]) -> int:
    """Load the model and write what it samples to standard output. Returns the exit status."""
    logging.basicConfig(handlers=[console.ConsoleHandler()], level=logging.WARNING, format="%(message)s")
    shown = printable if sys.stdout.isatty() else str  # a file takes the text as it is
    sampling_of(settings)  # refuses what is wrong before anything is read
    trained = load(settings)
    for number in range(settings["n"]):
        pieces = sampled(trained, settings, settings["seed"] + number)
        if settings["n"] > 1:
            print(f"--- {number + 1} of {settings['n']}")
        try:
            for piece in pieces:
                print(shown(piece), end="", flush=True)
        finally:
            print(flush=True)
    return 0


main = command(parse, run)
