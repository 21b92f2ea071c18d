"""A mixture of experts forward and backward, or a whole training step: grouped products beside a loop over experts.

Symbols: B sequences of L tokens, T tokens in all, D channels (``--width``).
"""

import argparse
from collections.abc import Callable
from functools import partial

import rich
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from seqlab.benchmarks import report
from seqlab.benchmarks.results import facts, speed_up, step_row, step_table
from seqlab.benchmarks.session import Call, measure
from seqlab.benchmarks.training_step import training_step
from seqlab.formatting import counted
from seqlab.models import auxiliary_losses
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.ops.routed_experts import resolve_backend
from seqlab.runs.build import choose_device
from seqlab.runs.load import fresh_model
from seqlab.training.captured import EAGER
from seqlab.training.precision import DTYPES, autocast

VOCABULARY, LENGTH = 10_000, 256


class LoopOfExperts(MixtureOfExperts):
    """A mixture that computes one expert after the other, as most implementations do."""

    def _visit(self, tokens: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
        y = None
        for expert in range(len(self.expert_share)):
            rows, slots = torch.where(experts == expert)
            gate, value = (tokens[rows] @ self.in_proj.weight[expert]).chunk(2, dim=-1)
            found = (F.silu(gate) * value) @ self.out_proj.weight[expert]
            y = found.new_zeros(tokens.shape) if y is None else y
            y = y.index_add(0, rows, (found * gates[rows, slots, None]).to(y.dtype))
        return y

    @override
    def why_not_captured(self, device: torch.device) -> str:
        return "the host has to know how many tokens each expert gets, which the device counts"


LAYERS: dict[str, type[MixtureOfExperts]] = {"loop": LoopOfExperts, "grouped": MixtureOfExperts}


def layer_step(kind: type[MixtureOfExperts], args: argparse.Namespace) -> Callable[[], None]:
    """A function that runs one pass forward and backward of a layer in training mode, on random input (T, D)."""
    torch.manual_seed(0)
    layer = kind(args.width, d_ff=args.d_ff, n_experts=args.experts, top_k=args.top_k).to(args.device)
    x = torch.randn(args.tokens, args.width, device=args.device, requires_grad=True)
    dy = torch.randn(args.tokens, args.width, device=args.device)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        with autocast(args.device, args.precision):
            y = layer(x)
        torch.autograd.backward((y, auxiliary_losses(layer)), (dy.to(y.dtype), None))

    return step


def model_of(kind: type[MixtureOfExperts], args: argparse.Namespace) -> nn.Module:
    """A whole model whose mixtures of experts are of the class ``kind``."""
    torch.manual_seed(0)
    model = fresh_model(args.model, args.size, vocabulary=VOCABULARY, max_length=LENGTH).to(args.device).train()
    for part in model.modules():
        if isinstance(part, MixtureOfExperts):
            part.__class__ = kind
    return model


def model_step(kind: type[MixtureOfExperts], args: argparse.Namespace) -> Callable[[], None]:
    """A function that makes one update of a whole model."""
    model, length = model_of(kind, args), min(args.tokens, LENGTH)
    batch = max(1, args.tokens // LENGTH)
    return training_step(model, VOCABULARY, batch, length, precision=args.precision, device=args.device)


def run(args: argparse.Namespace) -> int:
    """Measure and show what the options of scripts/benchmark_experts.py ask for. Returns the exit status."""
    if args.threads:
        torch.set_num_threads(args.threads)
    args.device = choose_device(args.device)
    prepare = model_step if args.model else layer_step
    calls = {name: Call(partial(prepare, kind, args)) for name, kind in LAYERS.items()}
    with rich.get_console().status(f"{args.rounds} rounds of {' and '.join(calls)}"):
        found = measure(calls, args.device, rounds=args.rounds, least=args.least, warm_up=EAGER + 2)  # captured by then
    loop = found["loop"].samples
    rows = [
        {"layer": name, "times_the_loop": speed_up(loop, one.samples)} | step_row(one, args.tokens)
        for name, one in found.items()
    ]
    own = ("model", "size") if args.model else ("width", "d_ff", "experts", "top_k")
    results = facts(args.device) | {
        "backend": resolve_backend("auto", args.device, DTYPES[args.precision]),
        "settings": {key: getattr(args, key) for key in ("tokens", *own, "precision")},
        "rows": rows,
    }
    layer = f"width {args.width}, {counted(args.experts, 'expert')} of {args.d_ff}, top {args.top_k}"
    measured = f"{args.model}, size {args.size or 'of its own'}" if args.model else layer
    where = f"{args.precision}, {results['backend']}, {results['device_name']}"
    title = f"{counted(args.tokens, 'token')}, {measured}, {where}"
    what = "a training step" if args.model else "forward and backward"
    report.finish(args.out, results, [step_table(title, rows, "layer", what, "times_the_loop")])
    return 0
