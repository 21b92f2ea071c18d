"""Documents in files of text, JSON lines, Parquet and CSV, read a piece at a time."""

import csv
import json
import logging
import re
import sys
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from seqlab.data.encoding import plain
from seqlab.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
PIECE = 2**16
"""Characters of a piece, after which the next place to cut is taken."""

BLOCK = 2**16
"""Bytes that are read at a time."""

ROLE = re.compile(r"(?<![a-z])(train|valid(?:ation)?|val|dev|test)(?![a-z])", re.IGNORECASE)
"""What names a split in a file's name, or in that of its folder."""


class Document(Protocol):
    """A text as pieces, none of which is empty; it may be read more than once."""

    def __iter__(self) -> Iterator[str]:
        """The pieces, in order."""


class Record(NamedTuple):
    """A document that is in memory."""

    text: str

    def __iter__(self) -> Iterator[str]:
        return pieces(self.text[i : i + PIECE] for i in range(0, len(self.text), PIECE))


@dataclass(frozen=True)
class TextPart:
    """The bytes of a text file from ``start`` up to ``stop`` (None for its end), where characters begin."""

    path: Path
    start: int = 0
    stop: int | None = None

    def __iter__(self) -> Iterator[str]:
        with readable(self.path):
            yield from pieces(self._blocks())

    def _blocks(self) -> Iterator[str]:
        decoder, position = getincrementaldecoder("utf-8")(), self.start
        held = ""  # a CR, which is no end of a line unless LF follows
        with self.path.open("rb") as file:
            file.seek(position)
            while True:
                content = file.read(BLOCK if self.stop is None else min(BLOCK, self.stop - position))
                try:
                    text = held + decoder.decode(content, final=not content)
                except UnicodeDecodeError as error:
                    begun = position - (len(error.object) - len(content))
                    refuse_binary(self.path, f"byte {begun + error.start:,}")
                if "\0" in text:
                    refuse_binary(self.path, "it holds bytes of value 0")
                held = "\r" if text.endswith("\r") and content else ""
                text = text.removesuffix(held) if held else text
                yield plain(text) if position == 0 else text.replace("\r\n", "\n")
                if not content:
                    return
                position += len(content)


def refuse_binary(path: Path, why: str) -> None:
    """Refuse a file that is no text.

    Raises:
        UserError: says so.
    """
    raise UserError("files", path, f"is not UTF-8 text ({why})", "Convert the file to UTF-8, or leave it out")


def pieces(blocks: Iterable[str]) -> Iterator[str]:
    """A text in pieces of ``PIECE`` characters or a little more, cut where tokens end (``last_cut``)."""
    held = ""
    for block in blocks:
        held += block
        if len(held) >= PIECE and (at := last_cut(held)):
            yield held[:at]
            held = held[at:]
    if held:
        yield held


def last_cut(text: str) -> int:
    """The last place at which a text can be cut so that its pieces have the tokens of the whole; 0 to read on first.

    Tokenizers split text before they merge. Those of GPT-2, Llama 3 and Qwen, and words and bytes all the more, split
    before an end of line that follows a letter or digit, and between an end of line and one space before a word. If
    there is no such place, it is after an end of line; on a line of more than four pieces, anywhere.
    """
    at = len(text)
    while (at := text.rfind("\n", 0, at)) > 0:
        if text[at - 1].isalnum():
            return at
        after = text[at + 1 : at + 3]
        if len(after) == 2 and after[0] == " " and not after[1].isspace():
            return at + 1
    return text.rfind("\n") + 1 or (len(text) if len(text) >= 4 * PIECE else 0)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in two lines what of a file cannot be read.

    Raises:
        UserError: in place of the errors of libraries.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        refuse_binary(path, f"{error.reason}")
    except (OSError, ValueError, csv.Error) as error:  # JSON's and Arrow's are ValueErrors
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError("files", path, f"cannot be read ({why})", "Repair the file, or leave it out") from error


Rows = Iterator[tuple[list[str], Any]]
"""Of each record the names that it has, and the value of the field; that is None if it lacks it."""


def lines(path: Path, field: str) -> Rows:
    """The records of a file of JSON lines.

    Raises:
        ValueError: a line is no JSON, or no record, or its text no Unicode.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("no record, of which each has a line of its own")
                value = record.get(field)
                str(value).encode()  # JSON may escape half of a surrogate pair
            except (ValueError, RecursionError) as error:
                why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"line {number:,}: {why}") from error
            yield list(record), value


def rows(path: Path, field: str) -> Rows:
    """The records of a CSV file, whose first line has the names.

    Raises:
        ValueError: a quote has no end, or a record has more or fewer values than there are names.
    """
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    more = "more" if None in record else "fewer"
                    rule = f"{more} values than the first line names: has a text a comma, and no quotes?"
                    raise ValueError(f"line {reader.line_num:,}: {rule}")
                yield reader.fieldnames, record.get(field)
        except csv.Error as error:
            raise ValueError(f"after line {reader.line_num:,}: {error}") from error


def columns(path: Path, field: str) -> Rows:
    """The records of a Parquet file."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            yield names, None
            return
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            for value in batch.column(0).to_pylist():
                yield names, value


