"""Training, prefill and generation beside ``mamba_ssm``, in one process on one GPU."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich
import torch
from rich.table import Table

from seqlab import console, jsonio
from seqlab.benchmarks import report
from seqlab.benchmarks.peer_picture import write_picture
from seqlab.benchmarks.peer_tasks import CUDA, Prepare, Task, tasks
from seqlab.benchmarks.report import number, table
from seqlab.benchmarks.results import facts, ratio
from seqlab.benchmarks.session import Call, Measurement, measure_whole
from seqlab.errors import UserError

WARM_UP, SAMPLES = 6, 5
"""Calls before the samples, in which graphs are captured; and samples."""

LEAST = 0.1
"""Seconds that a sample lasts at least."""


def run(args: argparse.Namespace) -> int:
    """Measure and show what the options of scripts/benchmark_against_mamba_ssm.py ask for. Returns the exit status."""
    if args.out is not None:
        report.make_folder(args.out.parent)
    results = merged(args.merge) if args.merge else measured(tasks(args), args.out)
    drawn = write_picture(args.out, results) if args.out is not None else []
    report.finish(args.out, results, [results_table(results)], also=drawn)
    if results["interrupted"] and not args.merge:
        console.say("Stopped at once; the tasks that were measured to their end are written.")
        return 130
    return 0


def measured(each: Sequence[Task], out: Path | None) -> dict[str, Any]:
    """The results of tasks, which are written to a JSON file after each task."""
    results = facts(CUDA, ("mamba_ssm", "causal_conv1d")) | {"interrupted": False, "rows": []}
    try:
        with rich.get_console().status("") as status:
            for place, task in enumerate(each, 1):
                status.update(f"{place} of {len(each)}: {task.name}")
                results["rows"].append(row_of(task, alone(task.ours), alone(task.theirs, ours=False)))
                if out is not None:
                    jsonio.dump(out, results)
    except KeyboardInterrupt:
        results["interrupted"] = True
    return results


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """The results in several JSON files, of which a later one replaces the tasks of an earlier one.

    Raises:
        UserError: a file holds no results of this benchmark, or they are from another device than those before.
    """
    results: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for path in paths:
        found = jsonio.load(path)
        if not all("what" in row for row in found.get("rows") or [{}]):
            remedy = "Name files that this script wrote with --out"
            raise UserError("--merge", path, "holds no results of this benchmark", remedy)
        if found["device_name"] != results.get("device_name", found["device_name"]):
            rule = f"is from {found['device_name']}, the files before it are from {results['device_name']}"
            raise UserError("--merge", path, rule, "Merge those of one device")
        rows |= {row["task"]: row for row in found["rows"]}
        results = found
    return results | {"rows": list(rows.values())}


def alone(prepare: Prepare, *, ours: bool = True) -> Measurement:
    """Measure what ``prepare`` returns: a sample is the mean of as many calls in a row as last ``LEAST`` seconds.

    Args:
        prepare: makes a function.
        ours: whether it is our code, whose errors are raised; theirs become results.
    """
    torch.manual_seed(0)
    return measure_whole(Call(prepare, ours), CUDA, warm_up=WARM_UP, rounds=SAMPLES, least=LEAST)


def row_of(task: Task, mine: Measurement, other: Measurement) -> dict[str, Any]:
    """A row of the results, times in seconds and memory in bytes."""
    return task.labels | {
        "seqlab": as_dict(mine),
        "mamba_ssm": as_dict(other),
        "times_the_tokens": ratio(other.median, mine.median),
        "times_the_memory": ratio(mine.peak_bytes, other.peak_bytes),
    }


def as_dict(found: Measurement) -> dict[str, Any]:
    """What one of the two needs for a task."""
    return {
        "seconds": found.median,
        "samples": found.samples,
        "first_call_seconds": found.first_call,
        "peak_bytes": found.peak_bytes,
        "failed": found.reason,
    }


def results_table(results: dict[str, Any]) -> Table:
    """A line for each task."""
    lines, failed = [], []
    for row in results["rows"]:
        mine, other = row["seqlab"], row["mamba_ssm"]
        lines.append(
            {
                "task": row["task"],
                "ms": number(mine["seconds"], 1e3),
                "mamba_ssm": number(other["seconds"], 1e3),
                "k tokens/s": number(ratio(row["tokens"], mine["seconds"]), 1e-3),
                "mamba_ssm's": number(ratio(row["tokens"], other["seconds"]), 1e-3),
                "times": number(row["times_the_tokens"]),
                "peak MB": number(mine["peak_bytes"], 1e-6),
                "its": number(other["peak_bytes"], 1e-6),
                "share": number(row["times_the_memory"]),
            }
        )
        failed += [
            f"{row['task']}, {who}: {row[who]['failed']}" for who in ("seqlab", "mamba_ssm") if row[who]["failed"]
        ]
    title = f"seqlab beside mamba_ssm, bf16, {results['device_name']}"
    return table(title, lines, caption="\n".join(failed) or None)
