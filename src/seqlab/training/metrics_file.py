"""``metrics.jsonl``: one record a line, written as training goes on, and put in order when a run is taken up again."""

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
"""Bytes of lines that are looked at together."""

NUMBER = rb"(?:-?\d++(?:\.\d++)?+(?:e[+-]?\d++)?+|null)"
WHOLE = re.compile(rb'(?:\{"step": \d++, "split": "\w++"(?:, "[^"\\\n]++": %s)*+\}\n)++' % NUMBER)
"""Lines as ``MetricsFile`` writes them; five times sooner checked than parsed."""


class MetricsFile:
    """``metrics.jsonl``: one record a line, each line whole on the disk before the next begins."""

    def __init__(self, path: Path, *, keep: Callable[[Record], bool]):
        """Open for appending; records that ``keep`` refuses, which a resumed run makes again, are dropped."""
        if path.is_dir():
            raise UserError("metrics", path, "is a folder, and a run's measurements go there", "Move it away")
        if path.exists():
            settle(path, keep)
        self.file = path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        self.file.write(json.dumps({k: finite(v) for k, v in record.items()}) + "\n")
        self.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Close it; where that fails because the disk is full, what failed first for the same reason is raised."""
        try:
            self.file.close()
        except OSError:
            if kind is None:
                raise


def settle(path: Path, keep: Callable[[Record], bool]) -> None:
    """Drop the records that ``keep`` refuses, and lines that are none.

    Nothing is copied where what is dropped is the end of the file, as it is where no line is damaged. Otherwise the
    file as it was stays beside, as ``metrics.jsonl.damaged``.
    """
    first = kept = damaged = 0  # bytes up to the first gap, bytes kept in all, lines
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
    """A metrics file in pieces, which end with a line: where each begins, what is in it, and whether it is kept.

    Records come in the order of the steps, so where a block's last one is kept, all are. A piece is several lines then,
    and one otherwise; ``None`` for a line that is no record. A last line that a crash cut short is dropped like a
    record to be made again.
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
    """The first of ``<name>.damaged``, ``<name>.damaged2`` and so on that is not there."""
    names = (path.with_name(f"{path.name}.damaged{number if number > 1 else ''}") for number in range(1, 1_000_000))
    return next(name for name in names if not name.exists())
