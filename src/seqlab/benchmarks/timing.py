"""How long a call takes, on a CPU and on a GPU."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

try:
    from triton.testing import do_bench
except ImportError:  # a torch wheel for CPUs may come without it
    do_bench = None

Function = Callable[[], Any]

WARMUP_MS, MEASURED_MS = 50, 100
"""For ``do_bench``."""

LONG_CALL = 0.1
"""Seconds. do_bench makes at least eight calls, and its flush of the cache is nothing against a call so long."""

REPETITIONS = 30
"""At most so many samples on a CPU, and of a long call on a GPU."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Function, device: torch.device, calls: int = 1) -> float:
    """Wall time of one call, from an idle device to an idle device: the mean over ``calls`` in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def in_turn(
    functions: Mapping[Hashable, Function],
    device: torch.device,
    *,
    rounds: int = REPETITIONS,
    budget: float = math.inf,
    least: float = 0.0,
) -> dict[Hashable, list[float]]:
    """Seconds a call of functions that are warm, a sample of each in turn: other load then affects all of them alike.

    Args:
        rounds: samples of each.
        budget: seconds; a function whose samples took so long has no more of them, and one at least.
        least: seconds; a sample is the mean over as many calls as fill them.
    """
    samples: dict[Hashable, list[float]] = {name: [] for name in functions}
    calls = dict.fromkeys(functions, 1)
    if least:
        calls = {name: max(1, round(least / seconds(run, device))) for name, run in functions.items()}
    for _ in range(rounds):
        for name, function in functions.items():
            if not samples[name] or calls[name] * sum(samples[name]) < budget:
                samples[name].append(seconds(function, device, calls[name]))
    return samples


def gpu_samples(function: Function, device: torch.device, budget: float) -> list[float]:
    """Seconds of each call of a function that ran before, by the GPU's own clock and with its L2 cache flushed."""
    if do_bench is None or seconds(function, device) > LONG_CALL:
        return in_turn({"": function}, device, budget=budget)[""]
    return [ms / 1e3 for ms in do_bench(function, warmup=WARMUP_MS, rep=MEASURED_MS, return_mode="all")]


def captured(function: Function, device: torch.device) -> Function:
    """A function that replays what this one does on the GPU, without the time that Python needs to launch it.

    The function's tensors are the graph's: they have to be kept as long as it.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # outside of the capture: what is compiled or allocated once
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
