"""What a refused command wrote is removed again.

Hydra makes the run folder before a single setting is checked, and a sweep its ``sweep.json``.
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from seqlab.errors import UserError
from seqlab.jsonio import load, write_whole
from seqlab.runs.folder import CONFIG, SWEEP
from seqlab.runs.lock import LOCK, only_process_in

OF_A_START = {".hydra", "train.log", "summary.json", SWEEP, "multirun.yaml", LOCK}
"""Names that may be in a folder before its run or its first job begins; any other shows that it has begun."""

OF_A_RUN = (CONFIG, ".jobs")
"""What a run or the first job of a sweep writes when it begins, in a folder of an earlier one too."""


class Leftovers:
    """A folder as it is before a command writes to it.

    Args:
        folder: the run's or the sweep's.
        overrides: the command line's, which distinguish the files of this command from those of another.
        hydra: where in the folder Hydra writes what it composed.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = (), hydra: str = ".hydra"):
        self.folder, self.overrides, self.hydra = folder.absolute(), list(overrides), folder.absolute() / hydra
        self.names, self.times, self.had_hydra = names_in(folder), self.times_now(), self.hydra.exists()
        self.to_make = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.sweep = (folder / SWEEP).read_text(encoding="utf-8") if (folder / SWEEP).is_file() else None

    def remove(self) -> None:
        """Undo what the command wrote, and remove the folders that it made, unless it has begun; raises nothing."""
        new = names_in(self.folder) - self.names
        if not new <= OF_A_START or self.times_now() != self.times or self.of_another():
            return
        if new and in_use(self.folder):
            return
        with contextlib.suppress(OSError):
            if self.sweep is not None:
                write_whole(self.folder / SWEEP, self.sweep)
            if self.hydra.exists() and not self.had_hydra:
                shutil.rmtree(self.hydra)
            for path in (self.folder / name for name in names_in(self.folder) - self.names):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in self.to_make:
                if path.name == "outputs":
                    break
                with contextlib.suppress(FileNotFoundError):
                    path.rmdir()

    def times_now(self) -> list[int | None]:
        """When the files of a run that began were written."""
        paths = [self.folder / name for name in OF_A_RUN]
        return [path.stat().st_mtime_ns if path.exists() else None for path in paths]

    def of_another(self) -> bool:
        """Whether another command has written here since; it may not have locked the folder yet."""
        try:
            written = yaml.safe_load((self.hydra / "overrides.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            written = None
        started = [written, load(self.folder / SWEEP).get("overrides")]
        return any(overrides and overrides != self.overrides for overrides in started)


def in_use(folder: Path) -> bool:
    """Whether another process holds the folder."""
    try:
        with contextlib.suppress(OSError), only_process_in(folder):  # a full disk takes no line about the lock's holder
            return False
    except UserError:
        return True
    return False


def names_in(folder: Path) -> set[str]:
    """The names of what lies in a folder, if there is one."""
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


_noted: Leftovers | None = None


def note(folder: Path, overrides: Sequence[str], hydra: str = ".hydra") -> None:
    """Remember what is in a folder, for ``clear``."""
    global _noted
    _noted = Leftovers(folder, overrides, hydra)


def clear(*, refused: bool) -> None:
    """At the end of a command, undo what it wrote to the noted folder if it was refused."""
    global _noted
    noted, _noted = _noted, None
    if refused and noted is not None:
        noted.remove()
