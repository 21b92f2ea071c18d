"""One's own text, split and encoded: a vocabulary or BPE made of its training split, and its tokens in the cache."""

import hashlib
import json
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from seqlab.data.cache import write_whole
from seqlab.data.encoding import END_OF_DOCUMENT, UNKNOWN, Unit, Vocabulary, split_words
from seqlab.data.splitting import Source, split_documents
from seqlab.data.subwords import Subwords, train_bpe
from seqlab.data.token_files import EncodedText, Writer, load_text, writing
from seqlab.data.windows import Tokens

FORMAT = 1
SAMPLE = 2**26
"""Bytes of training text in which words or pairs are counted: of a longer one, a piece in every so many."""

BATCH = 2**20
"""Characters that are encoded at a time, on each four cores."""

EVERY = 30.0
"""Seconds between two lines that say how far the encoding is."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnCorpus:
    """Documents, how they are split, and where what is made of them is kept; nothing of it is held in memory.

    Args:
        source: of the documents.
        fractions: as ``split_documents`` takes them.
        cache: the folder.
    """

    source: Source
    fractions: tuple[float, ...]
    cache: Path

    def bpe(self, size: int) -> Path:
        """The ``tokenizer.json`` of BPE of the training split, of at most ``size`` tokens."""
        path = self.cache / "tokenizers" / f"{self._key('bpe', size)}.json"
        if not path.is_file():
            self._say(f"Training BPE of at most {size:,} tokens on")
            write_whole(path, train_bpe(self._sample(), size).encode())
        return path

    def in_vocabulary(self, unit: Unit, size: int | None) -> EncodedText:
        """The tokens by a vocabulary of the text's own: of all its characters, or of its most frequent words.

        Args:
            unit: character or word.
            size: of the vocabulary of words, those of the training split, with ``<unk>`` for all others.
        """

        def vocabulary() -> Vocabulary:
            symbols = self._characters() if unit == "character" else self._words(size - 2)
            return Vocabulary([*symbols, END_OF_DOCUMENT], unit, end=True)

        return self._encoded([unit, size], vocabulary)

    def by(self, tokens: Subwords | Vocabulary) -> EncodedText:
        """The tokens by a ``tokenizer.json``, or by bytes."""
        if isinstance(tokens, Vocabulary):
            return self._encoded([tokens.unit], lambda: tokens)
        content = hashlib.sha256(tokens.content.encode()).hexdigest()
        return self._encoded([content, tokens.end, tokens.size], lambda: tokens)

    def _encoded(self, how: list[Any], tokens: Callable[[], Tokens]) -> EncodedText:
        """The tokens, from the cache if they are there undamaged; a vocabulary is kept with them."""
        stem = re.sub(r"\W+", "-", Path(self.source.name).stem)[:40].strip("-")
        folder = self.cache / "text" / f"{stem}-{self._key(*how)}"
        if found := load_text(folder):
            return found
        made = tokens()
        self._say("Encoding")
        own = made.symbols if isinstance(made, Vocabulary) else None
        with writing(folder, len(made.symbols), own) as writers:
            encode(self.source, self.fractions, made, writers)
        return load_text(folder)

    def _say(self, what: str) -> None:
        _ = self.source.paths  # a text that is not there is refused before anything is said of it
        log.info("%s %s.", what, self.source.name)

    def _key(self, *how: Any) -> str:
        content = json.dumps([FORMAT, self.source.identity, self.fractions, *how])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _sample(self) -> Iterator[str]:
        """Pieces of the training split from all over it, of ``SAMPLE`` bytes or a little more."""
        every = math.ceil((self.source.size or 1) / SAMPLE)
        documents = (document for split, document in split_documents(self.source, self.fractions) if split == "train")
        return islice((piece for document in documents for piece in document), 0, None, every)

    def _characters(self) -> list[str]:
        found = set[str]()
        for _, document in split_documents(self.source, self.fractions):
            for piece in document:
                found.update(piece)
        return sorted(found)

    def _words(self, most: int) -> list[str]:
        counts = Counter(word for piece in self._sample() for word in split_words(piece))
        counts.pop(UNKNOWN, None)
        return [*(word for word, _ in counts.most_common(most)), UNKNOWN]


def encode(source: Source, fractions: tuple[float, ...], tokens: Tokens, writers: dict[str, Writer]) -> None:
    """Write the tokens of every document to its split, holding a batch of pieces at a time.

    Args:
        source: of the documents.
        fractions: as ``split_documents`` takes them.
        tokens: with an ``end``.
        writers: of the splits.

    Raises:
        UserError: a document cannot be read.
    """
    end = np.array([tokens.end])
    most = BATCH * max(1, (os.cpu_count() or 1) // 4)
    waiting: list[tuple[str, str | None]] = []  # the split and the piece, or None at the end of a document
    size, done, told = 0, 0, time.monotonic()

    def flush() -> None:
        encoded = iter(tokens.encode_batch([piece for _, piece in waiting if piece is not None]))
        for split, piece in waiting:
            writers[split].append(end if piece is None else next(encoded))
        waiting.clear()

    for split, document in split_documents(source, fractions):
        known = writers[split].known
        empty = True
        for piece in document:
            if empty and not known.documents:
                waiting.append((split, None))
            empty = False
            waiting.append((split, piece))
            known.bytes += len(piece.encode())
            known.unknown += tokens.unknown_bytes(piece)
            size += len(piece)
            if size >= most:
                flush()
                done, size = done + size, 0
                if time.monotonic() > told + EVERY:
                    told = time.monotonic()
                    log.info("Encoded %s of %s million characters", *_millions(done, source.size))
        if not empty:
            waiting.append((split, None))
            known.documents += 1
    flush()


def _millions(done: int, size: int | None) -> tuple[str, str]:
    return f"{done / 1e6:,.0f}", "some" if size is None else f"about {size / 1e6:,.0f}"
