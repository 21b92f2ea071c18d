"""The display of a sweep in the process that was called: a live table, then the results and the exit status.

It reads files alone, so it does not matter which launcher runs the jobs.
"""

import contextlib
import dataclasses
import logging
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import rich
from rich.live import Live

from seqlab.console import output, taken
from seqlab.jsonio import load
from seqlab.sweep import display
from seqlab.sweep.entries import RUNNING, write_sweep
from seqlab.sweep.jobs import CUT_OFF, INTERRUPTED, Job, Progress, varying
from seqlab.sweep.search import results as search_results

log = logging.getLogger("seqlab")

INTERVAL = 0.5  # seconds between two readings of the folder
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}


class Watch:
    """One invocation of a sweep.

    Args:
        folder: the sweep's.
        overrides: the command line's.
        jobs: the overrides of each, ``None`` where the sweeper chooses them one after another.
    """

    def __init__(self, folder: Path, overrides: list[str], jobs: list[list[str]] | None):
        self.folder, self.overrides = folder, overrides
        self.total = None if jobs is None else len(jobs)
        keys = None if jobs is None else varying(jobs)
        self.console = rich.get_console()
        self.progress = Progress(folder, keys, write_sweep(folder, overrides))
        self.began = time.monotonic()
        self.jobs: list[Job] = []
        self.printed: set[Path] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.poll, name="sweep", daemon=True)
        self.live = Live(
            get_renderable=self.screen,
            console=self.console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def start(self) -> None:
        self.thread.start()
        taken.set()
        if self.console.is_terminal:
            self.live.start()
        self.before = None
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self.before = signal.signal(signal.SIGTERM, end_by_signal)

    def stop(self) -> None:
        """End the display, after reading the jobs a last time."""
        self.over.set()
        self.thread.join()
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
        self.refresh()
        if self.console.is_terminal:
            self.live.stop()
        taken.clear()

    def poll(self) -> None:
        while not self.over.wait(INTERVAL):
            self.refresh()

    def refresh(self) -> None:
        """Read the state of the jobs, and print a line for each that has ended since, unless a live table shows it."""
        known = len(self.jobs)
        self.jobs = self.progress.now()
        if len(self.jobs) != known:
            with contextlib.suppress(OSError):  # a full disk, of which the jobs have more to say
                write_sweep(self.folder, self.overrides, self.progress.entries)
        for job in self.jobs:
            if job.ended and job.folder not in self.printed:
                self.printed.add(job.folder)
                if not self.console.is_terminal:
                    said = display.line(job, len(self.printed), self.total)
                    self.console.print(said, soft_wrap=True, markup=False, highlight=False)

    def screen(self) -> display.RenderableType:
        return display.live(self.jobs, self.total, time.monotonic() - self.began, self.console.height)

    def report(self, status: int) -> int:
        """Print the table and the failures on standard output. Returns the sweep's exit status."""
        ended = INTERRUPTED if status in STOPPED else CUT_OFF
        jobs = [dataclasses.replace(job, status=ended) if job.status == RUNNING else job for job in self.jobs]
        missing = 0 if self.total is None else self.total - len(jobs)
        if jobs:
            output().print(display.table(jobs))
            outcome = display.outcome(jobs, self.total, time.monotonic() - self.began)
            output().print(f"{self.folder}: {outcome}", soft_wrap=True, markup=False, highlight=False)
        for failure in display.failures(jobs):
            output().print(failure, style="red", markup=False, highlight=False, soft_wrap=True)
        if search := load(self.folder / search_results.RESULTS):
            search_results.show(search)
        if status == 0 and (missing > 0 or not all(job.succeeded for job in jobs)):
            return 1
        return status


def end_by_signal(number: int, frame: FrameType | None) -> None:
    """SIGTERM between two jobs ends the process in order; while a job trains, the job hears it first."""
    sys.exit(128 + number)


_current: Watch | None = None


def begin(watch: Watch) -> None:
    """Watch a sweep until ``finish``."""
    global _current
    _current = watch
    watch.start()


def watching() -> bool:
    """Whether this process displays the sweep, and is no worker that only runs its jobs."""
    return _current is not None


def expect(jobs: int) -> None:
    """Set the number of jobs, where it is known only after the display has started."""
    if _current is not None:
        _current.total = jobs


def finish(status: int) -> int:
    """End the display of a sweep, if there is one, with its results. Returns the exit status, given that so far."""
    global _current
    watch, _current = _current, None
    if watch is None:
        return status
    watch.stop()
    status = watch.report(status)
    if status in STOPPED:
        command = shlex.join(["python", *(argument for argument in sys.argv if argument != "sweep.resume=false")])
        log.warning("The sweep was stopped. The same command goes on with what is left:\n%s", command)
    return status
