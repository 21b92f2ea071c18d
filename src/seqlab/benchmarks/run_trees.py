"""Run folders written without training, of any number and size.

    python scripts/run_trees.py /tmp/many --runs 1000 --steps 10000

writes a tree to measure ``scripts/compare.py`` on.
"""

import argparse
import copy
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TOKENS_PER_STEP = 256
MIXER = {"_target_": "seqlab.models.mixers.Mamba", "_partial_": True, "d_state": 16, "scan_backend": "auto"}


def config_of(model: str = "mamba", data: str = "synthetic", seed: int = 1, **settings: Any) -> dict[str, Any]:
    """A resolved configuration; ``settings`` are dotted keys, repeated in trainer and model as by interpolation."""
    config = {
        "name": model,
        "data_name": data,
        "seed": seed,
        "device": "auto",
        "size": {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 256},
        "data": {"_target_": "seqlab.data.synthetic.Regression", "length": 32, "seed": 0, "dir": None, "metrics": {}},
        "optimizer": {"_target_": "seqlab.training.optim.adamw", "lr": 0.001, "betas": [0.9, 0.95]},
        "trainer": {"_target_": "seqlab.training.TrainerConfig", "batch_size": 8, "steps": 100, "log_every": 1},
        "model": {"_target_": "seqlab.models.SequenceModel", "pattern": [model], "mixers": {model: dict(MIXER)}},
    }
    for key, value in settings.items():
        node = config
        *path, name = key.split(".")
        for step in path:
            node = node.setdefault(step, {})
        node[name] = value
    config["trainer"]["optimizer"] = copy.deepcopy(config["optimizer"])  # a list in both would become an anchor
    config["model"] |= {name: config["size"][name] for name in ("d_model", "n_layers")}
    return config


def summary_of(
    config: dict[str, Any], *, steps: int, loss: float, flops_per_step: int, **changes: Any
) -> dict[str, Any]:
    """A completed run's summary; ``loss`` is the test loss."""
    seconds = steps * flops_per_step * 1e-9
    summary = {
        "model": config["name"],
        "data": config["data_name"],
        "seed": config["seed"],
        "folder": "outputs/somewhere",
        "parameters": 8770,
        "parameters_without_embeddings": 8450,
        "scan_backend": "cpu" if config["name"].startswith("mamba") else None,
        "precision": "float32",
        "batch_size": 8,
        "length": 32,
        "data_description": f"{config['data_name']}: 2,048 + 512 + 512 samples of 32 positions",
        "data_fingerprint": "bc137cedff9a",
        "total_steps": steps,
        "flops_per_token": flops_per_step / TOKENS_PER_STEP,
        "device": "cpu",
        "device_name": "x86_64, 2 threads",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "triton": None, "seqlab": "0.1.0"},
        "git_commit": None,
        "command": "python train.py",
        "steps": steps,
        "samples": steps * 8,
        "tokens": steps * TOKENS_PER_STEP,
        "flops": steps * flops_per_step,
        "seconds": seconds,
        "wall_seconds": seconds * 1.25,
        "tokens_per_second": steps * TOKENS_PER_STEP / seconds,
        "peak_memory_bytes": 467451904,
        "skipped_steps": 0,
        "stopped_early": False,
        "best_step": steps,
        "best_validation_loss": loss + 0.01,
        "best_validation": {"loss": loss + 0.01, "perplexity": float(np.exp(loss + 0.01))},
        "test": {"loss": loss, "perplexity": float(np.exp(loss))},
        "test_loss_by_position": [loss + 1 / (1 + i) for i in range(32)],
        "status": "completed",
    }
    return summary | changes


def records_of(*, steps: int, loss: float, flops_per_step: int, evaluate_every: int, seed: int = 0) -> list[dict]:
    """Records of ``metrics.jsonl``: training losses fall with noise to ``loss``, validation losses without, 0.01 above.

    The last record is that of the test split.
    """
    noise = np.random.default_rng(seed).normal(scale=0.1, size=steps + 1)
    norms = np.random.default_rng(seed).random(steps + 1)

    def spent(step: int, split: str) -> dict[str, Any]:
        flops = step * flops_per_step
        return {"step": step, "split": split, "tokens": step * TOKENS_PER_STEP, "flops": flops, "seconds": flops * 1e-9}

    def fall(step: int) -> float:
        return loss + 2 * float(np.exp(-5 * step / steps)) - 2 * float(np.exp(-5))

    records = []
    for step in range(steps + 1):
        if step:
            rest = {"lr": 0.001 * (1 - step / (2 * steps)), "grad_norm": float(norms[step]), "skipped": 0}
            records.append(spent(step, "train") | {"loss": fall(step) + float(noise[step])} | rest)
        if step % evaluate_every == 0 or step == steps:
            value = fall(step) + 0.01
            records.append(spent(step, "validation") | {"loss": value, "perplexity": float(np.exp(value))})
    return [*records, spent(steps, "test") | {"loss": loss, "perplexity": float(np.exp(loss))}]


def to_lines(records: Iterable[dict[str, Any]]) -> str:
    """Records as the text of a JSON Lines file."""
    return "".join(json.dumps(record) + "\n" for record in records)


@lru_cache(maxsize=64)
def metrics_text(steps: int, loss: float, flops_per_step: int, evaluate_every: int, seed: int) -> str:
    """The text of ``metrics.jsonl`` for these losses; equal runs share it."""
    return to_lines(
        records_of(steps=steps, loss=loss, flops_per_step=flops_per_step, evaluate_every=evaluate_every, seed=seed)
    )


def write_run(
    folder: Path,
    *,
    model: str = "mamba",
    data: str = "synthetic",
    seed: int = 1,
    loss: float = 2.0,
    steps: int = 100,
    evaluate_every: int = 10,
    flops_per_step: int = 458752,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a completed run's folder; ``settings`` go into the configuration, ``changes`` into the summary."""
    config = config_of(model, data, seed, **{"trainer.steps": steps} | (settings or {}))
    folder.mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / "checkpoints").mkdir()
    (folder / "train.log").write_text("Step 10 of 10.\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    summary = summary_of(config, steps=steps, loss=loss, flops_per_step=flops_per_step, **changes)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "metrics.jsonl").write_text(metrics_text(steps, loss, flops_per_step, evaluate_every, seed))
    return folder


def write_many(folder: Path, *, runs: int, steps: int, seeds: int = 5, models: int = 10) -> None:
    """A sweep of models, learning rates and seeds. All runs share a few curves, so that writing them takes seconds."""
    (folder / "sweep").mkdir(parents=True)
    (folder / "sweep" / "multirun.yaml").write_text("hydra: {}\n")
    for i in range(runs):
        seed, model, rate = 1 + i % seeds, i // seeds % models, i // seeds // models
        write_run(
            folder / "sweep" / f"model={model},optimizer.lr={rate},seed={seed}",
            model=f"model{model}",
            seed=seed,
            loss=2.0 + 0.1 * model + 0.01 * seed,
            steps=steps,
            evaluate_every=max(1, steps // 100),
            settings={"optimizer.lr": 1e-4 * (1 + rate)},
            parameters=10_000 * (1 + model),
        )


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    write_many(arguments.folder, runs=arguments.runs, steps=arguments.steps)
