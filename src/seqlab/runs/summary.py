"""What is known about a run besides its curves: ``summary.json``."""

import contextlib
import json
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

from seqlab import __version__
from seqlab.formatting import counted
from seqlab.jsonio import dump, finite, load

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
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()}, {counted(threads, 'thread')}"


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
    dump(folder / "summary.json", without_nan(summary))


def write_ending(folder: Path, summary: Summary) -> None:
    """``write``, of a run that failed; on a full disk at least the status, over that of before."""
    try:
        write(folder, summary)
    except OSError:
        with contextlib.suppress(OSError):
            overwrite_status(folder / "summary.json", summary["status"])


def overwrite_status(path: Path, status: str) -> None:
    """Change the status in a summary without asking the disk for space."""
    before = load(path)
    if not before:
        return
    content = (json.dumps(before | {"status": status}) + "\n").encode()
    size = path.stat().st_size
    if len(content) <= size:  # it is, for without the indentation it is shorter by more than a status is long
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()


def without_nan(value: Any) -> Any:
    """Numbers that are not finite as null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return finite(value)
