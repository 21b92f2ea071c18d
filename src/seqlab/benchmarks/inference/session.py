"""Taking the measurements: a model at every context, shortest first, until it ends or does not fit."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from seqlab.benchmarks.inference.memory import PeakMemory
from seqlab.benchmarks.inference.results import Curve, Point
from seqlab.benchmarks.scan.session import available_memory, release
from seqlab.benchmarks.timing import Function, interleaved, seconds, synchronize
from seqlab.models import SequenceModel, state_bytes
from seqlab.models.counting import tensors_of
from seqlab.models.sequence_model import CHUNK, ModelState

BLOCK_SECONDS = 0.02
"""Steps are timed in rows of about so long, so that waiting for the device weighs nothing."""

LONGEST_BLOCK = 200
"""Steps."""

LAST_STEPS = 2
"""Positions after the context: one step makes room in a cache, the other is measured."""


class Settings(NamedTuple):
    device: torch.device
    dtype: torch.dtype
    seed: int
    limit: float  # seconds: a context whose prefill would take longer ends a curve
    budget: float  # seconds: shorter calls are repeated for so long


class Contestant(NamedTuple):
    name: str
    architecture: str  # the colour of its curve
    model: SequenceModel  # on the device, in evaluation mode


class Session:
    """One benchmark.

    Args:
        settings: what all curves share.
        advance: called after each point, and for each that is left out.
    """

    def __init__(self, settings: Settings, advance: Callable[[], None]):
        self.settings, self.advance = settings, advance
        self.curves: list[Curve] = []

    def measure(self, contestant: Contestant, batch: int, contexts: Sequence[int]) -> Iterator[int]:
        """One curve; yields each context before it is measured. What is done stays if the caller stops."""
        curve = Curve(contestant.name, contestant.architecture, batch)
        self.curves.append(curve)
        for index, context in enumerate(contexts):
            yield context
            curve.ended = self._why_not(contestant.model, curve, context)
            if curve.ended is None:
                try:
                    if index == 0:
                        self._warm_up(contestant.model, batch, context)
                    curve.points.append(self._point(contestant.model, curve, context))
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    curve.ended = f"out of memory at {context:,}"
            if curve.ended is not None:
                for _ in contexts[index:]:
                    self.advance()
                break
            self.advance()
        release(self.settings.device)

    def _why_not(self, model: SequenceModel, curve: Curve, context: int) -> str | None:
        """Why a context is left out, as far as that shows beforehand."""
        if model.positions is not None and context + LAST_STEPS > model.max_length:
            return f"its learned positions end at {model.max_length:,}"
        if not curve.points:
            return None
        last, growth = curve.points[-1], context / curve.points[-1].context
        if len(curve.points) > 1:
            before = curve.points[-2]
            power = math.log(last.prefill_ms / before.prefill_ms) / math.log(last.context / before.context)
            growth **= min(max(1.0, power), 2.0)  # a busy moment of the machine is no growth
        expected = last.prefill_ms / 1e3 * growth
        if expected > self.settings.limit:
            return f"prefill of {context:,} would take about {expected:.3g} s, and --limit is {self.settings.limit:g} s"
        free = available_memory(self.settings.device)
        needed = (last.peak_bytes or 0) * context / last.context
        if self.settings.device.type == "cpu" and free is not None and needed > free:  # the system would end us
            return f"{context:,} needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
        return None

    def _inputs(self, model: SequenceModel, batch: int, length: int) -> Tensor:
        """Random tokens (B, L) or features (B, L, d_input)."""
        device, dtype, seed = self.settings.device, self.settings.dtype, self.settings.seed
        generator = torch.Generator(device).manual_seed(seed)
        if model.tokens:
            return torch.randint(model.embed.num_embeddings, (batch, length), generator=generator, device=device)
        return torch.randn(batch, length, model.embed.in_features, generator=generator, device=device, dtype=dtype)

    def _warm_up(self, model: SequenceModel, batch: int, context: int) -> None:
        """What happens once: compiling, and the workspaces that libraries keep."""
        x = self._inputs(model, batch, min(context, 2 * CHUNK))
        _, state = model.prefill(x, model.initial_state(batch))
        model.step(x[:, 0], state)
        synchronize(self.settings.device)

    def _point(self, model: SequenceModel, curve: Curve, context: int) -> Point:
        device, budget = self.settings.device, self.settings.budget
        x = self._inputs(model, curve.batch, context)
        token, kept = x[:, 0].contiguous(), []

        def prefill() -> None:
            kept[:] = [model.prefill(x, model.initial_state(curve.batch))[1]]

        peak = PeakMemory(device)
        first = seconds(prefill, device)
        _, state = model.step(token, kept.pop())
        peak_bytes = peak.bytes()
        # A long call of pieces that the contexts before were made of too is warm, and is its own measurement.
        samples = [first] if first > budget and context > CHUNK else interleaved({"": prefill}, device, budget)[""]
        kept.clear()
        prefill_time = median(samples)
        token_times = self._times_of(lambda: model.step(token, state))
        graph_time = self._graph_time(model, token, state, curve)
        return Point(
            context=context,
            prefill_ms=1e3 * prefill_time,
            prefill_repetitions=len(samples),
            prefill_tokens_per_second=curve.batch * context / prefill_time,
            token_ms=1e3 * median(token_times),
            token_repetitions=len(token_times),
            tokens_per_second=curve.batch / median(token_times),
            graph_token_ms=None if graph_time is None else 1e3 * graph_time,
            graph_tokens_per_second=None if graph_time is None else curve.batch / graph_time,
            state_bytes=state_bytes(model, context),
            peak_bytes=peak_bytes,
        )

    def _times_of(self, step: Function) -> list[float]:
        """Seconds of a step, each the mean over a row of them."""
        device = self.settings.device
        step()
        count = max(1, min(LONGEST_BLOCK, int(BLOCK_SECONDS / seconds(step, device))))

        def row() -> None:
            for _ in range(count):
                step()

        return [time / count for time in interleaved({"": row}, device, self.settings.budget)[""]]

    def _graph_time(self, model: SequenceModel, token: Tensor, state: ModelState, curve: Curve) -> float | None:
        """Seconds of a step that is launched as one CUDA graph, which ends with the new state where the old one was."""
        if self.settings.device.type != "cuda" or curve.no_graph is not None:
            return None

        def step() -> None:
            _, after = model.step(token, state)
            for old, new in zip(tensors_of(state), tensors_of(after), strict=True):
                if old.data_ptr() != new.data_ptr():  # attention wrote into its cache itself
                    old.copy_(new)

        try:
            graph = captured(step, self.settings.device)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            curve.no_graph = f"{type(error).__name__}: {error}".splitlines()[0]
            return None
        return median(self._times_of(graph.replay))


def captured(function: Function, device: torch.device) -> torch.cuda.CUDAGraph:
    """A CUDA graph of a function without results, whose tensors have to outlive it."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries set themselves up outside the graph
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says so; on a CPU it is told by its text alone."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
