"""From a configuration to a finished run: data, model, trainer, then what is left in the run folder."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from seqlab.config.exceptions import message_of
from seqlab.config.renamed import up_to_date
from seqlab.config.schema import check_all
from seqlab.config.without_effect import check_choice
from seqlab.data.protocol import DataSet
from seqlab.errors import Diverged, Interrupted, NoResult, Pruned, UserError, under
from seqlab.jsonio import load
from seqlab.match.overlay import matched
from seqlab.models import expert_load, state_bytes
from seqlab.models.counting import backends, count_parameters
from seqlab.runs import extra_tests, targets
from seqlab.runs import summary as facts
from seqlab.runs.build import build_data, build_model, build_trainer, choose_device
from seqlab.runs.lock import PATIENCE, only_process_in
from seqlab.runs.process import reset_global_state, take_share
from seqlab.runs.resume import (
    as_begun,
    can_go_on,
    continued,
    earlier_budgets,
    keep,
    never_began,
    pinned,
    refuse_empty_changes,
    refuse_other_data,
    refuse_used_folder,
    result_of,
)
from seqlab.training import checkpoint
from seqlab.training.evaluate import Evaluation
from seqlab.training.loggers import NoLogger
from seqlab.training.metrics_file import MetricsFile
from seqlab.training.optim import decayed_share
from seqlab.training.schedule import check_fits
from seqlab.training.signals import StopRequest
from seqlab.training.trainer import Trainer

log = logging.getLogger(__name__)

Summary = facts.Summary
Reporter = Callable[[int, int], Callable[[dict[str, Any]], None]]


def no_reporter(evaluate_every: int, total: int) -> Callable[[dict[str, Any]], None]:
    """The reporter of a run that nobody waits for while it trains."""
    return lambda record: None


ENDINGS = {
    Interrupted: "interrupted",
    KeyboardInterrupt: "interrupted",
    Diverged: "diverged",
    NoResult: "diverged",
    Pruned: "pruned",
}

OF_THE_STEPS = (
    *("device", "device_name", "versions", "git_commit", "command", "scan_backend", "experts_backend"),
    *("cuda_graph", "peak_memory_bytes"),
)
"""Facts of the machine and process that made a run's steps, which one that makes none leaves as they are."""


def run(cfg: DictConfig, reporter: Reporter = no_reporter) -> Summary:
    """Train, select on validation, test once; leave the results in the run folder.

    Args:
        cfg: composed by Hydra, whose own configuration is the job's.
        reporter: given the steps between evaluations and the last step, what is called with each record of metrics; it
            may raise ``Pruned``.

    Returns:
        What ``summary.json`` holds of the run when it is completed.
    """
    hydra, cfg = HydraConfig.get(), up_to_date(cfg)
    folder = Path(hydra.runtime.output_dir)
    in_sweep = hydra.mode is RunMode.MULTIRUN
    with only_process_in(folder, patience=PATIENCE if in_sweep else 0):
        if in_sweep:
            return run_in_sweep(cfg, folder, reporter)
        resume = cfg.resume is not None
        if resume:
            cfg, data = continued(cfg, list(hydra.overrides.task)), None
            check(cfg)
            resume = not never_began(folder)
        else:
            check(cfg)
            refuse_used_folder(folder)
            cfg, data = settled(cfg, folder)
        return execute(cfg, *prepare(cfg, folder, data, resume=resume), folder, reporter)


def run_in_sweep(cfg: DictConfig, folder: Path, reporter: Reporter) -> Summary:
    """One job of a sweep: nothing is left to do where an earlier sweep completed it, and the rest where it was cut off.

    One that diverged has its result too, and would diverge again.
    """
    with cannot_begin(cfg, folder):
        check(cfg)
    if cfg.resume is not None:
        raise UserError("resume", cfg.resume, "continues one run and cannot be swept", "Leave out -m")
    if not cfg.sweep.resume:
        refuse_used_folder(folder)
    cfg, data = settled(cfg, folder)
    if done := result_of(cfg, folder):
        return done
    if resume := can_go_on(folder):
        cfg = as_begun(cfg, folder)
    return execute(cfg, *prepare(cfg, folder, data, resume=resume), folder, reporter)


