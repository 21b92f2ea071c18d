"""Training, prefill and generation beside ``mamba_ssm``, in one process on one GPU.

Symbols: B sequences of L tokens, V words in the vocabulary.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import rich
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

from seqlab.benchmarks import report
from seqlab.benchmarks.memory import release
from seqlab.benchmarks.report import number, table
from seqlab.benchmarks.results import facts, ratio
from seqlab.benchmarks.timing import seconds
from seqlab.benchmarks.training_step import training_step
from seqlab.config.overrides import compose
from seqlab.inference.generate import generate_tokens
from seqlab.inference.sampling import Sampling
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths

CUDA = torch.device("cuda")
SIZES = ("small", "medium", "large", "wide", "deep")
"""Of the models that are trained, in conf/size."""

SHAPES = ((32, 256), (8, 2048))
"""B and L of a training step."""

TRAINING_VOCABULARY, VOCABULARY = 10_000, 50_277
USED = (768, 24)
"""Width and layers of the model that generates: 130 million parameters."""

PROMPT = 128
WARM_UP, SAMPLES, CLIP_NORM = 6, 5, 1.0


class Result(NamedTuple):
    """What one of the two needs for a task."""

    seconds: float
    peak_bytes: int  # all that PyTorch had allocated, weights included


def size_of(name: str) -> tuple[int, int]:
    """Width and layers of a size in conf/size."""
    size = compose("model=mamba", f"size={name}").size
    return size.d_model, size.n_layers


def ours(size: tuple[int, int], vocabulary: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Mamba as ``conf/model/mamba.yaml`` has it, of (width, layers), on the GPU."""
    cfg = compose("model=mamba", f"size.d_model={size[0]}", f"size.n_layers={size[1]}")
    return build_model(cfg, TokenWidths(vocabulary, vocabulary, 2048), CUDA).to(dtype)


def theirs(size: tuple[int, int], vocabulary: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """``mamba_ssm``'s language model of (width, layers), its fused paths on, on the GPU."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    config = MambaConfig(d_model=size[0], n_layer=size[1], vocab_size=vocabulary)
    return MambaLMHeadModel(config, device=CUDA, dtype=dtype)


def our_step(size: tuple[int, int], batch: int, length: int) -> Callable[[], Any]:
    """An update as ``train.py`` makes it, in bf16."""
    model = ours(size, TRAINING_VOCABULARY).train()
    return training_step(model, TRAINING_VOCABULARY, batch, length, precision="bf16", device=CUDA)


def their_step(size: tuple[int, int], batch: int, length: int) -> Callable[[], Any]:
    """An update of their model by the same recipe: autocast, loss in float32, clipping, fused AdamW."""
    model = theirs(size, TRAINING_VOCABULARY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(TRAINING_VOCABULARY, (2, batch, length), device=CUDA)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens).logits[..., :TRAINING_VOCABULARY]  # theirs are padded
        F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return step


def our_generation(batch: int, new: int) -> Callable[[], Any]:
    """Greedy tokens after a prompt, by what ``scripts/generate.py`` uses, in bf16."""
    model = ours(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (batch, PROMPT))
    return lambda: list(generate_tokens(model, prompt, Sampling(0), max_new_tokens=new, seed=0))


def their_generation(batch: int, new: int) -> Callable[[], Any]:
    """The same by their ``generate`` with its captured graph."""
    model = theirs(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (batch, PROMPT), device=CUDA)
    return lambda: model.generate(input_ids=prompt, max_length=PROMPT + new, cg=True, top_k=1)


def our_prefill(length: int) -> Callable[[], Any]:
    """A prompt of one sequence read, up to the logits of its last position."""
    model = ours(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (1, length), device=CUDA)
    return lambda: model.prefill(prompt, model.initial_state(1))


def their_prefill(length: int) -> Callable[[], Any]:
    """The same by their forward pass, which keeps no state."""
    model = theirs(USED, VOCABULARY, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (1, length), device=CUDA)
    return torch.no_grad()(lambda: model(prompt, num_last_tokens=1))


def alone(prepare: Callable[[], Callable[[], Any]], calls: int) -> Result:
    """Measure what ``prepare`` returns: the median of the times, each the mean of ``calls`` calls in a row."""
    torch.manual_seed(0)
    release(CUDA)
    torch.cuda.reset_peak_memory_stats()
    function = prepare()
    for _ in range(WARM_UP if calls > 1 else 1):
        function()
    found = Result(median(seconds(function, CUDA, calls) for _ in range(SAMPLES)), torch.cuda.max_memory_allocated())
    del function
    release(CUDA)
    return found


def tasks(args: argparse.Namespace) -> dict[str, tuple[Callable, Callable, int, int]]:
    """By name: what prepares ours and theirs, calls in a row, and tokens of a call."""
    found: dict[str, tuple[Callable, Callable, int, int]] = {}
    for batch, length in SHAPES:
        for name in args.sizes:
            shape = size_of(name), batch, length
            both = partial(our_step, *shape), partial(their_step, *shape)
            found[f"training step, {name}, {batch} x {length:,}"] = (*both, 10, batch * length)
    for length in args.prompts:
        both = partial(our_prefill, length), partial(their_prefill, length)
        found[f"prefill of {length:,}"] = (*both, 3, length)
    for batch in args.batch:
        both = partial(our_generation, batch, args.new), partial(their_generation, batch, args.new)
        found[f"{args.new} tokens after {PROMPT}, batch {batch}"] = (*both, 1, batch * args.new)
    return found


def run(args: argparse.Namespace) -> int:
    """Measure and show what the options of scripts/benchmark_against_mamba_ssm.py ask for. Returns the exit status."""
    rows = []
    with rich.get_console().status("") as status:
        for name, (mine, other, calls, tokens) in tasks(args).items():
            status.update(name)
            rows.append((name, tokens, alone(mine, calls), alone(other, calls)))
    results = facts(CUDA, ("mamba_ssm", "causal_conv1d")) | {"rows": [as_dict(*row) for row in rows]}
    report.finish(args.out, results, [results_table(results)])
    return 0


def as_dict(name: str, tokens: int, mine: Result, other: Result) -> dict[str, Any]:
    """A row of the results, times in seconds and memory in bytes."""
    return {
        "task": name,
        "tokens": tokens,
        "seqlab": mine._asdict(),
        "mamba_ssm": other._asdict(),
        "times_the_tokens": ratio(other.seconds, mine.seconds),
        "times_the_memory": ratio(mine.peak_bytes, other.peak_bytes),
    }


def results_table(results: dict[str, Any]) -> Table:
    """A line for each task."""
    lines = []
    for row in results["rows"]:
        mine, other = row["seqlab"], row["mamba_ssm"]
        lines.append(
            {
                "task": row["task"],
                "ms": number(mine["seconds"], 1e3),
                "mamba_ssm": number(other["seconds"], 1e3),
                "k tokens/s": number(row["tokens"] / mine["seconds"], 1e-3),
                "mamba_ssm's": number(row["tokens"] / other["seconds"], 1e-3),
                "times": number(row["times_the_tokens"]),
                "peak MB": number(mine["peak_bytes"], 1e-6),
                "its": number(other["peak_bytes"], 1e-6),
                "share": number(row["times_the_memory"]),
            }
        )
    return table(f"seqlab beside mamba_ssm, bf16, {results['device_name']}", lines)
