"""An entry for each job of a sweep: a small file that the job writes itself, whichever process it runs in.

``<sweep>/.jobs/<name>.json`` holds a job's number, folder and overrides, and how it ended. ``<sweep>/sweep.json`` is
made of these. A file, because a job that was refused (its folder belongs to another run) has no other place to say so.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from pathlib import Path

from seqlab.jsonio import dump, load
from seqlab.runs.folder import SWEEP

ENTRIES = ".jobs"
RUNNING = "running"


@dataclass
class Entry:
    """One job of a sweep.

    Args:
        number: its place in the sweep.
        folder: relative to the sweep's.
        overrides: the job's.
        outcome: ``running``, or the status it ended with.
        error: what went wrong.
        written: when the file was, in nanoseconds by the file system's clock.
    """

    number: int
    folder: str
    overrides: list[str]
    outcome: str = RUNNING
    error: str | None = None
    written: int = 0

    def write(self, sweep: Path) -> None:
        """Put the entry in place whole."""
        name = hashlib.sha256(self.folder.encode()).hexdigest()[:16]  # the folder's own may be too long for a suffix
        values = asdict(self)
        del values["written"]
        dump(sweep / ENTRIES / f"{name}.json", values)

    def end(self, sweep: Path, outcome: str, error: str | None = None) -> None:
        """Write how the job ended; where that cannot be written, it will be taken for killed."""
        self.outcome, self.error = outcome, error
        with contextlib.suppress(OSError):
            self.write(sweep)


def read(sweep: Path, known: dict[Path, Entry] | None = None) -> list[Entry]:
    """All entries of a sweep folder, by number; those in ``known``, which is kept up to date, only if they changed."""
    known = {} if known is None else known
    for path in (sweep / ENTRIES).glob("*.json"):
        with contextlib.suppress(OSError, TypeError):
            written = path.stat().st_mtime_ns
            if path not in known or known[path].written != written:
                known[path] = Entry(**load(path), written=written)
    return sorted(known.values(), key=lambda entry: entry.number)


class JobFolders:
    """The folder of each job of a sweep, by its overrides. An entry is read once: neither of the two ever changes.

    Args:
        sweep: the sweep's folder.
        identity: of a job's overrides, equal for the same job.
    """

    def __init__(self, sweep: Path, identity: Callable[[list[str]], Hashable]):
        self.sweep, self.identity = sweep, identity
        self.entries: dict[str, Entry] = {}
        self.by_identity: dict[Hashable, list[Entry]] = {}
        self.taken: set[str] = set()

    def refresh(self) -> None:
        """Read entries that are new; all again where one is gone."""
        try:
            names = {entry.name for entry in os.scandir(self.sweep / ENTRIES) if entry.name.endswith(".json")}
        except OSError:
            names = set()
        if not names.issuperset(self.entries):
            self.entries, self.by_identity, self.taken = {}, {}, set()
        for name in names.difference(self.entries):
            with contextlib.suppress(TypeError):  # one that cannot be read now is looked at again
                entry = self.entries[name] = Entry(**load(self.sweep / ENTRIES / name))
                self.by_identity.setdefault(self.identity(entry.overrides), []).append(entry)
                self.taken.add(entry.folder)

    def of(self, overrides: list[str]) -> str | None:
        """The folder that a job has, if it is there; of several the first job's."""
        same = sorted(self.by_identity.get(self.identity(overrides), ()), key=lambda entry: entry.number)
        return next((entry.folder for entry in same if (self.sweep / entry.folder).is_dir()), None)


def write_sweep(sweep: Path, overrides: list[str], known: dict[Path, Entry] | None = None) -> int:
    """Write ``sweep.json``: the command line's overrides, and the jobs so far; ``known`` is as for ``read``.

    Returns:
        When it was written, in nanoseconds by the file system's clock.
    """
    jobs = [{"folder": entry.folder, "overrides": entry.overrides} for entry in read(sweep, known)]
    dump(sweep / SWEEP, {"overrides": overrides, "jobs": jobs})
    return (sweep / SWEEP).stat().st_mtime_ns
