"""Encoded text on disk, written in a stream and mapped into memory: a folder for each text.

Symbols: N tokens. A folder holds ``<split>.tokens`` for each split, its ids as little-endian uint16 or uint32, and
``facts.json``: for each split what ``Split`` has, and the vocabulary unless that is a ``tokenizer.json``.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seqlab.data.cache import writable
from seqlab.data.documents import SPLITS

FACTS = "facts.json"
CHUNK = 2**22


@dataclass
class Split:
    """What is known of an encoded split."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0  # of text
    unknown: int = 0  # bytes in words that the vocabulary does not have
    sha256: str = ""  # of its file


@dataclass(frozen=True)
class EncodedText:
    """The tokens of each split, mapped from a file, (N,) uint16 or uint32, and what is known of them."""

    splits: dict[str, np.ndarray]
    facts: dict[str, Split]
    vocabulary: list[str] | None

    @property
    def sum(self) -> str:
        """The SHA-256 of all tokens and their vocabulary, in hexadecimal."""
        content = [self.vocabulary, *(fact.sha256 for fact in self.facts.values())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Writer:
    """Appends tokens to a split's file."""

    def __init__(self, file: BinaryIO, dtype: str):
        self.file, self.dtype, self.known, self._sum = file, dtype, Split(), hashlib.sha256()

    def append(self, ids: np.ndarray) -> None:
        """Append ids (N,)."""
        content = ids.astype(self.dtype).tobytes()
        self.file.write(content)
        self._sum.update(content)
        self.known.tokens += len(ids)

    def facts(self) -> dict[str, Any]:
        """What is known of the split so far."""
        self.known.sha256 = self._sum.hexdigest()
        return asdict(self.known)


@contextmanager
def writing(folder: Path, n_ids: int, vocabulary: list[str] | None) -> Iterator[dict[str, Writer]]:
    """Write a text's folder: it is there, whole, when the context ends, and not at all if that raises.

    Args:
        folder: to write; where another process wrote it meanwhile, that stays.
        n_ids: ids are below this.
        vocabulary: to keep.

    Yields:
        What takes the tokens of each split.

    Raises:
        UserError: the cache folder cannot be written.
    """
    dtype = "<u2" if n_ids <= 2**16 else "<u4"
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    with writable(folder.parent):
        temporary.mkdir(parents=True)
    try:
        with ExitStack() as files:
            opened = {split: files.enter_context((temporary / f"{split}.tokens").open("xb")) for split in SPLITS}
            writers = {split: Writer(file, dtype) for split, file in opened.items()}
            yield writers
        facts = {"dtype": dtype, "splits": {split: one.facts() for split, one in writers.items()}}
        (temporary / FACTS).write_text(json.dumps(facts | {"vocabulary": vocabulary}), encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:
            if load_text(folder) is not None:
                return
            shutil.rmtree(folder)  # damaged
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_text(folder: Path) -> EncodedText | None:
    """Map a text's folder into memory; None if there is none, or if it is damaged."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        known = {split: Split(**facts["splits"][split]) for split in SPLITS}
        if any(sum_of(folder / f"{split}.tokens") != one.sha256 for split, one in known.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return EncodedText(
        {split: mapped(folder / f"{split}.tokens", facts["dtype"]) for split in SPLITS}, known, facts["vocabulary"]
    )


def mapped(path: Path, dtype: str) -> np.ndarray:
    """The tokens in a file, (N,); an empty one cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def sum_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces so that memory does not grow with it."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            content.update(chunk)
    return content.hexdigest()
