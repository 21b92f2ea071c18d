"""What training on many GPUs exchanges in a step, on paper: bytes and seconds of each collective, and where it breaks.

Rings move bytes at the pace of their slowest link, as NCCL's do (nccl-tests, PERFORMANCE.md): of S bytes each of n GPUs
sends (n - 1)/n S to its neighbour in an all-gather or a reduce-scatter, twice that in an all-reduce, in as many hops as
there are parts to pass on. Symbols: P parameters, n GPUs, L layers, E channels, N states, K the convolution's width.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from seqlab.benchmarks.growth import Window
from seqlab.benchmarks.growth_curves import Sizes
from seqlab.benchmarks.report import finish, number, table
from seqlab.benchmarks.scaling_points import OURS, Point
from seqlab.benchmarks.scaling_step import Trained
from seqlab.config.overrides import compose
from seqlab.errors import UserError
from seqlab.jsonio import load
from seqlab.models.counting import training_flops
from seqlab.models.layer import Layer
from seqlab.models.protocols import parts
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths

FLOAT = 4  # bytes: weights are gathered and gradients added up in float32
BUCKET = 25 * 2**20  # bytes of gradients that torch's DDP adds up at once
GPUS = (1, 8, 64, 512, 1024)
PEAK = 989e12
"""FLOP/s of an H100 or H200 (SXM) in bf16 without sparsity, by NVIDIA's data sheets."""


class Links(NamedTuple):
    """What connects GPUs: bytes a second of one GPU in one direction, and seconds a hop.

    Each GPU of a host has its own way out of it, and NCCL leads a ring through each: a host's GPUs together send
    ``host * between``. NCCL reckons with 3.4 us a hop over NVLink and 9.6 us between hosts (src/graph/tuning.cc, rings
    of its protocol Simple): 4.2 us where one hop of eight is such.
    """

    inside: float = 450e9  # NVLink 4, of an H100 or H200
    between: float = 50e9  # a network card of 400 Gbit/s for each GPU
    latency: float = 4.2e-6
    host: int = 8  # GPUs

    def bandwidth(self, gpus: int) -> float:
        """Bytes a second at which a ring of so many GPUs passes on, each of them."""
        return self.inside if gpus <= self.host else min(self.inside, self.host * self.between)


class Collective(NamedTuple):
    """What a step exchanges: bytes that each GPU sends, in so many pieces of so many hops, beside a pass of the model.

    All but one piece can hide behind the pass.
    """

    name: str
    bytes: float
    pieces: int
    hops: int
    behind: str | None  # forward or backward; None: the pass waits for it

    def moving(self, links: Links, gpus: int) -> float:
        """Seconds in which the bytes move."""
        return self.bytes / links.bandwidth(gpus)

    def waiting(self, links: Links) -> float:
        """Seconds of latency, as pieces follow one another."""
        return self.pieces * self.hops * links.latency

    def seconds(self, links: Links, gpus: int) -> float:
        """Both."""
        return self.moving(links, gpus) + self.waiting(links)


def ddp(parameters: int, gpus: int, hops: int | None = None) -> list[Collective]:
    """DDP: an all-reduce of the float32 gradients in buckets, 2 (n - 1)/n 4 P bytes a GPU.

    Args:
        parameters: P.
        gpus: n.
        hops: of a bucket, 2 (n - 1) in a ring; fewer along a tree.
    """
    size = FLOAT * parameters
    sent = 2 * (gpus - 1) / gpus * size
    return [Collective("all-reduce", sent, math.ceil(size / BUCKET), hops or 2 * (gpus - 1), "backward")]


def fsdp(parameters: int, gpus: int, layers: int, outside: int = 0) -> list[Collective]:
    """FSDP2: parts are gathered for each pass and gradients scattered, (n - 1)/n 4 P bytes a GPU each.

    Each layer is a piece, and what is outside of them another, which stays gathered for the backward pass.
    """
    share = (gpus - 1) / gpus * FLOAT
    sent, again = share * parameters, share * (parameters - outside)
    return [
        Collective("all-gather", sent, layers + 1, gpus - 1, "forward"),
        Collective("all-gather again", again, layers, gpus - 1, "backward"),
        Collective("reduce-scatter", sent, layers + 1, gpus - 1, "backward"),
    ]


def context(rows: int, layers: int, channels: int, group: int, states: int = 16, width: int = 4) -> list[Collective]:
    """Context parallel of Mamba: four all-gathers a layer, for which the layer waits, to each other of the group.

    The table of docs/clusters.md: for each sequence 8 E N bytes of P and s, 4 E N of the gradient of the state, and in
    each pass 4 (K - 1) E of the convolution's last inputs.
    """
    each = FLOAT * channels * (3 * states + 2 * (width - 1))
    return [Collective("slices", (group - 1) * rows * layers * each, 4 * layers, group - 1, None)]


class Step(NamedTuple):
    """A step on paper, in seconds."""

    computing: float
    exposed: float  # what computing waits for
    breaks: list[str]  # what takes longer than the pass that it hides behind

    @property
    def efficiency(self) -> float:
        """Computing's share of the step."""
        return self.computing / (self.computing + self.exposed)


