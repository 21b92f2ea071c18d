"""One process at a time in a run folder. The lock ends with the process, however that ends."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqlab.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK = ".lock"


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Hold a run folder; one that another process holds is refused. A file system without locks lets everybody in."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            rule = f"another process runs it at this moment ({file.read().strip() or 'unknown'})"
            raise UserError("run folder", folder, rule, "Wait until that has ended, or name another folder") from error
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
