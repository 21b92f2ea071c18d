"""Sample text from a model that a run trained, or from a pretrained checkpoint.

    seqlab generate run=outputs/<run folder> prompt="ROMEO:"
    seqlab generate init_from=<folder, or a name on the hub> prompt="The capital of France is"
    seqlab generate run=outputs/<run folder> prompt="the meaning of" temperature=0.8 top_k=40 stop=$'\\n'

The text streams to standard output as it is sampled.

    run              the folder that training left; its best weights by validation are used
    init_from        a checkpoint of transformers in its place, with its own tokenizer
    tokenizer        the folder or name on the hub of another tokenizer.json, for a checkpoint that brings none
    prompt           what to continue; none is the start of a line
    temperature      1 draws as the model says, 0 takes the likeliest token always; default 1
    top_k, top_p     draw from the k likeliest tokens (the first of equals), or from the fewest that hold the share p;
                     default: from all
    max_new_tokens   default 200; learned positions end at the length that a model was trained with
    stop             text that ends a sample; what ends a text of the checkpoint does, too
    n                samples; number i is drawn with seed + i
    seed             default 0
    device           auto, cpu or cuda
    precision        float32, bf16 or fp16: of the weights and what is computed with them; default float32
    untrained        true: sample even where only the weights from before training are intact; default false
    trust            your own package, if the run has parts of it (several: with commas between); see docs/security.md
    data.dir, data.files, data.cache_dir    where the corpus is, if not where the run found it
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from seqlab import console, pretrained
from seqlab.commands.options import command
from seqlab.commands.settings import Kinds, read_settings
from seqlab.commands.trained import OF_RUN, load_trained
from seqlab.errors import UserError, printable
from seqlab.evaluation.texts import OfTokenizer, tokenizer_folder
from seqlab.inference.generate import Text, generate_text
from seqlab.inference.sampling import Sampling
from seqlab.pretrained.files import ends_in, folder_of
from seqlab.runs.build import choose_device
from seqlab.runs.load import refuse_no_text
from seqlab.runs.process import reset_global_state
from seqlab.training.precision import DTYPES, Precision, check_precision

SETTINGS: Kinds = {
    "run": (str | None, None),
    "init_from": (str | None, None),
    "tokenizer": (str | None, None),
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
    **OF_RUN,
}


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The settings, from ``key=value`` arguments; prints the help and exits if that is asked for.

    Raises:
        UserError: an argument is no setting or has a wrong value, or settings do not go together.
    """
    settings = read_settings(argv, SETTINGS, __doc__)
    if not settings["run"] and not settings["init_from"]:
        raise UserError("run", "missing", "names the model to sample from", "Give run=outputs/<run folder>")
    for key in ("init_from", "tokenizer"):
        if settings["run"] and settings[key]:
            rule = f"names what run={settings['run']} has of its own"
            raise UserError(key, settings[key], rule, "Leave one of them out")
    return settings


class CheckpointText:
    """A checkpoint's tokens; a prompt has those before it that its tokenizer begins a text with.

    Args:
        checkpoint: its folder, or its name on the hub.
        tokenizer: another folder or name; ``None`` for that of the checkpoint.
        vocabulary: how many tokens the model knows.

    Raises:
        UserError: there is no tokenizer, or none that goes with the model.
    """

    def __init__(self, checkpoint: str, tokenizer: str | None, vocabulary: int):
        self.tokens = OfTokenizer(tokenizer_folder(tokenizer or checkpoint), vocabulary)
        self.ends = ends_in(folder_of(checkpoint)) or {self.tokens.end}

    def encode(self, text: str) -> Tensor:
        """The ids of a text, (N,) int64.

        Raises:
            UserError: the tokenizer has no token for a part of it.
        """
        try:
            return torch.from_numpy(self.tokens.encode(text, special=True))
        except Exception as error:  # the library raises no class of its own
            rule = f"the checkpoint's tokenizer cannot encode it ({str(error).partition(chr(10))[0]})"
            raise UserError("prompt", text, rule, "Leave out what is not in its vocabulary") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for, without special tokens."""
        return self.tokens.decode(list(ids))


def load(settings: dict[str, Any]) -> tuple[nn.Module, Text]:
    """The model, and what turns text into its tokens.

    Raises:
        UserError: the run was not trained on text, or the checkpoint cannot be used.
    """
    device = choose_device(settings["device"])
    reset_global_state(settings["seed"])
    if (name := settings["init_from"]) is not None:
        model = pretrained.load(name)
        text = CheckpointText(name, settings["tokenizer"], model.embed.num_embeddings)
    else:
        model, text = of_run(settings, device)
    check_precision(model, device, settings["precision"])
    return model.to(device, DTYPES[settings["precision"]]), text


def of_run(settings: dict[str, Any], device: torch.device) -> tuple[nn.Module, Text]:
    """The run's model and data.

    Raises:
        UserError: the run was not trained on text.
    """
    trained = load_trained(settings, device)
    refuse_no_text(trained, settings["run"])
    return trained.model, trained.data


def sampling_of(settings: dict[str, Any]) -> Sampling:
    """How a token is drawn."""
    return Sampling(settings["temperature"], settings["top_k"], settings["top_p"])


def sampled(model: nn.Module, text: Text, settings: dict[str, Any], seed: int) -> Iterator[str]:
    """The prompt as the model sees it, and the text that follows, in pieces.

    Raises:
        UserError: a symbol of the prompt is not in the vocabulary, or the model has too few learned positions.
    """
    pieces = generate_text(
        model,
        text,
        settings["prompt"],
        sampling_of(settings),
        max_new_tokens=settings["max_new_tokens"],
        seed=seed,
        stop=settings["stop"],
    )
    return chain([text.decode(text.encode(settings["prompt"]).tolist())], pieces)


def run(settings: dict[str, Any]) -> int:
    """Load the model and write what it samples to standard output. Returns the exit status."""
    logging.basicConfig(handlers=[console.ConsoleHandler()], level=logging.WARNING, format="%(message)s")
    shown = printable if sys.stdout.isatty() else str  # a file takes the text as it is
    sampling_of(settings)  # refuses what is wrong before anything is read
    model, text = load(settings)
    for number in range(settings["n"]):
        pieces = sampled(model, text, settings, settings["seed"] + number)
        if settings["n"] > 1:
            print(f"--- {number + 1} of {settings['n']}")
        try:
            for piece in pieces:
                print(shown(piece), end="", flush=True)
        finally:
            print(flush=True)
    return 0


main = command(parse, run)
