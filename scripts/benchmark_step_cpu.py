"""Training steps on the CPU: Mamba here, mamba.py's, and PyTorch's Transformer, one after the other in one process.

    python scripts/benchmark_step_cpu.py                              # batch 64 x 128 characters, width 128, float32
    python scripts/benchmark_step_cpu.py --threads 2 --rounds 9 --out step.json
    python scripts/benchmark_step_cpu.py --models mamba --profile     # where the time of a step goes

A step is the forward pass, the loss, the backward pass and AdamW. In every round each model takes one step (or as many
as fill --least seconds), so that whatever else the machine does meets all of them; a figure is the median over rounds.

    mamba         4 layers of the Mamba of conf/model/mamba.yaml, with the fastest scan that can run
    mambapy       the same sizes in mamba.py (pip install mambapy), with its parallel scan
    transformer   nn.TransformerEncoder: 6 layers, 4 heads, ReLU feed-forward of 4 x width, learned positions
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rich
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from seqlab import console
from seqlab.formatting import counted
from seqlab.models import SequenceModel
from seqlab.models.mixers import Mamba
from seqlab.ops.selective_scan import resolve_backend
from seqlab.runs.summary import environment, package_version

VOCABULARY = 65  # of Tiny Shakespeare
MAMBA_LAYERS, TRANSFORMER_LAYERS, HEADS = 4, 6, 4


def mamba(width: int, length: int, scan: str) -> nn.Module:
    """As ``python train.py experiment=shakespeare_chars model=mamba`` builds it."""
    return SequenceModel(
        tokens=True,
        d_input=VOCABULARY,
        d_output=VOCABULARY,
        max_length=length,
        d_model=width,
        n_layers=MAMBA_LAYERS,
        pattern=["mamba"],
        mixers={"mamba": partial(Mamba, scan_backend=scan)},
        norm=partial(nn.RMSNorm, eps=1e-5),
        tie_embeddings=True,
    )


class Transformer(nn.Module):
    """``nn.TransformerEncoder`` as a causal language model, without dropout."""

    def __init__(self, width: int, length: int):
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, TRANSFORMER_LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]  # (B, L, D)
        return self.head(self.encoder(x, mask=self.mask, is_causal=True))


def mambapy(width: int) -> nn.Module:
    from mambapy.mamba import Mamba as Layers
    from mambapy.mamba import MambaConfig

    layers = Layers(MambaConfig(d_model=width, n_layers=MAMBA_LAYERS))
    return nn.Sequential(
        nn.Embedding(VOCABULARY, width), layers, nn.RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)
    )


MODELS: dict[str, Callable[[argparse.Namespace], nn.Module]] = {
    "mamba": lambda args: mamba(args.width, args.length, args.scan),
    "mambapy": lambda args: mambapy(args.width),
    "transformer": lambda args: Transformer(args.width, args.length),
}


def step_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens)  # (B, L, V)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return step


def seconds_of(step: Callable[[], None], least: float) -> float:
    """Seconds for one step: the mean of as many as fill ``least`` seconds."""
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < least:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of a step of each model, round by round."""
    torch.manual_seed(0)
    text = torch.randint(VOCABULARY, (args.batch, args.length + 1))
    steps = {}
    for name in args.models:
        steps[name] = step_of(MODELS[name](args), text[:, :-1].contiguous(), text[:, 1:].contiguous())
        steps[name]()  # compiles, and fills the optimizer's state
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            samples[name].append(seconds_of(step, args.least))
    return samples


def rows_of(samples: dict[str, list[float]], tokens: int) -> list[dict[str, Any]]:
    """A row for each model: times, speed, and how much faster mamba is, all medians of rounds."""
    rows = []
    for name, seconds in samples.items():
        median = statistics.median(seconds)
        paired = [other / own for other, own in zip(seconds, samples.get("mamba", []), strict=False)]
        rows.append(
            {
                "model": name,
                "seconds": median,
                "fastest_seconds": min(seconds),
                "tokens_per_second": tokens / median,
                "mamba_is_faster_by": statistics.median(paired) if paired else None,
                "samples": seconds,
            }
        )
    return rows


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for heading in ("model", "ms a step", "fastest", "tokens/s", "mamba is faster by"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        ratio = row["mamba_is_faster_by"]
        table.add_row(
            row["model"],
            f"{1e3 * row['seconds']:,.1f}",
            f"{1e3 * row['fastest_seconds']:,.1f}",
            f"{row['tokens_per_second']:,.0f}",
            "" if ratio is None or row["model"] == "mamba" else f"{ratio:.2f} x",
        )
    return table


def profile(args: argparse.Namespace) -> None:
    """What a step of each model spends its time on, operation by operation."""
    text = torch.randint(VOCABULARY, (args.batch, args.length + 1))
    for name in args.models:
        step = step_of(MODELS[name](args), text[:, :-1].contiguous(), text[:, 1:].contiguous())
        for _ in range(2):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
            for _ in range(3):
                step()
        print(f"{name}, 3 steps")
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    description, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}; default: all that are installed")
    add("--batch", type=int, default=64)
    add("--length", type=int, default=128)
    add("--width", type=int, default=128, help="d_model")
    add("--scan", default="auto", help="the backend of mamba's selective scan")
    add("--threads", type=int, help="default: what PyTorch chooses")
    add("--rounds", type=int, default=7)
    add("--least", type=float, default=0.5, help="seconds for each model in each round, at least; default 0.5")
    add("--profile", action="store_true", help="show where the time goes, in place of measuring it")
    add("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    args.models = args.models.split(",")
    for name in args.models:
        if name not in MODELS:
            parser.error(f"--models: {name!r} is none of {', '.join(MODELS)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if "mambapy" in args.models and find_spec("mambapy") is None:
        rich.get_console().print("mambapy left out: it is not installed (pip install mambapy)", highlight=False)
        args.models.remove("mambapy")
    if args.profile:
        profile(args)
        return 0
    rows = rows_of(measure(args), args.batch * args.length)
    scan = resolve_backend(args.scan, "cpu", torch.float32)
    facts = environment(torch.device("cpu"))
    facts["versions"] |= {name: package_version(name) for name in ("numba", "mambapy")}
    facts |= {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "scan_backend": scan,
        "settings": {key: getattr(args, key) for key in ("batch", "length", "width", "rounds", "least")},
    }
    where = f"float32, {counted(facts['threads'], 'thread')}"
    title = f"One step of {args.batch} x {args.length}, width {args.width}, {where}, {scan}"
    console.output().print(table_of(rows, title))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
