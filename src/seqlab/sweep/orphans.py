"""Jobs in other processes end with the sweep that started them, even if it was killed and could not stop them.

Its workers would otherwise train on, and then wait for more. On a cluster, where jobs are meant to outlive the shell
that queued them, nothing here applies.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqlab.invocation import SWEEP, under_torchrun
from seqlab.runs.lock import GRACE

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
LOCAL_PROCESSES = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"  # another process is between
LOCAL_GPUS, RAY, SLURM = (f"hydra_plugins.seqlab_launchers.{name}Launcher" for name in ("LocalGpus", "Ray", "Slurm"))
PARENTS = (JOBLIB, LOCAL_GPUS, RAY)
"""Launchers whose jobs are in children of the process that they end with: of the sweep, or of Ray's worker."""

PROC = Path("/proc")
INTERVAL = 0.5  # seconds between two looks

_watching = threading.Event()


@contextmanager
def ends_with_sweep(launcher: str) -> Iterator[None]:
    """Around a job: this process ends soon after the sweep's, now and between jobs.

    A run that trains handles SIGTERM, and so writes its checkpoint; what has not ended after ``GRACE`` is killed. The
    entry of the job is left as it is, since the same sweep may have been started again by then.

    Args:
        launcher: the ``_target_`` of Hydra's; others than those of this machine's processes are left alone.
    """
    sweep = int(os.environ.get(SWEEP, 0))
    child = launcher in PARENTS
    between = launcher == LOCAL_PROCESSES or under_torchrun()
    watched = os.name == "posix" and (child or (between and (PROC / "self").exists()))
    if not watched or sweep in (0, os.getpid()):
        yield
        return
    leave_if_orphaned()
    if not _watching.is_set():
        _watching.set()
        threading.Thread(target=watch, args=(sweep,), name="sweep's end", daemon=True).start()
    try:
        yield
    finally:
        leave_if_orphaned()


def leave_if_orphaned() -> None:
    """End the process at once if the sweep's is gone: the launcher would take an exception for the job's result."""
    if int(os.environ[SWEEP]) not in ancestors():
        os._exit(128 + signal.SIGTERM)


def watch(sweep: int) -> None:
    """Wait for the sweep's end. The alarm kills the process even where it is busy outside of Python."""
    while sweep in ancestors():
        time.sleep(INTERVAL)
    signal.alarm(GRACE)
    os.kill(os.getpid(), signal.SIGTERM)


def ancestors() -> Iterator[int]:
    """The id of this process's parent, and where there is ``/proc``, that one's parent, and so on.

    Ids are used again, but never while a child of the process has it for its parent.
    """
    pid = os.getppid()
    while pid > 0:
        yield pid
        try:
            stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return
        pid = int(stat.rpartition(")")[2].split()[1])
