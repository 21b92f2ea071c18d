"""Measuring calls side by side: warm-up, rounds, memory. An error of one does not stop the others."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import torch

from seqlab.benchmarks.memory import PeakMemory, release
from seqlab.benchmarks.timing import REPETITIONS, Function, captured, gpu_samples, in_turn, seconds
from seqlab.config.exceptions import is_out_of_memory
from seqlab.runs.environment import reset_peak_memory

OUT_OF_MEMORY = "out of memory"
"""The reason of a measurement that failed so."""


class Call(NamedTuple):
    """What makes the function to measure, and whether it is our code: our errors are raised, others' become results."""

    prepare: Callable[[], Function]
    ours: bool = True


@dataclass
class Measurement:
    """The result of one call. What was not measured is ``None`` or empty."""

    status: str = "measured"  # or failed
    reason: str | None = None
    first_call: float | None = None  # seconds, compilation included
    samples: list[float] = field(default_factory=list)  # seconds
    peak_bytes: int | None = None  # beyond the memory in use before; results included

    @property
    def median(self) -> float | None:
        """The median of the samples, in seconds."""
        return median(self.samples) if self.samples else None


def measure(
    calls: Mapping[Hashable, Call],
    device: torch.device,
    *,
    rounds: int = REPETITIONS,
    budget: float = math.inf,
    least: float = 0.0,
    warm_up: int = 1,
) -> dict[Hashable, Measurement]:
    """Measure calls in turn, after all of them are prepared.

    Args:
        calls: by any key.
        device: on which they run; it is synchronised around each sample.
        rounds: samples of each.
        budget: seconds, after which a call gets no more samples.
        least: seconds that a sample lasts at least.
        warm_up: calls before the first round.
    """
    found, ready = {}, {}
    for key, call in calls.items():
        try:
            function = call.prepare()
            found[key] = Measurement(first_call=seconds(function, device))
            for _ in range(warm_up - 1):
                function()
            ready[key] = function
        except Exception as error:
            found[key] = failure(error, call.ours)
    for key, samples in in_turn(ready, device, rounds=rounds, budget=budget, least=least).items():
        found[key].samples = samples
    return found


def measure_alone(call: Call, device: torch.device, *, budget: float, as_graph: bool = False) -> Measurement:
    """Measure a call by the GPU's own clock, with its peak memory, which is freed afterwards.

    Args:
        call: to measure.
        device: a GPU.
        budget: seconds for which a long call is repeated.
        as_graph: replay it as a CUDA graph.
    """
    try:
        function = call.prepare()  # keeps the tensors that the graph uses
        found = Measurement(first_call=seconds(function, device))
        peak = PeakMemory(device)
        function()
        found.peak_bytes = peak.bytes()
        found.samples = gpu_samples(captured(function, device) if as_graph else function, device, budget)
    except Exception as error:
        found = failure(error, call.ours)
    function = None
    release(device)
    return found


def measure_whole(
    call: Call, device: torch.device, *, warm_up: int, rounds: int, least: float, long: float = math.inf
) -> Measurement:
    """Measure a call with the peak of all the memory that it needs: what ``prepare`` allocates, such as weights, too.

    The peak counts from the second call on: what the tuning of kernels needs in the first one does not.

    Args:
        call: to measure.
        device: on which it runs.
        warm_up: calls before the first sample, in which graphs are captured.
        rounds: samples.
        least: seconds that a sample lasts at least.
        long: seconds; where a call of the warm-up takes longer, it is the one sample.
    """
    release(device)
    try:
        peak = PeakMemory(device)
        function = call.prepare()
        found = Measurement(first_call=seconds(function, device))
        reset_peak_memory()
        for _ in range(warm_up - 1):
            found.samples = [seconds(function, device)]
            if found.median > long:
                break
        else:
            found.samples = in_turn({"": function}, device, rounds=rounds, least=least)[""]
        found.peak_bytes = peak.bytes()
    except Exception as error:
        found = failure(error, call.ours)
    return found


def failure(error: Exception, ours: bool) -> Measurement:
    """An error as a result: out of memory always is one; any other is raised again if our code caused it.

    Raises:
        Exception: the error, if it is ours.
    """
    if is_out_of_memory(error):
        return Measurement("failed", OUT_OF_MEMORY)
    if ours:
        raise error
    return Measurement("failed", f"{type(error).__name__}: {error}".splitlines()[0])
