"""Bounds on how many jobs a launcher runs side by side, so that they do not exhaust the machine's memory."""

from omegaconf import DictConfig, OmegaConf

from seqlab.config.schema import cores
from seqlab.errors import UserError
from seqlab.sweep.orphans import LOCAL_PROCESSES

JOBS_ON_A_CORE = 8
"""A job that computes on a GPU leaves its core to others for most of the time; each takes some 0.5 GB of memory."""


def check_workers(config: DictConfig, jobs: int = 0) -> None:
    """Refuse a launcher's settings that would start more processes than the machine can take, or none.

    What a cluster runs is the cluster's to bound.

    Args:
        config: a sweep's, with ``hydra``.
        jobs: how many the sweep has, where that is known.

    Raises:
        UserError: with the setting that it is.
    """
    hydra, most = config.hydra, JOBS_ON_A_CORE * cores()
    size, workers = hydra.sweeper.get("max_batch_size"), OmegaConf.select(hydra, "launcher.n_jobs")
    if size is not None and (type(size) is not int or (size < 1 and size != -1)):
        rule = "is how many jobs are launched at a time, and a whole number of at least 1"
        raise UserError("hydra.sweeper.max_batch_size", size, rule, "Give it one, or null for all")
    if workers == 0:
        remedy = "Give it the number of workers, or -1 for one on each core"
        raise UserError("hydra.launcher.n_jobs", workers, "is how many jobs run side by side, and none would", remedy)
    processes = {("hydra.launcher.n_jobs", workers): workers or 0}
    if hydra.launcher._target_ == LOCAL_PROCESSES:  # which starts one for every job of a batch
        processes["hydra.sweeper.max_batch_size", size] = jobs if size in (None, -1) else size
    for (key, value), number in processes.items():
        if number > most:
            machine = f"{cores()} cores, with room for {JOBS_ON_A_CORE} on each"
            rule = f"{number} processes would run side by side, and this machine has {machine}"
            raise UserError(key, value, rule, f"Give it {most} or fewer")
