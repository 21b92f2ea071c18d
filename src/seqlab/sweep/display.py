"""A sweep on the screen: the live table, plain lines where there is no screen, and the table at the end."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from seqlab.sweep.entries import RUNNING
from seqlab.sweep.jobs import COMPLETED, EARLIER, INTERRUPTED, PRUNED, Job, seconds_left

STYLES = {
    COMPLETED: "green",
    EARLIER: "green",
    RUNNING: "cyan",
    INTERRUPTED: "yellow",
    PRUNED: "yellow",
}
FAILED = "red"
BESIDE_THE_ROWS = 8  # lines of a screen that the table's frame, the bar and the totals take


def duration(seconds: float) -> str:
    """Time to two units: 8 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or the whole where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)]


def table(jobs: Sequence[Job]) -> Table:
    """One row a job, with a column for each setting that varies."""
    rows = Table()
    keys = list(dict.fromkeys(key for job in jobs for key in job.settings))
    for name in short_names(keys) or ["job"]:
        rows.add_column(name, overflow="fold")
    rows.add_column("status")
    for name in ("step", "validation", "test", "time"):
        rows.add_column(name, justify="right")
    for job in jobs:
        step = f"{job.step:,} of {job.total:,}" if job.total else ""
        status = Text(job.status, style=STYLES.get(job.status, FAILED))
        place = [Text(job.settings.get(key, "")) for key in keys] or [Text(job.name)]
        rows.add_row(*place, status, step, number(job.validation), number(job.test), duration(job.seconds))
    return rows


def totals(jobs: Sequence[Job], total: int | None, elapsed: float) -> str:
    """How the sweep stands, in a line."""
    count = Counter(job.status for job in jobs)
    parts = [f"{sum(job.succeeded for job in jobs)}{'' if total is None else f' of {total}'} done"]
    if count[EARLIER]:
        parts[0] += f" ({count[EARLIER]} kept from before)"
    failed = sum(job.failed for job in jobs)
    parts += [f"{count[RUNNING]} running", f"{failed} failed", duration(elapsed)]
    left = seconds_left(jobs, total, elapsed)
    if left:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def outcome(jobs: Sequence[Job], total: int | None, elapsed: float) -> str:
    """How the sweep ended, in a line."""
    count = Counter(job.status for job in jobs)
    parts = [f"{number} {status}" for status, number in count.items()]
    if total is not None and total > len(jobs):
        parts.append(f"{total - len(jobs)} not begun")
    return ", ".join([*parts, duration(elapsed)])


def live(jobs: Sequence[Job], total: int | None, elapsed: float, height: int) -> RenderableType:
    """What a terminal of ``height`` lines shows of a sweep: its ended jobs, then the running ones, then the totals."""
    ordered = sorted(jobs, key=lambda job: not job.ended)
    room = max(3, height - BESIDE_THE_ROWS)
    lines: list[RenderableType] = []
    if len(ordered) > room:
        lines.append(Text(f"{len(ordered) - room} more above", style="dim"))
    if ordered:
        lines.append(table(ordered[-room:]))
    if total:
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=total, completed=sum(job.done for job in jobs)))
        lines.append(bar)
    lines.append(Text(totals(jobs, total, elapsed)))
    return Group(*lines)


def line(job: Job, place: int, total: int | None) -> str:
    """An ended job, where there is no screen to show a table."""
    said = [f"[{place}{'' if total is None else f' of {total}'}] {job.name}: {job.status}"]
    if job.validation is not None:
        said.append(f"best validation {job.validation:.4f}")
    if job.test is not None:
        said.append(f"test {job.test:.4f}")
    if job.seconds:
        said.append(duration(job.seconds))
    return ", ".join(said)


def failures(jobs: Sequence[Job]) -> list[str]:
    """Every job that did not complete, with what it said."""
    return [
        f"{job.name}: {job.status}\n  " + (job.error or "its process ended without a word").replace("\n", "\n  ")
        for job in jobs
        if job.failed
    ]
