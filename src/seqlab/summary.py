"""What is known about a run besides its curves: ``summary.json`` and the table at its end."""

import contextlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from seqlab import __version__
from seqlab.errors import UserError
from seqlab.ops.selective_scan import resolve_backend
from seqlab.training.loggers import finite

Summary = dict[str, Any]


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the source tree, marked if files differ from it; ``None`` outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_model() -> str | None:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def environment(device: torch.device) -> Summary:
    """The machine, the versions and the command."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": package_version("triton"),
            "seqlab": __version__,
        },
        "git_commit": git_commit(),
        "command": os.environ.get("SEQLAB_COMMAND") or shlex.join(["python", *sys.argv]),
    }


def scan_backend(model: nn.Module, device: torch.device) -> str | None:
    """The backend that the model's selective scans run on, ``None`` for a model without one."""
    asked = {m.scan_backend for m in model.modules() if hasattr(m, "scan_backend")}
    try:
        return ", ".join(sorted(resolve_backend(name, device, torch.float32) for name in asked)) or None
    except ValueError as error:
        remedy = "Use scan_backend=auto, which picks the fastest that can run"
        raise UserError("scan_backend", ", ".join(sorted(asked)), str(error), remedy) from error


def count_parameters(model: nn.Module) -> Summary:
    """All parameters, and those that are no lookup table (a tied head counts as the matrix that it is)."""
    total = sum(p.numel() for p in model.parameters())
    head = getattr(model, "head", None)
    lookups = {
        id(m.weight): m.weight.numel()
        for m in model.modules()
        if isinstance(m, nn.Embedding) and (head is None or m.weight is not head.weight)
    }
    return {"parameters": total, "parameters_without_embeddings": total - sum(lookups.values())}


PROCESS = Path("/proc/self")  # on Linux


def reset_peak_memory() -> None:
    """Begin to measure the peak anew, so that it is one job's and not the process's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if PROCESS.is_dir():
        with contextlib.suppress(OSError):  # a kernel may refuse; the peak then includes earlier jobs
            (PROCESS / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the allocator's peak on a GPU, the process's on a CPU under Linux, unknown elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not PROCESS.is_dir():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())
    return int(found.group(1)) * 1024 if found else None


def write(folder: Path, summary: Summary) -> None:
    """Put ``summary.json`` in place whole."""
    temporary = folder / "summary.json.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(without_nan(summary), indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "summary.json")


def without_nan(value: Any) -> Any:
    """Numbers that are not finite as null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return finite(value)


def scaled(number: float, unit: str = "") -> str:
    """Three significant digits and a prefix: 1234567 -> 1.23 M."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    power = min(len(prefixes) - 1, int(math.log10(abs(number)) // 3)) if abs(number) >= 1 else 0
    return f"{number / 1000**power:.4g} {prefixes[power]}{unit}".rstrip()


def table(summary: Summary) -> Table:
    """The end of a run on one screen."""
    rows = Table(title=f"{summary['model']} on {summary['data']}", show_header=False, title_justify="left")
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    best, test = summary["best_validation"], summary["test"]
    facts = {
        "model": summary["model"],
        "parameters": f"{summary['parameters']:,} ({summary['parameters_without_embeddings']:,} without embeddings)",
        "training FLOPs": scaled(summary["flops"], "FLOP"),
        "steps": f"{summary['steps']:,}" + (" (stopped early)" if summary["stopped_early"] else ""),
        "seen": f"{summary['tokens']:,} tokens in {summary['samples']:,} samples",
        "wall time": f"{summary['wall_seconds']:.1f} s ({summary['seconds']:.1f} s in training steps)",
        "throughput": f"{scaled(summary['tokens_per_second'])} tokens/s",
        "scan backend": summary["scan_backend"] or "none (no selective scan)",
        "device": f"{summary['device_name']}, {summary['precision']}",
        "run folder": summary["folder"],
    }
    if summary["skipped_steps"]:
        facts["skipped steps"] = f"{summary['skipped_steps']:,} (loss or gradient not finite, or past fp16's range)"
    for name, value in facts.items():
        rows.add_row(name, value)
    rows.add_section()
    for name, value in test.items():
        rows.add_row(name, f"{value:.4f} test   {best[name]:.4f} best validation (step {summary['best_step']:,})")
    return rows
