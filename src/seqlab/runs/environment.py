"""The machine and the versions that a run, or a benchmark, is made with."""

import contextlib
import platform
import re
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from seqlab import __version__
from seqlab.formatting import counted
from seqlab.invocation import typed

PROCESS = Path("/proc/self")  # on Linux
CLONE = Path(__file__).parents[3]


def environment(device: torch.device) -> dict[str, Any]:
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
        "command": shlex.join(typed()),
    }


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the processor and torch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"


def cpu_model() -> str | None:
    """The processor's name, on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def package_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the clone that this is imported from, marked if files differ from it; ``None`` where it is none."""
    if not (CLONE / ".git").exists():  # an installed package may lie in a repository of its user's
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CLONE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def reset_peak_memory() -> None:
    """Start the measurement of peak memory anew, so that it is one job's and not the process's."""
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
