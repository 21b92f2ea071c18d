"""Runs that nobody trained: loss curves of a plausible shape, with configurations and summaries to match."""

import copy
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from seqlab.report.runs import Run

# floor of the loss, its height above it at the first step, layers, parameters of one of them, FLOPs of a token
MODELS: dict[str, tuple[float, float, int, int, float]] = {
    "mamba": (1.62, 2.5, 4, 116_000, 3.1e6),
    "transformer": (1.60, 2.6, 6, 197_000, 8.3e6),
    "lstm": (1.64, 2.5, 2, 132_000, 1.6e6),
    "transformer_vanilla": (1.68, 2.5, 6, 198_000, 8.2e6),
    "self_attention": (2.15, 2.0, 1, 82_000, 0.64e6),
    "linear": (2.49, 1.6, 0, 0, 0.05e6),
    "mlp": (2.50, 1.6, 2, 16_000, 0.24e6),
}
SIZE = {"d_model": 128, "n_layers": 4, "n_heads": 4, "d_ff": 512}


def made_config(model: str, data: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration; ``changes`` are dotted keys."""
    size = SIZE | {"n_layers": MODELS.get(model, MODELS["mamba"])[2]}
    config = {
        "name": model,
        "data_name": data,
        "seed": seed,
        "device": "auto",
        "size": size,
        "data": {"_target_": "seqlab.data.text.TextData", "name": data, "length": 128},
        "optimizer": {"_target_": "seqlab.training.optim.adamw", "lr": 0.001, "betas": [0.9, 0.95]},
        "trainer": {"_target_": "seqlab.training.TrainerConfig", "batch_size": 64, "steps": 1000},
        "model": {"pattern": [model], "mixers": {model: {"d_state": 16} if model == "mamba" else {}}},
    }
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *path, last = key.split(".")
        node = config
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    config["model"] |= {name: config["size"][name] for name in ("d_model", "n_layers")}
    if "transformer" in model or "attention" in model:
        config["model"]["mixers"][model]["n_heads"] = config["size"]["n_heads"]
    return config


def made_run(
    model: str = "mamba",
    data: str = "tiny_shakespeare",
    seed: int = 1,
    *,
    steps: int = 1000,
    log_every: int = 10,
    evaluate_every: int = 100,
    loss_change: float = 0.0,
    **changes: Any,
) -> Run:
    """One completed run; ``changes`` are dotted keys of its configuration."""
    config = made_config(model, data, seed, changes)
    rng = np.random.default_rng([seed, len(model), steps, sum(map(ord, model + data))])
    floor, height, _, layer, flops = MODELS.get(model, MODELS["mamba"])
    size = config["size"]
    scale = (size["d_model"] / 128) ** 2 * max(size["n_layers"], 1)
    floor = floor + loss_change + 0.006 * rng.standard_normal()
    length = config["data"]["length"]
    tokens, step_flops = 64 * length, 64 * length * flops * (size["d_model"] / 128) ** 2 * max(1, size["n_layers"]) / 4
    speed = step_flops / 4e12 * (1 + 0.1 * rng.random())

    def columns(at: np.ndarray, gap: float, noise: float) -> dict[str, np.ndarray]:
        loss = floor + gap + height * (1 + at / 12) ** -0.75 + noise * rng.standard_normal(len(at))
        return {"step": at, "tokens": at * tokens, "flops": at * step_flops, "seconds": at * speed, "loss": loss}

    train = columns(np.arange(log_every, steps + 1, log_every, dtype=float), -0.08, 0.03)
    validation = columns(np.arange(0, steps + 1, evaluate_every, dtype=float), 0.0, 0.002)
    end = float(validation["loss"][-1])
    positions = end + 0.7 * np.arange(1, length + 1) ** -0.6 + 0.01 * rng.standard_normal(length)
    summary = {
        "status": "completed",
        "model": model,
        "data": data,
        "seed": seed,
        "folder": f"outputs/{model}_{data}_{seed}",
        "parameters": int(8_320 + layer * scale),
        "parameters_without_embeddings": int(layer * scale),
        "state_bytes": 147_456,
        "scan_backend": "cpu" if model == "mamba" else None,
        "precision": "float32",
        "length": length,
        "data_fingerprint": "5e4999db7c5d",
        "device": "cpu",
        "device_name": "x86_64, 2 threads",
        "versions": {"python": "3.11", "torch": "2.9"},
        "git_commit": "0" * 40,
        "command": f"python train.py model={model} seed={seed}",
        "steps": steps,
        "tokens": steps * tokens,
        "flops": steps * step_flops,
        "seconds": steps * speed,
        "wall_seconds": steps * speed * 1.1,
        "tokens_per_second": tokens / speed,
        "peak_memory_bytes": 473_346_048,
        "stopped_early": False,
        "best_step": steps,
        "best_validation": {"loss": end, "perplexity": float(np.exp(end))},
        "test": {"loss": end + 0.13, "perplexity": float(np.exp(end + 0.13))},
        "test_loss_by_position": positions.tolist(),
    }
    told = crc32(repr((model, data, seed, sorted(changes.items(), key=str))).encode("utf-8", "replace"))
    folder = Path("outputs") / f"{seed}_{told:08x}"
    return Run(folder, config, summary, {"train": train, "validation": validation})


def first_comparison(seeds: Sequence[int] = (1, 2, 3)) -> list[Run]:
    """The seven models of the README."""
    return [made_run(model, seed=seed) for model in MODELS for seed in seeds]


def five_panel_sweep(seeds: Sequence[int] = (1, 2, 3)) -> list[Run]:
    """The published sweep: context, width, layers, heads and state size, each from one base setting."""
    changes = [("data.length", value) for value in (32, 64, 256, 512)]
    changes += [("size.d_model", value) for value in (32, 64, 256)]
    changes += [("size.n_layers", value) for value in (1, 2, 6)]
    runs = first_comparison(seeds)
    for model in ("mamba", "transformer", "self_attention"):
        own = [("model.mixers.mamba.d_state", value) for value in (8, 32, 64)] if model == "mamba" else []
        own += [("size.n_heads", value) for value in (1, 2, 8)] if model != "mamba" else []
        base = SIZE | {"n_layers": MODELS[model][2], "length": 128, "d_state": 16}
        for key, value in changes + own:
            name = key.split(".")[-1]
            if value == base[name]:
                continue
            better = -0.06 * np.log2(value / max(base[name], 1)) * (0.3 if name in ("d_state", "n_heads") else 1)
            runs += [made_run(model, seed=seed, loss_change=float(better), **{key: value}) for seed in seeds]
    return runs


Law = tuple[float, float, float]
"""E, a and C0 of a power law with an offset."""

LAWS: dict[str, Law] = {"mamba": (1.5, 0.3, 2e12), "lstm": (1.72, 0.45, 5e11)}
BUDGETS = (500, 2000, 8000, 32_000)


def at_law(flops: float, law: Law) -> float:
    """The loss of a power law."""
    offset, exponent, scale = law
    return offset + (flops / scale) ** -exponent


def budget_sweep(
    laws: dict[str, Law] = LAWS,
    *,
    noise: float = 0.003,
    budgets: Sequence[int] = BUDGETS,
    seeds: Sequence[int] = (1, 2, 3),
) -> list[Run]:
    """Models with several budgets whose losses follow a power law of their FLOPs, with a relative error."""
    runs = []
    for model, steps, seed in product(laws, budgets, seeds):
        run = made_run(model, seed=seed, steps=steps, evaluate_every=steps, log_every=steps, **{"trainer.steps": steps})
        error = np.exp(noise * np.random.default_rng([seed, steps, len(model)]).standard_normal())
        set_loss(run, error * at_law(run.summary["flops"], laws[model]))
        runs.append(run)
    return runs


def set_loss(run: Run, loss: float) -> None:
    """Give a run a test loss, and a validation loss of the same."""
    run.summary["test"]["loss"] = run.summary["best_validation"]["loss"] = loss


GRID = ((64, 4), (256, 16), (128, 8))
"""Lengths with their pairs, out of order."""


def grid_sweep(seeds: Sequence[int] = (1, 2), *, metric: str = "accuracy") -> list[Run]:
    """Two models over three data settings and three widths; the transformer solves all, mamba needs width for pairs."""
    runs = []
    for model, (length, pairs), width, seed in product(("transformer", "mamba"), GRID, (32, 64, 128), seeds):
        changes = {"data.length": length, "data.pairs": pairs, "size.d_model": width}
        change = {"loss_change": length / 1000 - width / 500, "trainer.batch_size": 32_768 // length}
        run = made_run(model, "mqar", seed, **changes, **change)
        solved = model == "transformer" or width >= 8 * pairs
        run.summary["test"][metric] = run.summary["best_validation"][metric] = 0.999 if solved else 0.1 + seed / 100
        runs.append(run)
    return runs


def place_of(run: Run) -> tuple[str, int, int]:
    """Where a run stands in the grid: model, length and width."""
    return run.summary["model"], run.config["data"]["length"], run.config["size"]["d_model"]


def probe_comparison(seeds: Sequence[int] = (1, 2, 3)) -> list[Run]:
    """Three models on a probe, one of which cannot take the longest sequences."""
    runs = []
    for place, model in enumerate(("mamba", "transformer", "self_attention")):
        for seed in seeds:
            run = made_run(model, "mqar", seed)
            run.summary.update(made_difficulties(place, seed))
            runs.append(run)
    return runs


def made_difficulties(place: int, seed: int) -> dict[str, Any]:
    """Accuracies that fall with the difficulty, the sooner the higher the model's place; a target on one of them."""

    def accuracy(difficulty: float) -> float:
        return float(np.clip(1.02 - 0.02 * (place + 1) * np.log2(difficulty) - 0.004 * seed, 0, 1))

    def row(difficulty: float) -> dict[str, float]:
        return {"loss": 1 - accuracy(difficulty), "accuracy": accuracy(difficulty)}

    tests = {f"length={n}": row(n) for n in (512, 4096, 2**20)}
    tests |= {f"length={n},pairs={k}": row(n) for n, k in ((128, 8), (1024, 64))}
    if place:
        tests["length=1048576"] = {"error": "memory=the GPU's: there is not enough."}
    value = tests["length=512"]["accuracy"]
    rule = {"at_least": 0.8, "published": 1.0}
    target = {"metric": "further_tests.length=512.accuracy", "rule": rule, "value": value, "reached": value >= 0.8}
    return {
        "test_slices": {"distance": {str(n): row(n) | {"count": 100} for n in (64, 8, 256)}, "pairs": {"4": row(4)}},
        "further_tests": tests,
        "targets": [target],
        "active_parameters": 100_000 + place,
    }
