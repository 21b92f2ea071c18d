"""A sweep on the screen: the live table, plain lines where there is no terminal, and the tables at the end."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from seqlab.formatting import counted
from seqlab.sweep.entries import RUNNING
from seqlab.sweep.jobs import COMPLETED, DIVERGED, EARLIER, INTERRUPTED, PRUNED, Job, seconds_left

STYLES = {COMPLETED: "green", EARLIER: "green", RUNNING: "cyan", INTERRUPTED: "yellow", PRUNED: "yellow"}
FAILED = "red"
BESIDE_THE_ROWS = 8  # lines of a screen that the table's frame, the bar and the totals take


def duration(seconds: float) -> str:
    """Seconds in at most two units: 8 s, 3 min 05 s, 2 h 10 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def number(value: float | None) -> str:
    """A loss to four decimals, or nothing."""
    return "" if value is None else f"{value:.4f}"


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or the whole key where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)]


def table(jobs: Sequence[Job]) -> Table:
    """One row a job, with a column for each setting that varies."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.settings))
    settings = (Column(name, overflow="fold") for name in short_names(keys) or ["job"])
    values = (Column(name, justify="right") for name in ("step", "validation", "test", "time"))
    rows = Table(*settings, "status", *values)
    for job in jobs:
        step = f"{job.step:,} of {job.total:,}" if job.total else ""
        status = Text(job.status, style=STYLES.get(job.status, FAILED))
        place = [Text(job.settings.get(key, "")) for key in keys] or [Text(job.name)]
        rows.add_row(*place, status, step, number(job.validation), number(job.test), duration(job.seconds))
    return rows


def totals(jobs: Sequence[Job], total: int | None, elapsed: float) -> str:
    """The state of a running sweep in a line."""
    kept, running = (sum(job.status == status for job in jobs) for status in (EARLIER, RUNNING))
    done = f"{sum(job.succeeded for job in jobs)}{of(total)} done"
    diverged = sum(job.status == DIVERGED for job in jobs)
    failed = sum(job.failed for job in jobs) - diverged
    parts = [f"{done} ({kept} kept from before)" if kept else done, f"{running} running", f"{failed} failed"]
    parts += [f"{diverged} diverged"] if diverged else []
    left = seconds_left(jobs, total, elapsed)
    return ", ".join([*parts, duration(elapsed), *([f"about {duration(left)} left"] if left else [])])


def outcome(jobs: Sequence[Job], total: int | None, elapsed: float) -> str:
    """How many jobs of a sweep ended in which way, and the seconds in all, in a line."""
    count = Counter(job.status for job in jobs)
    count["not begun"] = (total or 0) - len(jobs)
    return ", ".join([*(f"{number} {status}" for status, number in count.items() if number > 0), duration(elapsed)])


def of(total: int | None) -> str:
    """`` of 12``, or nothing where the number of jobs is unknown."""
    return "" if total is None else f" of {total}"


def live(jobs: Sequence[Job], total: int | None, elapsed: float, height: int) -> RenderableType:
    """A sweep on a terminal of ``height`` lines: its ended jobs, then the running ones, then the totals."""
    ordered = sorted(jobs, key=lambda job: not job.ended)
    room = max(3, height - BESIDE_THE_ROWS)
    lines: list[RenderableType] = []
    if len(ordered) > room:
        lines.append(Text(f"{len(ordered) - room} more above", style="dim"))
    if ordered:
        lines.append(table(ordered[-room:]))
    if total:
        bar = ProgressBar(total=total, completed=sum(job.done for job in jobs))
        lines.append(Padding(bar, 0))  # ends its line, which a bar alone does not
    lines.append(Text(totals(jobs, total, elapsed)))
    return Group(*lines)


def line(job: Job, place: int, total: int | None) -> str:
    """An ended job, the ``place``-th, in a line for output without a terminal."""
    losses = {"best validation": job.validation, "test": job.test}
    parts = [f"[{place}{of(total)}] {job.name}: {job.status}"]
    parts += [f"{name} {number(loss)}" for name, loss in losses.items() if loss is not None]
    return ", ".join([*parts, duration(job.seconds)] if job.seconds else parts)


def failure(job: Job) -> str:
    """A job that did not complete, with its error."""
    return f"{job.name}: {job.status}\n  " + (job.error or "its process ended without a word").replace("\n", "\n  ")


def search_table(results: dict[str, Any]) -> Table:
    """The best trial of each study in ``search.json``; the test split has no part in choosing it."""
    title = f"The best of {counted(results['trials'], 'trial')} each, by validation loss"
    losses = (Column(name, justify="right", no_wrap=True) for name in ("validation", "its test"))
    study, settings, folder = (Column(name, overflow="fold") for name in ("study", "settings", "run folder"))
    rows = Table(study, "trials", *losses, settings, folder, title=title, title_justify="left")
    for study in results["studies"]:
        count = Counter(trial["status"] for trial in study["trials"])
        trials = "\n".join(f"{number} {status}" for status, number in sorted(count.items()))
        best = study["best"] or {"validation": None, "test": None, "settings": {}, "folder": ""}
        test = (best["test"] or {}).get("loss")
        settings = "\n".join(f"{key.split('.')[-1]}={value}" for key, value in best["settings"].items())
        found = number(best["validation"]), number(test), Text(settings), Text(best["folder"])
        rows.add_row(Text(study["name"]), trials, *found)
    return rows


def rates_table(results: dict[str, Any]) -> Table:
    """Each model at its rate in ``rates.json``; the test split has no part in choosing it."""
    shared = results["rates"]
    number = len(shared or results["models"][0]["rates"])
    which = f"{shared[0]} to {shared[-1]}" if shared else "around its own"
    title = f"The best of {counted(number, 'learning rate')} each, {which}, by validation loss"
    if any(run["status"] is None for model in results["models"] for run in model["on_grid"]):
        title += "; runs are missing"
    settings = (Column(name, overflow="fold") for name in ("model", "rate", "nearest end"))
    losses = (Column(name, justify="right", overflow="fold") for name in ("validation", "test"))
    rows = Table(*settings, *losses, title=title, title_justify="left")
    for model in results["models"]:
        values = (over_seeds([run[key] for run in model["chosen"]]) for key in ("validation", "test"))
        place = place_on_grid(model, shared or model["rates"])
        rows.add_row(Text(model["name"]), str(model["rate"] or "none"), place, *values)
    return rows


def place_on_grid(model: dict[str, Any], rates: Sequence[float]) -> str:
    """How many rates lie between a model's rate and the nearer end of the grid, that end counted."""
    below, above = model["below"], model["above"]
    if below is None:
        return ""
    if 0 in (below, above):
        return f"at {rates[0] if below == 0 else rates[-1]}"
    return f"{below} above {rates[0]}" if below <= above else f"{above} below {rates[-1]}"


def over_seeds(losses: Sequence[float | None]) -> str:
    """The mean, with the standard deviation over several seeds; how many of them have a loss, unless all do."""
    known = [loss for loss in losses if loss is not None]
    spread = f" ± {stdev(known):.4f}" if len(known) > 1 else ""
    number = f" ({len(known)} of {len(losses)} seeds)" if len(known) < len(losses) else ""
    return f"{mean(known):.4f}{spread}{number}" if known else ""
