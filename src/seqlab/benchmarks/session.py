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


class Call(NamedTuple):
    """Makes the function that is measured. An error in our code is raised, one in another package is its result."""

    prepare: Callable[[], Function]
    ours: bool = True


@dataclass
class Measurement:
    """What came of one call. What was not measured is None, or empty."""

    status: str = "measured"  # or failed
    reason: str | None = None
    first_call: float | None = None  # seconds; compiles what was not compiled before
    samples: list[float] = field(default_factory=list)  # seconds
    peak_bytes: int | None = None  # beyond what was there before, results included

    @property
    def median(self) -> float | None:
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
    """Measure calls in turn, all of them ready at once.

    Args:
        calls: by any key.
        device: where they run, which is waited for.
        rounds, budget, least: as for ``in_turn``.
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
    """Measure a call by the GPU's own clock, with its peak memory; nothing of it stays there.

    Args:
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


def failure(error: Exception, ours: bool) -> Measurement:
    """An error as a result, which out of memory always is; any other is raised again if it is one of ours."""
    if is_out_of_memory(error):
        return Measurement("failed", "out of memory")
    if ours:
        raise error
    return Measurement("failed", f"{type(error).__name__}: {error}".splitlines()[0])
