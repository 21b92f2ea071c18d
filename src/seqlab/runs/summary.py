"""``summary.json``: facts and results of a run besides its metrics over time."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from seqlab.config.exceptions import message_of
from seqlab.errors import Diverged, Interrupted, NoResult, Pruned
from seqlab.jsonio import dump, finite, load
from seqlab.models import expert_load, state_bytes
from seqlab.models.counting import backends, count_parameters
from seqlab.runs import extra_tests
from seqlab.runs.environment import environment, peak_memory
from seqlab.training import checkpoint
from seqlab.training.evaluate import Evaluation
from seqlab.training.optim import decayed_share
from seqlab.training.trainer import Trainer

Summary = dict[str, Any]

STATUS = {
    Interrupted: "interrupted",
    KeyboardInterrupt: "interrupted",
    SystemExit: "interrupted",
    Diverged: "diverged",
    NoResult: "diverged",
    Pruned: "pruned",
}
"""The status of a run by the exception that ended it; ``failed`` by any other."""

OF_THE_STEPS = (
    *("device", "device_name", "versions", "git_commit", "command", "scan_backend", "experts_backend"),
    *("cuda_graph", "peak_memory_bytes"),
)
"""Facts of the machine and process that made a run's steps; they stay when a later process makes no step."""


def describe(cfg: DictConfig, trainer: Trainer, folder: Path) -> Summary:
    """The facts of a run before it starts."""
    return (
        {"model": cfg.name, "data": cfg.data_name, "seed": cfg.seed, "folder": os.path.relpath(folder)}
        | ({"matched": OmegaConf.to_container(cfg.matched)} if "matched" in cfg else {})
        | count_parameters(trainer.model)
        | {
            "trainable_parameters": sum(p.numel() for p in trainer.update.parameters),
            **backends(trainer.model, trainer.device),
            "processes": trainer.world.size,
            "precision": trainer.config.precision,
            "cuda_graph": trainer.cuda_graph,
            "decayed_share": decayed_share(trainer.update.optimizers),
            "batch_size": trainer.config.batch_size,
            "length": trainer.data.length,
            "state_carried": trainer.data.carries,
            "state_bytes": state_bytes(trainer.update.counted, trainer.data.length),
            "data_description": trainer.data.description,
            "data_fingerprint": trainer.data.fingerprint,
            "chance": trainer.data.chance,
            "total_steps": trainer.total,
            "evaluation_batches": trainer.config.evaluation_batches,
            "further_tests_left_out": extra_tests.left_out(trainer),
            "flops_per_token": trainer.flops_per_step / trainer.tokens_per_step,
        }
        | environment(trainer.device)
    )


def progress_of(trainer: Trainer) -> Summary:
    """What a run has spent (steps, samples, tokens, FLOPs, seconds, bytes) and its best validation loss so far.

    ``wall_seconds`` is all time from the first step, with validation, checkpoints and the test split. The time of
    further tests, which differs between models, is apart in ``further_seconds``.
    """
    counters = trainer.counters
    stop_reason = trainer.stop_reason if counters.step < trainer.total else None
    return {
        "steps": counters.step,
        "samples": counters.step * trainer.config.batch_size,
        **trainer.spent,
        "data_wait_share": counters.data_seconds / counters.seconds if counters.seconds else None,
        "wall_seconds": trainer.wall_seconds,
        "tokens_per_second": counters.steps_per_second and counters.steps_per_second * trainer.tokens_per_step,
        "peak_memory_bytes": peak_memory(trainer.device),
        "skipped_steps": counters.skipped,
        "stopped_early": stop_reason is not None,
        "stop_reason": stop_reason,
        "best_step": counters.best_step,
        "best_validation_loss": counters.best_loss,
    }


def results_of(trainer: Trainer, test: Evaluation) -> Summary:
    """The metrics of a run whose test split has been read, and whose further tests have not been made."""
    load = expert_load(trainer.model)
    return {
        "best_validation": trainer.counters.best_metrics,
        "test": test.metrics,
        "test_loss_by_position": test.loss_by_position,
        "test_slices": test.slices,
        "further_tests": {},
        "further_seconds": 0.0,
    } | ({} if load is None else {"expert_load": load._asdict()})


def ending_of(error: BaseException) -> Summary:
    """Status and message of a run that an exception ends."""
    return {"status": STATUS.get(type(error), "failed"), "error": message_of(error)}


@contextmanager
def failure_written(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """Write the error of a run that fails before its first step to its folder; a summary of earlier steps stays."""
    before = load(folder / "summary.json")
    try:
        yield
    except Exception as error:
        if not before.get("steps") and not checkpoint.existing(folder / "checkpoints"):
            known = {"model": cfg.name, "data": cfg.data_name, "seed": cfg.seed}
            write_ending(folder, before | known | {"status": "failed", "error": message_of(error)})
        raise


def write(folder: Path, summary: Summary) -> None:
    """Write ``summary.json``, whole or not at all."""
    dump(folder / "summary.json", without_nan(summary))


def write_ending(folder: Path, summary: Summary) -> None:
    """Write the summary of a run that failed; on a full disk at least the status, in the summary of before."""
    try:
        write(folder, summary)
    except OSError:
        with contextlib.suppress(OSError):
            overwrite_status(folder / "summary.json", summary["status"])


def overwrite_status(path: Path, status: str) -> None:
    """Change the status in a summary in place, which takes no space on the disk."""
    before = load(path)
    if not before:
        return
    content = (json.dumps(before | {"status": status}) + "\n").encode()
    if len(content) <= path.stat().st_size:  # always, since the indentation that is left out is longer than a status
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()


def without_nan(value: Any) -> Any:
    """A copy with ``None`` for numbers that are not finite, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return finite(value)
