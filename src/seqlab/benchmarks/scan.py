"""Time and peak memory of the selective scan, beside the roofline and published figures.

Symbols: B sequences of length L, D channels (``d_inner``), N states of a channel (``d_state``).
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial

import torch
from rich.table import Table

from seqlab import console
from seqlab.benchmarks import report
from seqlab.benchmarks.memory import lacks_memory, release
from seqlab.benchmarks.report import Line, Panel, number, table
from seqlab.benchmarks.results import dtype_name, facts, ratio, settings
from seqlab.benchmarks.roofline import DeviceLimits, device_limits
from seqlab.benchmarks.scan_contestants import OTHERS, Contestant, make_inputs, ours, why_other_is_out
from seqlab.benchmarks.scan_shapes import OFFICIAL, OFFICIAL_SOURCE, TARGETS, Published, Shape
from seqlab.benchmarks.session import Call, Measurement, measure, measure_alone
from seqlab.errors import UserError
from seqlab.ops import backends
from seqlab.ops.selective_scan import BACKENDS

PASSES = ("forward", "forward+backward")

EXTRA_EXPONENTIALS = 4
"""For each (b, l, d), besides its N decays: softplus takes an exponential and a logarithm, the gate an exponential
and a reciprocal, all on the same unit."""

EXPANDED_COPIES = 10
"""Peak number of float32 tensors (B, L, D, N) of a scan that stores the expanded states."""


LAUNCHES = ("eager", "captured")
"""A call as Python makes it, and its kernels replayed as a CUDA graph."""


@dataclass
class Row:
    """One backend, shape, pass and launch. What was not measured, or does not apply, is ``None``."""

    backend: str
    batch: int
    length: int
    d_inner: int
    d_state: int
    dtype: str
    passes: str
    launch: str = "eager"  # or captured
    status: str = "measured"  # or skipped, or failed
    reason: str | None = None
    ms: float | None = None  # median
    ms_min: float | None = None
    repetitions: int | None = None
    first_call_s: float | None = None  # compilation included
    peak_mib: float | None = None
    roofline_ms: float | None = None
    over_roofline: float | None = None
    # other's time / this one's
    times_mamba_ssm: float | None = None
    times_mambapy: float | None = None
    times_attention: float | None = None
    # published figures, with --shapes targets
    official_ms: float | None = None
    times_official: float | None = None
    target_times: float | None = None
    target_met: bool | None = None
    official_peak_mib: float | None = None
    peak_met: bool | None = None

    @property
    def shape(self) -> Shape:
        """The shape as one value."""
        return Shape(self.batch, self.length, self.d_inner, self.d_state)

    @property
    def work(self) -> tuple[Shape, str, str]:
        """What a backend is compared with others at: shape, pass and launch."""
        return self.shape, self.passes, self.launch

    def fill(self, found: Measurement) -> None:
        """Enter a measurement."""
        self.status, self.reason, self.first_call_s = found.status, found.reason, found.first_call
        self.peak_mib = None if found.peak_bytes is None else found.peak_bytes / 2**20
        if found.samples:
            self.ms, self.ms_min = found.median * 1e3, min(found.samples) * 1e3
            self.repetitions = len(found.samples)


def run(args: argparse.Namespace) -> int:
    """Measure, write and show what the options of scripts/benchmark_scan.py ask for. Returns the exit status."""
    contestants, left_out = choose(args)
    report.make_folder(args.out)
    for name, why in left_out.items():
        console.say(f"{name} left out: {why}")
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device.index or 0)
    rows, interrupted = [], False
    with console.progress() as progress:
        task = progress.add_task("copy bandwidth", total=len(args.shapes))
        limits = device_limits(args.device)
        try:
            for place, shape in enumerate(args.shapes):
                progress.update(task, completed=place)
                rows += rows_at(shape, contestants, rows, args, lambda what: progress.update(task, description=what))
        except KeyboardInterrupt:
            interrupted = True
    compare(rows, limits, args.dtype.itemsize, args.targets)
    results = facts(args.device, ("numba", "mamba_ssm", "mambapy", "matplotlib")) | {
        "settings": settings(args),
        "roofline": limits._asdict(),
        "official": OFFICIAL_SOURCE if args.targets else None,
        "interrupted": interrupted,
        "left_out": left_out,
        "rows": list(map(asdict, rows)),
    }
    title = f"Selective scan on {results['device_name']}, {dtype_name(args.dtype)}"
    tables = [results_table(rows, title)]
    if args.targets:
        tables.append(targets_table(rows, results["device_name"]))
    also = report.write_csv(args.out / "scan.csv", [field.name for field in fields(Row)], results["rows"])
    also += report.write_picture(args.out / "scan.png", title, *panels(rows, args.sweep))
    for line in gaps(rows):
        console.say(line)
    report.finish(args.out / "scan.json", results, tables, also=also)
    if interrupted:
        console.say("Stopped at once; the shapes that were measured to their end are written.")
    return 130 if interrupted else 0


def choose(args: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants, and why each other one is left out.

    Raises:
        UserError: a backend was asked for by name and cannot run.
    """
    chosen, left_out = [], {}
    for name in args.backends or BACKENDS:
        why = backends.load("seqlab.ops.selective_scan", name).why_unavailable(args.device, args.dtype)
        if why is not None and args.backends:
            rule = f"cannot run on {args.device} with {args.dtype} ({why})"
            raise UserError("--backends", name, rule, "Leave it out, or change --device or --dtype")
        if why is None and name == "triton" and args.device.type == "cpu" and not args.backends:
            why = "runs on a CPU only through an interpreter for tests (--backends triton measures that)"
        if why is None:
            chosen.append(ours(name))
        else:
            left_out[name] = why
    for name in args.against:
        if why := why_other_is_out(name, args.device):
            left_out[name] = why
        else:
            chosen.append(OTHERS[name])
    return chosen, left_out


