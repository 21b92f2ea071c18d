"""From a configuration to a finished run: build data, model and trainer, fit, test, and write the results.

``run`` decides whether its folder holds a new run, one to continue or a completed one, ``prepare`` builds the parts,
``execute`` trains and tests. The folder then holds ``config.yaml``, ``metrics.jsonl``, ``summary.json`` and
``checkpoints/``.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from seqlab.config.exceptions import message_of
from seqlab.config.renamed import up_to_date
from seqlab.config.schema import check_all
from seqlab.config.without_effect import check_choice
from seqlab.data.protocol import DataSet
from seqlab.errors import NoResult, UserError, under
from seqlab.invocation import in_worker, processes
from seqlab.jsonio import load
from seqlab.match.overlay import matched
from seqlab.models.counting import backends
from seqlab.pretrained.start import checkpoint_for, with_architecture
from seqlab.runs import extra_tests, resume, targets
from seqlab.runs import summary as facts
from seqlab.runs.build import (
    build_data,
    build_model,
    build_trainer,
    choose_device,
    keep_tokenizer,
    with_base_model,
)
from seqlab.runs.lock import PATIENCE, only_process_in
from seqlab.runs.process import keep_memory, reset_global_state, take_share
from seqlab.runs.summary import Summary
from seqlab.training import meeting
from seqlab.training.evaluate import Evaluation
from seqlab.training.loggers import NoLogger
from seqlab.training.metrics_file import MetricsFile
from seqlab.training.parallel import ALONE, World, joined
from seqlab.training.schedule import check_fits
from seqlab.training.signals import StopRequest
from seqlab.training.trainer import Trainer

log = logging.getLogger(__name__)

Reporter = Callable[[int, int], Callable[[dict[str, Any]], None]]
"""Called with the steps between evaluations and the last step, returns what is called with each record of metrics."""


def run(cfg: DictConfig, reporter: Reporter | None = None) -> Summary:
    """Train, select on validation, test once; leave the results in the run folder.

    Args:
        cfg: composed by Hydra, whose own configuration is the job's.
        reporter: of metrics to a hyper-parameter search, which may raise ``Pruned``.

    Returns:
        The content of ``summary.json``.

    Raises:
        UserError: a setting, file or folder cannot be used.
        Diverged: the loss or gradient was not finite in too many steps.
        Interrupted: a signal asked the run to stop.
        Pruned: the search stopped the run.
    """
    hydra, cfg = HydraConfig.get(), up_to_date(cfg)
    folder, in_sweep = Path(hydra.runtime.output_dir), hydra.mode is RunMode.MULTIRUN
    with joined(*processes()) as world, only_process_in(folder, patience=PATIENCE if in_sweep else 0):
        done, data = None, None
        with world.agreed():
            again = not in_sweep and cfg.resume is None and resume.started_again(folder, world)
            if in_sweep or again:
                with facts.failure_written(cfg, folder):
                    check(cfg)
                if not (again or cfg.sweep.resume):
                    resume.refuse_used_folder(folder)
                cfg, data = settled(cfg, folder)
                done = resume.result_of(cfg, folder)
                if goes_on := not done and resume.can_go_on(folder):
                    cfg = resume.as_begun(cfg, folder)
            elif cfg.resume is not None:
                cfg = resume.continued(cfg, list(hydra.overrides.task))
                check(cfg)
                goes_on = not resume.never_began(folder)
            else:
                check(cfg)
                resume.refuse_used_folder(folder)
                meeting.remember(folder)
                goes_on = False
                cfg, data = settled(cfg, folder)
        if world.once(lambda: None if done else (cfg, folder, goes_on)) is None:  # ``follow`` is told
            return done
        trainer, logger = prepare(cfg, folder, data, goes_on=goes_on, world=world)
        return execute(cfg, trainer, logger, folder, reporter)


def follow() -> None:
    """Take part, in another process of torchrun than the first, in the run that the first one makes, and write nothing.

    Raises:
        Exception: as ``run``; those that the first process raises too, as well.
    """
    with joined(*processes()) as world, world.roll_call():
        with world.agreed():
            pass  # the first process reads the configuration and its run folder
        if (told := world.once(lambda: None)) is None:
            return  # the run has its result already
        cfg, folder, goes_on = told
        trainer = assembled(cfg, folder, None, goes_on=goes_on, world=world)
        with world.agreed():
            pass  # and writes to that
        with StopRequest(patient=True) as stop:
            trainer.run(lambda values: None, stop)
            refuse_no_result(trainer, trainer.test())
            extra_tests.measure(trainer)


def check(cfg: DictConfig) -> None:
    """Refuse a setting of a wrong name or type, and a target that could never be judged, before anything is built."""
    check_all(cfg)
    targets.check_targets(targets.targets_of(cfg), cfg.name)


def settled(cfg: DictConfig, folder: Path) -> tuple[DictConfig, DataSet | None]:
    """The resolved configuration, with ``match`` of adjusted width or steps, and the data if that needed them."""
    with facts.failure_written(cfg, folder):
        check_choice(cfg)
        cfg = with_architecture(cfg)
        data = build_data(cfg) if OmegaConf.select(cfg, "match") is not None else None
        cfg = with_base_model(matched(cfg, data))
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), data


def prepare(
    cfg: DictConfig, folder: Path, data: DataSet | None, *, goes_on: bool, world: World = ALONE
) -> tuple[Trainer, NoLogger]:
    """Build model and trainer, and the data unless given; start the logger and write ``config.yaml``.

    Args:
        cfg: resolved.
        folder: the run's.
        data: if it is built already.
        goes_on: continue from the newest checkpoint in the folder.
        world: the processes that train together.
    """
    with facts.failure_written(cfg, folder), world.roll_call():
        trainer = assembled(cfg, folder, data, goes_on=goes_on, world=world)
        trainer.origin = {"settings": resume.pinned(cfg), "data_fingerprint": trainer.data.fingerprint}
        with world.agreed():
            if goes_on:
                resume.refuse_empty_changes(cfg, folder, trainer)
            else:
                with under("schedule", cfg.schedule):
                    check_fits(trainer.config.schedule, trainer.total)
            logger = instantiate(cfg.logger)
            with under("logger", cfg.logger):
                logger.start(folder, OmegaConf.to_container(cfg), trainer.counters.step)
            resume.keep(cfg, folder)
            keep_tokenizer(trainer.data, folder)
        return trainer, logger


def assembled(cfg: DictConfig, folder: Path, data: DataSet | None, *, goes_on: bool, world: World) -> Trainer:
    """The trainer with its data, unless given, and its model, restored if the run goes on."""
    with world.agreed():
        device = choose_device(cfg.device)
        reset_global_state(cfg.seed)
        take_share(device, OmegaConf.select(cfg, "threads"))
        world.take(device)
        if device.type == "cpu":
            keep_memory()
    refuse_unlike(world, "device", device.type, "Start processes only where each has a GPU, or set device=cpu")
    with world.agreed(), world.one_goes_ahead():
        data = data or build_data(cfg, folder if goes_on else None)
        checkpoint = None if goes_on else checkpoint_for(cfg, data)
    refuse_unlike(world, "data", data.fingerprint, "Let data.dir be the same files everywhere")
    with world.agreed():
        if goes_on:
            world.once(lambda: resume.refuse_other_data(data, folder))
        targets.check_names(targets.targets_of(cfg), data, cfg.name)
        model = build_model(cfg, data, device)
        if checkpoint is not None:
            checkpoint.put_weights(model)
        with under("model", cfg.model):
            backends(model, device)  # refuses one that cannot run before anything else is done
    trainer = build_trainer(cfg, model, data, device=device, folder=folder, world=world)
    if world.rank:
        torch.manual_seed(cfg.seed + (world.rank << 32))  # the model was drawn alike by all; dropout is each one's own
    if goes_on:
        trainer.restore()
    world.wait_at_most(trainer.config.timeout)
    return trainer


def refuse_unlike(world: World, key: str, value: str, remedy: str) -> None:
    """Refuse a value that is not the same in all processes, as several machines may differ.

    Raises:
        UserError: it is not.
    """
    for rank, found in enumerate(world.gather(value)):
        if found != value:
            raise UserError(key, value, f"it is {found} in process {rank}, perhaps of another machine", remedy)


def execute(cfg: DictConfig, trainer: Trainer, logger: NoLogger, folder: Path, reporter: Reporter | None) -> Summary:
    """Train to the end of the budget and test; ``summary.json`` holds the run's state at every moment.

    The summary of a completed run stays as it is until a new step has been made.
    """
    before, first = load(folder / "summary.json"), trainer.counters.step
    completed = before.get("status") == "completed"
    summary = facts.describe(cfg, trainer, folder)
    if budgets := resume.earlier_budgets(folder, first, trainer.total, trainer.config.schedule):
        summary["earlier_budgets"] = budgets
    report = reporter(trainer.evaluate_every, trainer.total) if reporter else lambda values: None
    status = "failed"

    def record(values: dict[str, Any]) -> None:
        metrics_file.log(values)
        logger.log(values)
        report(values)

    try:
        if not (completed and trainer.is_over):
            facts.write(folder, summary | {"status": "running", "steps": first})
        kept = MetricsFile(folder / "metrics.jsonl", keep=trainer.counters.is_settled)
        stopping = StopRequest(patient=trainer.world.size > 1 or in_worker())
        with trainer.world.roll_call(), kept as metrics_file, stopping as stop:
            trainer.run(record, stop)
            test = trainer.test()
            summary |= facts.progress_of(trainer) | facts.results_of(trainer, test)
            if not completed or trainer.counters.step > first:
                facts.write(folder, summary | {"status": "running"})  # further tests may take long, and then fail
            refuse_no_result(trainer, test)
            began = time.perf_counter()
            summary["further_tests"] = extra_tests.measure(trainer)
            summary["further_seconds"] = time.perf_counter() - began if summary["further_tests"] else 0.0
        if completed and trainer.counters.step == first:
            summary |= {key: before[key] for key in facts.OF_THE_STEPS if key in before}
        summary |= {"targets": targets.judged(targets.targets_of(cfg), summary)}
        facts.write(folder, summary | {"status": "completed"})
        status = "completed"
    except BaseException as error:
        ending = facts.progress_of(trainer) | summary | facts.ending_of(error)
        status = ending["status"]
        facts.write_ending(folder, before if completed and trainer.counters.step == first else ending)
        raise
    finally:
        close(logger, status)
    return summary | {"status": status}


def close(logger: NoLogger, status: str) -> None:
    """Close the tracker. What it loses is in ``metrics.jsonl``, so a failure here does not fail the run."""
    try:
        logger.close(status)
    except Exception as error:
        if status == "completed":  # otherwise the reason that the run ended has been logged
            log.warning("The tracker was not closed in order: %s", message_of(error))


def refuse_no_result(trainer: Trainer, test: Evaluation) -> None:
    """Refuse the results of a run that measure no model.

    Raises:
        NoResult: a loss is not finite, or at least half of the updates were skipped.
    """
    counters, loss = trainer.counters, test.metrics["loss"]
    if math.isfinite(loss) and math.isfinite(counters.best_loss) and 2 * counters.hopeless <= counters.step:
        return
    raise NoResult(
        f"{counters.skipped} of {counters.step} updates were skipped for a loss or gradient that was not finite; "
        f"the best validation loss is {counters.best_loss:.4g}, the test loss {loss:.4g}: this run has no result.\n"
        "Lower optimizer.lr, lengthen schedule.warmup, or use trainer.precision=float32."
    )
