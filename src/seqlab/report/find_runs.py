"""Which folders hold runs: a walk over sweeps, links and unrelated folders."""

import os
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import Path

from seqlab.errors import UserError

RUN_FILES = frozenset({"summary.json", "metrics.jsonl", ".hydra"})
"""The first and the last files of a run: a folder with one of these is taken for a run, and not entered."""

NOT_ENTERED = frozenset({"checkpoints", "comparisons", "benchmarks", "__pycache__"})
SWEEP_FILES = frozenset({"multirun.yaml", "sweep.json", "search.json", "search.db", "rates.json"})
REPORT_FILE = "comparison.csv"


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Every folder below the paths that looks like a run's, and what else is there with the reason to skip it.

    Args:
        paths: folders of runs, sweeps, folders above them, or globs of any of these.

    Raises:
        UserError: a path does not exist or matches nothing.
    """
    walk = Walk()
    for path in paths:
        for match in expand(Path(path)):
            if match.is_dir():
                if reason := walk.enter(match):
                    walk.skipped.append((match, reason))
            elif match.name not in SWEEP_FILES:
                walk.skipped.append((match, "a file, no folder" if match.exists() else "a link that leads nowhere"))
    return walk.runs, walk.skipped


def expand(path: Path) -> list[Path]:
    """The path itself, or what it matches as a glob. Folders of sweeps may have brackets in their names.

    Raises:
        UserError: it does not exist and matches nothing.
    """
    if os.path.lexists(path):
        return [path]
    if has_magic(str(path)) and (matches := sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))):
        return matches
    rule = "matches nothing" if has_magic(str(path)) else "there is no such folder"
    raise UserError("folder", path, rule, "Name run folders, sweeps or globs of them, or none for all under outputs/")


class Walk:
    """A walk over folders, which enters each once however many links lead to it."""

    def __init__(self) -> None:
        self.runs: list[Path] = []
        self.skipped: list[tuple[Path, str]] = []
        self.seen: set[tuple[int, int]] = set()

    def enter(self, folder: Path, above: tuple[tuple[int, int], ...] = ()) -> str | None:
        """Collect the runs in and below a folder.

        Args:
            folder: to enter.
            above: device and inode of the folders above it, to find links that form a loop.

        Returns:
            Why it holds no run, for the caller to report for this folder or for one above it; else ``None``.
        """
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.skipped.append((folder, f"cannot be read ({error.strerror})"))
            return None
        identity = status.st_dev, status.st_ino
        if identity in above:
            self.skipped.append((folder, "a link to a folder above it"))
        if identity in self.seen:
            return None
        self.seen.add(identity)
        names = {entry.name for entry in entries}
        if names & RUN_FILES:
            self.runs.append(folder)
        if REPORT_FILE in names or names & RUN_FILES:
            return None
        if not entries:
            return "empty"
        before = len(self.runs) + len(self.skipped)
        below = list(self.folders(entries))
        without_runs = [(path, reason) for path in below if (reason := self.enter(path, (*above, identity)))]
        if len(self.runs) + len(self.skipped) == before and "multirun.yaml" not in names:
            return "no run folder, and none below it" if below else "no run folder"
        self.skipped += without_runs
        return None

    def folders(self, entries: list[os.DirEntry]) -> Iterator[Path]:
        """The folders among a folder's entries that may hold runs."""
        for entry in entries:
            if entry.name.startswith(".") or entry.name in NOT_ENTERED:
                continue
            if os.path.isdir(entry.path):  # noqa: PTH112 (pathlib raises without permission)
                yield Path(entry.path)
            elif entry.is_symlink():
                self.skipped.append((Path(entry.path), "a link that leads nowhere"))
