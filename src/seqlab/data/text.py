"""Language modelling: windows of a text, each position predicting the next token.

Symbols: B batch, L length of a window, N tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.corpora import Corpus
from seqlab.data.encoding import Vocabulary, plain
from seqlab.data.protocol import Batch, DataSet, of_cross_entropy
from seqlab.data.streams import epoch_items, integers
from seqlab.errors import UserError
from seqlab.ops import cross_entropy


class TextData(DataSet):
    """Windows of tokens of a text corpus, and the tokens that follow them.

    By characters and with ``length`` 4, the text "To be, or" holds such windows as::

        inputs    T o _ b     the training stream draws windows at random (``sampled``), or lays them end to end
        targets   o _ b e     from a random phase and hands them out in random order (``contiguous``)

    ``contiguous`` training windows treat the split as a ring, its first token following its last, so that every epoch
    has the same number of them. In an epoch every token is predicted once, except fewer than ``length`` tokens, which
    differ from epoch to epoch. Validation and test windows start at the first token, do not overlap and end with the
    last token.

    A byte order mark is dropped and CR LF becomes LF; ``sha256`` is that of the file's bytes as they are.

    Args:
        name: of the corpus, for messages and file names.
        unit: what a token is. Words are separated by white space, and each line ends with ``<eos>``.
        folder: of the corpus's files, below ``dir``.
        files: ``file`` (a name in the folder), ``sha256`` and ``tokens`` for each of train, validation and test, or
            for ``all`` when ``fractions`` splits one file. Leave out ``sha256`` to take a file as it is.
        fractions: shares of the characters of the one file that go to train, validation and test, in this order.
        vocab_size: the number of different tokens that the corpus must have; None for any.
        download: source of files that ``dir`` does not have, as in ``seqlab.data.download.fetch``.
        dir: the folder that contains the folders of corpora.
        cache_dir: folder for encoded corpora and downloads; by default ``$SEQLAB_CACHE_DIR`` or ``~/.cache/seqlab``.
        length: positions in a window.
        windows: how the training stream chooses windows.
        metrics: what to measure besides the loss, by name.

    Raises:
        UserError: a split is not longer than ``length``, or the corpus cannot be read (``Corpus.encoded``).
    """

    tokens = True
    items = "windows"

    def __init__(
        self,
        *,
        name: str,
        unit: Literal["character", "word"],
        folder: str,
        files: dict[str, dict[str, Any]],
        length: int,
        windows: Literal["sampled", "contiguous"],
        fractions: list[float] | None = None,
        vocab_size: PositiveInt | None = None,
        download: dict[str, Any] | None = None,
        dir: str | None = None,
        cache_dir: str | None = None,
        metrics: dict[str, Any] | None = None,
    ):
        corpus = Corpus(name, unit, folder, files, fractions, vocab_size, download, dir, cache_dir)
        self._key, encoded = corpus.encoded()
        self._splits = encoded.splits
        self._vocabulary = Vocabulary(encoded.vocabulary, unit)
        self.name, self.unit, self.length, self.windows = name, unit, length, windows
        self.metrics = metrics or {}
        self.d_input = self.d_output = len(encoded.vocabulary)
        split, tokens = min(self._splits.items(), key=lambda item: len(item[1]))
        if not 1 <= length < len(tokens):
            count = len(tokens)
            rule = f"the {split} split of {name} holds {count:,} {unit}s"
            remedy = f"Take a length from 1 to {count - 1:,}" if count > 1 else "Give it more text"
            raise UserError("length", length, rule, remedy)
        self.train_size = len(self._splits["train"]) // length

    @property
    def vocabulary(self) -> list[str]:
        """The symbol of each token id."""
        return self._vocabulary.symbols

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens of all splits; it does not depend on the windows."""
        return self._key[:12]

    @property
    @override
    def description(self) -> str:
        sizes = " + ".join(f"{len(tokens):,}" for tokens in self._splits.values())
        vocabulary = f"vocabulary {self.d_input:,}"
        return f"{self.name}: {sizes} {self.unit}s, {vocabulary}, {self.windows} windows of {self.length:,}"

    def encode(self, text: str) -> Tensor:
        """The token ids of a text, (N,) int64; a byte order mark and line ends are treated as in a corpus."""
        return torch.from_numpy(self._vocabulary.encode(plain(text)))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of token ids (N,)."""
        return self._vocabulary.decode(ids.tolist() if isinstance(ids, Tensor) else ids)

    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        """Batch number ``index`` of the endless training stream: (B, L) and (B, L) int64."""
        self.check_batch_size(batch_size)
        tokens = self._splits["train"]
        starts = self._starts(index, batch_size, seed, len(tokens))  # (B,)
        places = starts[:, None] + np.arange(self.length + 1)  # (B, L + 1)
        windows = torch.from_numpy(tokens.take(places, mode="wrap").astype(np.int64))  # (B, L + 1)
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())

    def _starts(self, index: int, batch_size: int, seed: int, size: int) -> np.ndarray:
        """The first token of each window of a batch, in a split of ``size`` tokens: (B,)."""
        if self.windows == "sampled":
            return integers(seed, "sampled windows", index, batch_size, size - self.length)
        epochs, items = epoch_items(index, batch_size, seed, self.train_size)
        phases = {epoch: integers(seed, "phase of an epoch", epoch, 1, size)[0] for epoch in set(epochs.tolist())}
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

    @of_cross_entropy
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats: logits (B, L, V) and ids (B, L) to (B, L) float32."""
        return cross_entropy(outputs, targets).float()


def _windows(tokens: np.ndarray, start: int, rows: int, length: int) -> Batch:
    """``rows`` adjacent windows: (rows, length) and (rows, length)."""
    piece = torch.from_numpy(tokens[start : start + rows * length + 1].astype(np.int64))
    return Batch(piece[:-1].view(rows, length), piece[1:].view(rows, length))
