"""A stopped sweep ends when its jobs in joblib's processes have written their checkpoints.

joblib kills its processes as soon as its caller leaves, or one of them ends. So the process that shows the sweep asks
them to stop and waits, and none of them ends before it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from seqlab.console import say
from seqlab.formatting import counted
from seqlab.invocation import SWEEP, in_worker, under_torchrun
from seqlab.sweep.entries import RUNNING, read
from seqlab.sweep.orphans import JOBLIB, ancestors

PATIENCE = 60
"""Seconds that the jobs have to end their step and write a checkpoint."""

INTERVAL = 0.1  # seconds between two looks
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], object]


def handle(handler: Handler) -> None:
    """Let both signals call ``handler``, if this is the main thread: handlers can only be set there."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


def stop_jobs(sweep: Path, since: int) -> None:
    """Ask the jobs in other processes to stop, and wait until they have, ``PATIENCE`` seconds at most.

    Args:
        sweep: the sweep's folder.
        since: when this invocation began, as the modification time of a file; older entries are ignored.
    """

    def running() -> list[int]:
        jobs = [entry for entry in read(sweep) if entry.outcome == RUNNING and entry.written >= since]
        return [entry.process for entry in jobs if entry.process not in (0, os.getpid())]

    if processes := running():
        say(
            f"Stopping: {counted(len(processes), 'job')} to write a checkpoint first; a second signal ends all at once."
        )
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while running() and time.monotonic() < until:
        time.sleep(INTERVAL)


def is_held(launcher: str) -> bool:
    """Whether this is one of joblib's processes, which ends with the sweep's and not before."""
    return launcher == JOBLIB and in_worker() and not under_torchrun()


@contextmanager
def ends_the_job(launcher: str, interrupted: Callable[[], None]) -> Iterator[None]:
    """Around a job: a signal that a run does not handle itself ends the job and leaves the process, if ``is_held``.

    Args:
        launcher: the ``_target_`` of Hydra's.
        interrupted: notes that the job has ended.
    """

    def end(number: int, frame: FrameType | None) -> None:
        interrupted()
        wait_for_end()

    if not is_held(launcher):
        yield
        return
    handle(end)
    try:
        yield
    finally:
        handle(lambda number, frame: wait_for_end())


def wait_for_end() -> NoReturn:
    """Wait until the sweep's process kills this one, or is gone, and leave."""
    until = time.monotonic() + 2 * PATIENCE
    while int(os.environ[SWEEP]) in ancestors() and time.monotonic() < until:
        time.sleep(INTERVAL)
    os._exit(128 + signal.SIGTERM)