def check(cfg: DictConfig) -> None:
    """Refuse a setting of a wrong name or type, and a target that could never be judged, before anything is built."""
    check_all(cfg)
    targets.check_targets(targets_of(cfg), cfg.name)


def settled(cfg: DictConfig, folder: Path) -> tuple[DictConfig, DataSet | None]:
    """The configuration with nothing left to choose: what the machine and other settings give it is filled in.

    With it the data, where they had to be built for that.
    """
    with cannot_begin(cfg, folder):
        check_choice(cfg)
        data = build_data(cfg) if cfg.get("match") is not None else None
        return OmegaConf.create(OmegaConf.to_container(matched(cfg, data), resolve=True)), data


@contextmanager
def cannot_begin(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """A run that fails here says why in its folder, unless that tells of steps that were made."""
    before = load(folder / "summary.json")
    try:
        yield
    except Exception as error:
        if not before.get("steps") and not checkpoint.existing(folder / "checkpoints"):
            known = {"model": cfg.name, "data": cfg.data_name, "seed": cfg.seed}
            facts.write_ending(folder, before | known | {"status": "failed", "error": message_of(error)})
        raise


def prepare(cfg: DictConfig, folder: Path, data: DataSet | None, *, resume: bool) -> tuple[Trainer, NoLogger]:
    """Build model and trainer, and the data unless they are there; start the logger. The folder then holds a run."""
    with cannot_begin(cfg, folder):
        device = choose_device(cfg.device)
        reset_global_state(cfg.seed)
        take_share(device, cfg.get("threads"))
        data = data or build_data(cfg)
        if resume:
            refuse_other_data(data, folder)
        targets.check_names(targets_of(cfg), data, cfg.name)
        model = build_model(cfg, data, device)
        with under("model", cfg.model):
            backends(model, device)  # one that cannot run is refused before anything else is done
        trainer = build_trainer(cfg, model, data, device=device, folder=folder)
        trainer.origin = {"settings": pinned(cfg), "data_fingerprint": data.fingerprint}
        if resume:
            trainer.restore()
            refuse_empty_changes(cfg, folder, trainer)
        else:
            with under("schedule", cfg.schedule):
                check_fits(trainer.config.schedule, trainer.total)
        logger = instantiate(cfg.logger)
        with under("logger", cfg.logger):
            logger.start(folder, OmegaConf.to_container(cfg), trainer.counters.step)
        keep(cfg, folder)
        return trainer, logger


def execute(cfg: DictConfig, trainer: Trainer, logger: NoLogger, folder: Path, reporter: Reporter) -> Summary:
    """Run a prepared trainer to its end, with ``summary.json`` telling its state at every moment.

    That of a completed run stays as it is while nothing new has been reached.
    """
    before, first = load(folder / "summary.json"), trainer.counters.step
    completed = before.get("status") == "completed"
    summary = describe(cfg, trainer, folder)
    if budgets := earlier_budgets(folder, trainer.counters.step, trainer.total, trainer.config.schedule):
        summary["earlier_budgets"] = budgets
    report = reporter(trainer.evaluate_every, trainer.total)
    status = "failed"

    def record(values: dict[str, Any]) -> None:
        metrics_file.log(values)
        logger.log(values)
        report(values)

    try:
        if not (completed and trainer.is_over):
            facts.write(folder, summary | {"status": "running", "steps": first})
        with MetricsFile(folder / "metrics.jsonl", keep=trainer.is_settled) as metrics_file, StopRequest() as stop:
            trainer.run(record, stop)
            test = trainer.test()
            summary |= progress_of(trainer) | results_of(trainer, test)
            if not completed or trainer.counters.step > first:
                facts.write(folder, summary | {"status": "running"})  # further tests may take long, and then fail
            refuse_no_result(trainer, test)
            began = time.perf_counter()
            summary["further_tests"] = extra_tests.measure(trainer)
            summary["further_seconds"] = time.perf_counter() - began if summary["further_tests"] else 0.0
        if completed and trainer.counters.step == first:
            summary |= {key: before[key] for key in OF_THE_STEPS if key in before}
        summary |= {"targets": targets.judged(targets_of(cfg), summary)}
        facts.write(folder, summary | {"status": "completed"})
        status = "completed"
    except BaseException as error:
        status = ENDINGS.get(type(error), "failed")
        ending = progress_of(trainer) | summary | {"status": status, "error": message_of(error)}
        facts.write_ending(folder, before if completed and trainer.counters.step == first else ending)
        raise
    finally:
        close(logger, status)
    return summary | {"status": status}


def close(logger: NoLogger, status: str) -> None:
    """Close the tracker. What it cannot take any more is in ``metrics.jsonl``, and what ended a run is said already."""
    try:
        logger.close(status)
    except Exception as error:
        if status == "completed":
            log.warning("The tracker was not closed in order: %s", message_of(error))


def refuse_no_result(trainer: Trainer, test: Evaluation) -> None:
    """Raise NoResult where a loss is not finite, or most updates were thrown away: neither measures a model."""
    counters, loss = trainer.counters, test.metrics["loss"]
    if math.isfinite(loss) and math.isfinite(counters.best_loss) and 2 * counters.hopeless <= counters.step:
        return
    raise NoResult(
        f"{counters.skipped} of {counters.step} updates were skipped for a loss or gradient that was not finite; "
        f"the best validation loss is {counters.best_loss:.4g}, the test loss {loss:.4g}: this run has no result.\n"
        "Lower optimizer.lr, lengthen schedule.warmup, or use trainer.precision=float32."
    )


def results_of(trainer: Trainer, test: Evaluation) -> Summary:
    """What a run has reached when its test split has been read, and its further tests have not."""
    load = expert_load(trainer.model)
    return {
        "best_validation": trainer.counters.best_metrics,
        "test": test.metrics,
        "test_loss_by_position": test.loss_by_position,
        "test_slices": test.slices,
        "further_tests": {},
        "further_seconds": 0.0,
    } | ({} if load is None else {"expert_load": load._asdict()})


def targets_of(cfg: DictConfig) -> dict[str, Any] | None:
    """The figures to reach; the configuration of an older run has none."""
    return OmegaConf.to_container(cfg.target) if cfg.get("target") is not None else None


def describe(cfg: DictConfig, trainer: Trainer, folder: Path) -> Summary:
    """What is known of a run before it starts."""
    return (
        {"model": cfg.name, "data": cfg.data_name, "seed": cfg.seed, "folder": os.path.relpath(folder)}
        | ({"matched": OmegaConf.to_container(cfg.matched)} if "matched" in cfg else {})
        | count_parameters(trainer.model)
        | {
            **backends(trainer.model, trainer.device),
            "precision": trainer.config.precision,
            "cuda_graph": trainer.cuda_graph,
            "decayed_share": decayed_share(trainer.update.optimizers),
            "batch_size": trainer.config.batch_size,
            "length": trainer.data.length,
            "state_bytes": state_bytes(trainer.model, trainer.data.length),
            "data_description": trainer.data.description,
            "data_fingerprint": trainer.data.fingerprint,
            "chance": trainer.data.chance,
            "total_steps": trainer.total,
            "evaluation_batches": trainer.config.evaluation_batches,
            "further_tests_left_out": extra_tests.left_out(trainer),
            "flops_per_token": trainer.flops_per_step / trainer.tokens_per_step,
        }
        | facts.environment(trainer.device)
    )


def progress_of(trainer: Trainer) -> Summary:
    """What a run has spent and reached so far.

    ``wall_seconds`` is all time from the first step, with validation, checkpoints and the test split; time of further
    tests, which ask more of one model than of another, is in ``further_seconds``.
    """
    counters = trainer.counters
    tokens = counters.step * trainer.tokens_per_step
    stop_reason = trainer.stop_reason if counters.step < trainer.total else None
    return {
        "steps": counters.step,
        "samples": counters.step * trainer.config.batch_size,
        "tokens": tokens,
        "flops": counters.step * trainer.flops_per_step,
        "seconds": counters.seconds,
        "data_wait_share": counters.data_seconds / counters.seconds if counters.seconds else None,
        "wall_seconds": trainer.wall_seconds,
        "tokens_per_second": counters.steps_per_second and counters.steps_per_second * trainer.tokens_per_step,
        "peak_memory_bytes": facts.peak_memory(trainer.device),
        "skipped_steps": counters.skipped,
        "stopped_early": stop_reason is not None,
        "stop_reason": stop_reason,
        "best_step": counters.best_step,
        "best_validation_loss": counters.best_loss,
    }
