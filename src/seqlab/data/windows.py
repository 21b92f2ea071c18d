"""Windows of a text, each position predicting the next token.

Symbols: B batch, L length of a window, N tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from seqlab.data.cache import forget
from seqlab.data.encoding import plain
from seqlab.data.protocol import Batch, DataSet, TextBytes, of_cross_entropy
from seqlab.data.streams import epoch_items, integers
from seqlab.errors import UserError
from seqlab.ops import cross_entropy

Windows = Literal["sampled", "contiguous", "carried"]
"""How the training stream chooses windows, as ``TextWindows`` says."""


class Tokens(Protocol):
    """What turns text into token ids and back.

    Attributes:
        symbols: a name for each id.
        unit: what one is called.
        end: the id that ends a document, if there is one.
    """

    symbols: list[str]
    unit: str
    end: int | None

    def encode(self, text: str) -> np.ndarray:
        """The token ids of a text, (N,) int64.

        Raises:
            UserError: a symbol is not in the vocabulary.
        """

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, (N,)."""

    def unknown_bytes(self, text: str) -> int:
        """Bytes of a text that its tokens do not say."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids."""


class TextWindows(DataSet):
    """Windows of the tokens of a text, and the tokens that follow them.

    ``contiguous`` training windows treat the split as a ring, its first token following its last, so that every epoch
    has the same number of them. In an epoch every token is predicted once, except fewer than ``length`` tokens, which
    differ from epoch to epoch. ``carried`` cuts this ring, from a place that is drawn for each epoch, into as many
    streams of one length as a batch has rows, of which a batch has the next windows, and a model its state of before.
    Fewer than ``length`` + 1 tokens of a stream are then left out of an epoch.

    Validation and test windows start at the first token, do not overlap and end with the last token. A subclass sets
    ``_splits``, the tokens (N,) of each split, and ``_bytes``, how many of its text's they predict, as attributes or
    properties.

    Args:
        name: of the corpus, for messages.
        text_tokens: what its tokens are.
        length, windows, metrics: settings.

    Attributes:
        separator: the id of the token with which a new document begins, of which the model sees nothing before; None
            where documents are one stream.
        tokenizer_file: the ``tokenizer.json`` of the tokens; None for a vocabulary of characters, bytes or words.
    """

    tokens = True
    items = "windows"
    separator: int | None = None
    tokenizer_file: Path | None = None
    _splits: Mapping[str, np.ndarray]
    _bytes: Mapping[str, int]

    def __init__(
        self,
        name: str,
        text_tokens: Tokens,
        length: int,
        windows: Windows,
        metrics: dict[str, Any] | None,
    ):
        self.name, self._tokens, self.length, self.windows = name, text_tokens, length, windows
        self.unit, self.metrics = text_tokens.unit, metrics or {}
        self.d_input = self.d_output = len(text_tokens.symbols)

    def check_sizes(self) -> None:
        """Check that every split holds a window and the token after it.

        Raises:
            UserError: one does not.
        """
        split, tokens = min(self._splits.items(), key=lambda item: len(item[1]))
        if not 1 <= self.length < len(tokens):
            count = len(tokens)
            rule = f"the {split} split of {self.name} holds {count:,} {self.unit}s"
            remedy = f"Take a length from 1 to {count - 1:,}" if count > 1 else "Give it more text"
            raise UserError("length", self.length, rule, remedy)

    @property
    def train_size(self) -> int:
        """Windows in an epoch."""
        return len(self._splits["train"]) // self.length

    @property
    def vocabulary(self) -> list[str]:
        """The symbol of each token id."""
        return self._tokens.symbols

    @property
    def end_of_document(self) -> int | None:
        """The id of the token that ends a document, if there is one."""
        return self._tokens.end

    @property
    def ends(self) -> set[int]:
        """The ids at which a sample of text ends."""
        return set() if self.end_of_document is None else {self.end_of_document}

    @property
    @override
    def description(self) -> str:
        sizes = " + ".join(f"{len(tokens):,}" for tokens in self._splits.values())
        vocabulary = f"vocabulary {self.d_input:,}"
        return f"{self.name}: {sizes} {self.unit}s, {vocabulary}, {self.windows} windows of {self.length:,}"

    def encode(self, text: str) -> Tensor:
        """The token ids of a text, (N,) int64; a byte order mark and line ends are treated as in a corpus."""
        return torch.from_numpy(self._tokens.encode(plain(text)))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of token ids (N,); what is no UTF-8 becomes U+FFFD."""
        return self._tokens.decode(ids.tolist() if isinstance(ids, Tensor) else ids)

    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        """Batch number ``index`` of the endless training stream: (B, L) and (B, L) int64."""
        self.check_batch_size(batch_size)
        tokens = self._splits["train"]
        starts = self._starts(index, batch_size, seed, len(tokens))  # (B,)
        places = starts[:, None] + np.arange(self.length + 1)  # (B, L + 1)
        windows = torch.from_numpy(tokens.take(places, mode="wrap").astype(np.int64))  # (B, L + 1)
        forget(tokens)
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())

    @property
    @override
    def carries(self) -> bool:
        return self.windows == "carried"

    @override
    def begins(self, index: int, batch_size: int) -> bool:
        return index % (self.train_size // batch_size) == 0

    def _starts(self, index: int, batch_size: int, seed: int, size: int) -> np.ndarray:
        """The first token of each window of a batch, in a split of ``size`` tokens: (B,)."""
        if self.windows == "sampled":
            return integers(seed, "sampled windows", index, batch_size, size - self.length)
        if self.windows == "carried":
            epoch, place = divmod(index, self.train_size // batch_size)
            return phase(seed, epoch, size) + np.arange(batch_size) * (size // batch_size) + place * self.length
        epochs, items = epoch_items(index, batch_size, seed, self.train_size)
        phases = {epoch: phase(seed, epoch, size) for epoch in set(epochs.tolist())}
        return np.array([phases[epoch] for epoch in epochs.tolist()]) + items * self.length

    def evaluation_batches(self, split: Literal["validation", "test"], batch_size: int) -> Iterator[Batch]:
        """A split once, in order, every token but the first predicted once; a shorter last window is its own batch."""
        tokens = self._splits[split]
        full = (len(tokens) - 1) // self.length
        for first in range(0, full, batch_size):
            rows = min(batch_size, full - first)
            yield _windows(tokens, first * self.length, rows, self.length)
        rest = (len(tokens) - 1) % self.length
        if rest:
            yield _windows(tokens, full * self.length, 1, rest)

    @override
    def evaluation_size(self, split: Literal["validation", "test"], batch_size: int) -> int:
        full, rest = divmod(len(self._splits[split]) - 1, self.length)
        return -(-full // batch_size) + (rest > 0)

    @override
    def text_bytes(self, split: str) -> TextBytes:
        return TextBytes(self._bytes[split] / (len(self._splits[split]) - 1))

    @of_cross_entropy
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats: logits (B, L, V) and ids (B, L) to (B, L) float32."""
        return cross_entropy(outputs, targets).float()


def phase(seed: int, epoch: int, size: int) -> int:
    """The token with which an epoch begins, of the ring of ``size``."""
    return integers(seed, "phase of an epoch", epoch, 1, size)[0]


def _windows(tokens: np.ndarray, start: int, rows: int, length: int) -> Batch:
    """``rows`` adjacent windows: (rows, length) and (rows, length)."""
    piece = torch.from_numpy(tokens[start : start + rows * length + 1].astype(np.int64))
    forget(tokens)
    return Batch(piece[:-1].view(rows, length), piece[1:].view(rows, length))