def rows_at(
    shape: Shape,
    contestants: Sequence[Contestant],
    before: Sequence[Row],
    args: argparse.Namespace,
    show: Callable[[str], None],
) -> list[Row]:
    """Measure each contestant and pass at a shape: one after the other on a GPU, in turn on a CPU, whose load changes.

    Args:
        shape: of the inputs.
        contestants: to measure.
        before: rows of other shapes, from which times are predicted.
        args: the options of scripts/benchmark_scan.py.
        show: called with what is being measured.
    """
    release(args.device)
    rows = {
        (one, passes, launch): Row(one.name, *shape, dtype_name(args.dtype), passes, launch)
        for one in contestants
        for launch in args.launches
        for passes in PASSES
    }
    too_large = lacks_memory(scan_bytes(shape, args.dtype.itemsize, PASSES[1]), args.device)
    for (contestant, *_), row in rows.items():
        row.reason = too_large or contestant.cannot(shape, args.dtype) or too_slow(contestant, row, before, args.limit)
        if row.reason is None and contestant.expands and args.device.type == "cpu":
            row.reason = lacks_memory(EXPANDED_COPIES * 4 * math.prod(shape), args.device)
        if row.reason is not None:
            row.status = "skipped"
    measured = [key for key, row in rows.items() if row.status == "measured"]
    if not measured:
        return list(rows.values())
    x = make_inputs(shape, args.dtype, args.device, args.seed)
    calls = {key: Call(partial(key[0].function, x, key[1]), key[0].ours) for key in measured}
    if args.device.type == "cuda":
        for key, call in calls.items():
            one, passes, launch = key
            show(f"{shape}, {one.name}, {passes}, {launch}")
            as_graph = launch == "captured"
            rows[key].fill(measure_alone(call, args.device, budget=args.limit, as_graph=as_graph))
    else:
        show(str(shape))
        for key, found in measure(calls, args.device, budget=args.limit).items():
            rows[key].fill(found)
    return list(rows.values())


