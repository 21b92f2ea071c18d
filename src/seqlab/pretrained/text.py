"""Text to token ids and back as a checkpoint's ``tokenizer.json`` says. Symbols: N tokens of a text."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from seqlab.errors import UserError
from seqlab.pretrained.files import CONFIG, GENERATION, TOKENIZER, read_json, refuse


class CheckpointText:
    """A checkpoint's tokens, for ``seqlab.inference.generate.generate_text``.

    Args:
        folder: the checkpoint's.
        vocabulary: of its embedding, which may be larger than that of the tokenizer.

    Raises:
        UserError: there is no tokenizer, it cannot be read, or it has tokens that the embedding does not have.
    """

    def __init__(self, folder: Path, vocabulary: int):
        from tokenizers import Tokenizer

        path = folder / TOKENIZER
        if not path.is_file():
            remedy = "Get it too, or have AutoTokenizer of transformers write it there (save_pretrained)"
            refuse(folder, f"has no {TOKENIZER}, by which text becomes tokens", remedy)
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # of no type of its own
            refuse(path, f"cannot be read ({str(error).partition(chr(10))[0]})", "Get it again")
        if (size := max(self.tokenizer.get_vocab().values(), default=-1) + 1) > vocabulary:
            rule = f"has {size:,} tokens, and the embedding of the model beside it {vocabulary:,}"
            refuse(path, rule, "Get the tokenizer of this checkpoint")
        self.ends = ends_in(folder)

    def encode(self, text: str) -> Tensor:
        """The ids of a text with the tokens that the tokenizer begins one with, (N,) int64.

        Raises:
            UserError: the tokenizer has no token for a part of it.
        """
        try:
            return torch.tensor(self.tokenizer.encode(text).ids, dtype=torch.int64)
        except Exception as error:  # of no type of its own
            rule = f"the checkpoint's tokenizer cannot encode it ({str(error).partition(chr(10))[0]})"
            raise UserError("prompt", text, rule, "Leave out what is not in its vocabulary") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def ends_in(folder: Path) -> set[int]:
    """The tokens at which a text ends: those for generation, or of the model."""
    for name in (GENERATION, CONFIG):
        given = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        found = {one for one in (given if isinstance(given, list) else [given]) if type(one) is int}
        if found:
            return found
    return set()
