"""How long a call takes, how much memory it needs, and what the device itself allows."""

import gc
import subprocess
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple

import torch

try:
    from triton.testing import do_bench
except ImportError:  # a torch wheel for CPUs may come without it
    do_bench = None

Function = Callable[[], Any]

WARMUP_MS, MEASURED_MS = 50, 100
"""Of a kernel on a GPU."""

LONG_CALL = 0.1
"""Seconds. do_bench makes at least eight calls, and its flush of the cache is nothing against a call so long."""

REPETITIONS = 30
"""At most so many on a CPU, and of a long call on a GPU."""

COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
"""Many times the caches, so that a copy is a matter of memory."""

EXPONENTIALS_PER_CLOCK = 16
"""Of one multiprocessor: four special function units in each of its four parts (compute capability 7.0 to 9.0)."""


class DeviceLimits(NamedTuple):
    """What no kernel on this device can exceed."""

    copy_bytes_per_second: float  # measured; bytes read + bytes written
    exponentials_per_second: float | None
    multiprocessors: int | None
    clock_mhz: float | None
    clock_source: str | None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Function, device: torch.device) -> float:
    """Wall time of one call, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(
    functions: dict[Hashable, Function], device: torch.device, budget: float
) -> dict[Hashable, list[float]]:
    """Seconds of each call, one of each in turn, so that a busy moment of the machine falls upon all of them.

    A function drops out after ``REPETITIONS`` calls or once its calls took ``budget`` seconds; it has at least one.
    """
    samples: dict[Hashable, list[float]] = {name: [] for name in functions}
    active = list(functions)
    while active:
        for name in active:
            samples[name].append(seconds(functions[name], device))
        active = [name for name in active if len(samples[name]) < REPETITIONS and sum(samples[name]) < budget]
    return samples


def gpu_samples(function: Function, device: torch.device, budget: float) -> list[float]:
    """Seconds of each call of a function that ran before, by the GPU's own clock and with its L2 cache flushed."""
    if do_bench is None or seconds(function, device) > LONG_CALL:
        return interleaved({"": function}, device, budget)[""]
    return [ms / 1e3 for ms in do_bench(function, warmup=WARMUP_MS, rep=MEASURED_MS, return_mode="all")]


def captured(function: Function) -> Function:
    """A function that replays what this one does on the GPU, without the time that Python needs to ask for it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()  # outside of the capture: what is compiled or allocated once
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def peak_mib(function: Function, device: torch.device) -> float | None:
    """MiB that a call allocates at its peak beyond what is there before, its results included; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    results = function()
    synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del results
    return (peak - before) / 2**20


def device_limits(device: torch.device) -> DeviceLimits:
    """Measure the copy bandwidth and look up the rest. The exponential unit's limit is known for GPUs only."""
    bandwidth = copy_bandwidth(device, COPY_BYTES[device.type])
    if device.type != "cuda":
        return DeviceLimits(bandwidth, None, None, None, None)
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
    samples = gpu_samples(copy, device, 1.0) if device.type == "cuda" else interleaved({"": copy}, device, 0.5)[""]
    return 2 * size / median(samples)


def max_clock_mhz(device: torch.device) -> tuple[float | None, str | None]:
    """The highest clock of the multiprocessors, and who says so."""
    properties = torch.cuda.get_device_properties(device)
    with suppress(OSError, subprocess.SubprocessError, ValueError, AttributeError):
        query = ["nvidia-smi", f"--id=GPU-{properties.uuid}", "--query-gpu=clocks.max.sm"]
        answer = subprocess.run(
            [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=10
        )
        return float(answer.stdout), "nvidia-smi, clocks.max.sm"
    if kilohertz := getattr(properties, "clock_rate", 0):
        return kilohertz / 1e3, "torch's device property clock_rate"
    with suppress(ImportError, KeyError, RuntimeError):
        from triton.runtime import driver

        index = torch.cuda.current_device() if device.index is None else device.index
        return driver.active.utils.get_device_properties(index)["sm_clock_rate"] / 1e3, "triton, sm_clock_rate"
    return None, None