def too_slow(contestant: Contestant, row: Row, before: Sequence[Row], limit: float) -> str | None:
    """Why a call would fail or take longer than ``limit`` seconds, judged by the rows before; ``None`` if it would not.

    A failure is expected at every shape that is at least as large. The time is expected to grow with L (L squared for
    attention) and with B D N, but never to shrink with B D N.
    """
    shape, *same = row.work
    mine = [one for one in before if (one.backend, *one.work[1:]) == (contestant.name, *same)]
    for one in mine:
        if one.status == "failed" and all(now >= then for now, then in zip(shape, one.shape, strict=True)):
            return f"it failed at {one.shape} already"
    measured = [one for one in mine if one.status == "measured"]
    if not measured:
        return None
    last, then = min(measured[-1].ms_min / 1e3, measured[-1].first_call_s), measured[-1].shape
    longer = shape.length / then.length
    wider = math.prod(shape) / math.prod(then) / longer
    expected = last * longer ** (2 if contestant.quadratic else 1) * max(1, wider)
    if expected <= limit:
        return None
    return f"about {expected:.2g} s a call, after {last:.2g} s at {then}; --limit is {limit:g} s"


def scan_bytes(shape: Shape, itemsize: int, passes: str) -> int:
    """Bytes that have to be moved at least: each input read once, each output written once, parameters not counted.

    Forward: u, delta, z, B, C in; y out. Backward: the same and dy in; du, ddelta, dz, dB, dC out.
    """
    wide, narrow = (4, 2) if passes == "forward" else (4 + 7, 2 + 4)  # (B, L, D) and (B, L, N) tensors
    return shape.batch * shape.length * (wide * shape.d_inner + narrow * shape.d_state) * itemsize


def scan_exponentials(shape: Shape, passes: str) -> int:
    """Operations of the exponential unit. The backward pass recomputes them: stored, they are N times the input."""
    once = shape.batch * shape.length * shape.d_inner * (shape.d_state + EXTRA_EXPONENTIALS)
    return once if passes == "forward" else 2 * once


def roofline_ms(shape: Shape, itemsize: int, passes: str, limits: DeviceLimits) -> float:
    """The least time in milliseconds of a scan on this device: bytes or exponentials, whichever takes longer."""
    floor = scan_bytes(shape, itemsize, passes) / limits.copy_bytes_per_second
    if limits.exponentials_per_second is not None:
        floor = max(floor, scan_exponentials(shape, passes) / limits.exponentials_per_second)
    return floor * 1e3


def compare(rows: Sequence[Row], limits: DeviceLimits, itemsize: int, with_official: bool) -> None:
    """Fill in each row's ratios to the roofline, to other packages and, at their shapes, to the published figures."""
    times = {(row.backend, row.work): row.ms for row in rows}
    for row in rows:
        for other in OTHERS:
            if row.backend != other:
                setattr(row, f"times_{other}", ratio(times.get((other, row.work)), row.ms))
        if row.backend == "attention":  # which does other work than the roofline counts
            continue
        row.roofline_ms = roofline_ms(row.shape, itemsize, row.passes, limits)
        row.over_roofline = ratio(row.ms, row.roofline_ms)
        if with_official and row.shape in OFFICIAL:
            compare_with_official(row, OFFICIAL[row.shape])


def compare_with_official(row: Row, official: Published) -> None:
    """Fill in a row's published figures, and whether its targets are met."""
    forward = row.passes == "forward"
    row.official_ms = official.forward_ms if forward else official.both_ms
    row.target_times = TARGETS[row.passes]
    row.times_official = ratio(row.official_ms, row.ms)
    row.target_met = None if row.ms is None else row.times_official >= row.target_times
    if not forward:
        row.official_peak_mib = official.peak_mib
        row.peak_met = None if row.peak_mib is None else row.peak_mib <= official.peak_mib


def gaps(rows: Sequence[Row]) -> list[str]:
    """A line for each backend, pass and launch with rows that were not measured."""
    empty: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.status != "measured":
            launch = [row.launch] if row.launch == "captured" else []
            empty.setdefault((row.backend, row.passes, *launch), []).append(row)
    lines = []
    for names, (first, *more) in empty.items():
        also = f" (and at {len(more)} more)" if more else ""
        lines.append(f"{', '.join(names)}, {first.status} at {first.shape}{also}: {first.reason}")
    return lines


def pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Forward and forward + backward of the same backend, shape and launch, which are consecutive rows."""
    return list(zip(rows[::2], rows[1::2], strict=True))


def results_table(rows: Sequence[Row], title: str) -> Table:
    """A line for each backend, shape and launch, with forward / forward + backward in each cell."""
    columns = {"ms": "ms", "peak MiB": "peak_mib", "first call s": "first_call_s", "times roofline": "over_roofline"}
    others = [name for name in OTHERS if any(row.backend == name and row.ms is not None for row in rows)]
    columns |= {f"{name} / this": f"times_{name}" for name in others}
    lines = []
    for pair in pairs(rows):
        line = first_cells(pair[0])
        for heading, column in columns.items():
            line[heading] = " / ".join(number(getattr(row, column)) for row in pair)
        lines.append(line)
    return table(title, lines, names=3, caption="in each cell: forward / forward + backward")


def first_cells(row: Row) -> dict[str, str]:
    """What a line of a table is about."""
    return {"B x L x D x N": str(row.shape), "backend": row.backend, "launch": row.launch}


def targets_table(rows: Sequence[Row], device: str) -> Table:
    """Each backend's times and memory beside the published figures, with verdicts."""
    lines = []
    for pair in pairs([row for row in rows if row.official_ms is not None]):
        line = first_cells(pair[0])
        for row in pair:
            line[f"{row.passes} ms / official"] = f"{number(row.ms)} / {row.official_ms:g}"
            line[f"times (>= {row.target_times:g})"] = f"{number(row.times_official)} {verdict(row.target_met)}"
        peak = f"{number(row.peak_mib)} / {row.official_peak_mib:g} {verdict(row.peak_met)}"
        lines.append(line | {"peak MiB / official": peak})
    here = ", ".join([device, *{row.dtype for row in rows}])
    caption = f"official: {OFFICIAL_SOURCE}; measured here: {here}"
    return table("Against the published figures", lines, names=3, caption=caption)


def verdict(met: bool | None) -> str:
    """A target's result in words."""
    return "n/a" if met is None else "met" if met else "missed"


def panels(rows: Sequence[Row], sweep: bool) -> tuple[list[Panel], str, list[str] | None]:
    """Time and memory against L in a sweep, else for each shape: a colour for backend and launch, dashed for forward.

    Returns the panels, the horizontal axis's title, and the names of its places.
    """
    shapes = list(dict.fromkeys(row.shape for row in rows))
    places = {shape: shape.length if sweep else place for place, shape in enumerate(shapes)}

    def line(label: str, taken: Sequence[Row], column: str, **look: str) -> list[Line]:
        points = {places[row.shape]: getattr(row, column) for row in taken if getattr(row, column) is not None}
        return [Line(label, sorted(points.items()), look)] if points else []

    times, peaks = [], []
    for colour, (backend, launch) in enumerate(dict.fromkeys((row.backend, row.launch) for row in rows)):
        name = f"{backend}, captured" if launch == "captured" else backend
        for passes, style in zip(PASSES, ("--", "-"), strict=True):
            mine = [row for row in rows if (row.backend, row.passes, row.launch) == (backend, passes, launch)]
            look = {"color": f"C{colour}", "marker": "o", "linestyle": style}
            times += line(f"{name}, {passes}", mine, "ms", **look)
        peaks += line(name, mine, "peak_mib", **look)  # of both passes
    for passes, style in zip(PASSES, (":", "-."), strict=True):
        floor = [row for row in rows if row.passes == passes]
        times += line(f"roofline, {passes}", floor, "roofline_ms", color="0.6", linestyle=style)
    memory = Panel("Peak memory beyond the inputs, forward+backward", "MiB", peaks)
    both = [Panel("Time of a call", "milliseconds, median", times), memory]
    return both, "L, positions" if sweep else "B x L x D x N", None if sweep else list(map(str, shapes))
