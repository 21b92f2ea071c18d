"""The hyper-parameter search as a sweeper of Hydra's, which looks for plugins in this namespace alone."""

import importlib.util
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Settings are under ``hydra.sweeper``; ``seqlab.sweep.search.studies`` says what they mean and does the work."""

    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from seqlab.errors import UserError  # Hydra imports this file in every run

        if importlib.util.find_spec("optuna") is None:
            remedy = "Install it with pip install 'seqlab[search]'"
            raise UserError("search", "optuna", "Optuna is not installed", remedy)
        from seqlab.sweep.search.studies import search
        from seqlab.sweep.workers import check_workers

        check_workers(self.config)
        search(self, arguments)
