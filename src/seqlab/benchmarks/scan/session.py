"""Taking the measurements: every contestant at every shape, forward and forward + backward."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from seqlab.benchmarks.scan.contestants import Contestant, Inputs, Shape, make_inputs
from seqlab.benchmarks.scan.results import PASSES, Row, scan_bytes
from seqlab.benchmarks.timing import captured, gpu_samples, interleaved, peak_mib, seconds

EXPANDED_COPIES = 10
"""Tensors (B, L, D, N) in float32 that a scan holds at its worst if it stores the expanded states."""


class Settings(NamedTuple):
    device: torch.device
    dtype: torch.dtype
    d_state: int
    seed: int
    limit: float  # seconds: longer calls are left out, shorter ones repeated for so long
    captured: bool = False  # on a GPU: replay each call as a CUDA graph


class Session:
    """One benchmark.

    Args:
        settings: what all rows share.
        contestants: who is measured.
        advance: called with a shape as each row ends.
    """

    def __init__(self, settings: Settings, contestants: Sequence[Contestant], advance: Callable[[Shape], None]):
        self.settings, self.contestants, self.advance = settings, contestants, advance
        self.rows: list[Row] = []

    def measure(self, shape: Shape) -> None:
        """All contestants at one shape: one after the other on a GPU, in turns on a CPU, whose load changes."""
        device, dtype, d_state, seed, *_ = self.settings
        release(device)
        started = len(self.rows)
        if why := self._lacks_memory(scan_bytes(shape, d_state, dtype.itemsize, "forward+backward")):
            for contestant in self.contestants:
                for passes in PASSES:
                    self._end(self._row(contestant, shape, passes, "skipped", why))
            return
        x = make_inputs(shape, d_state, dtype, device, seed)
        if device.type == "cuda":
            for contestant in self.contestants:
                self._on_gpu(contestant, shape, x)
        else:
            self._on_cpu(shape, x)
        order = [contestant.name for contestant in self.contestants]
        new = sorted(self.rows[started:], key=lambda row: (order.index(row.backend), PASSES.index(row.passes)))
        self.rows[started:] = new

    def whole_shapes(self) -> list[Row]:
        """The rows of the shapes that were measured to their end."""
        size = len(self.contestants) * len(PASSES)
        return self.rows[: len(self.rows) // size * size]

    def _on_gpu(self, contestant: Contestant, shape: Shape, x: Inputs) -> None:
        device, call = self.settings.device, None
        for passes in PASSES:
            row = self._begin(contestant, shape, passes)
            if row.status == "measured":
                try:
                    call = call or contestant.prepare(x)
                    function = call.function(passes)
                    row.first_call_s = seconds(function, device)
                    row.peak_mib = peak_mib(function, device)
                    timed = captured(function) if self.settings.captured else function
                    record(row, gpu_samples(timed, device, self.settings.limit))
                except torch.OutOfMemoryError:
                    fail(row, "out of memory")
                except Exception as error:
                    if contestant.ours:  # a fault of ours must be loud; another package's is its own
                        raise
                    fail(row, f"{type(error).__name__}: {error}".splitlines()[0])
            self._end(row)
        call = function = timed = None
        release(device)

    def _on_cpu(self, shape: Shape, x: Inputs) -> None:
        rows, functions = {}, {}
        for contestant in self.contestants:
            call = None
            for passes in PASSES:
                row = self._begin(contestant, shape, passes)
                if row.status != "measured":
                    self._end(row)
                    continue
                call = call or contestant.prepare(x)
                key = contestant.name, passes
                rows[key], functions[key] = row, call.function(passes)
                row.first_call_s = seconds(functions[key], self.settings.device)
        for key, samples in interleaved(functions, self.settings.device, self.settings.limit).items():
            record(rows[key], samples)
            self._end(rows[key])

    def _row(self, contestant: Contestant, shape: Shape, passes: str, *status: Any) -> Row:
        dtype = str(self.settings.dtype).removeprefix("torch.")
        return Row(contestant.name, *shape, self.settings.d_state, dtype, passes, *status)

    def _begin(self, contestant: Contestant, shape: Shape, passes: str) -> Row:
        """A row to fill, or one that says why it stays empty."""
        why = self._too_slow(contestant, shape, passes)
        if why is None and contestant.expands and self.settings.device.type == "cpu":
            expanded = 4 * self.settings.d_state * shape.batch * shape.length * shape.d_inner
            why = self._lacks_memory(EXPANDED_COPIES * expanded)
        return self._row(contestant, shape, passes, *(("measured",) if why is None else ("skipped", why)))

    def _too_slow(self, contestant: Contestant, shape: Shape, passes: str) -> str | None:
        """Whether the last measured time lets expect a call beyond the limit.

        Time grows with the positions of all sequences, or, where a sequence is walked in small steps, with L alone.
        """
        mine = [row for row in self.rows if (row.backend, row.passes) == (contestant.name, passes)]
        failed = [row.shape for row in mine if row.status == "failed" and covers(shape, row.shape)]
        if failed:
            return f"it failed at {failed[0]} already"
        measured = [row for row in mine if row.status == "measured"]
        if not measured:
            return None
        last, before = min(measured[-1].ms_min / 1e3, measured[-1].first_call_s), measured[-1].shape
        longer = shape.length / before.length
        wider = shape.batch * shape.d_inner / (before.batch * before.d_inner)
        expected = last * longer ** (2 if contestant.quadratic else 1) * max(1, wider)
        if expected <= self.settings.limit:
            return None
        return f"about {expected:.2g} s a call, after {last:.2g} s at {before}; --limit is {self.settings.limit:g} s"

    def _lacks_memory(self, needed: int) -> str | None:
        """Asked beforehand, for a system ends a process that takes too much of a CPU's memory."""
        free = available_memory(self.settings.device)
        if free is None or needed <= free:
            return None
        return f"needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"

    def _end(self, row: Row) -> None:
        self.rows.append(row)
        self.advance(row.shape)


def record(row: Row, samples: list[float]) -> None:
    row.ms, row.ms_min, row.repetitions = median(samples) * 1e3, min(samples) * 1e3, len(samples)


def fail(row: Row, reason: str) -> None:
    row.status, row.reason = "failed", reason
    row.ms = row.ms_min = row.repetitions = row.first_call_s = None


def covers(shape: Shape, other: Shape) -> bool:
    """Whether it is at least as large as the other along every axis."""
    return all(mine >= theirs for mine, theirs in zip(shape, other, strict=True))


def release(device: torch.device) -> None:
    """Give back what nobody holds any more, so that one's leftovers are not another's lack."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int | None:
    """Bytes that a new allocation can have; unknown for a CPU without Linux' /proc."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None
