"""The limits of a device for the roofline model (Williams et al. 2009): no kernel copies or computes faster."""

import subprocess
from contextlib import suppress
from statistics import median
from typing import NamedTuple

import torch

from seqlab.benchmarks.timing import gpu_samples, in_turn

COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
"""Many times the caches' size, so that memory limits the copy."""

EXPONENTIALS_PER_CLOCK = 16
"""Of one multiprocessor: four special function units in each of four partitions (compute capability 7.0 to 9.0)."""


class DeviceLimits(NamedTuple):
    """The copy bandwidth and, for GPUs only, the rate of the special function units, which compute exponentials."""

    copy_bytes_per_second: float  # measured; bytes read + bytes written
    exponentials_per_second: float | None = None
    multiprocessors: int | None = None
    clock_mhz: float | None = None
    clock_source: str | None = None


def device_limits(device: torch.device) -> DeviceLimits:
    """Measure the copy bandwidth and look up the rate of exponentials."""
    bandwidth = copy_bandwidth(device, COPY_BYTES[device.type])
    if device.type != "cuda":
        return DeviceLimits(bandwidth)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    clock, source = max_clock_mhz(device)
    rate = None if clock is None else EXPONENTIALS_PER_CLOCK * multiprocessors * clock * 1e6
    return DeviceLimits(bandwidth, rate, multiprocessors, clock, source)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written a second while ``size`` bytes are copied on the device."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()  # touches the pages
    samples = gpu_samples(copy, device, 1.0) if device.type == "cuda" else in_turn({"": copy}, device, budget=0.5)[""]
    return 2 * size / median(samples)


def max_clock_mhz(device: torch.device) -> tuple[float | None, str | None]:
    """The highest clock of the multiprocessors in MHz, and its source."""
    with suppress(OSError, subprocess.SubprocessError, ValueError, AttributeError):
        uuid = torch.cuda.get_device_properties(device).uuid
        query = ["nvidia-smi", f"--id=GPU-{uuid}", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
        return float(answer.stdout), "nvidia-smi, clocks.max.sm"
    with suppress(ImportError, KeyError, RuntimeError):
        from triton.runtime import driver

        index = torch.cuda.current_device() if device.index is None else device.index
        return driver.active.utils.get_device_properties(index)["sm_clock_rate"] / 1e3, "triton, sm_clock_rate"
    return None, None
