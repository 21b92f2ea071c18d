"""How many threads a job may have, and how many jobs may run side by side, before the machine stands still."""

from collections.abc import Sequence
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from seqlab.config.schema import cores
from seqlab.errors import UserError
from seqlab.sweep.orphans import LOCAL_PROCESSES

JOBS_ON_A_CORE = 8
"""A job that computes on a GPU leaves its core to others for most of the time; each takes some 0.5 GB of memory."""


def check_workers(config: DictConfig, batches: Sequence[Sequence[Any]] = ()) -> None:
    """Refuse a launcher's settings that would start more processes than the machine can take, or none.

    What a cluster runs is the cluster's to bound.

    Args:
        config: a sweep's, with ``hydra``.
        batches: the jobs of each, where these are known.

    Raises:
        UserError: with the setting that it is.
    """
    hydra, most = config.hydra, JOBS_ON_A_CORE * cores()
    size = hydra.sweeper.get("max_batch_size")
    if size is not None and (type(size) is not int or (size < 1 and size != -1)):
        rule = "is how many jobs are launched at a time, and a whole number of at least 1"
        raise UserError("hydra.sweeper.max_batch_size", size, rule, "Give it one, or null for all")
    workers = OmegaConf.select(hydra, "launcher.n_jobs")
    if workers == 0:
        rule = "is how many jobs run side by side, and none would"
        raise UserError(
            "hydra.launcher.n_jobs", workers, rule, "Give it the number of workers, or -1 for one on each core"
        )
    together = max(map(len, batches), default=size or 0)
    if hydra.launcher._target_ == LOCAL_PROCESSES and together > most:
        refuse_processes("hydra.sweeper.max_batch_size", size, together)
    if workers is not None and workers > most:
        refuse_processes("hydra.launcher.n_jobs", workers, workers)


def refuse_processes(key: str, value: int | None, together: int) -> NoReturn:
    machine = f"{cores()} cores, with room for {JOBS_ON_A_CORE} on each"
    rule = f"{together} processes would run side by side, and this machine has {machine}"
    raise UserError(key, value, rule, f"Give it {JOBS_ON_A_CORE * cores()} or fewer")
