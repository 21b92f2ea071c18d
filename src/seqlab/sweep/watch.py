"""The display of a sweep in the process that the user started: a live table, then the results and the exit status.

It only reads files, so it does not matter which launcher runs the jobs.
"""

import contextlib
import dataclasses
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import rich
from rich.console import RenderableType
from rich.live import Live

from seqlab.console import output, say, taken
from seqlab.invocation import MOMENT, program, typed
from seqlab.jsonio import load
from seqlab.sweep import display, stopping
from seqlab.sweep.entries import CHOSEN, RATES, RUNNING, SEARCH_RESULTS, write_sweep
from seqlab.sweep.jobs import CUT_OFF, DIVERGED, INTERRUPTED, Job, read_jobs

log = logging.getLogger("seqlab")

STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}


class Watch:
    """One invocation of a sweep.

    Args:
        folder: the sweep's.
        overrides: the command line's.
        keys: the settings that vary; without any, those that vary among the jobs so far.
        notes: lines to print before the first job.
    """

    def __init__(self, folder: Path, overrides: list[str], keys: list[str], notes: Sequence[str] = ()):
        self.folder, self.overrides, self.keys, self.notes = folder, overrides, keys, notes
        self.total: int | None = None
        self.asked: int | None = None  # the number of a signal to stop
        self.console = rich.get_console()
        self.since, self.began = write_sweep(folder, overrides), time.monotonic()
        self.jobs: list[Job] = []
        self.printed: set[Path] = set()
        self.live = Live(  # its thread reads the jobs, also where there is no terminal to draw on
            get_renderable=self.screen,
            console=self.console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def start(self) -> None:
        """Start the display."""
        taken.set()
        self.live.start()
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self.before = stopping.handle(self.stop_jobs)  # a job that trains in this process has its own meanwhile

    def stop_jobs(self, number: int, frame: FrameType | None) -> NoReturn:
        """Exit when the jobs in joblib's processes have stopped; a second signal ends all at once."""
        self.asked, began = number, time.monotonic()
        stopping.handle(lambda number, frame: time.monotonic() < began + MOMENT or leave(number))
        stopping.stop_jobs(self.folder, self.since)
        leave(number)

    def stop(self) -> None:
        """End the display, after reading the jobs a last time."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.live.stop()
        self.refresh()
        taken.clear()

    def screen(self) -> RenderableType:
        """The live table, of the present state of the jobs."""
        self.refresh()
        self.follow_a_stopped_job()
        return display.live(self.jobs, self.total, time.monotonic() - self.began, self.console.height)

    def follow_a_stopped_job(self) -> None:
        """Stop the sweep where a job alone was stopped: its process, one of joblib's, waits for the sweep's end."""
        stops = signal.getsignal(signal.SIGTERM) != self.stop_jobs
        if not stops and stopping.jobs_in_workers(self.folder, self.since, INTERRUPTED):
            os.kill(os.getpid(), signal.SIGTERM)

    def refresh(self) -> None:
        """Read the state of the jobs, and print a line for each that has ended since, unless a live table shows it."""
        known = len(self.jobs)
        self.jobs = read_jobs(self.folder, self.keys, self.since, self.jobs)
        if len(self.jobs) != known:
            with contextlib.suppress(OSError):  # a full disk, which the jobs report
                write_sweep(self.folder, self.overrides)
        for job in self.jobs:
            if job.ended and job.folder not in self.printed:
                self.printed.add(job.folder)
                if not self.console.is_terminal:
                    say(display.line(job, len(self.printed), self.total))

    def report(self, status: int) -> int:
        """Print the table and the failures on standard output. Returns the sweep's exit status."""
        ended = INTERRUPTED if status in STOPPED else CUT_OFF
        jobs = [dataclasses.replace(job, status=ended) if job.status == RUNNING else job for job in self.jobs]
        if jobs:
            output().print(display.table(jobs))
            outcome = display.outcome(jobs, self.total, time.monotonic() - self.began)
            output().print(f"{self.folder}: {outcome}", soft_wrap=True, markup=False, highlight=False)
        searches = any((self.folder / name).exists() for name in (SEARCH_RESULTS, RATES))
        bad = [job for job in jobs if not (job.succeeded or (searches and job.status == DIVERGED))]
        for job in bad:
            if job.failed:
                output().print(display.failure(job), style="red", markup=False, highlight=False, soft_wrap=True)
        if search := load(self.folder / SEARCH_RESULTS):
            output().print(display.search_table(search))
        if rates := load(self.folder / RATES):
            output().print(display.rates_table(rates))
            compare = f"{program('compare')} {shlex.quote(str(self.folder / CHOSEN))}"
            output().print(f"The models at these rates: {compare}", soft_wrap=True, markup=False, highlight=False)
        complete = len(jobs) >= (self.total or 0) and not bad
        return status if complete else status or 1


def leave(number: int) -> NoReturn:
    """Exit as a signal asks."""
    sys.exit(128 + number)


_current: Watch | None = None


def begin(folder: Path, overrides: list[str], keys: list[str], notes: Sequence[str]) -> None:
    """Display a sweep until ``finish``; the arguments are those of ``Watch``."""
    global _current
    _current = Watch(folder, overrides, keys, notes)
    _current.start()


def watching() -> bool:
    """Whether this process displays the sweep, and is no worker that only runs its jobs."""
    return _current is not None


def leave_if_asked() -> None:
    """Exit if a signal asked to: Python drops the exception of a handler that it calls while it frees an object."""
    if _current is not None and _current.asked is not None:
        leave(_current.asked)


def expect(jobs: int | None, notes: Sequence[str] = ()) -> None:
    """Set the number of jobs, if it is known, and print the notes; called once the sweep is certain to start."""
    if _current is not None:
        _current.live.refresh()  # the lines of what has ended, before those about what comes
        _current.total = jobs
        for note in (*_current.notes, *notes):
            say(note)
        _current.notes = ()


def finish(status: int) -> int:
    """End the display of a sweep, if there is one, with its results. Returns the exit status, given that so far."""
    global _current
    watch, _current = _current, None
    if watch is None:
        return status
    watch.stop()
    status = watch.report(status)
    if status in STOPPED:
        command = shlex.join(word for word in typed() if word != "sweep.resume=false")
        log.warning("The sweep was stopped. The same command goes on with what is left:\n%s", command)
    return status
