"""Tokens of a ``tokenizer.json``, and byte-level BPE trained here, through the library ``tokenizers``.

It is imported where it is used: only some texts need it.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from seqlab.data.encoding import END_OF_DOCUMENT
from seqlab.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENDS = (
    *(END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    *("[EOS]", "[SEP]"),
)
"""Tokens that end a document, by the names that they usually have."""

PADDING = 1024
"""Fewer ids than these may be without a token: embeddings are often made larger, to a multiple of a power of two."""

LEAST = 257
"""The smallest vocabulary of BPE here: all bytes, and the end of a document."""


class Subwords:
    """The tokens of a ``tokenizer.json``; its special tokens are read where a text holds them, and none is added.

    Args:
        path: of the file.
        size: ids that a model has for them, at least as many; None for as many.
        end: the token that ends a document; None for the usual one.

    Raises:
        UserError: it is no such file, its tokens do not fit ``size``, or it has no token that ends a document.
    """

    unit = "token"

    def __init__(self, path: Path, size: int | None = None, end: str | None = None):
        remedy = "Take character, byte, word or bpe, or the path of a tokenizer.json of Hugging Face's"
        self.content, self._tokenizer = read_tokenizer(path, "tokens", remedy)
        self._ids, self.size = self._tokenizer.get_vocab(), size_of(self._tokenizer)
        if size is not None and not self.size <= size < self.size + PADDING:
            rule = f"has {self.size:,} tokens, and the model {size:,} (by vocab_size or init_from)"
            remedy = f"Name that of the checkpoint with tokens=...; a fresh model needs no vocab_size={size}"
            raise UserError("tokens", path, rule, remedy)
        self.size = size or self.size
        self.end = self._id_of_end(end, path)

    def _id_of_end(self, end: str | None, origin: Path) -> int:
        for name in ENDS if end is None else (end,):
            if name in self._ids:
                return self._ids[name]
        rule = f"{origin} has no such token" if end else f"{origin} has none of {', '.join(ENDS)}"
        raise UserError("end_token", end or "null", rule, "Name its token that ends a document with end_token=...")

    @cached_property
    def symbols(self) -> list[str]:
        """The token of each id; of one without a token, its number."""
        tokens = {i: token for token, i in self._ids.items()}
        return [tokens.get(i, f"<{i}>") for i in range(self.size)]

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (N,) int64."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, (N,) uint32, on all cores."""
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.uint32) for one in found]

    def unknown_bytes(self, text: str) -> int:
        """0: what a tokenizer does not know of a text is not counted."""
        return 0

    @property
    def batches(self) -> tuple[Callable[..., list[Any]], Callable[..., list[Any]]]:
        """The library's own functions of a list of texts, with the places of tokens in them and without."""
        return self._tokenizer.encode_batch, self._tokenizer.encode_batch_fast

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens, as the end of a document, and ids without a token are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def train_bpe(texts: Iterator[str], vocab_size: int) -> str:
    """The ``tokenizer.json`` of byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2).

    Id 0 ends a document, the bytes follow, then merges; a short text may not give as many as asked for. The same texts
    give the same file.

    Args:
        texts: to count in.
        vocab_size: of tokens at most, at least ``LEAST``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"special_tokens": [END_OF_DOCUMENT], "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, **special)
    interruptible(lambda: tokenizer.train_from_iterator(texts, trainer))
    return tokenizer.to_str(pretty=True)


def interruptible(work: Callable[[], Any]) -> Any:
    """The result of work in a thread of its own, so that Ctrl-C need not wait until a library returns.

    The thread then works on until the process ends.
    """
    future = Future[Any]()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result()


def file_of(path: Path) -> Path:
    """A ``tokenizer.json``: the path itself, or that in the folder."""
    path = path.expanduser()
    return path / "tokenizer.json" if path.is_dir() else path


def read_tokenizer(path: Path, key: str, remedy: str) -> tuple[str, "Tokenizer"]:
    """The content of a ``tokenizer.json``, and the library's tokenizer of it, which neither cuts nor pads a text.

    Args:
        path: of the file.
        key: the setting that names it.
        remedy: what to name in its place.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    from tokenizers import Tokenizer

    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UserError(key, path, why, remedy) from error
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library has no class of its own
        why = str(error).partition("\n")[0]
        raise UserError(key, path, f"is no tokenizer.json ({why})", remedy) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return content, tokenizer


def size_of(tokenizer: "Tokenizer") -> int:
    """How many ids a model has to have for a tokenizer: one more than the largest, as some may have no token."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1
