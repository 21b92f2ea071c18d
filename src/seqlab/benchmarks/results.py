"""The results of a benchmark: where and when they were measured, and rows of times and ratios."""

import argparse
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any

import torch
from rich.table import Table

from seqlab.benchmarks.report import number, table
from seqlab.benchmarks.session import Measurement
from seqlab.formatting import counted
from seqlab.runs.environment import cpu_model, environment, package_version


def facts(device: torch.device, packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, the versions (of further packages too), the command and the date."""
    found = environment(device)
    if device.type == "cpu" and (model := cpu_model()):
        found["device_name"] = f"{model}, {counted(torch.get_num_threads(), 'thread')}"
    found["versions"] |= {name: package_version(name) for name in packages}
    return found | {"date": datetime.now().astimezone().isoformat(timespec="seconds")}


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """A command's options as JSON, without the results' folder."""
    found = {key: value for key, value in vars(args).items() if key != "out"}
    return found | {"device": str(args.device), "dtype": dtype_name(args.dtype)}


def step_row(found: Measurement, tokens: int) -> dict[str, Any]:
    """The measurement of a step over so many tokens."""
    return {
        "status": found.status,
        "reason": found.reason,
        "seconds": found.median,
        "fastest_seconds": min(found.samples, default=None),
        "tokens_per_second": ratio(tokens, found.median),
        "samples": found.samples,
    }


def step_table(title: str, rows: Sequence[Mapping[str, Any]], name: str, what: str, times: str) -> Table:
    """A line for each ``step_row``.

    Args:
        title: of the table.
        rows: of ``step_row``, each with a name and a ratio.
        name: the key of a contestant's name in the rows.
        what: what is timed (``a training step``), for the heading.
        times: the key of a contestant's ratio to another.
    """
    lines = [
        {
            name: row[name],
            f"ms {what}": number(row["seconds"], 1e3),
            "fastest": number(row["fastest_seconds"], 1e3),
            "tokens/s": number(row["tokens_per_second"]),
            times.replace("_", " "): number(row[times]),
        }
        for row in rows
    ]
    failed = [f"{row[name]} failed: {row['reason']}" for row in rows if row["status"] == "failed"]
    return table(title, lines, caption="\n".join(failed) or None)


def speed_up(slower: Sequence[float], faster: Sequence[float]) -> float | None:
    """How many times as long the slower one takes: the median ratio over rounds; ``None`` where one has no rounds."""
    if not slower or not faster:
        return None
    return median(a / b for a, b in zip(slower, faster, strict=True))


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """The quotient; ``None`` where a number is missing."""
    return None if numerator is None or denominator is None else numerator / denominator
