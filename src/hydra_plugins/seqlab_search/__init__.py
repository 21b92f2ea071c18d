"""Hydra's sweeper for hyper-parameter search; Hydra looks for plugins in this namespace alone."""

import importlib.util
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from typing_extensions import override


class OptunaSweeper(BasicSweeper):
    """Settings are under ``hydra.sweeper``; ``seqlab.sweep.search.studies`` explains and uses them."""

    def __init__(self, **settings: Any):
        super().__init__(settings["max_batch_size"], settings["params"])
        self.settings = settings

    @override
    def sweep(self, arguments: list[str]) -> None:
        from seqlab.errors import UserError  # Hydra imports this file in every run

        if importlib.util.find_spec("optuna") is None:
            remedy = "Install it with pip install 'seqlab[search]'"
            raise UserError("search", "optuna", "Optuna is not installed", remedy)
        from seqlab.sweep import stopping
        from seqlab.sweep.search.studies import search
        from seqlab.sweep.workers import check_workers

        check_workers(self.config)
        stopping.shield(self.launcher)
        search(self, arguments)
