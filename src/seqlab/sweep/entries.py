"""Entries: one small file for each job of a sweep, written by the job in whichever process it runs.

``<sweep>/.jobs/<name>.json`` holds a job's number, folder and overrides, and how it ended. ``<sweep>/sweep.json`` is
made of these. A job that is refused, as its folder belongs to another run, can write that nowhere else.
"""

import contextlib
import hashlib
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from seqlab.jsonio import dump, load
from seqlab.runs.folder import SWEEP

ENTRIES = ".jobs"
SEARCH_RESULTS = "search.json"
RATES, CHOSEN = "rates.json", "chosen"  # of a search of learning rates: its outcome, links to the runs chosen
RUNNING = "running"


@dataclass(frozen=True)
class Entry:
    """One job of a sweep.

    Args:
        number: its place in the sweep.
        folder: relative to the sweep's.
        overrides: the job's.
        outcome: ``running``, or the status it ended with.
        error: what went wrong.
        process: the id of the process that runs it, on its machine.
        written: modification time of the file in nanoseconds.
    """

    number: int
    folder: str
    overrides: list[str]
    outcome: str = RUNNING
    error: str | None = None
    process: int = 0
    written: int = 0

    def write(self, sweep: Path) -> None:
        """Write the entry's file whole or not at all; of a job's several processes, the first does."""
        if os.environ.get("RANK", "0") != "0":
            return
        values = asdict(self)
        del values["written"]
        dump(self.path(sweep), values)

    def path(self, sweep: Path) -> Path:
        """The entry's file."""
        name = hashlib.sha256(self.folder.encode()).hexdigest()[:16]  # the folder's own may be too long for a suffix
        return sweep / ENTRIES / f"{name}.json"

    def now(self, sweep: Path) -> "Entry":
        """The entry as its file has it, which another process may have written."""
        return Entry(**(asdict(self) | load(self.path(sweep))))

    def end(self, sweep: Path, outcome: str, error: str | None = None) -> None:
        """Write how the job ended; where that cannot be written, the job will count as killed."""
        with contextlib.suppress(OSError):
            replace(self, outcome=outcome, error=error).write(sweep)

    def interrupted(self, sweep: Path) -> None:
        """Write that a signal ended the job, unless it has ended otherwise."""
        if self.now(sweep).outcome == RUNNING:
            self.end(sweep, "interrupted")


def read(sweep: Path) -> list[Entry]:
    """All entries of a sweep folder, by number; a file is opened only if it is new or has changed."""
    entries = []
    with contextlib.suppress(OSError), os.scandir(sweep / ENTRIES) as files:
        for file in files:
            if file.name.endswith(".json"):
                with contextlib.suppress(OSError, TypeError):
                    entries.append(read_file(file.path, file.stat().st_mtime_ns, file.inode()))
    return sorted(entries, key=lambda entry: entry.number)


@cache
def read_file(path: str, written: int, inode: int) -> Entry:
    """One version of an entry's file, by modification time and inode, as two may be written within one tick of the
    file system's clock; ``TypeError`` if it holds no entry."""
    return Entry(**load(Path(path)), written=written)


def write_sweep(sweep: Path, overrides: list[str]) -> int:
    """Write ``sweep.json``: the command line's overrides, and the jobs so far.

    Returns:
        The file's modification time in nanoseconds.
    """
    jobs = [{"folder": entry.folder, "overrides": entry.overrides} for entry in read(sweep)]
    dump(sweep / SWEEP, {"overrides": overrides, "jobs": jobs})
    return (sweep / SWEEP).stat().st_mtime_ns
