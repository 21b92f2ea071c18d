"""The resolvers of the interpolations in ``conf/`` that begin with ``seqlab.``, and the default sweeper.

What needs torch is imported where it is used, since every command line resolves some of these.
"""

from datetime import datetime

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import OmegaConf

from seqlab.config.options import describe_options, model_name, path_part
from seqlab.invocation import under_torchrun
from seqlab.sweep.naming import POINTS, job_folder, sweep_folder, varying_keys


def run_folder(resume: str | None, fresh: str) -> str:
    """The run folder: that which ``resume`` names, or that of the run which torchrun starts again, or a new one."""
    if resume is None:
        if not under_torchrun():
            return fresh
        from seqlab.runs.resume import begun_by_torchrun

        return begun_by_torchrun() or fresh
    from seqlab.runs.resume import folder_to_continue

    return folder_to_continue(resume)


def hydra_folder(resume: str | None) -> str:
    """The folder, in the run's, for Hydra's composed configuration; each command that resumes a run has its own."""
    return ".hydra" if resume is None else f".hydra/resumed_{datetime.now():%Y-%m-%d_%H-%M-%S}"


def console_level(mode: RunMode | None) -> str:
    """The log level of a job's messages on the screen; in a sweep, which shows a table, only warnings."""
    return "WARNING" if mode is RunMode.MULTIRUN else "INFO"


def share_of_cores(workers: int | None) -> int:
    """The number of CPU threads for each of several workers that share this process's."""
    from seqlab.runs.process import DEFAULT_THREADS

    return max(1, DEFAULT_THREADS // max(1, workers or 1))


def register() -> None:
    """Register the resolvers with OmegaConf, and the default sweeper with Hydra."""
    for resolver in (run_folder, path_part, model_name, console_level, describe_options, job_folder, share_of_cores):
        OmegaConf.register_new_resolver(f"seqlab.{resolver.__name__}", resolver, replace=True)
    # Cached with the configuration, as Hydra's own ``now`` is: every later reading gives what the first one gave.
    for resolver in (hydra_folder, sweep_folder, varying_keys):
        OmegaConf.register_new_resolver(f"seqlab.{resolver.__name__}", resolver, replace=True, use_cache=True)
    Plugins.instance()  # stores Hydra's own sweeper, once, and would take the name again if it came later
    node = {"_target_": POINTS, "points": None, "params": {}, "max_batch_size": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=node, provider="seqlab")
