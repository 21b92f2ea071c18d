"""A training step on the CPU: this package's Mamba, mamba.py's, and PyTorch's Transformer.

Symbols: B sequences of L tokens, D channels, V words in the vocabulary.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import rich
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqlab import console
from seqlab.benchmarks import report
from seqlab.benchmarks.results import facts, speed_up, step_row, step_table
from seqlab.benchmarks.session import Call, measure
from seqlab.config.overrides import compose
from seqlab.formatting import counted
from seqlab.ops.selective_scan import resolve_backend
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths

CPU = torch.device("cpu")
VOCABULARY = 65  # of Tiny Shakespeare
MAMBA_LAYERS, TRANSFORMER_LAYERS, HEADS = 4, 6, 4


def mamba(args: argparse.Namespace) -> nn.Module:
    """The model of ``python train.py experiment=shakespeare_chars model=mamba``, at the sizes asked for."""
    sizes = f"size.d_model={args.width}", f"size.n_layers={MAMBA_LAYERS}"
    cfg = compose("model=mamba", *sizes, f"model.mixers.mamba.scan_backend={args.scan}")
    return build_model(cfg, TokenWidths(VOCABULARY, VOCABULARY, args.length), CPU)


def mambapy(args: argparse.Namespace) -> nn.Module:
    """mamba.py's Mamba at the same sizes, between an embedding and a head."""
    from mambapy.mamba import Mamba, MambaConfig

    layers = Mamba(MambaConfig(d_model=args.width, n_layers=MAMBA_LAYERS))
    head = nn.Linear(args.width, VOCABULARY, bias=False)
    return nn.Sequential(nn.Embedding(VOCABULARY, args.width), layers, nn.RMSNorm(args.width), head)


class Transformer(nn.Module):
    """``nn.TransformerEncoder`` as a causal language model, without dropout."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCABULARY, args.width), nn.Embedding(args.length, args.width)
        layer = nn.TransformerEncoderLayer(args.width, HEADS, 4 * args.width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, TRANSFORMER_LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(args.width, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(args.length))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to logits (B, L, V)."""
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]  # (B, L, D)
        return self.head(self.encoder(x, mask=self.mask, is_causal=True))


MODELS: dict[str, Callable[[argparse.Namespace], nn.Module]] = {
    "mamba": mamba,
    "mambapy": mambapy,
    "transformer": Transformer,
}


def prepare(name: str, args: argparse.Namespace) -> Callable[[], None]:
    """A function that makes one step of a model: forward, loss, backward, AdamW."""
    torch.manual_seed(0)
    text = torch.randint(VOCABULARY, (args.batch, args.length + 1))
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    model = MODELS[name](args).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens)  # (B, L, V)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return step


def run(args: argparse.Namespace) -> int:
    """Measure and show what the options of scripts/benchmark_step_cpu.py ask for. Returns the exit status."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if "mambapy" in args.models and find_spec("mambapy") is None:
        console.say("mambapy left out: it is not installed (pip install mambapy)")
        args.models.remove("mambapy")
    if args.profile:
        profile(args)
        return 0
    calls = {name: Call(partial(prepare, name, args), ours=name != "mambapy") for name in args.models}
    with rich.get_console().status(f"{args.rounds} rounds of {', '.join(calls)}"):
        found = measure(calls, CPU, rounds=args.rounds, least=args.least)
    tokens, scan = args.batch * args.length, resolve_backend(args.scan, "cpu", torch.float32)
    mine = found["mamba"].samples if "mamba" in found else []
    rows = [
        {"model": name, "mamba_is_faster_by": speed_up(one.samples, mine)} | step_row(one, tokens)
        for name, one in found.items()
    ]
    where = f"float32, {counted(torch.get_num_threads(), 'thread')}, {scan}"
    title = f"One step of {args.batch} x {args.length}, width {args.width}, {where}"
    results = facts(CPU, ("numba", "mambapy")) | {
        "threads": torch.get_num_threads(),
        "scan_backend": scan,
        "settings": {key: getattr(args, key) for key in ("batch", "length", "width", "rounds", "least")},
        "rows": rows,
    }
    report.finish(args.out, results, [step_table(title, rows, "model", "a step", "mamba_is_faster_by")])
    return 0


def profile(args: argparse.Namespace) -> None:
    """Print which operations the steps of each model spend their time on."""
    for name in args.models:
        step = prepare(name, args)
        for _ in range(2):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
            for _ in range(3):
                step()
        print(f"{name}, 3 steps")
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))
