"""Text to token ids and back, by characters, bytes or words.

Symbols: N tokens, V vocabulary.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from seqlab.errors import UserError

BYTE_ORDER_MARK = "\ufeff"
END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"
END_OF_DOCUMENT = "<|endoftext|>"
BYTES = "latin-1"
"""The encoding in which byte number i is character number i, so that bytes are the characters of a text."""

Unit = Literal["character", "byte", "word"]


class Vocabulary:
    """The symbols of a corpus; a symbol's id is its index in ``symbols``.

    By words, every end of a line is a symbol of its own, ``<eos>``, and a word that is not in the vocabulary becomes
    ``<unk>`` if the vocabulary has that. By bytes, those of UTF-8, byte number i is the symbol ``chr(i)``.

    Args:
        symbols: each once.
        unit: what a symbol is.
        end: the last symbol is the end of a document, which no text holds.
    """

    def __init__(self, symbols: list[str], unit: Unit, *, end: bool = False):
        self.symbols, self.unit = symbols, unit
        self.end = len(symbols) - 1 if end else None
        in_text = symbols[: self.end]
        self._ids = {symbol: i for i, symbol in enumerate(in_text)}
        if unit != "word":
            self._table = np.full(sys.maxunicode + 1 if unit == "character" else 256, -1, dtype=np.int32)
            self._table[[ord(symbol) for symbol in in_text]] = np.arange(len(in_text), dtype=np.int32)

    @classmethod
    def of(cls, texts: dict[str, str], unit: Unit) -> "Vocabulary":
        """The vocabulary of a corpus, from the text of each split.

        Words are those of the training split, in the order in which they first appear. Characters are the sorted
        distinct ones of all splits: an alphabet leaks nothing about how often or where they occur.
        """
        if unit == "word":
            return cls(list(dict.fromkeys(split_words(texts["train"]))), unit)
        return cls(sorted(set().union(*texts.values())), unit)

    def encode(self, text: str, key: str = "prompt", value: str | None = None) -> np.ndarray:
        """The ids of a text's symbols, (N,) int64; ``key`` and ``value`` name the text in errors.

        Raises:
            UserError: a symbol is not in the vocabulary.
        """
        return self.encode_symbols(self._symbols_of(text), key, value or _shortened(text)).astype(np.int64)

    def encode_symbols(self, symbols: str | Iterable[str], key: str, value: str) -> np.ndarray:
        """The ids of symbols, which by bytes are a text of characters below 256, (N,) int32; otherwise as ``encode``.

        Raises:
            UserError: a symbol is not in the vocabulary.
        """
        if self.unit == "word":
            unknown = self._ids.get(UNKNOWN, -1)
            symbols = list(symbols)
            ids = np.fromiter((self._ids.get(symbol, unknown) for symbol in symbols), np.int32, len(symbols))
        elif self.unit == "byte":
            ids = self._table[np.frombuffer(symbols.encode(BYTES), np.uint8)]
        else:
            ids = self._table[np.frombuffer(symbols.encode("utf-32-le", "surrogatepass"), np.uint32)]
        if len(ids) and ids.min() < 0:
            symbol = symbols[int(ids.argmin())]
            rule = f"holds the {self.unit} {symbol!r}, which is not in the vocabulary"
            remedy = f"Leave it out (only a vocabulary of words with {UNKNOWN} in it admits any word)"
            raise UserError(key, value, rule, remedy)
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of each text, (N,) int64."""
        return [self.encode(text) for text in texts]

    def unknown_bytes(self, text: str) -> int:
        """Bytes in words of a text that become ``<unk>`` without being that."""
        if self.unit != "word":
            return 0
        return sum(len(word.encode()) for word in split_words(text) if word not in self._ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: words one space apart, ``<eos>`` as the end of a line; of a document's end nothing.

        What is no UTF-8 of bytes becomes U+FFFD.
        """
        symbols = [self.symbols[i] for i in ids if i != self.end]
        if self.unit == "character":
            return "".join(symbols)
        if self.unit == "byte":
            return "".join(symbols).encode(BYTES).decode(errors="replace")
        return re.sub(" ?\n ?", "\n", " ".join("\n" if symbol == END_OF_LINE else symbol for symbol in symbols))

    def _symbols_of(self, text: str) -> Iterable[str]:
        if self.unit == "word":
            return split_words(text)
        return text.encode().decode(BYTES) if self.unit == "byte" else text


def plain(text: str) -> str:
    """A text without a byte order mark, and with LF for CR LF.

    A CR alone is kept, as white space between words or as a character.
    """
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n")


def split_words(text: str) -> Iterator[str]:
    """The words of a text, and ``<eos>`` for each end of a line."""
    for line in io.StringIO(text):
        yield from line.split()
        if line.endswith("\n"):
            yield END_OF_LINE


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
