"""From a configuration to a finished run: data, model, trainer, then what is left in the run folder."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from seqlab import summary as facts
from seqlab.config import check, settings_for
from seqlab.console import output
from seqlab.errors import Diverged, Interrupted, UserError
from seqlab.training.loggers import MetricsFile
from seqlab.training.signals import StopRequest
from seqlab.training.trainer import Fit


def choose_device(name: str) -> torch.device:
    """The device that a setting names; ``auto`` is the GPU where there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError("device", name, "is no device", "Use device=auto, device=cpu or device=cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device", name, "torch sees no CUDA device here", "Use device=auto or device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Begin every source of chance anew, so that a job does not depend on those before it in the process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_model(cfg: DictConfig, data: Any, device: torch.device) -> nn.Module:
    """The configured model at the widths of the data, initialised on the CPU: the same weights on every device."""
    model = instantiate(
        cfg.model,
        tokens=data.tokens,
        d_input=data.d_input,
        d_output=data.d_output,
        max_length=data.length,
        _convert_="all",
    )
    return model.to(device)


def run(cfg: DictConfig) -> float:
    """Train, select on validation, test once; leave the results in the run folder.

    Returns:
        The best validation loss, which a hyper-parameter search may minimise.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    cfg = settings_for(cfg, list(HydraConfig.get().overrides.task))
    check(OmegaConf.to_container(cfg, resolve=True))
    OmegaConf.save(cfg, folder / "config.yaml")
    device = choose_device(cfg.device)
    seed_everything(cfg.seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with StopRequest() as stop:
        data = instantiate(cfg.data, _convert_="all")
        model = build_model(cfg, data, device)
        backend = facts.scan_backend(model, device)
        trainer = instantiate(cfg.trainer, _convert_="all")
        fit = Fit(trainer, model, data, device=device, seed=cfg.seed, folder=folder, stop=stop)
        if cfg.resume is not None:
            fit.restore()
        return execute(cfg, fit, folder, describe(cfg, fit, folder) | {"scan_backend": backend})


def execute(cfg: DictConfig, fit: Fit, folder: Path, summary: facts.Summary) -> float:
    """Run a prepared fit to its end, with ``summary.json`` telling its state at every moment."""
    logger = instantiate(cfg.logger)
    logger.start(folder, OmegaConf.to_container(cfg))
    metrics_file = MetricsFile(folder / "metrics.jsonl", keep=fit.is_settled)
    records = metrics_file.kept

    def record(values: dict[str, Any]) -> None:
        records.append(values)
        metrics_file.log(values)
        logger.log(values)

    facts.write(folder, summary | {"status": "running"})
    try:
        fit.run(record)
        test = fit.test()
    except BaseException as error:
        status = {Interrupted: "interrupted", Diverged: "diverged"}.get(type(error), "failed")
        facts.write(folder, summary | progress_of(fit) | {"status": status, "error": str(error)})
        raise
    finally:
        metrics_file.close()
        logger.close()
    best = next(r for r in records if r["split"] == "validation" and r["step"] == fit.counters.best_step)
    summary |= progress_of(fit) | {
        "status": "completed",
        "best_validation": {name: best[name] for name in test.metrics},
        "test": test.metrics,
        "test_loss_by_position": test.loss_by_position,
    }
    facts.write(folder, summary)
    output().print(facts.table(summary))
    return fit.counters.best_loss


def describe(cfg: DictConfig, fit: Fit, folder: Path) -> facts.Summary:
    """What is known of a run before it starts."""
    return (
        {"model": cfg.name, "data": cfg.data_name, "seed": cfg.seed, "folder": os.path.relpath(folder)}
        | facts.count_parameters(fit.model)
        | {
            "precision": fit.trainer.precision,
            "batch_size": fit.trainer.batch_size,
            "length": fit.data.length,
            "data_fingerprint": fit.data.fingerprint,
            "total_steps": fit.total,
            "flops_per_token": fit.flops_per_step / fit.tokens_per_step,
        }
        | facts.environment(fit.device)
    )


def progress_of(fit: Fit) -> facts.Summary:
    """What a run has spent and reached so far."""
    counters = fit.counters
    tokens = counters.step * fit.tokens_per_step
    return {
        "steps": counters.step,
        "samples": counters.step * fit.trainer.batch_size,
        "tokens": tokens,
        "flops": counters.step * fit.flops_per_step,
        "seconds": counters.seconds,
        "wall_seconds": fit.wall_seconds,
        "tokens_per_second": tokens / counters.seconds if counters.seconds else None,
        "peak_memory_bytes": facts.peak_memory(fit.device),
        "skipped_steps": counters.skipped,
        "stopped_early": fit.stopped_early,
        "best_step": counters.best_step,
        "best_validation_loss": counters.best_loss,
    }
