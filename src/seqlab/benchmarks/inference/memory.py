"""The most memory that was in use between two moments."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

from seqlab.benchmarks.timing import synchronize

PROCESS = Path("/proc/self")  # on Linux


class PeakMemory:
    """Watches a device from its construction on.

    On a GPU it is what PyTorch has allocated. On a CPU under Linux it is the process's resident memory, less what it
    was at the start: pages that earlier work left to the process are used again unseen, so small peaks are too small.
    """

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        with suppress(OSError, AttributeError):  # another C library than GNU's keeps what it has
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
        self.before = resident("VmRSS")

    def bytes(self) -> int | None:
        """The peak so far beyond what was in use at the start; None where nobody knows."""
        if self.device.type == "cuda":
            synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self.before
        peak = resident("VmHWM")
        return None if peak is None or self.before is None else max(0, peak - self.before)


def resident(field: str) -> int | None:
    """One of the process's figures in bytes, where Linux tells it."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None
