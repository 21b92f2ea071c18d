"""What inference costs against the length of the context: prefill, one token more, state and peak memory.

Symbols: B sequences of L positions; d_input features of a position, where inputs are not tokens.
"""

import argparse
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, count, cycle
from pathlib import Path
from statistics import median

import torch
from rich.table import Table
from torch import Tensor

from seqlab import console, pretrained
from seqlab.benchmarks import report
from seqlab.benchmarks.inference_curves import COLUMNS, Curve, Point
from seqlab.benchmarks.memory import PeakMemory, lacks_memory, release
from seqlab.benchmarks.report import Line, Panel, number, table
from seqlab.benchmarks.results import dtype_name, facts, settings
from seqlab.benchmarks.timing import captured, in_turn, seconds, synchronize
from seqlab.config.exceptions import is_out_of_memory
from seqlab.errors import UserError
from seqlab.models import SequenceModel, state_bytes
from seqlab.models.counting import scan_backend, tensors_of
from seqlab.models.sequence_model import ModelState, chunk_length
from seqlab.pretrained.files import is_checkpoint
from seqlab.report.formats import scaled_bytes
from seqlab.report.plots.style import MARKERS, architecture, colours
from seqlab.runs.load import fresh_model, load_run
from seqlab.runs.process import reset_global_state

BLOCK_SECONDS = 0.02
"""Steps are timed in blocks of about this length, next to which the time to synchronise is negligible."""

LAST_STEPS = 2
"""Positions after the context: one step makes room in a cache, the other is measured."""


def measure(curve: Curve, model: SequenceModel, contexts: Sequence[int], args: argparse.Namespace) -> Iterator[int]:
    """Add a point to a curve for each context until it ends; yields each context before it is measured.

    Args:
        curve: extended in place; ``ended`` says why it stopped short of the last context.
        model: in evaluation mode, on the device.
        contexts: in tokens, ascending.
        args: the options of scripts/benchmark_inference.py.

    Raises:
        RuntimeError: a failure other than running out of memory.
    """
    for index, context in enumerate(contexts):
        yield context
        curve.ended = why_not(model, curve, context, args)
        if curve.ended is None:
            try:
                if index == 0:
                    warm_up(model, curve.batch, context, args)
                curve.points.append(measured_point(model, curve, context, args))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                curve.ended = f"out of memory at {context:,}"
        if curve.ended is not None:
            break
    release(args.device)


def why_not(model: SequenceModel, curve: Curve, context: int, args: argparse.Namespace) -> str | None:
    """The reason to leave out a context, as far as it can be foreseen; ``None`` to measure it."""
    if model.positions is not None and context + LAST_STEPS > model.max_length:
        return f"its learned positions end at {model.max_length:,}"
    if not curve.points:
        return None
    last, growth = curve.points[-1], context / curve.points[-1].context
    if len(curve.points) > 1:
        before = curve.points[-2]
        power = math.log(last.prefill_ms / before.prefill_ms) / math.log(last.context / before.context)
        growth **= min(max(1.0, power), 2.0)  # other load on the machine is not taken for growth
    expected = last.prefill_ms / 1e3 * growth
    if expected > args.limit:
        return f"prefill of {context:,} would take about {expected:.3g} s, and --limit is {args.limit:g} s"
    if args.device.type == "cpu" and (
        lack := lacks_memory((last.peak_bytes or 0) * context / last.context, args.device)
    ):
        return f"{context:,} {lack}"
    return None


def inputs_of(model: SequenceModel, batch: int, length: int, args: argparse.Namespace) -> Tensor:
    """Random tokens (B, L) or features (B, L, d_input)."""
    device = args.device
    generator = torch.Generator(device).manual_seed(args.seed)
    if model.tokens:
        return torch.randint(model.embed.num_embeddings, (batch, length), generator=generator, device=device)
    size = batch, length, model.embed.in_features
    return torch.randn(*size, generator=generator, device=device, dtype=args.dtype)


def warm_up(model: SequenceModel, batch: int, context: int, args: argparse.Namespace) -> None:
    """Run once what compiles kernels and allocates the workspaces of libraries."""
    x = inputs_of(model, batch, min(context, 2 * chunk_length(batch, args.device)), args)
    _, state = model.prefill(x, model.initial_state(batch))
    model.step(x[:, 0], state)
    synchronize(args.device)


