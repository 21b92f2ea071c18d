"""Language modelling of one's own text: files or a data set on the hub, with tokens chosen here.

Symbols: N tokens.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt
from typing_extensions import override

from seqlab.data.cache import cache_folder
from seqlab.data.documents import Files
from seqlab.data.encoding import END_OF_DOCUMENT, Vocabulary
from seqlab.data.hub_documents import Hub
from seqlab.data.own_corpus import OwnCorpus
from seqlab.data.protocol import TextBytes
from seqlab.data.splitting import Source, parse_fractions
from seqlab.data.subwords import LEAST, Subwords, file_of
from seqlab.data.token_files import EncodedText
from seqlab.data.windows import TextWindows, Tokens, Windows
from seqlab.errors import UserError, under

SETTINGS = ("files", "hub", "config", "revision", "streaming", "field", "fractions")
"""Those of which the text is made, by which errors name them."""

MADE_HERE = ("auto", "bpe", "character", "byte", "word")
"""Tokens of no file."""

USUAL_SIZE = 4096
"""Of a vocabulary of words or of BPE."""


class OwnText(TextWindows):
    """Windows of tokens of one's own text, and the tokens that follow them.

    The tokens of a split are those of its documents in a row, each followed by the token that ends a document, which
    stands before the first one too::

        <|endoftext|> It was a dark night . <|endoftext|> Call me Ishmael . <|endoftext|>

    So each token of the text is predicted once, and bits per byte are of the bytes of all of it.

    Args:
        files: a text file, which is one document, a file of records (.jsonl, .csv, .parquet), which are a document
            each, a folder of such, a list of them, or those for ``train``, ``validation`` and ``test``, of which the
            last two may be missing (``seqlab.data.documents.Files``).
        hub: in place of ``files`` a data set on the Hugging Face hub, whose rows are a document each; its splits train,
            validation and test are taken as they are.
        config, revision, streaming: of the data set (``seqlab.data.hub_documents.Hub``).
        field: of a record or row that holds its text.
        fractions: shares of training, validation and test where these are not given
            (``seqlab.data.splitting.split_documents``).
        tokens: ``character``, ``byte``, ``word``, ``bpe`` (of bytes, trained on the training split) or the path of a
            ``tokenizer.json``; ``auto`` is the one beside the checkpoint of ``init_from``, otherwise ``bpe``.
        vocab_size: of ``word`` and ``bpe`` (4,096 unless given) at most; of a ``tokenizer.json`` the ids that a model
            has for it, at least as many as it has tokens.
        end_token: the one of a ``tokenizer.json`` that ends a document; None for the usual ones.
        separate_documents: let nothing flow from one document to the next within a window: recurrent states begin anew
            and attention sees its own document alone, each from the token before it that ends another. Otherwise
            documents are one stream.
        length: positions in a window.
        windows: how the training stream chooses windows (``TextWindows``); ``contiguous`` keeps their order, 16 bytes
            each, in memory.
        cache_dir: folder for encoded text; by default ``$SEQLAB_CACHE_DIR`` or ``~/.cache/seqlab``.
        metrics: what to measure besides the loss, by name.
        tokenizer: a ``tokenizer.json`` that a run kept, in place of ``tokens``; the text is then read when it is
            needed.

    Raises:
        UserError: the text or the tokenizer cannot be read, a setting does not fit it, or a split is not longer than
            ``length``.
    """

    def __init__(
        self,
        *,
        length: int,
        windows: Windows,
        fractions: list[float],
        files: str | list[str] | dict[str, str | list[str]] | None = None,
        hub: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        streaming: bool | None = None,
        field: str = "text",
        tokens: str = "auto",
        vocab_size: PositiveInt | None = None,
        end_token: str | None = None,
        separate_documents: bool = False,
        cache_dir: str | None = None,
        metrics: dict[str, Any] | None = None,
        tokenizer: str | None = None,
    ):
        self._where = {"files": files, "hub": hub, "field": field}
        self._where |= {"config": config, "revision": revision, "streaming": streaming}
        self._fractions, self._cache = parse_fractions(fractions), cache_folder(cache_dir)
        self._kind, self._size, self._end_token = "bpe" if tokens == "auto" else tokens, vocab_size, end_token
        self._separate = separate_documents
        self._given = None if tokenizer is None else Path(tokenizer)
        super().__init__(str(files if hub is None else hub), self._chosen(), length, windows, metrics)
        if tokenizer is None:
            self._refuse_empty()
            self.check_sizes()

    @cached_property
    def _corpus(self) -> OwnCorpus:
        return OwnCorpus(source_of(**self._where), self._fractions, self._cache)

    @staticmethod
    def find(settings: Mapping[str, Any]) -> None:
        """Find what would be read, with these settings, without reading the text.

        Raises:
            UserError: a file, a data set or a tokenizer is not there.
        """
        _ = source_of(**{key: settings.get(key) for key in SETTINGS if key != "fractions"}).paths
        if (tokens := settings.get("tokens", "auto")) not in MADE_HERE:
            Subwords(file_of(Path(tokens)), settings.get("vocab_size"), settings.get("end_token"))

    def _chosen(self) -> Tokens:
        """What ``tokens`` or ``tokenizer`` names."""
        self._check_size()
        if self._kind == "byte":
            return Vocabulary([*map(chr, range(256)), END_OF_DOCUMENT], "byte", end=True)
        if self._kind in ("character", "word"):
            return Vocabulary(self._encoded.vocabulary, self._kind, end=True)
        size = None if self._kind == "bpe" else self._size
        path = self._given or (self._corpus.bpe(self._size or USUAL_SIZE) if self._kind == "bpe" else Path(self._kind))
        self.tokenizer_file = file_of(path)
        return Subwords(self.tokenizer_file, size, self._end_token)

    def _check_size(self) -> None:
        if self._kind == "word" and (self._size or 3) < 3:
            rule = "a vocabulary of words has <unk> and the end of a document besides"
            raise UserError("vocab_size", self._size, rule, "Give it 3 or more")
        if self._kind in ("character", "byte") and self._size is not None:
            rule = f"a vocabulary of {self._kind}s has the size that it has"
            raise UserError("vocab_size", self._size, rule, "Leave it out, or set tokens=bpe")
        if self._kind == "bpe" and (self._size or LEAST) < LEAST:
            raise UserError("vocab_size", self._size, "BPE has all bytes in it", f"Give it {LEAST} or more")

    @cached_property
    def _encoded(self) -> EncodedText:
        """The tokens, from the cache if they are there undamaged."""
        with under("data", SETTINGS):  # this may be long after the configuration was built
            if self._kind == "character":
                return self._corpus.in_vocabulary(self._kind, None)
            if self._kind == "word":
                return self._corpus.in_vocabulary(self._kind, self._size or USUAL_SIZE)
            return self._corpus.by(self._tokens)

    @property
    def separator(self) -> int | None:
        """The token with which a document begins, if they are apart."""
        return self._tokens.end if self._separate else None

    @property
    def _splits(self) -> dict[str, np.ndarray]:
        return self._encoded.splits

    @property
    def _bytes(self) -> dict[str, int]:
        return {split: fact.bytes for split, fact in self._encoded.facts.items()}

    @override
    def text_bytes(self, split: str) -> TextBytes:
        fact = self._encoded.facts[split]
        return super().text_bytes(split)._replace(unknown=fact.unknown / fact.bytes)

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens of all splits; it does not depend on the windows."""
        return self._encoded.sum[:12]

    def _refuse_empty(self) -> None:
        for split, fact in self._encoded.facts.items():
            if not fact.documents:
                remedy = "Give more documents, one text alone (which is cut), or files={train: ..., test: ...}"
                raise UserError("files", self.name, f"no document of it is in the {split} split", remedy)


def source_of(files: Any, hub: str | None, field: str, **of_hub: Any) -> Source:
    """Where the documents are; the arguments are those of ``OwnText``.

    Raises:
        UserError: there is no such file, or settings do not go together.
    """
    if hub is None and (useless := next((key for key, value in of_hub.items() if value is not None), None)):
        rule = "is of a data set on the hub, and there is none"
        raise UserError(useless, of_hub[useless], rule, "Leave it out, or name one with hub=...")
    if (files is None) == (hub is None):
        rule = "is the text to train on" if hub is None else f"is a text, and so is hub={hub}"
        remedy = "Give files=my.txt, a folder, or hub=... of a data set" if hub is None else "Leave one of them out"
        raise UserError("files", "null" if files is None else files, rule, remedy)
    return Files(files, field) if hub is None else Hub(hub, field=field, **of_hub)
