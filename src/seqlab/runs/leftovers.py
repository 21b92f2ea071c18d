"""A command that is refused before anything was made leaves no folder behind.

Hydra makes the folder before a single setting is checked. What was there before the command began stays as it was.
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from seqlab.errors import UserError
from seqlab.jsonio import load
from seqlab.runs.folder import SWEEP
from seqlab.runs.lock import LOCK, only_process_in

OF_A_START = {".hydra", "train.log", "summary.json", SWEEP, "multirun.yaml", LOCK}
"""What stands in a folder before its run or its first job begins; with anything else there, it has begun."""


class Leftovers:
    """A folder as it is before a command writes to it.

    Args:
        folder: the run's or the sweep's.
        overrides: the command line's, which say whose the files of a start are.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = ()):
        self.folder, self.overrides = folder.absolute(), list(overrides)
        self.before = names_in(self.folder)
        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]  # by the command, soon

    def remove(self) -> None:
        """Remove what the command left, and the folders that it made, if no run or job has begun; raises nothing."""
        if not self.new() <= OF_A_START or self.of_another() or (self.new() and in_use(self.folder)):
            return
        with contextlib.suppress(OSError):
            for path in (self.folder / name for name in self.new()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in self.made:
                if path.name == "outputs":
                    break
                with contextlib.suppress(FileNotFoundError):
                    path.rmdir()

    def of_another(self) -> bool:
        """Whether another command has begun here since; it may not have got as far as to hold the folder."""
        try:
            written = yaml.safe_load((self.folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            written = None
        started = [written, load(self.folder / SWEEP).get("overrides")]
        return any(overrides and overrides != self.overrides for overrides in started)

    def new(self) -> set[str]:
        """What has come into the folder since."""
        return names_in(self.folder) - self.before


def in_use(folder: Path) -> bool:
    """Whether another process has taken the folder up since."""
    try:
        with contextlib.suppress(OSError), only_process_in(folder):  # a full disk takes no line about who holds it
            return False
    except UserError:
        return True
    return False


def names_in(folder: Path) -> set[str]:
    """What lies in a folder; nothing where there is none."""
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


_noted: Leftovers | None = None


def note(folder: Path, overrides: Sequence[str]) -> None:
    """Keep in mind what is in a folder, for ``clear``."""
    global _noted
    _noted = Leftovers(folder, overrides)


def clear(*, refused: bool) -> None:
    """At the end of a command, remove what it left in the noted folder if it was refused."""
    global _noted
    noted, _noted = _noted, None
    if refused and noted is not None:
        noted.remove()
