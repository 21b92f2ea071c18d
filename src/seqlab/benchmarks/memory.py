"""The peak memory of a call, and the memory available."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

from seqlab.benchmarks.timing import synchronize
from seqlab.runs.environment import peak_memory, reset_peak_memory


class PeakMemory:
    """Peak memory since construction, in bytes beyond what was in use then.

    On a GPU: what PyTorch has allocated. On a CPU under Linux: the process's resident memory. Pages that were freed
    earlier and are used again are not counted there, so small peaks are underestimated.
    """

    def __init__(self, device: torch.device):
        self.device = device
        gc.collect()
        synchronize(device)
        if device.type == "cpu":
            with suppress(OSError, AttributeError):  # only GNU's C library can return free pages
                ctypes.CDLL(None).malloc_trim(0)
        reset_peak_memory()
        self.before = peak_memory(device)

    def bytes(self) -> int | None:
        """The peak so far; ``None`` where it is unknown."""
        synchronize(self.device)
        peak = peak_memory(self.device)
        return None if peak is None or self.before is None else max(0, peak - self.before)


def release(device: torch.device) -> None:
    """Free unreferenced memory, PyTorch's cache included, before the next measurement."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated; ``None`` where unknown: on a CPU without Linux's /proc."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def lacks_memory(needed: float, device: torch.device) -> str | None:
    """Why ``needed`` bytes do not fit, ``None`` if they do.

    This is asked beforehand, since a system kills a process that takes too much of a CPU's memory.
    """
    free = available_memory(device)
    if free is None or needed <= free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
