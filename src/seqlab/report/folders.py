"""Which folders hold runs: a walk over sweeps, links, and folders that have nothing to do with this project."""

import os
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import Path

from seqlab.errors import UserError

MARKS = frozenset({"summary.json", "metrics.jsonl", ".hydra"})
"""What a run writes first and last: a folder with one of these is taken for a run and not entered."""

PASSED_OVER = frozenset({"checkpoints", "comparisons", "benchmarks", "__pycache__"})
SWEEP_FILES = frozenset({"multirun.yaml", "sweep.json", "search.json", "search.db"})
COMPARISON_MARK = "comparison.csv"


def find(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Every folder below the paths that looks like a run's, and what else is there with the reason to skip it.

    Args:
        paths: folders of runs, sweeps, folders above them, or globs of any of these.

    Raises:
        UserError: nothing is there by that name.
    """
    walk = Walk()
    for path in paths:
        for place in expand(Path(path)):
            walk.enter(place)
    return walk.runs, walk.skipped


def expand(path: Path) -> list[Path]:
    """The path itself, or what it matches as a glob; sweeps' folders have brackets in their names at times."""
    if os.path.lexists(path):
        return [path]
    if has_magic(str(path)) and (found := sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))):
        return found
    rule = "matches nothing" if has_magic(str(path)) else "there is no such folder"
    raise UserError("folder", path, rule, "Name run folders, sweeps or globs of them, or none for all under outputs/")


class Walk:
    """One walk, which enters each folder once however many names lead to it."""

    def __init__(self) -> None:
        self.runs: list[Path] = []
        self.skipped: list[tuple[Path, str]] = []
        self.seen: set[tuple[int, int]] = set()

    def enter(self, path: Path) -> None:
        """Take a run's folder, or go through what is below; one line tells of a whole tree without a run."""
        if not path.is_dir():
            if path.name not in SWEEP_FILES:
                self.skipped.append((path, "a file, no folder" if path.exists() else "a link that leads nowhere"))
            return
        runs, skipped = len(self.runs), len(self.skipped)
        foreign = self.visit(path, ())
        if foreign and (len(self.runs), len(self.skipped)) == (runs, skipped):
            self.skipped.append((path, foreign))

    def visit(self, folder: Path, above: tuple[tuple[int, int], ...]) -> str | None:
        """Walk through a folder. Returns why it holds nothing, if it does; whoever called may know a larger such."""
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.skipped.append((folder, f"cannot be read ({error.strerror})"))
            return None
        identity = (status.st_dev, status.st_ino)
        if identity in self.seen:
            if identity in above:
                self.skipped.append((folder, "a link to a folder above it"))
            return None
        self.seen.add(identity)
        names = {entry.name for entry in entries}
        if names & MARKS:
            self.runs.append(folder)
            return None
        if COMPARISON_MARK in names:
            return None
        if not entries:
            return "empty"
        return self.visit_below(folder, list(self.folders(entries)), (*above, identity))

    def visit_below(self, folder: Path, below: list[Path], above: tuple[tuple[int, int], ...]) -> str | None:
        """Walk through what is in a folder that is no run's."""
        before = len(self.runs) + len(self.skipped)
        empty = [(path, why) for path in below if (why := self.visit(path, above))]
        if before == len(self.runs) + len(self.skipped) and not (folder / "multirun.yaml").exists():
            return "no run folder, and none below it" if below else "no run folder"
        self.skipped += empty
        return None

    def folders(self, entries: list[os.DirEntry]) -> Iterator[Path]:
        """The folders among a folder's entries that may hold runs."""
        for entry in entries:
            if entry.name.startswith(".") or entry.name in PASSED_OVER:
                continue
            path = Path(entry.path)
            try:
                is_folder = path.is_dir()
            except OSError:
                is_folder = False
            if is_folder:
                yield path
            elif entry.is_symlink():
                self.skipped.append((path, "a link that leads nowhere"))