READERS: dict[str, Callable[[Path, str], Rows]] = {".jsonl": lines, ".json": lines, ".csv": rows, ".parquet": columns}
SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
"""Of the files that are taken of a folder; a .json there may be anything."""


def documents_in(path: Path, field: str) -> Iterator[Document]:
    """The documents of a file: of text the whole of it, of other kinds each record's field; empty ones are left out.

    Raises:
        UserError: a record has no such field, or another value than text in it.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        if path.stat().st_size:
            yield TextPart(path)
        return
    with readable(path):
        for names, value in reader(path, field):
            if field not in names:
                remedy = "Name the field that holds the text with field=..."
                raise UserError("field", field, f"{path} has {', '.join(names[:8]) or 'no fields'}", remedy)
            if not isinstance(value, str | None):
                rule = f"in {path} it holds {type(value).__name__} and no text"
                raise UserError("field", field, rule, "Name the field that holds the text with field=...")
            if value and (text := plain(value)):
                yield Record(text)


class Files:
    """The documents of files, by the part that each file is for.

    Args:
        given: a file, a folder, a list of them, or such for each of train, validation and test. Of a folder, its files
            of known kinds at any depth, in the order of their names; if each of them, or its folder, has the name of a
            split in it, as ``train.txt`` and ``valid-00001.parquet`` do, they are for that split, otherwise all are for
            training.
        field: of a record that holds its text.

    Attributes:
        paths: the files for train and, if given, validation and test.
        size: of all files, in bytes.

    Raises:
        UserError: there is no file, or none for training.
    """

    def __init__(self, given: str | list[str] | dict[str, str | list[str]], field: str):
        self.field = field
        self.paths = by_role(given)
        self.size = sum(path.stat().st_size for paths in self.paths.values() for path in paths)
        self.name = str(given) if isinstance(given, str) else ", ".join(map(str, given))

    @property
    def identity(self) -> list[Any]:
        """What changes when the text may have changed: the files, their sizes and times."""
        described = {
            role: [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
            for role, paths in self.paths.items()
        }
        return ["files", described, self.field]

    def documents(self, role: str) -> Iterator[Document]:
        """The documents for a part."""
        for path in self.paths[role]:
            yield from documents_in(path, self.field)

    def only_text(self) -> Path | None:
        """The text file that is all of the training text; None if that is several documents."""
        [first, *more] = self.paths["train"]
        return first if not more and first.suffix.lower() not in READERS else None


def by_role(given: str | list[str] | dict[str, str | list[str]]) -> dict[str, list[Path]]:
    """The files for train, validation and test, as ``Files`` takes them.

    Raises:
        UserError: there is no file, or none for training.
    """
    if isinstance(given, dict):
        if not {"train"} <= set(given) <= set(SPLITS):
            rule = "must name train, and may name validation and test"
            raise UserError("files", ", ".join(given), rule, "For example files={train: a.txt, test: b.txt}")
        return {role: files_of(given[role]) for role in SPLITS if role in given}
    found = files_of(given)
    if isinstance(given, str) and Path(given).expanduser().is_dir():
        named = [ROLE.search(str(path.relative_to(Path(given).expanduser()))) for path in found]
        roles = [match and as_split(match[1]) for match in named]
        if all(roles) and "train" in roles:
            return {
                role: [p for p, r in zip(found, roles, strict=True) if r == role] for role in SPLITS if role in roles
            }
        if {"train"} < set(roles) - {None}:
            other = found[roles.index(None)].name
            log.warning("%s is not named for a split, so all files of %s are cut into splits anew.", other, given)
    return {"train": found}


def as_split(name: str) -> str:
    """The split that a name of one stands for."""
    return name.lower() if name.lower() in SPLITS else "validation"


def files_of(given: str | list[str]) -> list[Path]:
    """The files that are named, and those in the folders that are.

    Raises:
        UserError: one does not exist, or a folder holds none.
    """
    found, names = [], [given] if isinstance(given, str) else given
    if not names or not all(names):
        raise UserError("files", given, "a name in it is empty, or there is none", "Name a file or a folder")
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in SUFFIXES and one.is_file()]
            if not inside:
                rule = f"holds no file that ends with {', '.join(SUFFIXES)}"
                raise UserError("files", name, rule, "Name a folder that does, or the files themselves")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError("files", name, "there is no such file or folder", "Write its path from where you stand")
    return found


def cut(path: Path, shares: list[float]) -> list[TextPart]:
    """A text file in parts of these shares of its bytes, cut at the next end of a line; all but the last end there.

    Of a line that goes on for half of the smallest part, or for ``BLOCK`` bytes, the end is not waited for.
    """
    size, total = path.stat().st_size, 0.0
    longest = min(BLOCK, max(1, round(size * min(shares) / 2)))
    places = [0]
    with path.open("rb") as file:
        for share in shares[:-1]:
            total += share
            file.seek(max(0, round(size * total) - 1))
            file.readline(longest)
            while (following := file.read(1)) and 0x80 <= following[0] < 0xC0:  # within a character
                pass
            places.append(max(places[-1], file.tell() - len(following)))
    return [TextPart(path, start, stop) for start, stop in pairwise([*places, size])]
