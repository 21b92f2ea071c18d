"""Text to token ids and back, by characters or by words.

Symbols: N tokens.
"""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from seqlab.errors import UserError

BYTE_ORDER_MARK = "\ufeff"
END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"

Unit = Literal["character", "word"]


class Vocabulary:
    """The symbols of a corpus; a symbol's id is its index in ``symbols``.

    By words, every end of a line is a symbol of its own, ``<eos>``, and a word that is not in the vocabulary becomes
    ``<unk>`` if the vocabulary has that.
    """

    def __init__(self, symbols: list[str], unit: Unit):
        self.symbols, self.unit = symbols, unit
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}

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
        unknown = self._ids.get(UNKNOWN, -1)
        ids = np.fromiter((self._ids.get(symbol, unknown) for symbol in self._symbols_of(text)), dtype=np.int64)
        if (ids < 0).any():
            symbol = next(symbol for symbol in self._symbols_of(text) if symbol not in self._ids)
            rule = f"holds the {self.unit} {symbol!r}, which is not in the vocabulary"
            remedy = f"Leave it out (only a vocabulary of words with {UNKNOWN} in it admits any word)"
            raise UserError(key, value or _shortened(text), rule, remedy)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: words one space apart, ``<eos>`` as the end of a line."""
        symbols = [self.symbols[i] for i in ids]
        if self.unit == "character":
            return "".join(symbols)
        return re.sub(" ?\n ?", "\n", " ".join("\n" if symbol == END_OF_LINE else symbol for symbol in symbols))

    def _symbols_of(self, text: str) -> Iterable[str]:
        return split_words(text) if self.unit == "word" else text


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
