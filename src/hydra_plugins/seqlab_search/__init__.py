"""The hyper-parameter search as a sweeper of Hydra's, which looks for plugins in this namespace alone."""

import importlib.util
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class OptunaSweeper(BasicSweeper):
    """Settings are under ``hydra.sweeper``; ``seqlab.sweep.search.studies`` says what they mean and does the work."""

    def __init__(self, **settings: Any):
        super().__init__(settings["max_batch_size"], settings["params"])
        self.settings = settings

    def sweep(self, arguments: list[str]) -> None:
        from seqlab.errors import UserError  # Hydra imports this file in every run

        if importlib.util.find_spec("optuna") is None:
            remedy = "Install it with pip install 'seqlab[search]'"
            raise UserError("search", "optuna", "Optuna is not installed", remedy)
        from seqlab.sweep.search.studies import search
        from seqlab.sweep.workers import check_workers

        check_workers(self.config)
        search(self, arguments)
