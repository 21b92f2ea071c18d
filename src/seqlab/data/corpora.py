"""A text corpus: locate its files, verify their checksums, encode them once and cache the tokens."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from seqlab.data import download
from seqlab.data.cache import Encoded, below, cache_folder, load, store, write_whole
from seqlab.data.documents import SPLITS
from seqlab.data.encoding import BYTES, Unit, Vocabulary, plain, split_words
from seqlab.data.splitting import parse_fractions
from seqlab.errors import UserError

FORMAT = 1
SUMS = ("sha256", "sha1")
FIRST_WORD = re.compile(r"[^\S\n]*(\n|\S+)?")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusFile:
    """One file: its name below the corpus's folder and, if known, its SHA-256 or SHA-1 and number of tokens."""

    file: str
    sha256: str | None = None
    sha1: str | None = None
    tokens: int | None = None


@dataclass
class Corpus:
    """The files of a corpus. The fields are arguments of ``TextData``; ``source`` is its ``download``."""

    name: str
    unit: Unit
    folder: str
    files: Mapping[str, Mapping[str, Any]]
    fractions: list[float] | None
    vocab_size: int | None
    source: Mapping[str, Any] | None
    dir: str | None
    cache_dir: str | None

    def __post_init__(self) -> None:
        self.files = _parse_files(self.files, self.fractions)
        self.fractions = None if self.fractions is None else parse_fractions(self.fractions, or_two=True)
        if self.source is not None:
            download.check_source(self.source)
        self.dir = None if self.dir is None else Path(self.dir).expanduser()
        self.cache = cache_folder(self.cache_dir)

    def encoded(self) -> tuple[str, Encoded, dict[str, int]]:
        """The SHA-256 of the corpus and its encoding, and the tokens; from the cache if they are there undamaged.

        The sum is that of the decoded text, so it does not depend on how line ends are written. Last come the bytes of
        each split's text that are predicted, all but those of its first token.

        Raises:
            UserError: a file is missing, is not UTF-8, or has another checksum or number of tokens than stated.
        """
        texts = {role: self._decode(role, content) for role, content in self._contents().items()}
        sums = {role: hashlib.sha256(text.encode()).hexdigest() for role, text in texts.items()}
        key = hashlib.sha256(json.dumps([FORMAT, self.unit, self.fractions, sums]).encode()).hexdigest()
        entry = below(self.cache / "tokens", f"{self.name}-{key[:16]}.tokens", "name")
        texts = self._splits_of(texts)
        cached = load(entry)
        encoded = cached or self._encode(texts)
        self._check_counts(encoded)
        if cached is None:
            store(entry, encoded)
            encoded = load(entry) or encoded
        return key, encoded, {split: predicted_bytes(text, self.unit) for split, text in texts.items()}

    def find(self) -> None:
        """Download the files, unless they are in ``dir`` or were downloaded before.

        Raises:
            UserError: that fails.
        """
        roots = [self.cache / "files", *([] if self.dir is None else [self.dir])]
        if not any(all(path.is_file() for path in self._paths(root).values()) for root in roots):
            self._contents()

    def _contents(self) -> dict[str, bytes]:
        """The bytes of each file, by role: from ``dir``, from an earlier download or from the network."""
        given = None if self.dir is None else self._read(self.dir)
        if given is not None:
            for role, content in given.items():
                self._check_sum(role, content, self.dir / self.folder)
            return given
        root = self.cache / "files"
        kept = self._read(root)
        if kept is not None and not any(self._wrong_sum(role, content) for role, content in kept.items()):
            return kept
        places = {
            role: below(root, Path(self.folder, spec.file), f"files.{role}.file") for role, spec in self.files.items()
        }
        fetched = self._fetch()
        for role, content in fetched.items():
            self._check_sum(role, content, "the download")
        for role, content in fetched.items():
            write_whole(places[role], content)
        return fetched

    def _paths(self, root: Path) -> dict[str, Path]:
        return {role: root / self.folder / spec.file for role, spec in self.files.items()}

    def _read(self, root: Path) -> dict[str, bytes] | None:
        """The files below a folder, or None unless it holds all of them."""
        paths = self._paths(root)
        if not all(path.is_file() for path in paths.values()):
            return None
        return {role: path.read_bytes() for role, path in paths.items()}

    def _fetch(self) -> dict[str, bytes]:
        where = self.cache / "files" if self.dir is None else self.dir
        paths = self._paths(where).values()
        missing = [path for path in paths if not path.is_file()] or paths
        names = ", ".join(str(path.relative_to(where)) for path in missing)
        value = "null" if self.dir is None else self.dir
        give = f"Set dir=... or SEQLAB_DATA_DIR to the folder that holds {self.folder}/"
        if self.source is None:
            raise UserError("dir", value, f"{names} not found in {where}, and no download is described", give)
        log.info("Downloading %s (%s)", self.name, names)
        try:
            return download.fetch(self.source, {role: spec.file for role, spec in self.files.items()})
        except download.DownloadError as error:
            rule = f"{names} not found in {where}, and the download failed ({error})"
            raise UserError("dir", value, rule, f"{give}, or connect to the network") from error

    def _wrong_sum(self, role: str, content: bytes) -> tuple[str, str, str] | None:
        """The kind of a sum that is not as stated, the one stated and the one found."""
        for kind in SUMS:
            expected = getattr(self.files[role], kind)
            if expected is not None and (found := hashlib.new(kind, content).hexdigest()) != expected.lower():
                return kind, expected, found
        return None

    def _check_sum(self, role: str, content: bytes, where: Path | str) -> None:
        if (wrong := self._wrong_sum(role, content)) is None:
            return
        kind, expected, found = wrong
        name = f"{kind[:3].upper()}-{kind[3:]}"
        rule = f"{self.files[role].file} in {where} has the {name} {found[:12]}..., so it is not the published file"
        remedy = f"Get the published file, or set files.{role}.{kind}=null (tokens and vocab_size too) to take this one"
        raise UserError(f"files.{role}.{kind}", f"{expected[:12]}...", rule, remedy)

    def _splits_of(self, texts: dict[str, str]) -> dict[str, str]:
        """The text of each split; words end with a line."""
        if self.unit == "word":
            texts = {role: text + "\n" if text and not text.endswith("\n") else text for role, text in texts.items()}
        return texts if self.fractions is None else split_text(texts["all"], self.fractions, self.unit)

    def _encode(self, texts: dict[str, str]) -> Encoded:
        vocabulary = Vocabulary.of(texts, self.unit)
        tokens = {}
        for split, text in texts.items():
            role = split if self.fractions is None else "all"
            symbols = split_words(text) if self.unit == "word" else text
            tokens[split] = vocabulary.encode_symbols(symbols, f"files.{role}", self.files[role].file)
        return Encoded(vocabulary.symbols, tokens)

    def _decode(self, role: str, content: bytes) -> str:
        if self.unit == "byte":
            return content.decode(BYTES)
        try:
            return plain(content.decode())
        except UnicodeDecodeError as error:
            rule = f"is not UTF-8 text (byte {error.start:,})"
            remedy = "Convert the file to UTF-8"
            raise UserError(f"files.{role}.file", self.files[role].file, rule, remedy) from error

    def _check_counts(self, encoded: Encoded) -> None:
        counts = {split: len(tokens) for split, tokens in encoded.splits.items()}
        if self.fractions is not None:
            counts = {"all": sum(counts[split] for split in SPLITS[: len(self.fractions)])}
        expected = {f"files.{role}.tokens": (spec.tokens, counts[role]) for role, spec in self.files.items()}
        expected["vocab_size"] = (self.vocab_size, len(encoded.vocabulary))
        for key, (wanted, found) in expected.items():
            if wanted not in (None, found):
                rule = f"{self.name} has {found:,} by {self.unit}s"
                raise UserError(key, wanted, rule, f"Set {key}={found}, or null to take any number")


