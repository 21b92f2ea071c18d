"""A mixture of experts forward and backward: grouped matrix products beside a loop over the experts.

    python scripts/benchmark_experts.py                            # 32 x 256 tokens at size=small, on a GPU if any
    python scripts/benchmark_experts.py --tokens 1024 --threads 2  # what takes less time on a CPU
    python scripts/benchmark_experts.py --width 512 --d-ff 2048 --precision bf16 --out experts.json
    python scripts/benchmark_experts.py --model mamba_moe --size small  # the whole training step of a model

Both are the layer of conf/model/mamba_moe.yaml in training, router, auxiliary loss and dropout included, with the same
weights. The loop takes one expert after the other: find its tokens, copy them, two products, add the result to the
output. In every round each layer has its turn, so that whatever else the machine does meets both; a figure is the
median over rounds.

With --model it is the update that train.py makes of batches of 256 random tokens out of 10,000, by AdamW: replayed as a
CUDA graph where that can be, which a loop that waits for the device is not.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from seqlab import console
from seqlab.benchmarks.timing import seconds, synchronize
from seqlab.formatting import counted
from seqlab.models import auxiliary_losses
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.ops.routed_experts import resolve_backend
from seqlab.runs.build import choose_device
from seqlab.runs.load import fresh_model
from seqlab.runs.summary import environment
from seqlab.training.captured import EAGER, captures
from seqlab.training.optim import adamw
from seqlab.training.precision import DTYPES, autocast
from seqlab.training.update import Update


class LoopOfExperts(MixtureOfExperts):
    """One expert after the other, as a mixture is usually written."""

    def _visit(self, tokens: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
        y = None
        for number in range(len(self.expert_share)):
            rows, slots = torch.where(experts == number)
            gate, value = (tokens[rows] @ self.in_proj.weight[number]).chunk(2, dim=-1)
            found = (F.silu(gate) * value) @ self.out_proj.weight[number]
            y = found.new_zeros(tokens.shape) if y is None else y
            y = y.index_add(0, rows, (found * gates[rows, slots, None]).to(y.dtype))
        return y

    def why_not_recorded(self, device: torch.device) -> str:
        return "how many tokens an expert has is known when the device has counted them"


VOCABULARY, LENGTH = 10_000, 256

LAYERS: dict[str, type[MixtureOfExperts]] = {"loop": LoopOfExperts, "grouped": MixtureOfExperts}


def layer_of(kind: type[MixtureOfExperts], args: argparse.Namespace) -> MixtureOfExperts:
    return kind(args.width, d_ff=args.d_ff, n_experts=args.experts, top_k=args.top_k).to(args.device)


def step_of(layer: MixtureOfExperts, args: argparse.Namespace) -> Callable[[], None]:
    """One pass forward and backward of a layer in training."""
    x = torch.randn(args.tokens, args.width, device=args.device, requires_grad=True)
    dy = torch.randn(args.tokens, args.width, device=args.device)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        with autocast(args.device, args.precision):
            y = layer(x)
        torch.autograd.backward((y, auxiliary_losses(layer)), (dy.to(y.dtype), None))

    return step


class RandomTokens:
    """As much of a data object as an update needs."""

    def mask(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets, dtype=torch.bool)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def model_of(kind: type[MixtureOfExperts], args: argparse.Namespace) -> nn.Module:
    """A whole model whose mixtures of experts are computed by ``kind``."""
    model = fresh_model(args.model, args.size, vocabulary=VOCABULARY, max_length=LENGTH).to(args.device).train()
    for part in model.modules():
        if isinstance(part, MixtureOfExperts):
            part.__class__ = kind
    return model


def update_of(model: nn.Module, args: argparse.Namespace) -> Callable[[], None]:
    """One update of it."""
    settings = {"precision": args.precision, "compile": False}
    recorded = captures("auto", model, args.device, **settings)
    how = {"optimizer": adamw, "device": args.device, "accumulate": 1, "clip_norm": 1.0, "cuda_graph": recorded}
    update = Update(model, RandomTokens(), **how, **settings)
    batch = torch.randint(VOCABULARY, (2, max(1, args.tokens // LENGTH), min(args.tokens, LENGTH)))

    def step() -> None:
        update(tuple(batch), 1.0)

    return step


def seconds_of(step: Callable[[], None], device: torch.device, least: float) -> float:
    """Seconds for one step: the mean of as many as fill ``least`` seconds, from an idle device to an idle device."""
    count = max(1, round(least / seconds(step, device)))
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of a step of each layer, round by round."""
    steps = {}
    for name, kind in LAYERS.items():
        torch.manual_seed(0)
        steps[name] = update_of(model_of(kind, args), args) if args.model else step_of(layer_of(kind, args), args)
        for _ in range(EAGER + 2):
            steps[name]()  # compiles, records, and fills the allocator
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            samples[name].append(seconds_of(step, args.device, args.least))
    return samples


def rows_of(samples: dict[str, list[float]], tokens: int) -> list[dict[str, Any]]:
    """A row for each layer: time, speed, and how many times as fast as the loop, all medians of rounds."""
    rows = []
    for name, own in samples.items():
        median = statistics.median(own)
        ratio = statistics.median(loop / mine for loop, mine in zip(samples["loop"], own, strict=True))
        rows.append({"layer": name, "seconds": median, "tokens_per_second": tokens / median, "times_the_loop": ratio})
    return [row | {"samples": samples[row["layer"]]} for row in rows]


def table_of(rows: list[dict[str, Any]], title: str, what: str) -> Table:
    table = Table(title=title)
    for heading in ("layer", f"ms {what}", "tokens/s", "times the loop"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in rows:
        figures = f"{1e3 * row['seconds']:,.2f}", f"{row['tokens_per_second']:,.0f}", f"{row['times_the_loop']:.2f}"
        table.add_row(row["layer"], *figures)
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    description, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--tokens", type=int, default=32 * 256)
    add("--width", type=int, default=256, help="d_model")
    add("--d-ff", type=int, default=1024)
    add("--experts", type=int, default=8)
    add("--top-k", type=int, default=2)
    add("--precision", choices=list(DTYPES), default="float32")
    add("--threads", type=int, help="of a CPU; default: what PyTorch chooses")
    add("--model", help="of conf/model: its whole training step; sizes are its own then")
    add("--size", help="of conf/size, for --model")
    add("--rounds", type=int, default=7)
    add("--least", type=float, default=0.2, help="seconds for each layer in each round, at least; default 0.2")
    add("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.device = choose_device(args.device)
    rows = rows_of(measure(args), args.tokens)
    backend = resolve_backend("auto", args.device, DTYPES[args.precision])
    own = ("model", "size") if args.model else ("width", "d_ff", "experts", "top_k")
    settings = {key: getattr(args, key) for key in ("tokens", *own, "precision")}
    facts = environment(args.device) | {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "backend": backend,
        "settings": settings,
    }
    experts = f"{counted(args.experts, 'expert')} of {args.d_ff}, top {args.top_k}"
    title = f"{counted(args.tokens, 'token')}, width {args.width}, {experts}"
    if args.model:
        title = f"{counted(args.tokens, 'token')}, {args.model}, size {args.size or 'of its own'}"
    title = f"{title}, {args.precision}, {backend}, {facts['device_name']}"
    what = "a training step" if args.model else "forward and backward"
    console.output().print(table_of(rows, title, what))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
