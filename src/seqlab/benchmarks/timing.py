"""How long a call takes, on a CPU and on a GPU."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

from seqlab.ops.cuda_graph import capture, on_side_stream

try:
    from triton.testing import do_bench
except ImportError:  # a torch wheel for CPUs may come without it
    do_bench = None

Function = Callable[[], Any]

WARMUP_MS, MEASURED_MS = 50, 100
"""Milliseconds for ``do_bench``."""

LONG_CALL = 0.1
"""Seconds from which ``do_bench`` is not used: it makes at least eight calls, and flushing the cache between them does
not matter for such a long call."""

REPETITIONS = 30
"""The most samples on a CPU, and of a long call on a GPU."""


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Function, device: torch.device, calls: int = 1) -> float:
    """Elapsed seconds of a call, from an idle device to an idle device: the mean over ``calls`` in a row."""
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
    """Seconds of each function's calls, with samples taken in turn, so that other load affects all functions alike.

    Args:
        functions: warmed up.
        device: synchronised around each sample.
        rounds: samples of each.
        budget: seconds; a function whose samples took so long gets no more, but always one.
        least: seconds; a sample is the mean over as many calls as last that long.
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
    """Seconds of each call of a warmed-up function, by the GPU's own clock and with its L2 cache flushed."""
    if do_bench is None or seconds(function, device) > LONG_CALL:
        return in_turn({"": function}, device, budget=budget)[""]
    return [ms / 1e3 for ms in do_bench(function, warmup=WARMUP_MS, rep=MEASURED_MS, return_mode="all")]


def captured(function: Function, device: torch.device) -> Function:
    """A function that replays this one's kernels as a CUDA graph, without the time that Python takes to launch them.

    The tensors that the function uses are the graph's too, and have to be kept as long as the graph.
    """
    with torch.cuda.device(device):
        with on_side_stream():
            for _ in range(3):  # compile and allocate outside of the capture
                function()
        graph = torch.cuda.CUDAGraph()
        with capture(graph):
            function()
    return graph.replay