def split_text(text: str, fractions: tuple[float, ...], unit: Unit) -> dict[str, str]:
    """Split a text at the given fractions of its characters; a text of words, at the next end of a line.

    Of two fractions the second is that of validation and test, which are then the same text.
    """
    cuts = [int(round(len(text) * share, 6)) for share in accumulate(fractions[:-1])]  # 0.7 + 0.2 is less than 0.9
    if unit == "word":
        cuts = [text.find("\n", max(cut - 1, 0)) + 1 or len(text) for cut in cuts]
    parts = [text[begin:end] for begin, end in pairwise((0, *cuts, len(text)))]
    return {"train": parts[0], "validation": parts[1], "test": parts[-1]}


def predicted_bytes(text: str, unit: Unit) -> int:
    """The bytes, in UTF-8, of a text without its first token; by bytes, of which each is a character, their number.

    The white space before a first word counts with it.
    """
    first = FIRST_WORD.match(text).end() if unit == "word" else min(1, len(text))
    return len(text) - first if unit == "byte" else len(text[first:].encode())


def _parse_files(files: Mapping[str, Mapping[str, Any]], fractions: list[float] | None) -> dict[str, CorpusFile]:
    roles = SPLITS if fractions is None else ("all",)
    if set(files) != set(roles):
        rule = f"must be {', '.join(roles)} when fractions={'null' if fractions is None else fractions}"
        remedy = "Give either train, validation and test, or one file `all` and fractions=[0.8,0.1,0.1]"
        raise UserError("files", ", ".join(files), rule, remedy)
    parsed = {}
    for role in roles:
        spec = files[role]
        if not {"file"} <= set(spec) <= {"file", *SUMS, "tokens"}:
            rule = "must give `file`, and may give `sha256`, `sha1` and `tokens`"
            raise UserError(f"files.{role}", dict(spec), rule, "Correct the data YAML")
        parsed[role] = CorpusFile(**spec)
    return parsed