def step(collectives: Sequence[Collective], gpus: int, computing: float, links: Links, backward: float = 2 / 3) -> Step:
    """A step's time.

    Args:
        collectives: of the step.
        gpus: n.
        computing: seconds of the two passes on one GPU without any exchange.
        links: between GPUs.
        backward: the backward pass's share of it; 3/4 where layers are computed again.
    """
    exposed, breaks = 0.0, []
    for name, share in (("forward", 1 - backward), ("backward", backward), (None, 0.0)):
        behind = [one for one in collectives if one.behind == name and one.hops]
        times = [one.seconds(links, gpus) for one in behind]
        last = sum(time / one.pieces for time, one in zip(times, behind, strict=True))
        exposed += max(last, sum(times) - share * computing)
        if name and sum(times) > share * computing:
            worst = max(behind, key=lambda one: one.seconds(links, gpus))
            why = "latency" if worst.waiting(links) > worst.moving(links, gpus) else "bytes"
            breaks.append(f"{worst.name}: {why}")
    return Step(computing, exposed, breaks)


class Shape(NamedTuple):
    """What counts of a model."""

    parameters: int
    outside: int  # of them not in layers
    layers: int
    backward: float  # the backward pass's share of computing

    def collectives(self, gpus: int, parallel: str) -> list[Collective]:
        """Of a step with ``ddp`` or ``fsdp``."""
        if parallel == "ddp":
            return ddp(self.parameters, gpus)
        return fsdp(self.parameters, gpus, self.layers, self.outside)


def built_of(trained: Trained, length: int) -> nn.Module:
    """The model without memory for its weights.

    Raises:
        UserError: it cannot be built.
    """
    with torch.device("meta"):
        widths = TokenWidths(trained.vocabulary, trained.vocabulary, length)
        return build_model(compose(*trained.overrides), widths, torch.device("meta"))


def shape_of(trained: Trained, model: nn.Module) -> Shape:
    """Count a model's parameters. Where layers are computed again, the backward pass is three parts of four."""
    layers = parts(model, Layer)
    total, inside = (sum(p.numel() for p in one.parameters()) for one in (model, nn.ModuleList(layers)))
    return Shape(total, total - inside, len(layers), 3 / 4 if trained.checkpoint_layers else 2 / 3)


def flops_of(trained: Trained, model: nn.Module, length: int) -> float:
    """FLOPs of both passes over a sequence; where layers are computed again, their forward pass counts twice."""
    data = Window(Sizes(batch=1, length=length, width=0, depth=0, vocabulary=trained.vocabulary))
    return training_flops(model, data) * (4 / 3 if trained.checkpoint_layers else 1)


def rows_of(shape: Shape, parallel: str, computing: float, links: Links) -> list[dict[str, str]]:
    """A line for each number of GPUs of ``GPUS``; ``computing`` is in seconds."""
    rows = []
    for gpus in GPUS:
        collectives = shape.collectives(gpus, parallel)
        found = step(collectives, gpus, computing, links, shape.backward)
        rows.append(
            {
                "GPUs": f"{gpus:,}",
                "GB a GPU sends": number(sum(one.bytes for one in collectives), 1e-9),
                "ms moving": number(sum(one.moving(links, gpus) for one in collectives), 1e3),
                "ms of latency": number(sum(one.waiting(links) for one in collectives), 1e3),
                "ms waited for": number(found.exposed, 1e3),
                "efficiency": number(found.efficiency),
                "longer than its pass": ", ".join(found.breaks) or "-",
            }
        )
    return rows


def computing_of(name: str, model: nn.Module, args: argparse.Namespace) -> tuple[float, str]:
    """Seconds of a step on one GPU and what they are: of ``args.paper``, a share of the peak or what was measured.

    Raises:
        UserError: the step was not measured on one GPU.
    """
    if isinstance(args.paper, float):
        seconds = args.batch * flops_of(args.trained[name], model, args.length) / (args.paper * PEAK)
        return seconds, f"its FLOPs at {args.paper:.0%} of {PEAK / 1e12:g} TFLOP/s"
    points = (Point(**row) for row in load(args.paper).get("points", ()))
    alone = [p for p in points if (p.model, p.contestant, p.gpus, p.length) == (name, OURS, 1, args.length)]
    for point in alone:
        if point.rows == args.batch and point.seconds:
            return point.seconds, "as measured on one GPU"
    what = f"has no step of {name} with {args.batch} x {args.length:,} on one GPU"
    raise UserError("--paper", args.paper, what, "Name a scaling.json that has, or --models, --batch and --length")


def show(args: argparse.Namespace) -> None:
    """Write and show the tables for ``--paper``: for each model, weights whole on every GPU, and shared out."""
    made, results = [], {"paper": str(args.paper), "links": Links()._asdict(), "tables": {}}
    for name, trained in args.trained.items():
        model = built_of(trained, args.length)
        shape, (computing, how) = shape_of(trained, model), computing_of(name, model, args)
        law = f"{shape.parameters:,} parameters; computing takes {number(computing, 1e3)} ms: {how}"
        for parallel in ("ddp", "fsdp"):
            title = f"{name}, {parallel}, {args.batch} x {args.length:,} a GPU, on paper"
            rows = results["tables"][title] = rows_of(shape, parallel, computing, Links())
            made.append(table(title, rows, caption=law))
    finish(args.out / "scaling_on_paper.json", results, made)
