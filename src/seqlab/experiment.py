"""From a configuration to a finished run: data, model, trainer, then what is left in the run folder."""

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from seqlab import summary as facts
from seqlab.config import check_all
from seqlab.console import output
from seqlab.errors import Diverged, Interrupted, UserError
from seqlab.resume import continued, keep, refuse_used_folder
from seqlab.training.loggers import MetricsFile, NoLogger
from seqlab.training.signals import StopRequest
from seqlab.training.trainer import Fit

ENDINGS = {Interrupted: "interrupted", KeyboardInterrupt: "interrupted", Diverged: "diverged"}


def choose_device(name: str) -> torch.device:
    """The device that a setting names; ``auto`` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device", name, "torch sees no CUDA device here", "Use device=auto or device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def begin_anew(seed: int) -> None:
    """Put back whatever an earlier job of the same process may have changed: chance, precision, caches, counters."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32)
    torch.backends.fp32_precision = "ieee"  # float32 is float32 for every model, in cuDNN too
    if "torch._inductor.compile_fx" in sys.modules:  # otherwise nothing was compiled, and resetting would import it
        torch.compiler.reset()
    facts.reset_peak_memory()


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
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    check_all(cfg)
    if cfg.resume is not None:
        if hydra.mode is RunMode.MULTIRUN:
            raise UserError("resume", cfg.resume, "continues one run and cannot be swept", "Leave out -m")
        cfg = continued(cfg, list(hydra.overrides.task))
        return execute(cfg, *prepare(cfg, folder, resume=True), folder)
    refuse_used_folder(folder)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    try:
        fit, logger = prepare(cfg, folder, resume=False)
    except Exception as error:
        known = {"model": cfg.name, "data": cfg.data_name, "seed": cfg.seed}
        facts.write(folder, known | {"status": "failed", "error": str(error)})
        raise
    return execute(cfg, fit, logger, folder)


def prepare(cfg: DictConfig, folder: Path, *, resume: bool) -> tuple[Fit, NoLogger]:
    """Build data, model and trainer, and start the logger; from here on the folder holds a run."""
    device = choose_device(cfg.device)
    begin_anew(cfg.seed)
    data = instantiate(cfg.data, _convert_="all")
    model = build_model(cfg, data, device)
    facts.scan_backend(model, device)  # one that cannot run is refused before anything else is done
    fit = Fit(instantiate(cfg.trainer, _convert_="all"), model, data, device=device, seed=cfg.seed, folder=folder)
    if resume:
        fit.restore()
    logger = instantiate(cfg.logger)
    logger.start(folder, OmegaConf.to_container(cfg), fit.counters.step)
    keep(cfg, folder)
    return fit, logger


def execute(cfg: DictConfig, fit: Fit, logger: NoLogger, folder: Path) -> float:
    """Run a prepared fit to its end, with ``summary.json`` telling its state at every moment."""
    summary = describe(cfg, fit, folder)
    facts.write(folder, summary | {"status": "running"})
    metrics_file = MetricsFile(folder / "metrics.jsonl", keep=fit.is_settled)
    status = "failed"

    def record(values: dict[str, Any]) -> None:
        metrics_file.log(values)
        logger.log(values)

    try:
        with StopRequest() as stop:
            fit.run(record, stop)
            test = fit.test()
        status = "completed"
    except BaseException as error:
        status = ENDINGS.get(type(error), "failed")
        facts.write(folder, summary | progress_of(fit) | {"status": status, "error": str(error)})
        raise
    finally:
        metrics_file.close()
        logger.close(status)
    results = {
        "best_validation": fit.counters.best_metrics,
        "test": test.metrics,
        "test_loss_by_position": test.loss_by_position,
    }
    summary |= progress_of(fit) | results | {"status": status}
    facts.write(folder, summary)
    output().print(facts.table(summary))
    return fit.counters.best_loss


def describe(cfg: DictConfig, fit: Fit, folder: Path) -> facts.Summary:
    """What is known of a run before it starts."""
    return (
        {"model": cfg.name, "data": cfg.data_name, "seed": cfg.seed, "folder": os.path.relpath(folder)}
        | facts.count_parameters(fit.model)
        | {
            "scan_backend": facts.scan_backend(fit.model, fit.device),
            "precision": fit.trainer.precision,
            "batch_size": fit.trainer.batch_size,
            "length": fit.data.length,
            "data_description": fit.data.description,
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
