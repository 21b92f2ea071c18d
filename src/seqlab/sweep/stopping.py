"""A stopped sweep ends when its jobs in joblib's processes have written their checkpoints.

joblib kills its processes as soon as its caller leaves, or one of them ends. So the process that shows the sweep asks
those with a job to stop and waits, and none of them ends before it.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hydra.plugins.launcher import Launcher

from seqlab.console import say
from seqlab.formatting import counted
from seqlab.invocation import in_worker, under_torchrun
from seqlab.sweep.entries import RUNNING, Entry, read
from seqlab.sweep.orphans import JOBLIB, leave_if_orphaned

INTERVAL = 0.1  # seconds between two looks
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], object]


def handle(handler: Handler) -> dict[int, Handler]:
    """Let both signals call ``handler``; returns what they called before, by number."""
    return {number: signal.signal(number, handler) for number in SIGNALS}


def jobs_in_workers(sweep: Path, since: int, outcome: str) -> dict[int, int]:
    """The jobs of an outcome whose process, one of joblib's, is there: that process's id by the job's number.

    Args:
        sweep: the sweep's folder.
        since: when this invocation began, as the modification time of a file; older entries are ignored.
        outcome: of their entries.
    """
    alive = {process.pid for process in multiprocessing.active_children()}
    jobs = [entry for entry in read(sweep) if entry.outcome == outcome and entry.written >= since]
    return {entry.number: entry.process for entry in jobs if entry.process in alive}


def stop_jobs(sweep: Path, since: int) -> None:
    """Ask the jobs in joblib's processes to stop, also one that begins now, and wait until they have."""
    asked: set[int] = set()
    while jobs := jobs_in_workers(sweep, since, RUNNING):
        if not asked:
            announce(len(jobs))
        for number in jobs.keys() - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(jobs[number], signal.SIGTERM)
        asked |= jobs.keys()
        time.sleep(INTERVAL)


def announce(jobs: int) -> None:
    """Say what a sweep that was asked to stop waits for."""
    say(f"Stopping: {counted(jobs, 'job')} to write a checkpoint first; a second signal ends all at once.")


def shield(launcher: Launcher) -> None:
    """Have joblib's processes begin with ``ignore_signals``: one without a job would end, and joblib kill the others.

    Args:
        launcher: Hydra's; another than that for joblib is left alone.
    """
    if f"{type(launcher).__module__}.{type(launcher).__qualname__}" == JOBLIB:
        launcher.joblib["initializer"] = ignore_signals


def ignore_signals() -> None:
    """Do nothing on a signal to stop; what this process starts is not to inherit that, so it is not ``SIG_IGN``."""
    handle(lambda number, frame: None)


@contextmanager
def noted(launcher: str, sweep: Path, entry: Entry) -> Iterator[None]:
    """Around a job: where a signal ends it, its entry says so; one of joblib's processes stays until the sweep's ends.

    Args:
        launcher: the ``_target_`` of Hydra's.
        sweep: the sweep's folder.
        entry: the job's.

    Raises:
        KeyboardInterrupt: as the job.
        SystemExit: likewise.
    """
    held = launcher == JOBLIB and in_worker() and not under_torchrun()

    def end(number: int, frame: FrameType | None) -> NoReturn:  # of a job that is not yet, or no longer, training
        leave_if_orphaned()
        entry.interrupted(sweep)
        wait_for_end()

    if held:
        handle(end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        entry.interrupted(sweep)
        if held:
            wait_for_end()
        raise
    finally:
        if held:
            ignore_signals()


def wait_for_end() -> NoReturn:
    """Wait until the sweep's process kills this one, or is gone, and leave."""
    while True:
        leave_if_orphaned()
        time.sleep(INTERVAL)