def measured_point(model: SequenceModel, curve: Curve, context: int, args: argparse.Namespace) -> Point:
    """Measure prefill, one step, the state and peak memory at one context."""
    device, budget = args.device, args.budget  # seconds for which short calls are repeated
    x = inputs_of(model, curve.batch, context, args)
    token, kept = x[:, 0].contiguous(), []

    def prefill() -> None:
        kept[:] = [model.prefill(x, model.initial_state(curve.batch))[1]]

    peak = PeakMemory(device)
    first = seconds(prefill, device)
    _, state = model.step(token, kept.pop())
    peak_bytes = peak.bytes()
    # A long call is made of chunks that shorter contexts have warmed up: its first time is a measurement.
    warm = context > chunk_length(curve.batch, device)
    samples = [first] if first > budget and warm else in_turn({"": prefill}, device, budget=budget)[""]
    kept.clear()
    prefill_time = median(samples)
    steps = {"": lambda: model.step(token, state)}
    token_times = in_turn(steps, device, budget=budget, least=BLOCK_SECONDS)[""]
    graph_time = graph_step_seconds(model, token, state, curve, args)
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


def graph_step_seconds(
    model: SequenceModel, token: Tensor, state: ModelState, curve: Curve, args: argparse.Namespace
) -> float | None:
    """Seconds of a step of tokens (B,) or features (B, d_input), replayed as a CUDA graph; ``None`` without one.

    The graph copies the new state into the tensors of the old one, so that every replay starts from it.

    Raises:
        RuntimeError: the device ran out of memory.
    """
    if args.device.type != "cuda" or curve.no_graph is not None:
        return None

    def step() -> None:
        _, after = model.step(token, state)
        for old, new in zip(tensors_of(state), tensors_of(after), strict=True):
            if old.data_ptr() != new.data_ptr():  # attention writes into its cache in place
                old.copy_(new)

    try:
        replay = captured(step, args.device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        curve.no_graph = f"{type(error).__name__}: {error}".splitlines()[0]
        return None
    replay()
    return median(in_turn({"": replay}, args.device, budget=args.budget, least=BLOCK_SECONDS)[""])


def run(args: argparse.Namespace) -> int:
    """Measure, write and show what the options of scripts/benchmark_inference.py ask for. Returns the exit status."""
    report.make_folder(args.out)
    curves, models, interrupted = [], {}, False
    total = len(args.models) * len(args.batch) * len(args.contexts)
    with console.progress() as progress:
        task = progress.add_task("", total=total)
        try:
            for given in args.models:
                reset_global_state(args.seed)
                name, kind, model = contestant(given, args)
                name = unique(name, models)
                parameters = sum(p.numel() for p in model.parameters())
                models[name] = {"parameters": parameters, "scan_backend": scan_backend(model, args.device)}
                for batch in args.batch:
                    curves.append(Curve(name, kind, batch))
                    before = (len(curves) - 1) * len(args.contexts)
                    for place, context in enumerate(measure(curves[-1], model, args.contexts, args), before):
                        what = f"{name}, batch {batch}, context {context:,}"
                        progress.update(task, description=what, completed=place)
        except KeyboardInterrupt:
            interrupted = True
    results = facts(args.device, ("numba", "matplotlib")) | {
        "settings": settings(args),
        "models": models,
        "interrupted": interrupted,
        "curves": [
            asdict(curve) | {"exponents": {name: found and asdict(found) for name, found in curve.exponents.items()}}
            for curve in curves
        ],
    }
    title = f"Inference on {results['device_name']}, {dtype_name(args.dtype)}"
    drawn = report.write_picture(args.out / "inference.png", title, panels(curves), "context, tokens")
    tables = [results_table(curves, title), exponents_table(curves)]
    report.finish(args.out / "inference.json", results, tables, endings(curves), also=drawn)
    if interrupted:
        console.say("Stopped at once; what was measured is written.")
    return 130 if interrupted else 0


def contestant(name: str, args: argparse.Namespace) -> tuple[str, str, SequenceModel]:
    """A model by name with random weights, which take the same time, or that of a run folder or a checkpoint.

    Returns its name in tables, its architecture, and the model on the device, in evaluation mode.

    Raises:
        UserError: there is none.
    """
    try:
        if is_checkpoint(name):
            label = kind = shortened(Path(name).name)
            model = pretrained.load(name)
        elif Path(name).is_dir():
            trained = load_run(Path(name), torch.device("cpu"), trust=args.trust, untrained=True)
            label, kind, model = f"{trained.cfg.name} ({shortened(Path(name).name)})", trained.cfg.name, trained.model
        else:
            longest = args.contexts[-1] + LAST_STEPS
            label, kind = name, name
            model = fresh_model(name, args.size, vocabulary=args.vocabulary, max_length=longest)
    except UserError as error:
        if error.key in ("init_from", "run", "--model"):  # as other commands name it
            error.key = "--models"
        raise
    return label, kind, model.to(args.device, args.dtype)


def shortened(folder: str, most: int = 32) -> str:
    """The end of a folder's name for a table: in a sweep the names are long, and their ends differ."""
    return folder if len(folder) <= most else f"…{folder[1 - most :]}"


def unique(name: str, taken: Container[str]) -> str:
    """The name, with a number if it is taken."""
    numbered = chain([name], (f"{name} #{number}" for number in count(2)))
    return next(label for label in numbered if label not in taken)


def results_table(curves: Sequence[Curve], title: str) -> Table:
    """A line for each model, batch and context."""
    graphs = any(point.graph_token_ms is not None for curve in curves for point in curve.points)
    rows = [
        {
            "model": curve.model,
            "batch": str(curve.batch),
            "context": f"{point.context:,}",
            "prefill ms": number(point.prefill_ms),
            "read tokens/s": number(point.prefill_tokens_per_second),
            "token ms": number(point.token_ms),
            **({"graph ms": number(point.graph_token_ms)} if graphs else {}),
            "new tokens/s": number(point.graph_tokens_per_second or point.tokens_per_second),
            "state": scaled_bytes(point.state_bytes),
            "peak": scaled_bytes(point.peak_bytes),
        }
        for curve in curves
        for point in curve.points
    ]
    return table(title, rows, names=2)


def exponents_table(curves: Sequence[Curve]) -> Table:
    """The power of the context with which each cost grows."""
    shown = [name for name in COLUMNS if any(curve.exponents[name] for curve in curves)]
    rows = []
    for curve in curves:
        found = next(filter(None, curve.exponents.values()), None)
        span = f"{found.first:,} to {found.last:,}" if found else "too few"
        cells = {COLUMNS[name]: curve.exponent(name) for name in shown}
        rows.append({"model": curve.model, "batch": str(curve.batch), "contexts": span} | cells)
    law = "cost ~ context^exponent over the contexts named, with its standard error"
    return table("Exponents", rows, names=2, caption=f"{law}: 0 constant, 1 linear, 2 quadratic")


def endings(curves: Sequence[Curve]) -> list[str]:
    """A line for each curve that ends early, and for each step that could not be a CUDA graph."""
    lines = []
    for curve in curves:
        name = f"{curve.model}, batch {curve.batch}"
        if curve.ended is not None:
            last = f"ends at {curve.points[-1].context:,}" if curve.points else "has no point"
            lines.append(f"{name}, {last}: {curve.ended}")
        if curve.no_graph is not None:
            lines.append(f"{name}, without a CUDA graph: {curve.no_graph}")
    return lines


def panels(curves: Sequence[Curve]) -> list[Panel]:
    """Each cost against the context, replayed CUDA graphs dashed; legends show the exponents."""
    by_architecture = colours([curve.architecture for curve in curves])
    several = len({curve.batch for curve in curves}) > 1

    def lines(column: str, note: str = "", style: str = "-") -> list[Line]:
        found = []
        for curve, marker in zip(curves, cycle(MARKERS), strict=False):
            points = [(point.context, getattr(point, column)) for point in curve.points]
            points = [(context, value) for context, value in points if value]  # a logarithmic axis has no zero
            label = f"{curve.model}{f', batch {curve.batch}' * several}{note}: {curve.exponent(column)}"
            colour = by_architecture[architecture(curve.architecture)]
            if points:
                found.append(Line(label, points, {"color": colour, "marker": marker, "linestyle": style}))
        return found

    tokens = lines("token_ms") + lines("graph_token_ms", ", CUDA graph", "--")
    shown = {"legend": "exponent of the context"}
    sizes = shown | {"show": scaled_bytes}
    return [
        Panel("Prefill: reading the whole context", "milliseconds", lines("prefill_ms"), **shown),
        Panel("One token more", "milliseconds", tokens, **shown),
        Panel("State, or keys and values, of one sequence", "bytes", lines("state_bytes"), **sizes),
        Panel("Peak memory of both, beyond the weights", "bytes", lines("peak_bytes"), **sizes),
    ]
