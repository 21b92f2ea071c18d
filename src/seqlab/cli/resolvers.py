"""What the interpolations of ``conf/`` that begin with ``seqlab.`` mean.

What needs torch is imported where it is used, since every command line resolves some of these.
"""

from datetime import datetime

from hydra.types import RunMode
from omegaconf import OmegaConf

from seqlab.config.options import describe_options, path_part
from seqlab.sweep.naming import job_folder, sweep_folder, varying_keys


def run_folder(resume: str | None, fresh: str) -> str:
    """Where a run writes: its own new folder, or the one that it continues."""
    if resume is None:
        return fresh
    from seqlab.runs.resume import folder_to_continue

    return folder_to_continue(resume)


def hydra_folder(resume: str | None) -> str:
    """Where Hydra keeps what it composed; a resumed run adds to what the first one left."""
    return ".hydra" if resume is None else f".hydra/resumed_{datetime.now():%Y-%m-%d_%H-%M-%S}"


def console_level(mode: RunMode | None) -> str:
    """What a job says on the screen: in a sweep, whose screen shows all jobs, only what is amiss."""
    return "WARNING" if mode is RunMode.MULTIRUN else "INFO"


def share_of_cores(workers: int | None) -> int:
    """The threads of one of several workers that share what this process could use alone."""
    from seqlab.runs.process import DEFAULT_THREADS

    return max(1, DEFAULT_THREADS // max(1, workers or 1))


def register() -> None:
    """Make all of them known to OmegaConf."""
    for meaning in (run_folder, path_part, hydra_folder, console_level, describe_options, job_folder, share_of_cores):
        OmegaConf.register_new_resolver(f"seqlab.{meaning.__name__}", meaning, replace=True)
    # Cached with the configuration, as Hydra's own ``now`` is: every job of a sweep gets what the first reading gave.
    for meaning in (sweep_folder, varying_keys):
        OmegaConf.register_new_resolver(f"seqlab.{meaning.__name__}", meaning, replace=True, use_cache=True)


register()
