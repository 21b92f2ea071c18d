"""``metrics.jsonl``: one record a line, written as training goes on, and put in order when a run is taken up again."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from seqlab.errors import UserError
from seqlab.jsonio import Record, finite, record_of

log = logging.getLogger(__name__)


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
    beginning = kept = damaged = 0  # bytes before the first line that is dropped, bytes kept in all, damaged lines
    dropped = False
    for line, good in lines_of(path, keep):
        dropped |= not good
        beginning += 0 if dropped else len(line)
        kept += len(line) if good else 0
        damaged += good is None
    if kept == beginning <= path.stat().st_size and not damaged:
        os.truncate(path, kept)
        return
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(line for line, good in lines_of(path, keep) if good)
        if damaged:
            beside = free_name(path)
            path.rename(beside)
            log.warning("%s had %d damaged lines, which are left out; it is kept as %s.", path, damaged, beside.name)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def lines_of(path: Path, keep: Callable[[Record], bool]) -> Iterator[tuple[bytes, bool | None]]:
    """Each line of a metrics file, and whether it is kept; ``None`` for one that is no record.

    A last line that a crash cut short is dropped like a record to be made again.
    """
    with path.open("rb") as file:
        for line in file:
            record, whole = record_of(line), line.endswith(b"\n")
            if record is None:
                yield line, None if whole else False
            else:
                yield line if whole else line + b"\n", keep(record)


def free_name(path: Path) -> Path:
    """The first of ``<name>.damaged``, ``<name>.damaged2`` and so on that is not there."""
    names = (path.with_name(f"{path.name}.damaged{number if number > 1 else ''}") for number in range(1, 1_000_000))
    return next(name for name in names if not name.exists())
