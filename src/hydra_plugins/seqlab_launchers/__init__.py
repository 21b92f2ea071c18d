"""Hydra's launchers for this machine's GPUs, Ray and SLURM; Hydra looks for plugins in this namespace alone.

Each imports what it needs when it launches, since Hydra imports this file in every run.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from typing_extensions import override


class SweepLauncher(Launcher):
    """Settings are under ``hydra.launcher``; a module of ``seqlab.sweep.launchers`` explains and uses them."""

    def __init__(self, **settings: Any):
        self.settings = settings

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config


class LocalGpusLauncher(SweepLauncher):
    """``launcher=local_gpus``."""

    @override
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from seqlab.sweep.launchers import local_gpus

        return local_gpus.launch(self, job_overrides, initial_job_idx)


class RayLauncher(SweepLauncher):
    """``launcher=ray``."""

    @override
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from seqlab.sweep.launchers import on_ray

        return on_ray.launch(self, job_overrides, initial_job_idx)


class SlurmLauncher(SweepLauncher):
    """``launcher=slurm``."""

    @override
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from seqlab.sweep.launchers import on_slurm

        return on_slurm.launch(self, job_overrides, initial_job_idx)
