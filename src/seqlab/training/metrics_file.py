"""``metrics.jsonl``: one record a line, appended during training, and cleaned when a run is resumed."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from seqlab.errors import UserError
from seqlab.jsonio import Record, finite, record_of

log = logging.getLogger(__name__)

BLOCK = 1 << 18
"""Bytes of lines that are checked together."""

NUMBER = rb"(?:-?\d++(?:\.\d++)?+(?:e[+-]?\d++)?+|null)"
WHOLE = re.compile(rb'(?:\{"step": \d++, "split": "\w++"(?:, "[^"\\\n]++": %s)*+\}\n)++' % NUMBER)
"""Matches lines as ``MetricsFile`` writes them, five times faster than parsing them."""


class MetricsFile:
    """``metrics.jsonl``, open for appending; each line is flushed before the next is written."""

    def __init__(self, path: Path, *, keep: Callable[[Record], bool]):
        """Open for appending; existing records for which ``keep`` is false, which a resumed run repeats, are dropped.

        Raises:
            UserError: the path is a folder.
        """
        if path.is_dir():
            raise UserError("metrics", path, "is a folder, and a run's measurements go there", "Move it away")
        if path.exists():
            settle(path, keep)
        self.file = path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Append one record; values that are not finite become null."""
        self.file.write(json.dumps({k: finite(v) for k, v in record.items()}) + "\n")
        self.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Close the file.

        Raises:
            OSError: it cannot be closed, as on a full disk, and no earlier exception is being raised.
        """
        try:
            self.file.close()
        except OSError:
            if kind is None:
                raise


def settle(path: Path, keep: Callable[[Record], bool]) -> None:
    """Drop the records for which ``keep`` is false, and damaged lines.

    If only the end of the file is dropped, it is truncated in place. Otherwise it is rewritten; with damaged lines, the
    old file is kept as ``metrics.jsonl.damaged``.
    """
    first = kept = damaged = 0  # bytes before the first gap, all bytes kept, damaged lines
    size = path.stat().st_size
    for begin, line, good in sieve(path, keep):
        first += len(line) if begin == first and good else 0
        kept += len(line) if good else 0
        damaged += good is None
    if kept == first <= size and not damaged:
        os.truncate(path, first)
        return
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(line for _, line, good in sieve(path, keep) if good)
        if damaged:
            beside = free_name(path)
            path.rename(beside)
            log.warning("%s had %d damaged lines, which are left out; it is kept as %s.", path, damaged, beside.name)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sieve(path: Path, keep: Callable[[Record], bool]) -> Iterator[tuple[int, bytes, bool | None]]:
    """Pieces of a metrics file, of one or more lines: the first byte, the content, and whether to keep it.

    Records are in the order of the steps, so if the last one of a block is kept, all are, and the block is one piece.
    Otherwise a piece is a line. ``None`` marks a line that is no record; a last line that a crash cut short is dropped
    like a record that will be repeated.
    """
    begin = 0
    with path.open("rb") as file:
        while lines := file.readlines(BLOCK):
            block = b"".join(lines)
            if WHOLE.fullmatch(block) and keep(json.loads(lines[-1])):
                lines = [block]
            for line in lines:
                record = None if line is block else record_of(line)
                if line is block or (record is not None and keep(record)):
                    yield begin, line if line.endswith(b"\n") else line + b"\n", True
                else:
                    yield begin, line, None if record is None and line.endswith(b"\n") else False
                begin += len(line)


def free_name(path: Path) -> Path:
    """The first of ``<name>.damaged``, ``<name>.damaged2`` and so on that does not exist."""
    names = (path.with_name(f"{path.name}.damaged{number if number > 1 else ''}") for number in range(1, 1_000_000))
    return next(name for name in names if not name.exists())
