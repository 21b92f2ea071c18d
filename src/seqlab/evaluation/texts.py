"""What turns text into a language model's tokens and back: the data of a run, or a checkpoint's tokenizer.

Symbols: N tokens of a text.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from seqlab.data.subwords import read_tokenizer, size_of
from seqlab.errors import UserError

TOKENIZER, ITS_CONFIG, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
LINE_END = "\n"


class Texts(Protocol):
    """Text to tokens and back.

    Attributes:
        start: the token that stands before a text which has nothing before it; ``None`` without one.
        end: the token that a model writes where its text ends; ``None`` without one.
        unknown: the token of whatever the vocabulary lacks; ``None`` without one.
    """

    start: int | None
    end: int | None
    unknown: int | None

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """The tokens of a text, (N,) int64; ``special`` adds what the tokenizer puts around a text of its own accord.

        Raises:
            UserError: a symbol is not in the vocabulary.
        """

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; special ones have a text if ``special`` says so."""


class OfRun:
    """The tokens of the data that a run was trained on.

    A text stands after the end of another, or where the data have no token for that, after the end of a line.

    Args:
        data: has ``encode`` and ``decode``, as ``seqlab.data.text.TextData``, and perhaps ``end_of_document``, a token.
    """

    def __init__(self, data: Any):
        self.data = data
        self.start = self.end = getattr(data, "end_of_document", None)
        if self.start is None:
            with suppress(UserError, IndexError):  # no line of the corpus ends
                self.start = int(data.encode(LINE_END)[-1])
        vocabulary = getattr(data, "vocabulary", [])
        self.unknown = vocabulary.index("<unk>") if "<unk>" in vocabulary else None

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """The tokens of a text, (N,) int64; a corpus has no special ones.

        Raises:
            UserError: a symbol is not in the vocabulary.
        """
        try:
            return self.data.encode(text).numpy()
        except UserError as error:
            error.key = "text"
            error.remedy = "Evaluate on text of that vocabulary, or a run whose vocabulary has it"
            raise

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; a corpus has no special ones."""
        return self.data.decode(tokens)


class OfTokenizer:
    """A ``tokenizer.json``, as ``transformers`` would use it.

    Args:
        folder: holds it, and its ``tokenizer_config.json`` or a ``config.json`` with the tokens of start and end.
        vocabulary: how many tokens the model knows.

    Raises:
        UserError: there is none that can be read, or it has more tokens than the model.
    """

    def __init__(self, folder: Path, vocabulary: int):
        path = folder / TOKENIZER
        if not path.is_file():
            remedy = "Name the folder, or the repository on the hub, of the one that it was trained with: tokenizer=..."
            raise UserError("tokenizer", folder, f"holds no {TOKENIZER}", remedy)
        _, self.tokenizer = read_tokenizer(path, "tokenizer", "Get it again, or name another")
        if (size := size_of(self.tokenizer)) > vocabulary:
            rule = f"has {size:,} tokens, and the model's vocabulary {vocabulary:,}"
            raise UserError("tokenizer", path, rule, "Name the tokenizer that the model was trained with")
        self.end = self._special(folder, "eos_token")
        self.start = self._special(folder, "bos_token")
        if self.start is None:
            self.start = self.end
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        self.unknown = None if unknown is None else self.tokenizer.token_to_id(unknown)

    def _special(self, folder: Path, name: str) -> int | None:
        """The id of a special token, by its text in ``tokenizer_config.json`` or by its id in ``config.json``."""
        text = _mapping(folder / ITS_CONFIG).get(name)
        text = text.get("content") if isinstance(text, dict) else text
        token = self.tokenizer.token_to_id(text) if isinstance(text, str) else None
        given = _mapping(folder / CONFIG).get(f"{name}_id")
        return given if token is None and isinstance(given, int) else token

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """The tokens of a text, (N,) int64; ``special`` adds those that the tokenizer puts around a text."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=special).ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; special ones have a text if ``special`` says so."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=not special)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def tokenizer_folder(name: str) -> Path:
    """The folder of a tokenizer.

    Args:
        name: that folder, a file in it, or the name of a repository on the Hugging Face hub.

    Raises:
        UserError: there is no such folder, and the hub does not give one.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent
    remedy = f"Name a folder that holds {TOKENIZER}"
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError("tokenizer", name, "there is no such folder", remedy)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=[TOKENIZER, ITS_CONFIG, CONFIG]))
    except Exception as error:  # the library's, and those of what it fetches with
        rule = f"there is no such folder, and the hub does not give it ({type(error).__name__})"
        raise UserError("tokenizer", name, rule, remedy) from error


def positions_of(folder: Path) -> int:
    """The tokens that a checkpoint's model reads at most: the positions of its ``config.json``, or 2,048.

    2,048 is what lm-evaluation-harness takes for models whose configuration names none, such as Mamba.
    """
    config = _mapping(folder / CONFIG)
    named = (config.get(name) for name in ("n_positions", "max_position_embeddings"))
    return next((value for value in named if isinstance(value, int) and value > 0), 2048)


def text_of_documents(texts: Texts, tokens: Tensor) -> str:
    """The text of tokens (N,), with white space between documents: the last word of one is not the next one's first."""
    ends = (tokens == (-1 if texts.end is None else texts.end)).nonzero().flatten().tolist()
    return " ".join(texts.decode(document.tolist()) for document in tokens.tensor_split(ends))


def tokens_of_split(data: Any, split: str) -> Tensor:
    """The tokens of a run's split, (N,) int64, from the windows in which it is evaluated.

    Raises:
        UserError: they are not one text, from beginning to end.
    """
    batches = list(data.evaluation_batches(split, 64))
    inputs, targets = (torch.cat([batch[part].flatten() for batch in batches]) for part in (0, 1))  # (N - 1,)
    if not torch.equal(inputs[1:], targets[:-1]):
        raise UserError("run", split, "its windows are not one running text", "Give text=<file>")
    return torch.cat((inputs, targets[-1:]))
