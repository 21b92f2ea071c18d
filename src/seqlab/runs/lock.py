"""A lock, so that one process at a time runs in a run folder; the system releases it when the process ends."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from seqlab.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK = ".lock"
INTERVAL = 0.2  # seconds between two tries

GRACE = 10
"""Seconds that the jobs of a killed sweep have to end their step and write a checkpoint (``seqlab.sweep.orphans``)."""

PATIENCE = GRACE + 5
"""Seconds after which no such job holds its folder."""


@contextmanager
def only_process_in(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a run folder; on a file system without locks this does nothing.

    Args:
        folder: the run's.
        patience: seconds to wait for a process that may be about to end.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        until = time.monotonic() + patience
        while not taken(file):
            if time.monotonic() >= until:
                file.seek(0)
                rule = f"another process runs it at this moment ({file.read().strip() or 'unknown'})"
                raise UserError("run folder", folder, rule, "Wait until that has ended, or name another folder")
            time.sleep(INTERVAL)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def taken(file: TextIO) -> bool:
    """Whether this process holds the lock now, or there are no locks here."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
