"""What a training step costs in time and peak memory as batch, length, width, depth and vocabulary grow.

Symbols: B sequences of L tokens, V words in the vocabulary.
"""

import argparse
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqlab import console
from seqlab.benchmarks import report
from seqlab.benchmarks.growth_curves import Point, Sizes, as_dict, curves, endings, panels, tables
from seqlab.benchmarks.memory import lacks_memory
from seqlab.benchmarks.results import facts
from seqlab.benchmarks.session import OUT_OF_MEMORY, Call, Measurement, failure, measure_whole
from seqlab.benchmarks.training_step import RandomTokens, training_step
from seqlab.config.overrides import compose
from seqlab.errors import UserError
from seqlab.jsonio import dump, load
from seqlab.models.counting import training_flops
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths
from seqlab.runs.process import free_memory, reset_global_state
from seqlab.training.captured import EAGER

FILE = "growth.json"

HEAD, FEEDFORWARD = 64, 4
"""Width of a head, and width of a feed-forward over the model's, as in conf/size/small.yaml."""

ROUNDS, LEAST = 3, 0.05
"""Samples of a step, and seconds that each lasts at least."""

LONG = 1.0
"""Seconds of a step from which one sample is enough, launched kernel by kernel: there, launches do not matter."""


class Window(RandomTokens):
    """Random tokens that FLOPs can be counted with."""

    def __init__(self, sizes: Sizes):
        self.vocabulary, self.length = sizes.vocabulary, sizes.length

    def train_batch(self, index: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (B, L) each."""
        return tuple(torch.zeros(2, batch_size, self.length, dtype=torch.long))


def model_of(name: str, sizes: Sizes, device: torch.device) -> nn.Module:
    """A model of conf/model, initialised on its device, as the widest have a billion weights.

    Raises:
        UserError: the model cannot have these sizes.
    """
    heads = max(1, sizes.width // HEAD)
    size = {"d_model": sizes.width, "n_layers": sizes.depth, "n_heads": heads, "d_ff": FEEDFORWARD * sizes.width}
    cfg = compose(f"model={name}", *(f"size.{key}={value}" for key, value in size.items()))
    with device:
        return build_model(cfg, TokenWidths(sizes.vocabulary, sizes.vocabulary, sizes.length), device)


def measure(args: argparse.Namespace, show: Callable[[str], None]) -> Iterator[Point]:
    """Measure each model's base point, then each axis from the smallest size up, until it ends.

    The length comes last: where an error leaves a GPU unusable to this process, it is likely to be there.

    Args:
        args: the options of scripts/benchmark_growth.py.
        show: called with what is being measured.
    """
    bases = {}
    for model in args.models:
        show(f"{model}, base point")
        measured_point(model, args.base, None, args)  # compiles kernels, and lets libraries allocate their workspaces
        yield (base := measured_point(model, args.base, None, args))
        if base.status == "measured":
            bases[model] = base
    for axis in sorted(args.axes, key=lambda axis: axis == "length"):
        for base in bases.values():
            yield from measured_axis(base, axis, args, show)


def measured_axis(base: Point, axis: str, args: argparse.Namespace, show: Callable[[str], None]) -> Iterator[Point]:
    """Measure a model's points along an axis until it ends; ``base``, which lies on it, is not measured again."""
    below = None
    for value in args.values[axis]:
        sizes = args.base._replace(**{axis: value})
        show(f"{base.model}, {axis} {value:,}")
        if sizes == args.base:
            point = base
        else:
            yield (point := measured_point(base.model, sizes, below, args))
        if point.status == "measured":
            below = point
        elif point.status != "refused":
            break


def measured_point(model: str, sizes: Sizes, below: Point | None, args: argparse.Namespace) -> Point:
    """Count a step's FLOPs, and measure it unless it would take too long or too much memory.

    Args:
        model: of conf/model.
        sizes: of the step.
        below: the measured point before it on its axis, from which its costs are predicted.
        args: the options of scripts/benchmark_growth.py.
    """
    point = Point(model, *sizes)
    try:
        point.flops = sizes.batch * training_flops(model_of(model, sizes, torch.device("meta")), Window(sizes))
    except UserError as error:
        point.status, point.reason = "refused", error.rule
        return point
    if below is not None and (why := why_not(point, below, args)):
        point.status, point.reason = "skipped", why
        return point
    found = measured_step(model, sizes, args)
    point.status, point.reason, point.peak_bytes = found.status, found.reason, found.peak_bytes
    point.seconds, point.samples, point.first_call = found.median, found.samples, found.first_call
    return point


def why_not(point: Point, below: Point, args: argparse.Namespace) -> str | None:
    """Why a point is left out, as far as a smaller one tells; ``None`` to measure it."""
    growth = point.flops / below.flops
    expected = below.seconds * growth
    if expected > args.limit:
        return f"a step would take about {expected:.3g} s, and --limit is {args.limit:g} s"
    if args.device.type == "cpu":
        return lacks_memory((below.peak_bytes or 0) * growth, args.device)
    return None


def measured_step(model: str, sizes: Sizes, args: argparse.Namespace) -> Measurement:
    """The time of a step and its peak memory. An error becomes a failed measurement, and its traceback is printed."""
    free_memory()  # of the step before; raises if the device is unusable
    reset_global_state(args.seed)

    def prepare() -> Callable[[], None]:
        made = model_of(model, sizes, args.device).train()
        batch = sizes.vocabulary, sizes.batch, sizes.length
        return training_step(made, *batch, precision=args.precision, device=args.device)

    try:
        captured = EAGER + 1  # on a GPU
        return measure_whole(Call(prepare), args.device, warm_up=captured, rounds=ROUNDS, least=LEAST, long=LONG)
    except Exception as error:
        traceback.print_exc()
        return failure(error, ours=False)


def run(args: argparse.Namespace) -> int:
    """Measure or merge, write and show what scripts/benchmark_growth.py is asked for. Returns the exit status."""
    report.make_folder(args.out)
    results = merged(args.merge) if args.merge else measured(args)
    points, base = [Point(**row) for row in results["points"]], Sizes(**results["base"])
    found, where = curves(points, base), f"{results['device_name']}, {results['precision']}"
    results["curves"] = list(map(as_dict, found))
    fixed = ", ".join(f"{axis} {size:,}" for axis, size in base._asdict().items())
    axes, title = len({curve.axis for curve in found}), f"A training step; base point {fixed}; {where}"
    drawn = report.write_picture(args.out / "growth.png", title, panels(found), "", columns=axes) if found else []
    report.finish(args.out / FILE, results, tables(found, base, where), endings(points, base), also=drawn)
    if results["interrupted"] and not args.merge:
        console.say("Stopped at once; what was measured is written.")
        return 130
    return int(any(point.status == "failed" and point.reason != OUT_OF_MEMORY for point in points))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The results of a measurement, which are written after each point."""
    asked = {key: getattr(args, key) for key in ("models", "axes", "limit", "seed")}
    results = facts(args.device, ("numba", "matplotlib")) | {
        "settings": asked | {"values": {axis: args.values[axis] for axis in args.axes}},
        "precision": args.precision,
        "base": args.base._asdict(),
        "interrupted": True,  # until it is at its end
        "points": [],
    }
    grown = sum(value != getattr(args.base, axis) for axis in args.axes for value in args.values[axis])
    with console.progress() as progress:
        task = progress.add_task("", total=len(args.models) * (1 + grown))
        try:
            for point in measure(args, lambda what: progress.update(task, description=what)):
                results["points"].append(asdict(point))
                dump(args.out / FILE, results)
                progress.advance(task)
            results["interrupted"] = False
        except KeyboardInterrupt:
            pass
    return results


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of several processes as those of one; of a point in several, the last that was measured is taken.

    Raises:
        UserError: a file has no results, or they were measured otherwise than the first file's.
    """
    parts = list(map(load, paths))
    points = {}
    for path, part in zip(paths, parts, strict=True):
        if not {"points", "base", "precision", "device_name"} <= part.keys():
            rule = f"is no {FILE} that this command has written"
            raise UserError("--merge", path, rule, "Name the files, not their folders")
        for key in ("device_name", "precision", "base"):
            if part[key] != parts[0][key]:
                rule = f"has {key} {part[key]}, and {paths[0]} has {parts[0][key]}"
                raise UserError("--merge", path, rule, "Merge what was measured alike")
        for row in part["points"]:
            key = row["model"], Point(**row).sizes
            if key not in points or row["status"] == "measured":
                points[key] = row
    own = [{key: part[key] for key in ("command", "date", "git_commit", "settings")} for part in parts]
    interrupted = any(part["interrupted"] for part in parts)
    return parts[0] | {"parts": own, "interrupted": interrupted, "points": list(points.values())}
