"""One process at a time in a run folder. The lock ends with the process, however that ends."""

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
"""Seconds that a job of a sweep that was killed has for its step and a checkpoint (``seqlab.sweep.orphans``)."""

PATIENCE = GRACE + 5
"""Seconds after which no such job holds its folder any more."""


@contextmanager
def only_process_in(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a run folder; one that another process holds is refused. A file system without locks lets everybody in.

    Args:
        folder: the run's.
        patience: seconds to wait for a process that may be about to end.
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
    """Whether this process has the lock now, or there are none to have."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
