"""The state of each job of a sweep, read from its entry, ``summary.json`` and the end of ``metrics.jsonl``."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seqlab.jsonio import Record, load, record_of
from seqlab.sweep.entries import RUNNING, Entry, read

COMPLETED, EARLIER, CUT_OFF, INTERRUPTED = "completed", "kept", "cut off", "interrupted"
PRUNED = "pruned"  # by a hyper-parameter search
DIVERGED, FAILED = "diverged", "failed"
RATE = "optimizer.lr"
TAIL = 16_384  # bytes, enough for the last records of every split


@dataclass(frozen=True)
class Job:
    """The state of a job at this moment; losses are means per position, ``None`` while unknown.

    Args:
        settings: those that differ between the jobs, by key.
        folder: the run folder.
        status: ``running``, ``completed``, ``kept`` (completed by an earlier sweep), or how else it ended.
        began_at, step, total: the step at which this invocation started or resumed it, the present one, the last one.
        validation: the best one of an ended job, the last one of a running one.
        test: of a completed job.
        seconds: wall time, with that before a resumption.
        error: what went wrong.
        written: modification time of its entry in nanoseconds.
    """

    settings: dict[str, str]
    folder: Path
    status: str
    began_at: int = 0
    step: int = 0
    total: int = 0
    validation: float | None = None
    test: float | None = None
    seconds: float = 0.0
    error: str | None = None
    written: int = 0

    @property
    def name(self) -> str:
        """The settings that vary, or the folder's name."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items()) or self.folder.name

    @property
    def ended(self) -> bool:
        """Whether it runs no more, for whichever reason."""
        return self.status != RUNNING

    @property
    def succeeded(self) -> bool:
        """Whether it has a result: completed now or earlier, or pruned."""
        return self.status in (COMPLETED, EARLIER, PRUNED)

    @property
    def failed(self) -> bool:
        """Whether it ended in an error; an interrupted job has not failed."""
        return self.ended and not self.succeeded and self.status != INTERRUPTED

    @property
    def done(self) -> float:
        """The share of this job that is done, by this or an earlier sweep."""
        return 1.0 if self.ended else self.step / max(1, self.total)

    @property
    def work(self) -> float:
        """The share of this job that this sweep has done."""
        return (self.step - self.began_at) / self.total if self.total and self.status != EARLIER else 0.0


def varying(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose overrides are not the same in all jobs, in the order in which they come."""
    shared = set.intersection(*map(set, jobs)) if jobs else set()
    return list(dict.fromkeys(key_of(override) for job in jobs for override in job if override not in shared))


def key_of(override: str) -> str:
    """The key of an override, with ``+`` or ``~``."""
    return override.partition("=")[0]


def read_jobs(sweep: Path, keys: Sequence[str], since: int, previous: Sequence[Job] = ()) -> list[Job]:
    """The state of the jobs that one invocation of a sweep has started, resumed or skipped.

    Args:
        sweep: the sweep's folder.
        keys: the settings that vary; without any, those that vary among the jobs so far.
        since: when the invocation began, in nanoseconds by the file system's clock; older entries are ignored.
        previous: what this function returned before; ended jobs among these are not read again.
    """
    entries = [entry for entry in read(sweep) if entry.written >= since]
    keys = keys or varying([entry.overrides for entry in entries])
    known = {job.folder: job for job in previous}
    jobs = []
    for entry in entries:
        job = known.get(sweep / entry.folder)
        if job is None or not job.ended or job.written != entry.written:
            job = read_job(sweep / entry.folder, entry, since, began_at=job.began_at if job else 0)
        values = dict(override.partition("=")[::2] for override in entry.overrides)
        settings = {key: values[key] for key in keys if key in values}
        jobs.append(job if job.settings == settings else replace(job, settings=settings))
    return jobs


def read_job(folder: Path, entry: Entry, since: int, began_at: int) -> Job:
    """The state of one job, without its settings; ``began_at`` is that of the previous reading."""
    path, status = folder / "summary.json", entry.outcome
    summary = load(path)
    if status == COMPLETED and not (path.exists() and path.stat().st_mtime_ns >= since):
        status = EARLIER
    if summary.get("status") != entry.outcome:
        summary = {}  # of another attempt
    steps = summary.get("steps", 0)  # of a running job, those that it began with
    if status == RUNNING:
        records = last_records(folder / "metrics.jsonl") if summary else {}
        began_at, steps = steps, max([steps, *(record["step"] for record in records.values())])
        validation = records.get("validation", {}).get("loss")
        seconds = max(0.0, time.time() - entry.written / 1e9)
    else:
        validation, seconds = summary.get("best_validation_loss"), summary.get("wall_seconds", 0.0)
    return Job(
        {},
        folder,
        status,
        began_at=min(began_at, steps),
        step=steps,
        total=summary.get("total_steps", 0),
        validation=validation,
        test=(summary.get("test") or {}).get("loss"),
        seconds=seconds,
        error=entry.error,
        written=entry.written,
    )


def last_records(path: Path) -> dict[str, Record]:
    """The last record of each split, by split, among those at the end of a metrics file."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    records = filter(None, map(record_of, lines))  # the first line may be the end of one
    return {record["split"]: record for record in records}


def seconds_left(jobs: Sequence[Job], total: int | None, elapsed: float) -> float | None:
    """An estimate of the seconds left, from the share of the work done so far; ``None`` before there is any."""
    done = math.fsum(job.work for job in jobs)
    if total is None or done <= 0:
        return None
    return elapsed * max(0.0, total - math.fsum(job.done for job in jobs)) / done
